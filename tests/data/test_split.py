from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.division.split import Split, split_parts
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.targets import Pieces, Targets


def spec_of(**values: Any) -> SyntheticData:
    return SyntheticData.model_validate({"dataset": "synthetic", **values})


def targets(subjects: np.ndarray | None = None, recordings: np.ndarray | None = None) -> Targets:
    """Labels do not count in a split."""
    return Targets(np.zeros(0, np.int64), 1, subjects, recordings)


def split_rows(rows: np.ndarray, spec: SyntheticData, all_targets: Targets, seed: int, client: int) -> Split:
    """The split of one client, that of others left out; they have rows enough and all subjects and recordings."""
    everything = np.arange(
        max([len(values) for values in (all_targets.subjects, all_targets.recordings) if values is not None] or [99])
    )
    return split_parts([*[everything] * client, rows], spec, all_targets, seed)[client]


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
    train, _, test = split_rows(np.arange(num_rows), spec_of(test_fraction=test_fraction), targets(), 0, 0)
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
    train, _, test = split_rows(rows, spec_of(test_fraction=test_fraction, split=split), targets(subjects), seed, 4)
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
        key: tuple(split_rows(rows, spec_of(), targets(), *key).test.tolist())
        for key in [(0, 0), (0, 1), (1, 0), (1, 1)]
    }
    assert len(set(draws.values())) == 4
    assert tuple(split_rows(rows, spec_of(), targets(), 1, 0).test.tolist()) == draws[1, 0]


def test_subjects_are_drawn_until_the_test_part_is_large_enough() -> None:
    """Four subjects of ten rows: 0.3 of 40 is 12, which takes two subjects; 0.25 takes one; 0.9 leaves one."""
    rows, subjects = np.arange(40), np.arange(40) // 10
    for test_fraction, num_test in [(0.3, 20), (0.25, 10), (0.9, 30)]:
        *_, test = split_rows(rows, spec_of(test_fraction=test_fraction, split="subject"), targets(subjects), 0, 0)
        assert len(test) == num_test


def test_what_cannot_be_split() -> None:
    by_subject = spec_of(split="subject")
    with pytest.raises(PartitionError, match=r"data.split is 'subject', but client 3 has samples of one subject"):
        split_parts([*[np.arange(2, 7)] * 3, np.arange(5)], by_subject, targets(np.array([0] * 5 + [1, 1])), 0)
    with pytest.raises(PartitionError, match=r"data.split is 'subject', but the samples belong to no subject"):
        split_rows(np.arange(5), by_subject, targets(), 0, 3)
    with pytest.raises(PartitionError, match=r"data.partition leaves client 3 with 1 samples"):
        split_rows(np.arange(1), spec_of(), targets(), 0, 3)


def test_recordings_stand_on_one_side_of_all_clients() -> None:
    """Ten recordings of four rows each; 0.3 of them are for testing, the same three whoever has their rows."""
    recordings = np.arange(40) % 10
    spec = spec_of(test_fraction=0.3)
    sides = [split_rows(np.arange(part, 40, 2), spec, targets(recordings=recordings), 5, part) for part in (0, 1)]
    train, _, test = (np.concatenate(rows) for rows in zip(*sides, strict=True))
    assert sorted([*train, *test]) == list(range(40))
    assert len(set(recordings[test].tolist())) == 3
    assert not set(recordings[train].tolist()) & set(recordings[test].tolist())
    whole = split_rows(np.arange(40), spec, targets(recordings=recordings), 5, 7).test
    assert sorted(whole) == sorted(test)


@given(fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**40), num_recordings=st.integers(2, 9))
@settings(deadline=None, max_examples=40)
def test_recordings_are_never_on_both_sides(fraction: float, seed: int, num_recordings: int) -> None:
    recordings = np.arange(30) % num_recordings
    arguments = np.arange(30), spec_of(test_fraction=fraction), targets(recordings=recordings), seed, 0
    train, _, test = split_rows(*arguments)
    assert sorted([*train, *test]) == list(range(30))
    assert not set(recordings[train].tolist()) & set(recordings[test].tolist())
    num_test = min(max(int(fraction * num_recordings + 1e-9), 1), num_recordings - 1)
    assert len(set(recordings[test].tolist())) == num_test


@pytest.mark.parametrize(
    ("num_rows", "test_fraction", "validation_fraction", "counts"),
    [
        (10, 0.3, 0.2, (5, 2, 3)),
        (13, 0.3, 0.3, (7, 3, 3)),
        (100, 0.29, 0.29, (42, 29, 29)),
        (3, 0.3, 0.01, (1, 1, 1)),
        (4, 0.5, 0.49, (1, 1, 2)),
        (5, 0.4, 0.5, (1, 2, 2)),
    ],
)
def test_three_parts_by_hand(
    num_rows: int, test_fraction: float, validation_fraction: float, counts: tuple[int, int, int]
) -> None:
    spec = spec_of(test_fraction=test_fraction, validation_fraction=validation_fraction)
    assert tuple(map(len, split_rows(np.arange(num_rows), spec, targets(), 0, 0))) == counts


def test_the_draws_of_three_parts_by_hand() -> None:
    """Keys of four numbers: (seed, SPLIT = 4, 0, client) for the test rows, then VALIDATION = 13 among the others."""
    rows = np.arange(100, 120)
    test = np.random.default_rng([3, 4, 0, 0]).permutation(20)[:6]
    left = [row for row in range(20) if row not in test]
    validation = [left[position] for position in np.random.default_rng([3, 13, 0, 0]).permutation(14)[:4]]
    split = split_rows(rows, spec_of(validation_fraction=0.2), targets(), 3, 0)
    assert split.test.tolist() == sorted(100 + test)
    assert split.validation.tolist() == [100 + row for row in sorted(validation)]
    assert split.train.tolist() == [100 + row for row in left if row not in validation]


def test_whole_subjects_by_hand() -> None:
    """Subjects of 10 rows each, six of them: 0.3 of 60 takes two for testing, 0.2 two for validation, 2 are left."""
    subjects = np.arange(60) // 10
    spec = spec_of(split="subject", validation_fraction=0.2)
    train, validation, test = (
        set(subjects[rows].tolist()) for rows in split_rows(np.arange(60), spec, targets(subjects), 1, 0)
    )
    assert (len(train), len(validation), len(test)) == (2, 2, 2)
    assert train | validation | test == set(range(6))


def test_a_large_subject_in_the_test_split_leaves_one_for_validation() -> None:
    """Subjects of 90, 5 and 5 rows. Drawn first, the large one is the test split, and 0.3 of 100 more rows are not
    there: validation takes the 5 of one subject. Else the test split takes two subjects, and there is no room."""
    subjects = np.repeat([0, 1, 2], [90, 5, 5])
    spec = spec_of(split="subject", validation_fraction=0.3)
    is_first = {seed: np.random.default_rng([seed, 4, 0, 0]).permutation(3)[0] == 0 for seed in range(9)}
    assert set(is_first.values()) == {True, False}
    for seed, large in is_first.items():
        if large:
            assert [len(rows) for rows in split_rows(np.arange(100), spec, targets(subjects), seed, 0)] == [5, 5, 90]
        else:
            with pytest.raises(PartitionError, match=r"client 0 has 3 subjects, 2 of them in its test split"):
                split_rows(np.arange(100), spec, targets(subjects), seed, 0)


@given(
    num_rows=st.integers(9, 80),
    fractions=st.tuples(st.floats(0.01, 0.5), st.floats(0.01, 0.49)),
    kind=st.sampled_from(["sample", "subject", "recording"]),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=120)
def test_validation_rows_are_taken_from_training_alone(
    num_rows: int, fractions: tuple[float, float], kind: str, seed: int
) -> None:
    groups = np.arange(num_rows) % 7
    found = targets(subjects=groups, recordings=groups if kind == "recording" else None)
    without = spec_of(test_fraction=fractions[0], split="subject" if kind == "subject" else "sample")
    with_validation = without.model_copy(update={"validation_fraction": fractions[1]})
    parts = [np.arange(num_rows), np.arange(1, num_rows)]
    try:
        two, three = (split_parts(parts, spec, found, seed) for spec in (without, with_validation))
    except PartitionError:
        return
    for client, (old, new) in enumerate(zip(two, three, strict=True)):
        assert old.test.tolist() == new.test.tolist()
        assert len(old.validation) == 0
        assert min(map(len, new)) >= 1
        assert sorted([*new.train, *new.validation]) == old.train.tolist()
        assert sorted([*new.train, *new.validation, *new.test]) == parts[client].tolist()
        if kind != "sample":
            sides = [set(groups[rows].tolist()) for rows in new]
            assert sum(map(len, sides)) == len(set.union(*sides))


def test_too_few_for_three_parts() -> None:
    spec = spec_of(validation_fraction=0.1)
    with pytest.raises(PartitionError, match=r"leaves client 1 with 2 samples; expected at least 3 .*, one each for"):
        split_rows(np.arange(2), spec, targets(), 0, 1)
    most = spec_of(validation_fraction=0.05, test_fraction=0.9)
    message = r"data.validation_fraction is 0.05, but client 1 has 4 samples, 3 of them in its test split, .* smaller"
    with pytest.raises(PartitionError, match=message):
        split_rows(np.arange(4), most, targets(), 0, 1)
    subjects = np.arange(40) // 20
    with pytest.raises(PartitionError, match=r"client 0 has 2 subjects, 1 of them in its test split, .* more subjects"):
        split_rows(np.arange(40), spec_of(split="subject", validation_fraction=0.1), targets(subjects), 0, 0)
    few = targets(recordings=np.arange(40) // 20)
    with pytest.raises(PartitionError, match=r"client 0 has 2 recordings, 1 of them in its test split, .* more record"):
        split_rows(np.arange(40), spec, few, 0, 0)


def common(split: str, groups: np.ndarray) -> Targets:
    """The groups as what this split goes by."""
    if split == "common-subject":
        return targets(subjects=groups)
    return Targets(np.zeros(0, np.int64), 1, pieces=Pieces(groups))


@pytest.mark.parametrize("split", ["recording", "common-subject"])
def test_a_common_draw_by_hand(split: str) -> None:
    """Ten groups, 0.3 for testing and 0.2 for validation; keys (seed, purpose, 1, attempt), here the first attempt."""
    groups = 7 + np.arange(60) % 10
    test = np.random.default_rng([2, 4, 1, 0]).permutation(10)[:3]
    left = np.array([group for group in range(10) if group not in test])
    validation = left[np.random.default_rng([2, 13, 1, 0]).permutation(7)[:2]]
    parts = [np.arange(30), np.arange(30, 60)]
    for split_of_client, rows in zip(
        split_parts(parts, spec_of(split=split, validation_fraction=0.2), common(split, groups), 2), parts, strict=True
    ):
        assert split_of_client.test.tolist() == [row for row in rows if groups[row] - 7 in test]
        assert split_of_client.validation.tolist() == [row for row in rows if groups[row] - 7 in validation]


def test_a_draw_is_repeated_until_each_client_has_some_for_each_purpose() -> None:
    """Four subjects, each client has two of them, and half are for testing: of six draws four serve."""
    subjects, spec = np.arange(40) // 10, spec_of(split="common-subject", test_fraction=0.5)
    attempts = set()
    for seed in range(12):
        found = split_parts([np.arange(20), np.arange(20, 40)], spec, targets(subjects), seed)
        assert [len(rows) for split in found for rows in split] == [10, 0, 10] * 2
        for attempt in range(9):
            test = np.random.default_rng([seed, 4, 1, attempt]).permutation(4)[:2]
            if (test < 2).sum() == 1:
                break
        attempts.add(attempt)
        assert {int(subjects[row]) for split in found for row in split.test} == set(test.tolist())
    assert len(attempts) > 1


@given(
    num_groups=st.integers(2, 12),
    fractions=st.tuples(st.floats(0.05, 0.6), st.sampled_from([0.0, 0.1, 0.3])),
    num_clients=st.integers(1, 4),
    split=st.sampled_from(["recording", "common-subject"]),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=80)
def test_no_group_has_two_purposes_at_any_clients(
    num_groups: int, fractions: tuple[float, float], num_clients: int, split: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    groups, owners = draw.integers(0, num_groups, 90), draw.integers(0, num_clients, 90)
    parts = [np.flatnonzero(owners == client) for client in range(num_clients)]
    spec = spec_of(split=split, test_fraction=fractions[0], validation_fraction=fractions[1])
    try:
        found = split_parts(parts, spec, common(split, groups), seed)
    except PartitionError:
        assert num_groups < 12 or num_clients > 2
        return
    sides = [{int(groups[row]) for split in found for row in split[side]} for side in range(3)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    for rows, own in zip(parts, found, strict=True):
        assert sorted(np.concatenate(own)) == rows.tolist()
        assert min(len(own.train), len(own.test)) >= 1
        assert (len(own.validation) >= 1) == (fractions[1] > 0)


def test_common_draws_that_cannot_be_met() -> None:
    alone = [np.arange(10), np.arange(10, 40)]
    message = (
        r"data.split is 'common-subject', and 1 of 4 subjects, drawn for testing, leave client 0 without a subject for "
        r"(testing|training) \(100 draws tried; it has 1\); expected larger parts, fewer clients"
    )
    with pytest.raises(PartitionError, match=message):
        split_parts(alone, spec_of(split="common-subject"), targets(np.arange(40) // 10), 0)
    with pytest.raises(PartitionError, match=r"leave client 7 without a subject for"):
        split_parts(alone, spec_of(split="common-subject"), targets(np.arange(40) // 10), 0, first_client=7)
    with pytest.raises(PartitionError, match=r"is 'recording', but .* no recording .*; expected 'sample'"):
        split_parts(alone, spec_of(split="recording"), targets(), 0)
    with pytest.raises(PartitionError, match=r"is 'recording', but .* expected 'common-subject', since the data tell"):
        split_parts(alone, spec_of(split="recording"), targets(np.arange(40)), 0)
    with pytest.raises(PartitionError, match=r"is 'common-subject', but the samples belong to no subject"):
        split_parts(alone, spec_of(split="common-subject"), targets(), 0)


def test_pieces_of_recordings_are_split_by_sample_where_that_is_asked_for() -> None:
    rows, pieces = np.arange(40), Pieces(np.arange(40) // 4)
    by_pieces = split_parts([rows], spec_of(), Targets(np.zeros(0, np.int64), 1, pieces=pieces), 3)
    assert by_pieces[0].test.tolist() == split_parts([rows], spec_of(), targets(), 3)[0].test.tolist()


def test_subjects_that_are_dealt_to_clients_as_a_whole_are_common_already() -> None:
    parts, found = [np.arange(20), np.arange(20, 40)], targets(np.arange(40) // 10)
    own, common_to_all = (
        split_parts(parts, spec_of(split=split, partition={"kind": "subject"}), found, 4)
        for split in ("subject", "common-subject")
    )
    for one, other in zip(own, common_to_all, strict=True):
        assert one.test.tolist() == other.test.tolist()


def test_shared_recordings_are_split_alike_by_recording_and_by_sample() -> None:
    shared = targets(recordings=np.arange(40) % 10)
    found = [split_parts([np.arange(40)], spec_of(split=split), shared, 3)[0] for split in ("sample", "recording")]
    assert found[0].test.tolist() == found[1].test.tolist()
