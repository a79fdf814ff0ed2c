"""A client's own train, validation and test split: by sample, by whole subject, or by whole recording."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import IntArray, Targets
from blossom_ray.data.partition import PartitionError
from blossom_ray.scenario.sections import Data
from blossom_ray.seeding import Purpose, generator

_ALL_CLIENTS = 1
"""What stands in the round's place of the key of a draw that all clients share; their own draws have 0."""
_TRAIN, _VALIDATION, _TEST = range(3)

_Sides = npt.NDArray[np.int64]


class Split(NamedTuple):
    """One client's rows by what they are for, each sorted, int64.

    Attributes:
        train: Rows to train on, >= 1.
        validation: Rows to choose on; none where `data.validation_fraction` is 0.
        test: Rows to test on, >= 1.
    """

    train: IntArray
    validation: IntArray
    test: IntArray


def split_parts(parts: Sequence[IntArray], spec: Data, targets: Targets, seed: int) -> list[Split]:
    """Divide each client's rows into train, validation and test rows.

    The test rows are drawn first and the validation rows from what is left, by a draw of its own: whether and how many
    rows are for validation changes no test row.

    By sample: floor(fraction * n) rows of a client's n are drawn for the test split, and as many for the validation
    split, at least 1, with at least 1 left for training. By subject: whole subjects are drawn until the split has at
    least its fraction of the client's rows; one subject is always left. Where samples share recordings, a split by
    sample puts each recording on one side of the splits of all clients: `test_fraction` and `validation_fraction` of
    the recordings are drawn, and a client's splits are what it has of them, so their sizes follow the fractions only
    on average.

    Args:
        parts: The rows of each client, in the order of their ids, int64.
        spec: The scenario's `data` section; `split`, `test_fraction` and `validation_fraction` count.
        targets: Subjects and recordings of all rows of the data set; labels do not count.
        seed: The scenario's seed.

    Returns:
        The splits of each client.

    Raises:
        PartitionError: A client with too few rows, subjects or recordings for its splits.
    """
    fewest, what = 2, "one to train on and one to test on"
    if spec.validation_fraction:
        fewest, what = 3, "one each for training, validation and testing"
    for client, rows in enumerate(parts):
        if len(rows) < fewest:
            raise PartitionError(
                "data.partition",
                f"leaves client {client} with {len(rows)} samples",
                f"at least {fewest} samples per client, {what}",
            )
    if spec.split == "sample" and targets.recordings is not None:
        recordings = _recording_sides(spec, int(targets.recordings.max()) + 1, seed)
        sides = [recordings[targets.recordings[rows]] for rows in parts]
        for client, own in enumerate(sides):
            _check_recordings(own, spec, client)
    elif spec.split == "sample":
        sides = [_by_sample(len(rows), spec, seed, client) for client, rows in enumerate(parts)]
    else:
        sides = [_by_subject(rows, spec, targets.subjects, seed, client) for client, rows in enumerate(parts)]
    return [
        Split(*(np.sort(rows[own == side]) for side in (_TRAIN, _VALIDATION, _TEST)))
        for rows, own in zip(parts, sides, strict=True)
    ]


def _by_sample(num_rows: int, spec: Data, seed: int, client: int) -> _Sides:
    sides = np.zeros(num_rows, np.int64)
    num_test = min(max(_part(spec.test_fraction, num_rows), 1), num_rows - 1)
    sides[generator(seed, Purpose.SPLIT, 0, client).permutation(num_rows)[:num_test]] = _TEST
    if spec.validation_fraction:
        left = np.flatnonzero(sides == _TRAIN)
        _check_room(len(left), num_rows, "samples", spec, client)
        num_validation = min(max(_part(spec.validation_fraction, num_rows), 1), len(left) - 1)
        drawn = generator(seed, Purpose.VALIDATION, 0, client).permutation(len(left))[:num_validation]
        sides[left[drawn]] = _VALIDATION
    return sides


def _by_subject(rows: IntArray, spec: Data, subjects: IntArray | None, seed: int, client: int) -> _Sides:
    if subjects is None:
        raise PartitionError(
            "data.split",
            "is 'subject', but the samples belong to no subject",
            "'sample', or a data set with subjects",
        )
    _, positions, sizes = np.unique(subjects[rows], return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise PartitionError(
            "data.split",
            f"is 'subject', but client {client} has samples of one subject alone",
            "'sample', or at least two subjects per client",
        )
    sides = np.zeros(len(sizes), np.int64)
    test_draw = generator(seed, Purpose.SPLIT, 0, client)
    sides[_first_with(spec.test_fraction * len(rows), sizes, test_draw)] = _TEST
    if spec.validation_fraction:
        left = np.flatnonzero(sides == _TRAIN)
        _check_room(len(left), len(sizes), "subjects", spec, client)
        validation_draw = generator(seed, Purpose.VALIDATION, 0, client)
        drawn = _first_with(spec.validation_fraction * len(rows), sizes[left], validation_draw)
        sides[left[drawn]] = _VALIDATION
    return sides[positions]


def _first_with(num_rows: float, sizes: IntArray, draw: np.random.Generator) -> IntArray:
    """The first groups in random order that have so many rows together, and never all of them."""
    order = draw.permutation(len(sizes))
    num_short = int((np.cumsum(sizes[order]) < num_rows - 1e-9).sum())
    return order[: min(num_short + 1, len(sizes) - 1)]


def _recording_sides(spec: Data, num_recordings: int, seed: int) -> _Sides:
    """The draws of no client: what one of them tests with, no other may train on, since blocks are shared."""
    sides = np.zeros(num_recordings, np.int64)
    order = generator(seed, Purpose.SPLIT, _ALL_CLIENTS).permutation(num_recordings)
    num_test = _part(spec.test_fraction, num_recordings)
    sides[order[:num_test]] = _TEST
    left = np.flatnonzero(sides == _TRAIN)
    order = generator(seed, Purpose.VALIDATION, _ALL_CLIENTS).permutation(len(left))
    sides[left[order[: _part(spec.validation_fraction, num_recordings)]]] = _VALIDATION
    return sides


def _check_recordings(sides: _Sides, spec: Data, client: int) -> None:
    wanted = {_TRAIN: "training", _TEST: "testing"} | ({_VALIDATION: "validation"} if spec.validation_fraction else {})
    for side, purpose in wanted.items():
        if not (sides == side).any():
            raise PartitionError(
                "data.partition",
                f"leaves client {client} without a recording for {purpose}",
                "larger parts, or fewer clients; recordings stand on one side of all clients' splits",
            )


def _check_room(num_left: int, num_all: int, what: str, spec: Data, client: int) -> None:
    if num_left < 2:
        raise PartitionError(
            "data.validation_fraction",
            f"is {spec.validation_fraction:g}, but client {client} has {num_all} {what}, {num_all - num_left} of them "
            f"in its test split, which leaves none for validation beside one for training",
            f"more {what} per client, or a smaller data.test_fraction",
        )


def _part(fraction: float, number: int) -> int:
    """The whole part; the tolerance is for products such as 0.29 * 100, which floating point puts just below 29."""
    return math.floor(fraction * number + 1e-9)
