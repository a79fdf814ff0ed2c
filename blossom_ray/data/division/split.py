"""Clients' train, validation and test splits: by sample, by whole subject, or by whole recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blossom_ray.core.seeding import Purpose, generator, generators
from blossom_ray.data.division.options import Division
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.targets import IntArray, Targets

_ALL_CLIENTS = 1
"""What stands in the round's place of the key of a draw that all clients share; their own draws have 0."""
_MOST_DRAWS = 100
_TRAIN, _VALIDATION, _TEST = range(3)

_Sides = npt.NDArray[np.int64]
_Numbers = npt.NDArray[np.floating]
_Draws = Iterator[np.random.Generator]


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


def split_parts(
    parts: Sequence[IntArray], spec: Division, targets: Targets, seed: int, first_client: int = 0
) -> list[Split]:
    """Divide each client's rows into train, validation and test rows.

    The test rows are drawn first and the validation rows from what is left, by a draw of its own: whether and how many
    rows are for validation changes no test row.

    By sample: floor(fraction * n) rows of a client's n are drawn for the test split, and as many for the validation
    split, at least 1, with at least 1 left for training. By subject: whole subjects are drawn until the split has at
    least its fraction of the client's rows; one subject is always left. By recording or common subject: as by sample,
    with the recordings or subjects of all clients in the place of one client's rows. Each is for one purpose at all
    clients, and a client's splits are what it has of them, so their sizes follow the fractions only on average. The
    draw is repeated, up to 100 times, until each client has some for each purpose. Where samples share recordings, a
    split by sample is one by recording; where the partition deals whole subjects to clients, one by common subject is
    one by subject.

    Args:
        parts: The rows of each client, in the order of their ids, int64.
        spec: The scenario's `data` section; `split`, `test_fraction` and `validation_fraction` count.
        targets: Subjects and recordings of all rows of the data set; labels do not count.
        seed: The scenario's seed.
        first_client: The id of the first of them.

    Returns:
        The splits of each client.

    Raises:
        PartitionError: A client with too few rows, subjects or recordings for its splits.
    """
    fewest, what = 2, "one to train on and one to test on"
    if spec.validation_fraction:
        fewest, what = 3, "one each for training, validation and testing"
    for client, rows in enumerate(parts, first_client):
        if len(rows) < fewest:
            raise PartitionError(
                "data.partition",
                f"leaves client {client} with {len(rows)} samples",
                f"at least {fewest} samples per client, {what}",
            )
    groups = _common_groups(spec, targets)
    if groups is not None:
        owned = {client: np.unique(groups[rows]) for client, rows in enumerate(parts, first_client)}
        by_group = _common_sides(owned, int(groups.max()) + 1, spec, seed)
        sides = by_group[groups[np.concatenate(parts)]]
    else:
        clients = range(first_client, first_client + len(parts))
        testing, validating = (generators(seed, each, clients) for each in (Purpose.SPLIT, Purpose.VALIDATION))
        if spec.split == "sample":
            sides = _by_sample(np.array([*map(len, parts)]), spec, testing, validating, first_client)
        else:
            own = zip(parts, clients, testing, validating, strict=True)
            sides = np.concatenate([_by_subject(*each, spec, targets.subjects) for each in own])
    return _sorted_splits(parts, sides)


def _sorted_splits(parts: Sequence[IntArray], sides: _Sides) -> list[Split]:
    """The splits of each client, from what its rows are for, one client's after the other's."""
    rows, owners = np.concatenate(parts), np.repeat(np.arange(len(parts)), [*map(len, parts)])
    order = np.lexsort((rows, owners))
    by_side = []
    for side in (_TRAIN, _VALIDATION, _TEST):
        chosen = order[sides[order] == side]
        own, ends = rows[chosen], np.cumsum(np.bincount(owners[chosen], minlength=len(parts))).tolist()
        by_side.append([own[start:end] for start, end in pairwise([0, *ends])])
    return [Split(*own) for own in zip(*by_side, strict=True)]


def few(split: Split, shots: int | None, client: int, seed: int) -> Split:
    """The rows of a client that never trains: nothing is chosen on it, and it has few samples to fine-tune on.

    Args:
        split: As it would have with all others.
        shots: How many it tunes on, the first of a drawn order of what is not for testing; None: all of these.
        client: Its id.
        seed: The scenario's seed.
    """
    own = np.sort(np.concatenate([split.train, split.validation]))
    if shots is not None:
        own = np.sort(generator(seed, Purpose.UNSEEN, 0, client).permutation(own)[:shots])
    return Split(own, split.validation[:0], split.test)


def _by_sample(sizes: IntArray, spec: Division, testing: _Draws, validating: _Draws, first_client: int) -> _Sides:
    """What each sample is for, one client's after the other's, of which each has as many as `sizes` says."""
    sides = np.zeros(int(sizes.sum()), np.int64)
    sides[_some(sizes, spec.test_fraction * sizes, testing)] = _TEST
    if spec.validation_fraction:
        left = np.flatnonzero(sides == _TRAIN)
        num_left = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[left], minlength=len(sizes))
        place = int(num_left.argmin())
        _check_room(int(num_left[place]), int(sizes[place]), "samples", spec, first_client + place)
        sides[left[_some(num_left, spec.validation_fraction * sizes, validating)]] = _VALIDATION
    return sides


def _some(sizes: IntArray, wanted: _Numbers, draws: _Draws) -> IntArray:
    """Places of samples of each client, the first in random order, as many as `wanted`, at least 1 and never all."""
    numbers = np.minimum(np.maximum(_whole(wanted), 1), sizes - 1)
    drawn = zip(draws, sizes.tolist(), numbers.tolist(), strict=True)
    chosen = np.concatenate([draw.permutation(size)[:number] for draw, size, number in drawn])
    return chosen + np.repeat(np.cumsum(sizes) - sizes, numbers)


def _by_subject(
    rows: IntArray,
    client: int,
    testing: np.random.Generator,
    validating: np.random.Generator,
    spec: Division,
    subjects: IntArray | None,
) -> _Sides:
    """What each row of a client is for, by its subject."""
    if subjects is None:
        raise PartitionError(
            "data.split",
            f"is {spec.split!r}, but the samples belong to no subject",
            "'sample', or a data set with subjects",
        )
    _, positions, sizes = np.unique(subjects[rows], return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise PartitionError(
            "data.split",
            f"is {spec.split!r}, but client {client} has samples of one subject alone",
            "'sample', or at least two subjects per client",
        )
    sides = np.zeros(len(sizes), np.int64)
    sides[_first_with(spec.test_fraction * len(rows), sizes, testing)] = _TEST
    if spec.validation_fraction:
        left = np.flatnonzero(sides == _TRAIN)
        _check_room(len(left), len(sizes), "subjects", spec, client)
        sides[left[_first_with(spec.validation_fraction * len(rows), sizes[left], validating)]] = _VALIDATION
    return sides[positions]


def _first_with(num_rows: float, sizes: IntArray, draw: np.random.Generator) -> IntArray:
    """The first groups in random order that have so many rows together, and never all of them."""
    order = draw.permutation(len(sizes))
    num_short = int((np.cumsum(sizes[order]) < num_rows - 1e-9).sum())
    return order[: min(num_short + 1, len(sizes) - 1)]


def _common_groups(spec: Division, targets: Targets) -> IntArray | None:
    """The recording or subject of each sample, from 0, where all clients share one draw of these; else None."""
    if spec.split == "sample" or (spec.split == "recording" and targets.recordings is not None):
        return targets.recordings
    # Subjects that are dealt to clients as a whole have one purpose at all of them by any draw of their client.
    if spec.split == "subject" or (spec.split == "common-subject" and spec.partition.kind == "subject"):
        return None
    if spec.split == "recording":
        groups, expected = None if targets.pieces is None else targets.pieces.recordings, "'sample'"
    else:
        groups, expected = targets.subjects, "'sample', or a data set with subjects"
    if groups is None:
        if spec.split == "recording" and targets.subjects is not None:
            expected = "'common-subject', since the data tell subjects"
        what = "subject" if spec.split == "common-subject" else "recording that is known"
        raise PartitionError("data.split", f"is {spec.split!r}, but the samples belong to no {what}", expected)
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _common_sides(owned: Mapping[int, IntArray], num_groups: int, spec: Division, seed: int) -> _Sides:
    """What each group is for, by draws of no client: what one of them tests with, no other trains on.

    `owned` are the groups that each client has, by its id.
    """
    sides = np.zeros(num_groups, np.int64)
    sides = _drawn(sides, owned, spec.test_fraction, _TEST, spec, seed)
    if spec.validation_fraction:
        left = {client: own[sides[own] == _TRAIN] for client, own in owned.items()}
        for client, own in owned.items():
            _check_room(len(left[client]), len(own), _NAMES[spec.split] + "s", spec, client)
        sides = _drawn(sides, left, spec.validation_fraction, _VALIDATION, spec, seed)
    return sides


def _drawn(
    sides: _Sides, owned: Mapping[int, IntArray], fraction: float, side: int, spec: Division, seed: int
) -> _Sides:
    """The sides with a fraction of all groups, at least one, put on another side.

    Each client keeps some of `owned`, its groups that are for training, and gets some on that side.
    """
    purpose, name = (Purpose.SPLIT, "testing") if side == _TEST else (Purpose.VALIDATION, "validation")
    left = np.flatnonzero(sides == _TRAIN)
    number = min(max(int(_whole(fraction * len(sides))), 1), len(left) - 1)
    clients, groups = [*owned], [*owned.values()]
    flat = np.concatenate(groups)
    sizes = np.array([len(own) for own in groups])
    starts = np.cumsum(sizes) - sizes
    fewest, lacking = len(owned) + 1, (0, 0, name)
    for attempt in range(_MOST_DRAWS):
        order = generator(seed, purpose, _ALL_CLIENTS, attempt).permutation(len(left))
        found = sides.copy()
        found[left[order[:number]]] = side
        counts = np.add.reduceat(found[flat] == side, starts, dtype=np.int64)
        is_short = (counts == 0) | (counts == sizes)
        if not is_short.any():
            return found
        if is_short.sum() < fewest:
            place = int(is_short.argmax())
            fewest = int(is_short.sum())
            lacking = clients[place], len(groups[place]), name if counts[place] == 0 else "training"
    client, size, what = lacking
    group = _NAMES[spec.split]
    raise PartitionError(
        "data.split",
        f"is {spec.split!r}, and {number} of {len(sides)} {group}s, drawn for {name}, leave client {client} without a "
        f"{group} for {what} ({_MOST_DRAWS} draws tried; it has {size})",
        f"larger parts, fewer clients, or another fraction; a {group} has one purpose at all clients",
    )


_NAMES = {"sample": "recording", "recording": "recording", "common-subject": "subject"}
"""What each split that all clients share draws."""


def _check_room(num_left: int, num_all: int, what: str, spec: Division, client: int) -> None:
    if num_left < 2:
        raise PartitionError(
            "data.validation_fraction",
            f"is {spec.validation_fraction:g}, but client {client} has {num_all} {what}, {num_all - num_left} of them "
            f"in its test split, which leaves none for validation beside one for training",
            f"more {what} per client (fewer clients), or a smaller data.test_fraction",
        )


def _whole(number: float | _Numbers) -> IntArray:
    """The whole part; the tolerance is for products such as 0.29 * 100, which floating point puts just below 29."""
    return np.floor(number + 1e-9).astype(np.int64)
