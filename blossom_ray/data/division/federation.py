"""Which client has which rows, for training, validation and testing: all that a seed fixes about the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Self

import numpy as np

from blossom_ray.data.clients import SPLITS
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.blossom_code import reference_splits
from blossom_ray.data.division.options import ClientGroup, Division, GivenPartition, SubjectPartition
from blossom_ray.data.division.partition import PartitionError, held_out_parts, partition
from blossom_ray.data.division.split import Split, few, split_parts
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.targets import IntArray, Pieces, Targets

_NOBODY = -1


@dataclass(frozen=True, eq=False)
class ClientRows:
    """Rows of all clients for one purpose, sorted within a client.

    Attributes:
        flat: Those of client 0, then of client 1, and so on; int64.
        ends: (num_clients + 1,) int64: client k has `flat[ends[k] : ends[k + 1]]`.
    """

    flat: IntArray
    ends: IntArray

    @property
    def counts(self) -> IntArray:
        """(num_clients,) int64: rows of each client."""
        return np.diff(self.ends)

    def of(self, client: int) -> IntArray:
        """The client's rows in the data set; a view."""
        return self.flat[self.ends[client] : self.ends[client + 1]]


@dataclass(frozen=True, eq=False)
class Federation:
    """Train, validation and test rows of all clients.

    Rows of the held-out part, which only clients that never train can have, are counted on from those of the data set.

    Attributes:
        train: To train on.
        validation: To choose on; none where the scenario asks for none.
        test: To test on.
        names: What the user's data call each client, or its subjects; empty where clients are drawn from samples.
        observed: Modality to (N,) bool over these rows: whether a client that owns it has it in that row.
            Of the modalities alone that some owner lacks in some row.
        num_unseen: Clients that never train, the last ones.
        num_held_out: Those of them, the last ones, whose rows are rows of the held-out part.
        num_beyond: Samples of the data set that such clients have beyond their shots: they are for nothing.
    """

    train: ClientRows
    validation: ClientRows
    test: ClientRows
    names: tuple[str, ...] = ()
    observed: Mapping[str, BoolArray] = field(default_factory=dict)
    num_unseen: int = 0
    num_held_out: int = 0
    num_beyond: int = 0

    @classmethod
    def of(cls, splits: Sequence[Split]) -> Self:
        """The federation of these clients, in the order of their ids."""
        train, validation, test = (
            ClientRows(np.concatenate(rows), np.cumsum([0, *map(len, rows)], dtype=np.int64))
            for rows in zip(*splits, strict=True)
        )
        return cls(train, validation, test)

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.train.counts)

    @property
    def num_samples(self) -> int:
        """Samples of all clients together, for whatever they are; those of the held-out part are none of them."""
        return sum(int(rows.ends[self._first_held_out]) for rows in self.splits.values())

    @property
    def splits(self) -> dict[str, ClientRows]:
        """Rows by what they are for."""
        return dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))

    def rows(self, client: int) -> IntArray:
        """The client's train rows, then its validation rows, then its test rows."""
        return np.concatenate([rows.of(client) for rows in self.splits.values()])

    def all_rows(self) -> tuple[IntArray, IntArray]:
        """What `rows` gives for each client, one after the other; and whose each of these is, (n,) int64."""
        counts = np.concatenate([rows.counts for rows in self.splits.values()])
        owners = np.repeat(np.tile(np.arange(self.num_clients), len(self.splits)), counts)
        order = np.argsort(owners, kind="stable")
        return np.concatenate([rows.flat for rows in self.splits.values()])[order], owners[order]

    def located(self, dataset: Dataset, client: int) -> tuple[Dataset, IntArray]:
        """The part of a data set that a client has rows of, the set itself or its held-out part, and where in it."""
        if client < self._first_held_out:
            return dataset, self.rows(client)
        assert dataset.held_out is not None, "there are rows of it"
        return dataset.held_out, self.rows(client) - dataset.num_samples

    def only(self, clients: Sequence[int]) -> Federation:
        """That of some of its clients, in this order, with what is observed in their rows."""
        if [*clients] == [*range(self.num_clients)]:
            return self
        parts = (self.train, self.validation, self.test)
        found = Federation.of([Split(*(rows.of(client) for rows in parts)) for client in clients])
        observed = {}
        for name, everywhere in self.observed.items():
            observed[name] = np.zeros_like(everywhere)
            for rows in found.splits.values():
                observed[name][rows.flat] = everywhere[rows.flat]
        return replace(found, observed=observed)

    def overlap(self, pieces: Pieces | None) -> Overlap | None:
        """How many test windows have a part of themselves in a training window; None where none has.

        Args:
            pieces: The recordings that the data set's samples are pieces of, where it tells; consecutive rows of one
                are neighbours.
        """
        if pieces is None or pieces.overlap == 0:
            return None
        clients = np.arange(self._first_held_out)
        trained_by = np.full(len(pieces.recordings), _NOBODY)
        trained, tested = (rows.ends[: len(clients) + 1] for rows in (self.train, self.test))
        trained_by[self.train.flat[: trained[-1]]] = np.repeat(clients, np.diff(trained))
        windows, owners = self.test.flat[: tested[-1]], np.repeat(clients, np.diff(tested))
        by_any, by_own = (np.zeros(len(windows), np.bool_) for _ in range(2))
        for step in (-1, 1):
            # A window at an end of the data set has itself in the place of a neighbour: no training window.
            neighbours = np.clip(windows + step, 0, len(trained_by) - 1)
            is_neighbour = pieces.recordings[neighbours] == pieces.recordings[windows]
            by_any |= is_neighbour & (trained_by[neighbours] != _NOBODY)
            by_own |= is_neighbour & (trained_by[neighbours] == owners)
        return Overlap(float(by_any.mean()), float(by_own.mean()), pieces.overlap) if by_any.any() else None

    def digest(self) -> str:
        """SHA-256 (hex) over all rows: equal where every client has the same rows for the same purposes."""
        digest = hashlib.sha256()
        # Without validation rows the digest is that of runs from before there were any.
        for rows in (self.train, self.test, *([self.validation] if len(self.validation.flat) else [])):
            for values in (rows.flat, rows.ends):
                digest.update(np.ascontiguousarray(values, dtype="<i8").data)
        if self.num_unseen:
            digest.update(f"{self.num_unseen} unseen, {self.num_held_out} held out".encode())
        return digest.hexdigest()

    @property
    def _first_held_out(self) -> int:
        return self.num_clients - self.num_held_out


def build_federation(
    data: Division,
    targets: Targets,
    num_clients: int,
    seed: int,
    modality_sets: Sequence[tuple[str, ...]] = (),
    unseen: Sequence[ClientGroup] = (),
) -> Federation:
    """Divide a data set over clients, and each client's part into train, validation and test.

    The result depends on these arguments alone, so every sharing scheme of one seed meets the same federation.

    Args:
        data: The scenario's `data` section.
        targets: Labels and subjects of the data set.
        num_clients: Number of clients, >= 1.
        seed: The scenario's seed.
        modality_sets: The modalities of each client, sorted, as in `partition`.
        unseen: The groups of those that never train, which are the last ones; those with rows of the held-out part
            stand behind the others.

    Raises:
        PartitionError: The partition or the split cannot be met.
    """
    shots = [group.shots for group in unseen for _ in range(group.count)]
    num_held_out = sum(group.count for group in unseen if group.rows == "held-out")
    num_trained, num_shared = num_clients - len(shots), num_clients - num_held_out
    splits, names = _divided(data, targets, num_shared, seed, modality_sets[:num_shared], num_shared - num_trained)
    if num_held_out:
        people = held_out_parts(targets.held_out, num_held_out, seed)
        assert targets.held_out is not None, "there are parts of it"
        splits += split_parts(people, data, targets.held_out, seed, num_shared)
        names += tuple(_subjects_of(targets.held_out, rows) for rows in people) if names else ()
    own = [
        few(split, number, client, seed)
        for client, (split, number) in enumerate(zip(splits[num_trained:], shots, strict=True), num_trained)
    ]
    shared, others = own[: num_shared - num_trained], own[num_shared - num_trained :]
    before, after = (sum(map(len, chain(*rows))) for rows in (splits[num_trained:num_shared], shared))
    others = [Split(*(rows + len(targets.labels) for rows in split)) for split in others]
    return replace(
        Federation.of([*splits[:num_trained], *shared, *others]),
        names=names,
        num_unseen=len(shots),
        num_held_out=num_held_out,
        num_beyond=before - after,
    )


def _divided(
    data: Division,
    targets: Targets,
    num_clients: int,
    seed: int,
    modality_sets: Sequence[tuple[str, ...]],
    num_unseen: int,
) -> tuple[list[Split], tuple[str, ...]]:
    """The splits of clients that share the data set's own samples, and their names."""
    if data.draws == "reference":
        return reference_splits(data, targets, num_clients, seed), ()
    parts = partition(data.partition, targets, num_clients, seed, modality_sets, num_unseen)
    given = targets.clients
    if isinstance(data.partition, GivenPartition) and given is not None and given.splits is not None:
        splits = _given_splits(parts, data, targets, given.splits, seed)
    else:
        splits = split_parts(parts, data, targets, seed)
    return splits, tuple(_names(data, targets, parts))


def _given_splits(
    parts: Sequence[IntArray], data: Division, targets: Targets, given: IntArray, seed: int
) -> list[Split]:
    """The splits of the data; where they have none to validate on, that is drawn from the rows to train on."""
    splits = [Split(*(rows[given[rows] == part] for part in range(len(SPLITS)))) for rows in parts]
    if data.validation_fraction and any(len(split.validation) for split in splits):
        found = f"is {data.validation_fraction:g}, while the data say which rows are to validate on"
        raise PartitionError("data.validation_fraction", found, "0")
    if not data.validation_fraction:
        return splits
    halves = {"test_fraction": data.validation_fraction, "validation_fraction": 0.0}
    divided = split_parts([split.train for split in splits], data.model_copy(update=halves), targets, seed)
    return [Split(own.train, own.test, split.test) for own, split in zip(divided, splits, strict=True)]


def _names(data: Division, targets: Targets, parts: Sequence[IntArray]) -> Iterator[str]:
    """What the user calls each client, or the subjects that it has."""
    match data.partition:
        case GivenPartition():
            assert targets.clients is not None, "the partition asks for them"
            yield from (targets.clients.names[int(targets.clients.owners[rows[0]])] for rows in parts)
        case SubjectPartition():
            yield from (_subjects_of(targets, rows) for rows in parts)


def _subjects_of(targets: Targets, rows: IntArray) -> str:
    """What the subjects of some rows are called."""
    assert targets.subjects is not None, "asked for only where there are subjects"
    names = targets.subject_names
    return ", ".join(names[each] if names else str(each) for each in np.unique(targets.subjects[rows]).tolist())


@dataclass(frozen=True)
class Overlap:
    """Test windows of all clients that have a part in common with a training window.

    Attributes:
        of_any: Share of those that have it with one of some client, 0 to 1.
        of_own: Share of those that have it with one of their own client.
        part: The part of a window that neighbours have in common.
    """

    of_any: float
    of_own: float
    part: float

    def __str__(self) -> str:
        part = "half" if self.part == 0.5 else f"{100 * self.part:.0f} %"
        return (
            f"{100 * self.of_any:.0f} % of test windows have {part} of their steps in common with a training window of "
            f"some client ({100 * self.of_own:.0f} % with one of their own client), so test scores are optimistic; "
            "data.split: recording or common-subject keeps them apart"
        )
