from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.data.dataset import Targets
from blossom_ray.data.partition import PartitionError
from blossom_ray.data.split import split_rows
from blossom_ray.scenario.sections import SyntheticData


def spec_of(**values: Any) -> SyntheticData:
    return SyntheticData.model_validate({"dataset": "synthetic", **values})


def targets(subjects: np.ndarray | None = None, recordings: np.ndarray | None = None) -> Targets:
    """Labels do not count in a split."""
    return Targets(np.zeros(0, np.int64), 1, subjects, recordings)


@pytest.mark.parametrize(
    ("num_rows", "test_fraction", "num_test"),
    [
        (10, 0.3, 3),
        (11, 0.3, 3),
        (13, 0.3, 3),
        (14, 0.3, 4),
        (2, 0.3, 1),
        (2, 0.9, 1),
        (3, 0.01, 1),
        (3, 0.99, 2),
        (100, 0.29, 29),
    ],
)
def test_number_of_test_rows_by_hand(num_rows: int, test_fraction: float, num_test: int) -> None:
    train, test = split_rows(np.arange(num_rows), spec_of(test_fraction=test_fraction), targets(), 0, 0)
    assert (len(train), len(test)) == (num_rows - num_test, num_test)


@given(
    num_rows=st.integers(2, 60),
    test_fraction=st.floats(0.01, 0.99),
    split=st.sampled_from(["sample", "subject"]),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=80)
def test_parts_are_sorted_disjoint_complete_and_never_empty(
    num_rows: int, test_fraction: float, split: str, seed: int
) -> None:
    rows = np.arange(num_rows) * 3 + 5
    subjects = np.arange(rows.max() + 1) // 3 % 7
    train, test = split_rows(rows, spec_of(test_fraction=test_fraction, split=split), targets(subjects), seed, 4)
    assert len(train) >= 1
    assert len(test) >= 1
    assert train.dtype == test.dtype == np.int64
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    assert sorted([*train, *test]) == rows.tolist()
    if split == "subject":
        assert not set(subjects[train]) & set(subjects[test])


def test_clients_and_seeds_have_their_own_draws() -> None:
    rows = np.arange(40)
    draws = {
        key: tuple(split_rows(rows, spec_of(), targets(), *key)[1].tolist()) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]
    }
    assert len(set(draws.values())) == 4
    assert tuple(split_rows(rows, spec_of(), targets(), 1, 0)[1].tolist()) == draws[1, 0]


def test_subjects_are_drawn_until_the_test_part_is_large_enough() -> None:
    """Four subjects of ten rows: 0.3 of 40 is 12, which takes two subjects; 0.25 takes one; 0.9 leaves one."""
    rows, subjects = np.arange(40), np.arange(40) // 10
    for test_fraction, num_test in [(0.3, 20), (0.25, 10), (0.9, 30)]:
        _, test = split_rows(rows, spec_of(test_fraction=test_fraction, split="subject"), targets(subjects), 0, 0)
        assert len(test) == num_test


def test_what_cannot_be_split() -> None:
    by_subject = spec_of(split="subject")
    with pytest.raises(PartitionError, match=r"data.split is 'subject', but client 3 has samples of one subject"):
        split_rows(np.arange(5), by_subject, targets(np.zeros(5, np.int64)), 0, 3)
    with pytest.raises(PartitionError, match=r"data.split is 'subject', but the samples belong to no subject"):
        split_rows(np.arange(5), by_subject, targets(), 0, 3)
    with pytest.raises(PartitionError, match=r"data.partition leaves client 3 with 1 samples"):
        split_rows(np.arange(1), spec_of(), targets(), 0, 3)


def test_recordings_stand_on_one_side_of_all_clients() -> None:
    """Ten recordings of four rows each; 0.3 of them are for testing, the same three whoever has their rows."""
    recordings = np.arange(40) % 10
    spec = spec_of(test_fraction=0.3)
    sides = [split_rows(np.arange(part, 40, 2), spec, targets(recordings=recordings), 5, part) for part in (0, 1)]
    train, test = (np.concatenate(rows) for rows in zip(*sides, strict=True))
    assert sorted([*train, *test]) == list(range(40))
    assert len(set(recordings[test].tolist())) == 3
    assert not set(recordings[train].tolist()) & set(recordings[test].tolist())
    whole = split_rows(np.arange(40), spec, targets(recordings=recordings), 5, 7)[1]
    assert sorted(whole) == sorted(test)


@given(fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**40), num_recordings=st.integers(2, 9))
@settings(deadline=None, max_examples=40)
def test_recordings_are_never_on_both_sides(fraction: float, seed: int, num_recordings: int) -> None:
    recordings = np.arange(30) % num_recordings
    arguments = np.arange(30), spec_of(test_fraction=fraction), targets(recordings=recordings), seed, 0
    if fraction * num_recordings < 1:
        with pytest.raises(PartitionError, match=r"data.partition leaves client 0 without a recording for testing"):
            split_rows(*arguments)
        return
    train, test = split_rows(*arguments)
    assert sorted([*train, *test]) == list(range(30))
    assert not set(recordings[train].tolist()) & set(recordings[test].tolist())
    assert len(set(recordings[test].tolist())) == int(fraction * num_recordings + 1e-9)
