from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import opened, synthetic_targets

from blossom_ray.core.scores import LearnedTask
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.options import ClientGroup
from blossom_ray.data.division.split import Split
from blossom_ray.data.federated import FederatedDataset
from blossom_ray.data.options import Data, examine_federation
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.sets.uci_har import UciHarData
from blossom_ray.data.targets import Targets

OFFICIAL = Path(__file__).parents[3] / "shared/data/UCI-HAR/UCI HAR Dataset.zip"


def spec_of(**values: Any) -> SyntheticData:
    return SyntheticData.model_validate({"dataset": "synthetic", **values})


def problems_of(data: Data, num_clients: int) -> list[tuple[str, str, str]]:
    groups = (ClientGroup(count=num_clients, modalities=("acc",)),)
    found = examine_federation(FederatedDataset(data, ("acc",), groups, 0, {"": LearnedTask()}))
    assert not found.notes
    return found.problems


def test_every_row_belongs_to_one_client_and_one_side() -> None:
    spec = spec_of(samples=403, partition={"kind": "dirichlet", "alpha": 0.5})
    federation = build_federation(spec, synthetic_targets(spec, 0), 7, 0)
    assert federation.num_clients == 7
    rows = [federation.train.of(k).tolist() + federation.test.of(k).tolist() for k in range(7)]
    assert sorted(row for own in rows for row in own) == list(range(403))
    assert federation.train.counts.tolist() == [len(federation.train.of(k)) for k in range(7)]
    assert federation.test.counts.tolist() == [len(federation.test.of(k)) for k in range(7)]
    assert federation.test.counts.tolist() == [int(0.3 * len(own) + 1e-9) for own in rows]


def test_validation_rows_change_no_test_row_and_come_from_training() -> None:
    plain, three = spec_of(samples=403), spec_of(samples=403, validation_fraction=0.1)
    without, federation = (build_federation(spec, synthetic_targets(spec, 0), 7, 0) for spec in (plain, three))
    assert without.validation.counts.tolist() == [0] * 7
    assert federation.validation.counts.tolist() == [int(0.1 * len(federation.rows(k)) + 1e-9) for k in range(7)]
    assert np.array_equal(federation.test.flat, without.test.flat)
    assert federation.num_samples == without.num_samples == 403
    for k in range(7):
        assert sorted([*federation.train.of(k), *federation.validation.of(k)]) == without.train.of(k).tolist()
    assert federation.digest() != without.digest()


def test_rows_of_all_clients_are_those_of_each() -> None:
    rows = [([4, 9], [1], [0]), ([2], [], [8]), ([5], [3, 6], [7])]
    federation = Federation.of([Split(*(np.array(part, np.int64) for part in own)) for own in rows])
    found, owners = federation.all_rows()
    assert found.tolist() == [4, 9, 1, 0, 2, 8, 5, 3, 6, 7]
    assert owners.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_without_validation_rows_the_digest_is_what_it_was() -> None:
    """SHA-256 over the two parts and their ends, as runs have it that know no validation split."""
    spec = spec_of(samples=100)
    federation = build_federation(spec, synthetic_targets(spec, 0), 5, 0)
    digest = hashlib.sha256()
    for rows in (federation.train.flat, federation.train.ends, federation.test.flat, federation.test.ends):
        digest.update(rows.astype("<i8").tobytes())
    assert federation.digest() == digest.hexdigest()


def test_no_object_per_client() -> None:
    spec = spec_of(samples=1000)
    federation = build_federation(spec, synthetic_targets(spec, 0), 10, 0)
    assert federation.train.flat.shape == (700,)
    assert federation.test.flat.shape == (300,)
    assert federation.train.ends.tolist() == list(range(0, 701, 70))
    assert federation.train.of(3).base is federation.train.flat


def test_the_federation_depends_on_the_seed() -> None:
    spec = spec_of(samples=100)
    targets = synthetic_targets(spec, 0)
    first, again, other = (build_federation(spec, targets, 5, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train.flat, again.train.flat)
    assert np.array_equal(first.test.flat, again.test.flat)
    assert not np.array_equal(first.train.flat, other.train.flat)


def test_no_problems() -> None:
    assert problems_of(spec_of(), 10) == []


def test_problems_of_the_partition_have_its_path() -> None:
    spec = spec_of(samples=40, partition={"kind": "dirichlet"})
    assert problems_of(spec, 10) == [
        (
            "data.partition.min_samples",
            "is 10, which 40 samples over 10 clients cannot give",
            "at most 4, or fewer clients",
        )
    ]


def test_problems_of_the_split_have_its_path() -> None:
    spec = spec_of(split="subject", subjects=10, partition={"kind": "subject"})
    assert problems_of(spec, 10) == [
        (
            "data.split",
            "is 'subject', but client 0 has samples of one subject alone",
            "'sample', or at least two subjects per client",
        )
    ]


def test_problems_of_files_stand_at_the_path(tmp_path: Path) -> None:
    expected = "the official 'UCI HAR Dataset.zip' or its unpacked folder"
    missing = str(tmp_path / "har.zip")
    ((path, found, accepted),) = problems_of(UciHarData(dataset="uci-har", path=missing), 2)
    assert (path, accepted) == ("data.path", expected)
    assert found.startswith(f"is {missing!r}, which cannot be used (")
    assert "does not exist" in found
    assert problems_of(UciHarData(dataset="uci-har"), 2) == [("data.path", "is missing", expected)]


def test_problems_of_own_data_stand_at_data() -> None:
    data = CustomData(dataset="custom", factory="no_such_module_here:make")
    ((path, found, _),) = problems_of(data, 2)
    assert path == "data"
    assert "there is no module 'no_such_module_here'" in found


def test_ten_thousand_clients() -> None:
    targets = Targets(np.arange(100_000) % 5, 5)
    federation = build_federation(spec_of(), targets, 10_000, 0)
    assert federation.train.counts.tolist() == [7] * 10_000


@pytest.mark.data
def test_subjects_of_uci_har_do_not_cross_sides() -> None:
    if not OFFICIAL.is_file():
        pytest.skip(f"the official archive is not at {OFFICIAL}")
    data = UciHarData.model_validate(
        {"dataset": "uci-har", "path": str(OFFICIAL), "partition": {"kind": "subject"}, "split": "subject"}
    )
    targets = opened("uci-har", OFFICIAL).targets()
    assert targets.subjects is not None
    federation = build_federation(data, targets, 5, 0)
    seen: list[int] = []
    for client in range(5):
        train, test = (
            set(targets.subjects[rows].tolist()) for rows in (federation.train.of(client), federation.test.of(client))
        )
        assert not train & test
        seen += [*train, *test]
    assert len(seen) == len(set(seen)) == 21
