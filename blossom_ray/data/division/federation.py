"""Which client has which rows, for training, validation and testing: all that a seed fixes about the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from blossom_ray.data.clients import SPLITS
from blossom_ray.data.dataset import IntArray, Pieces, Targets
from blossom_ray.data.division.blossom_code import reference_splits
from blossom_ray.data.division.options import Division, GivenPartition, SubjectPartition
from blossom_ray.data.division.partition import PartitionError, partition
from blossom_ray.data.division.split import Split, split_parts
from blossom_ray.data.gaps import BoolArray

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

    Attributes:
        train: To train on.
        validation: To choose on; none where the scenario asks for none.
        test: To test on.
        names: What the user's data call each client, or its subjects; empty where clients are drawn from samples.
        observed: Modality to (N,) bool over the rows of the data set: whether a client that owns it has it in that row.
            Of the modalities alone that some owner lacks in some row.
    """

    train: ClientRows
    validation: ClientRows
    test: ClientRows
    names: tuple[str, ...] = ()
    observed: Mapping[str, BoolArray] = field(default_factory=dict)

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
        """Samples of all clients together, for whatever they are."""
        return sum(len(rows.flat) for rows in self.splits.values())

    @property
    def splits(self) -> dict[str, ClientRows]:
        """Rows by what they are for."""
        return dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))

    def rows(self, client: int) -> IntArray:
        """The client's train rows, then its validation rows, then its test rows."""
        return np.concatenate([rows.of(client) for rows in self.splits.values()])

    def overlap(self, pieces: Pieces | None) -> Overlap | None:
        """How many test windows have a part of themselves in a training window; None where none has.

        Args:
            pieces: The recordings that the data set's samples are pieces of, where it tells; consecutive rows of one
                are neighbours.
        """
        if pieces is None or pieces.overlap == 0:
            return None
        clients = np.arange(self.num_clients)
        trained_by = np.full(len(pieces.recordings), _NOBODY)
        trained_by[self.train.flat] = np.repeat(clients, self.train.counts)
        windows, owners = self.test.flat, np.repeat(clients, self.test.counts)
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
        return digest.hexdigest()


def build_federation(
    data: Division, targets: Targets, num_clients: int, seed: int, modality_sets: Sequence[tuple[str, ...]] = ()
) -> Federation:
    """Divide a data set over clients, and each client's part into train, validation and test.

    The result depends on these arguments alone, so every sharing scheme of one seed meets the same federation.

    Args:
        data: The scenario's `data` section.
        targets: Labels and subjects of the data set.
        num_clients: Number of clients, >= 1.
        seed: The scenario's seed.
        modality_sets: The modalities of each client, sorted, as in `partition`.

    Raises:
        PartitionError: The partition or the split cannot be met.
    """
    if data.draws == "reference":
        return Federation.of(reference_splits(data, targets, num_clients, seed))
    parts = partition(data.partition, targets, num_clients, seed, modality_sets)
    given = targets.clients
    if isinstance(data.partition, GivenPartition) and given is not None and given.splits is not None:
        splits = _given_splits(parts, data, targets, given.splits, seed)
    else:
        splits = split_parts(parts, data, targets, seed)
    return replace(Federation.of(splits), names=tuple(_names(data, targets, parts)))


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
            assert targets.subjects is not None, "the partition asks for them"
            for rows in parts:
                subjects = np.unique(targets.subjects[rows]).tolist()
                yield ", ".join(
                    targets.subject_names[each] if targets.subject_names else str(each) for each in subjects
                )


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
