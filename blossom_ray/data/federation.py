"""Which client has which rows, for training, validation and testing: all that a seed fixes about the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from blossom_ray.data.dataset import IntArray, Pieces, Targets
from blossom_ray.data.overlap import Overlap, overlap
from blossom_ray.data.partition import PartitionError, partition
from blossom_ray.data.reference import reference_splits
from blossom_ray.data.sources import open_source
from blossom_ray.data.split import Split, split_parts
from blossom_ray.errors import InputError
from blossom_ray.scenario.datasets import DATASETS
from blossom_ray.scenario.sections import CustomData, Data, Downloaded, TableData
from blossom_ray.scores import Task


@dataclass(frozen=True, eq=False)
class Federation:
    """Train, validation and test rows of all clients, in three flat arrays.

    Attributes:
        train: Train rows of client 0, then of client 1, and so on; int64.
        train_ends: (num_clients + 1,) int64: client k has `train[train_ends[k] : train_ends[k + 1]]`.
        validation: Validation rows, in the same order; none where the scenario asks for none.
        validation_ends: (num_clients + 1,) int64, as `train_ends`.
        test: Test rows, in the same order.
        test_ends: (num_clients + 1,) int64, as `train_ends`.
    """

    train: IntArray
    train_ends: IntArray
    validation: IntArray
    validation_ends: IntArray
    test: IntArray
    test_ends: IntArray

    @classmethod
    def of(cls, splits: Sequence[Split]) -> Self:
        """The federation of these clients, in the order of their ids."""
        train, validation, test = zip(*splits, strict=True)
        return cls(
            np.concatenate(train), _ends(train),
            np.concatenate(validation), _ends(validation),
            np.concatenate(test), _ends(test),
        )  # fmt: skip

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.train_ends) - 1

    @property
    def num_train(self) -> IntArray:
        """(num_clients,) int64: training samples of each client."""
        return np.diff(self.train_ends)

    @property
    def num_validation(self) -> IntArray:
        """(num_clients,) int64: validation samples of each client."""
        return np.diff(self.validation_ends)

    @property
    def num_test(self) -> IntArray:
        """(num_clients,) int64: test samples of each client."""
        return np.diff(self.test_ends)

    @property
    def num_samples(self) -> int:
        """Samples of all clients together, for whatever they are."""
        return len(self.train) + len(self.validation) + len(self.test)

    def train_rows(self, client: int) -> IntArray:
        """The client's training rows in the data set, sorted; a view."""
        return self.train[self.train_ends[client] : self.train_ends[client + 1]]

    def validation_rows(self, client: int) -> IntArray:
        """The client's validation rows in the data set, sorted; a view."""
        return self.validation[self.validation_ends[client] : self.validation_ends[client + 1]]

    def test_rows(self, client: int) -> IntArray:
        """The client's test rows in the data set, sorted; a view."""
        return self.test[self.test_ends[client] : self.test_ends[client + 1]]

    def rows(self, client: int) -> IntArray:
        """The client's train rows, then its validation rows, then its test rows."""
        return np.concatenate([self.train_rows(client), self.validation_rows(client), self.test_rows(client)])

    def overlap(self, pieces: Pieces | None) -> Overlap | None:
        """How many test windows have a part of themselves in a training window; None where none has.

        Args:
            pieces: The recordings that the data set's samples are pieces of, where it tells.
        """
        if pieces is None:
            return None
        clients = range(self.num_clients)
        return overlap(pieces, [*map(self.train_rows, clients)], [*map(self.test_rows, clients)])

    def digest(self) -> str:
        """SHA-256 (hex) over all rows: equal where every client has the same rows for the same purposes."""
        digest = hashlib.sha256()
        # Without validation rows the digest is that of runs from before there were any.
        validation = (self.validation, self.validation_ends) if len(self.validation) else ()
        for rows in (self.train, self.train_ends, self.test, self.test_ends, *validation):
            digest.update(np.ascontiguousarray(rows, dtype="<i8").data)
        return digest.hexdigest()


def build_federation(data: Data, targets: Targets, num_clients: int, seed: int) -> Federation:
    """Divide a data set over clients, and each client's part into train, validation and test.

    The result depends on these arguments alone, so every sharing scheme of one seed meets the same federation.

    Args:
        data: The scenario's `data` section.
        targets: Labels and subjects of the data set.
        num_clients: Number of clients, >= 1.
        seed: The scenario's seed.

    Raises:
        PartitionError: The partition or the split cannot be met.
    """
    if data.draws == "reference":
        return Federation.of(reference_splits(data, targets, num_clients, seed))
    parts = partition(data.partition, targets, num_clients, seed)
    return Federation.of(split_parts(parts, data, targets, seed))


class Examination(NamedTuple):
    """What `validate` says of a scenario's data.

    Attributes:
        problems: What keeps them from being divided over the clients: for each problem its path inside the scenario,
            what was found and what is expected, as in `errors.Problem`; empty when the federation can be built.
        notes: What is to be known of the federation, in a line each.
        has_validation: Whether some client has a validation split; None where the federation cannot be built.
    """

    problems: list[tuple[str, str, str]]
    notes: list[str]
    has_validation: bool | None = None


def examine_federation(
    data: Data, modalities: tuple[str, ...], num_clients: int, seed: int, task: Task = "classification"
) -> Examination:
    """Find out what dividing a scenario's data over its clients comes to.

    Labels and subjects are read, and inputs only where they cannot be had without (own data).
    """
    try:
        targets = open_source(data, modalities, seed, task).targets()
        federation = build_federation(data, targets, num_clients, seed)
        found = federation.overlap(targets.pieces)
        return Examination([], [str(found)] if found else [], bool(federation.num_validation.any()))
    except InputError as error:
        return Examination(_as_problems(error, data), [])


def _as_problems(error: InputError, data: Data) -> list[tuple[str, str, str]]:
    if isinstance(error, PartitionError):
        return [(error.path, error.found, error.expected)]
    if isinstance(data, Downloaded):
        found = "is missing" if data.path is None else f"is {data.path!r}, which cannot be used ({error})"
        return [("data.path", found, DATASETS[data.dataset].download)]
    found, _, expected = str(error).partition("; expected ")
    if isinstance(data, TableData):
        return [("data.path", f"is {data.path!r}: {found}", expected)]
    if isinstance(data, CustomData) and data.factory is None:
        return [("data.factory", found.removeprefix("data.factory "), expected)]
    return [("data", f"cannot be used ({error})", "a data set that can be loaded")]


def _ends(parts: Sequence[IntArray]) -> IntArray:
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
