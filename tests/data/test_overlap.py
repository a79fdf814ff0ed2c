"""Test windows that overlap training windows: by hand, and of the official UCI-HAR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import opened

from blossom_ray.data.division.federation import Federation, Overlap, build_federation
from blossom_ray.data.division.split import Split
from blossom_ray.data.sets.uci_har import UciHarData
from blossom_ray.data.targets import Pieces, Targets

OFFICIAL = Path(__file__).parents[3] / "shared/data/UCI-HAR/UCI HAR Dataset.zip"


def federation(*clients: tuple[list[int], list[int], list[int]]) -> Federation:
    return Federation.of([Split(*(np.array(rows, np.int64) for rows in client)) for client in clients])


def test_neighbours_by_hand() -> None:
    """Recordings of rows 0 to 3 and 4 to 7. Row 1 has its own client's row 0 beside it, row 4 another one's row 5; rows
    3 and 4 are of two recordings, so are no neighbours; row 7 has a validation row beside it alone."""
    pieces = Pieces(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.5)
    found = federation(([0, 3], [6], [1, 4]), ([5], [], [7, 2])).overlap(pieces)
    assert found == Overlap(of_any=3 / 4, of_own=1 / 4, part=0.5)
    assert str(found) == (
        "75 % of test windows have half of their steps in common with a training window of some client (25 % with one "
        "of their own client), so test scores are optimistic; data.split: recording or common-subject keeps them apart"
    )


def test_no_overlap() -> None:
    apart = federation(([0, 1], [], [2, 3]))
    for pieces in (Pieces(np.array([0, 0, 1, 1]), 0.5), Pieces(np.zeros(4, np.int64)), None):
        assert apart.overlap(pieces) is None


@pytest.fixture(scope="module")
def targets() -> Targets:
    if not OFFICIAL.is_file():
        pytest.skip(f"the official archive is not at {OFFICIAL}")
    return opened("uci-har", OFFICIAL).targets()


@pytest.mark.data
@pytest.mark.parametrize(
    ("partition", "split", "of_own", "of_any"),
    [
        ("dirichlet", "sample", 34, 88),
        ("iid", "sample", 13, 88),
        ("dirichlet", "subject", 0, 63),
        ("iid", "subject", 0, 78),
        ("subject", "subject", 0, 0),
        ("dirichlet", "recording", 0, 0),
        ("iid", "recording", 0, 0),
        ("subject", "recording", 0, 0),
        ("dirichlet", "common-subject", 0, 0),
        ("iid", "common-subject", 0, 0),
        ("subject", "common-subject", 0, 0),
    ],
)
def test_shares_of_uci_har(partition: str, split: str, of_own: int, of_any: int, targets: Targets) -> None:
    """Means over seeds 0 to 2, ten clients; those of the first five are of an independent computation."""
    data = UciHarData.model_validate(
        {"dataset": "uci-har", "path": ".", "partition": {"kind": partition}, "split": split}
    )
    found = [build_federation(data, targets, 10, seed).overlap(targets.pieces) for seed in range(3)]
    for name, expected in (("of_own", of_own), ("of_any", of_any)):
        mean = np.mean([0.0 if each is None else getattr(each, name) for each in found])
        assert round(100 * mean) == expected
