"""The partition and split of the paper's code, against numbers from the libraries that it uses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import opened
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.data.division.blossom_code import reference_splits
from blossom_ray.data.division.federation import build_federation
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.targets import Targets

# Samples of each activity in the official training part of UCI-HAR, in label order, and the ten client sizes that
# PAPER.md gives for them.
UCI_HAR_COUNTS = (1226, 1073, 986, 1286, 1374, 1407)
UCI_HAR_SIZES = [155, 173, 455, 496, 532, 557, 865, 1001, 1370, 1748]
# 200 labels of four classes that first appear in label order.
LABELS = np.array([0, 1, 2, 3, *np.random.default_rng(0).integers(0, 4, 196)])


def section(partition: dict[str, Any], **changes: Any) -> SyntheticData:
    tree = {"dataset": "synthetic", "partition": partition, "draws": "reference", "test_fraction": 0.3}
    return SyntheticData.model_validate(tree | changes)


def by_counts(counts: tuple[int, ...]) -> Targets:
    return Targets(np.repeat(np.arange(len(counts)), counts), len(counts))


def test_the_ten_client_sizes_of_uci_har() -> None:
    splits = reference_splits(section({"kind": "dirichlet"}), by_counts(UCI_HAR_COUNTS), 10, seed=0)
    assert sorted(len(split.train) + len(split.test) for split in splits) == UCI_HAR_SIZES


@pytest.mark.data
def test_the_ten_client_sizes_from_the_official_archive(uci_har_zip: Path) -> None:
    targets = opened("uci-har", uci_har_zip, modalities=("acc", "gyro")).targets()
    federation = build_federation(section({"kind": "dirichlet"}), targets, 10, seed=5)
    assert sorted((federation.train.counts + federation.test.counts).tolist()) == UCI_HAR_SIZES
    assert (federation.test.counts == (0.3 * (federation.train.counts + federation.test.counts)).astype(int)).all()


@pytest.mark.parametrize(
    ("partition", "num_clients", "expected"),
    [
        # flwr-datasets 0.5.0 with datasets 3.1.0, seed 42, then torch.randperm: training rows, their sum, the sum of
        # the test rows. The first Dirichlet draw leaves a part with fewer than ten rows, so the second one counts.
        (
            {"kind": "dirichlet", "alpha": 0.5},
            5,
            [(10, 1164, 271), (17, 1477, 579), (23, 2079, 1042), (28, 2529, 1228), (65, 6997, 2534)],
        ),
        (
            {"kind": "iid"},
            7,
            [
                (20, 1838, 932),
                (20, 2047, 552),
                (20, 2098, 632),
                (21, 1988, 492),
                (21, 2063, 609),
                (21, 2383, 1039),
                (21, 2526, 701),
            ],
        ),
    ],
    ids=["dirichlet", "iid"],
)
def test_rows_are_those_of_the_libraries(
    partition: dict[str, Any], num_clients: int, expected: list[tuple[int, int, int]]
) -> None:
    splits = reference_splits(section(partition), Targets(LABELS, 4), num_clients, seed=0)
    assert sorted((len(train), int(train.sum()), int(test.sum())) for train, _, test in splits) == expected


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from(["iid", "dirichlet"]), st.integers(1, 6))
def test_the_seed_matches_parts_to_clients_and_draws_nothing_else(seed: int, kind: str, num_clients: int) -> None:
    targets = by_counts((60, 50, 40))
    splits = reference_splits(section({"kind": kind}), targets, num_clients, seed)
    rows = np.concatenate([part for split in splits for part in split])
    np.testing.assert_array_equal(np.sort(rows), np.arange(150))
    others = reference_splits(section({"kind": kind}), targets, num_clients, seed + 1)
    assert sorted(split.train.tobytes() for split in splits) == sorted(split.train.tobytes() for split in others)


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(PartitionError, match=r"data.partition.alpha is 0.01, which leaves a client with \d samples"):
        reference_splits(section({"kind": "dirichlet", "alpha": 0.01}), by_counts((40, 40)), 8, seed=0)
    with pytest.raises(
        PartitionError, match=r"data.test_fraction is 0.3, which leaves a client with 3 samples without"
    ):
        reference_splits(section({"kind": "iid"}), by_counts((15, 15)), 10, seed=0)
    with pytest.raises(PartitionError, match=r"data.partition.kind is 'subject', which the reference's code"):
        reference_splits(section({"kind": "subject"}), by_counts((15, 15)), 3, seed=0)
