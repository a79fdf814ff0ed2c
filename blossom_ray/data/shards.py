"""Clients' shards: written once per federation, read by memory map or from a buffer, without a copy.

One Arrow file per modality and one for the labels of each set of tasks, each with one batch per client that has it. A
client's batch holds its train rows, then its validation rows, then its test rows. Where clients do not observe a
modality in all of their rows, one more file says in which. The held-out set lies beside them, with one batch for each
way in which clients see it; where each client scales it by numbers of its own, a file with these says how. Samples that
are kept as bytes stay bytes where they are many, and are read as float32 by the batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.shard_files import (
    ByteArray,
    copy_batches,
    damage_told,
    gaps_name,
    held_out_place,
    inputs_name,
    is_there,
    labels_name,
    modality_of,
    path_of,
    scale_name,
)
from blossom_ray.data.stored import Rows, Scale, StoredRows, as_seen, taken
from blossom_ray.data.targets import IntArray, Labels

_CLIENTS = "clients"


class Samples(NamedTuple):
    """Some samples of a client; views of its shard.

    Attributes:
        inputs: Own modalities to (n, *shape) float32, in memory or not.
        labels: (n,) int64, or (n, C) float32, as in `Dataset`; of several tasks, or known in part, rows as
            `core/label_rows.py` has them.
        observed: Of the modalities that some of these samples lack: (n,) bool, which have it.
    """

    inputs: dict[str, Rows]
    labels: Labels
    observed: dict[str, BoolArray]


@dataclass(frozen=True)
class Shard:
    """One client's samples, or the held-out set: read-only views of the Arrow data.

    Attributes:
        inputs: Own modalities to (n, *shape) float32: train rows, then validation rows, then test rows.
        labels: As in `Samples`.
        num_train: How many of the n rows are for training; 0 for the held-out set.
        num_validation: How many of the next rows are for validation; the rest are test rows.
        observed: Of the modalities that some row lacks: (n,) bool, which have it. The inputs of the others are zeros.
    """

    inputs: Mapping[str, Rows]
    labels: Labels
    num_train: int
    num_validation: int = 0
    observed: Mapping[str, BoolArray] = field(default_factory=dict)

    def train(self) -> Samples:
        """The train rows."""
        return self._rows(slice(None, self.num_train))

    def validation(self) -> Samples:
        """The validation rows, of which there may be none."""
        return self._rows(slice(self.num_train, self.num_train + self.num_validation))

    def test(self) -> Samples:
        """The test rows."""
        return self._rows(slice(self.num_train + self.num_validation, None))

    def _rows(self, rows: slice) -> Samples:
        inputs = {modality: taken(values, rows) for modality, values in self.inputs.items()}
        observed = {modality: has[rows] for modality, has in self.observed.items() if not has[rows].all()}
        return Samples(inputs, self.labels[rows], observed)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each client's samples stand in the files. Small: every process that reads them has one.

    Attributes:
        folder: The folder with the files.
        batches: Modality to the number of each client's batch in its file, (num_clients,) int64; -1 where the
            client does not own it. With several data sets, of `<data set>/<modality>`.
        num_train: (num_clients,) int64: train rows of each client.
        num_validation: (num_clients,) int64: validation rows of each client.
        num_test: (num_clients,) int64: test rows of each client.
        gaps: As `batches`, of the files that say in which rows modalities are observed; -1 where it is in all rows.
        views: (num_clients,) int64: which way of seeing the held-out set is each client's.
        labels: By tasks, such as `activity+who`, as `batches`, of the files of labels; -1 where a client has others.
        scales: As `batches`, of the files that say how clients scale the held-out set, each by numbers of its own.
    """

    folder: Path
    batches: Mapping[str, IntArray]
    num_train: IntArray
    num_validation: IntArray
    num_test: IntArray
    gaps: Mapping[str, IntArray]
    views: IntArray
    labels: Mapping[str, IntArray] = field(default_factory=dict)
    scales: Mapping[str, IntArray] = field(default_factory=dict)

    @property
    def num_samples(self) -> IntArray:
        """(num_clients,) int64: rows of each client, for whatever they are."""
        return self.num_train + self.num_validation + self.num_test

    @classmethod
    def joined(cls, parts: Sequence[tuple[Sequence[int], ShardIndex]]) -> ShardIndex:
        """The index of all clients, from those of several data sets in one folder, each with the ids of its clients."""
        num_clients = sum(len(clients) for clients, _ in parts)

        def spread(of: Callable[[ShardIndex], Mapping[str, IntArray]], fill: int) -> dict[str, IntArray]:
            found: dict[str, IntArray] = {}
            for clients, index in parts:
                for name, numbers in of(index).items():
                    found.setdefault(name, np.full(num_clients, fill, np.int64))[list(clients)] = numbers
            return found

        counts = ("num_train", "num_validation", "num_test", "views")
        return cls(
            folder=parts[0][1].folder,
            batches=spread(lambda index: index.batches, -1),
            gaps=spread(lambda index: index.gaps, -1),
            labels=spread(lambda index: index.labels, -1),
            scales=spread(lambda index: index.scales, -1),
            **spread(lambda index: {name: getattr(index, name) for name in counts}, 0),
        )


def pack(index: ShardIndex, clients: Sequence[int]) -> dict[str, ByteArray]:
    """The samples of these clients alone, for a process that cannot map the files.

    Args:
        index: What `write_shards` returned.
        clients: Ids in any order, each once.

    Returns:
        One Arrow file as a uint8 vector for the labels of each task and for each modality that one of the clients has,
        one for each that one of them does not observe throughout, or scales by numbers of its own, and the clients'
        ids; `ShardReader` reads them.

    Raises:
        DataError: A file is missing or damaged.
    """
    chosen = np.array(clients, np.int64)
    numbers = {labels_name(task): batches[chosen] for task, batches in index.labels.items()}
    numbers |= {inputs_name(modality): batches[chosen] for modality, batches in index.batches.items()}
    numbers |= {gaps_name(modality): batches[chosen] for modality, batches in index.gaps.items()}
    numbers |= {scale_name(modality): batches[chosen] for modality, batches in index.scales.items()}
    owned = {name: own[own >= 0] for name, own in numbers.items() if (own >= 0).any()}
    return {
        _CLIENTS: chosen.view(np.uint8),
        **{name: copy_batches(index.folder / name, own) for name, own in owned.items()},
    }


def pack_held_out(index: ShardIndex, clients: Sequence[int]) -> dict[str, ByteArray]:
    """The held-out set as these clients see it, to be merged into what `pack` gives; empty where none was written.

    Apart from `pack`, since many processes can share one copy of it.

    Raises:
        DataError: A file is missing or damaged.
    """
    if not (index.folder / held_out_place(0)).is_dir():
        return {}
    owned = [modality for modality, batches in index.batches.items() if (batches[list(clients)] >= 0).any()]
    files = [*map(labels_name, index.labels), *map(inputs_name, owned), *map(gaps_name, owned)]
    views = np.unique(index.views[list(clients)]).tolist()
    names = [name for view in views for file in files if is_there(index.folder / (name := held_out_place(view) + file))]
    return {name: copy_batches(index.folder / name, np.zeros(1, np.int64)) for name in names}


class ShardReader:
    """Reads shards without copying them. Files are opened when they are first needed.

    Args:
        index: What `write_shards` returned, with its folder still in place where there are no buffers.
        buffers: What `pack` returned, with what `pack_held_out` returned where the held-out set is needed. They must
            not change while views are in use.
    """

    def __init__(self, index: ShardIndex, buffers: Mapping[str, ByteArray] | None = None) -> None:
        self._index, self._buffers = index, buffers
        self._open: dict[str, tuple[Any, dict[str, Any], Any]] = {}
        numbers = (index.labels, index.batches, index.gaps, index.scales)
        self._labels, self._batches, self._gaps, self._scales = numbers
        if buffers is not None:
            packed = np.frombuffer(buffers[_CLIENTS], np.int64)
            self._labels, self._batches, self._gaps, self._scales = (
                {name: _renumbered(batches, packed) for name, batches in own.items()} for own in numbers
            )

    def shard(self, client: int) -> Shard:
        """One client's samples, in its own modalities.

        Raises:
            KeyError: The packed buffers do not hold this client.
            DataError: A file is missing or damaged.
        """
        own = _of(client, self._labels)
        if not own:
            raise KeyError(client)
        task, position = own[0]
        observed = {key: self._array(gaps_name(key), number) for key, number in _of(client, self._gaps)}
        observed = {key: has.view(np.bool_) for key, has in observed.items()}
        scales = self._own_scales(client)
        inputs = {
            key: self._samples(inputs_name(key), number, observed.get(key), scales.get(key))
            for key, number in _of(client, self._batches)
        }
        return Shard(
            inputs={modality_of(key): values for key, values in inputs.items()},
            labels=self._array(labels_name(task), position),
            num_train=int(self._index.num_train[client]),
            num_validation=int(self._index.num_validation[client]),
            observed={modality_of(key): has for key, has in observed.items()},
        )

    def held_out(self, client: int) -> Shard | None:
        """The held-out global test set as a client sees it, all rows test rows; None where its task has none.

        Raises:
            DataError: A file is missing or damaged.
        """
        place, owned = held_out_place(int(self._index.views[client])), [key for key, _ in _of(client, self._batches)]
        labels = place + labels_name(_of(client, self._labels)[0][0])
        if not self._has_file(labels):
            return None
        gaps = [key for key in owned if self._has_file(place + gaps_name(key))]
        observed = {key: self._array(place + gaps_name(key), 0).view(np.bool_) for key in gaps}
        scales = self._own_scales(client)
        inputs = {key: self._samples(place + inputs_name(key), 0, observed.get(key), scales.get(key)) for key in owned}
        for key, scale in scales.items():
            if isinstance(values := inputs[key], np.ndarray):
                own = as_seen(values, slice(None), observed.get(key), scale)
                inputs[key] = own.in_one_piece(self._index.folder if self._buffers is None else None)
        return Shard(
            inputs={modality_of(key): values for key, values in inputs.items()},
            labels=self._array(labels, 0),
            num_train=0,
            observed={modality_of(key): has for key, has in observed.items()},
        )

    def close(self) -> None:
        """Close the files. The memory behind shards is given back when the last view of it goes."""
        for _, _, source in self._open.values():
            source.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_file(self, name: str) -> bool:
        return is_there(self._index.folder / name) if self._buffers is None else name in self._buffers

    def _own_scales(self, client: int) -> dict[str, Scale]:
        return {key: Scale(*self._array(scale_name(key), number)) for key, number in _of(client, self._scales)}

    def _samples(self, name: str, number: int, observed: BoolArray | None, scale: Scale | None) -> Rows:
        """A batch as float32; bytes become what they stand for when they are read, in this scale or that of all."""
        values: npt.NDArray[Any] = self._array(name, number)
        told = self._open[name][1]
        if "factor" not in told:
            return values
        pooled = None if told["scale"] is None else Scale(*map(np.array, told["scale"]))
        rows = replace(StoredRows.of(values), factor=told["factor"])
        return as_seen(rows, slice(None), observed, scale or pooled)

    def _array(self, name: str, number: int) -> Any:
        """A batch, (n, *shape) as it is kept: a read-only view of the file or of the buffer."""
        with damage_told(name):
            if name not in self._open:
                if self._buffers is None:
                    source = pa.memory_map(path_of(self._index.folder / name))
                else:
                    source = pa.BufferReader(pa.py_buffer(self._buffers[name]))
                file = pa.ipc.open_file(source)
                told = {key.decode(): json.loads(value) for key, value in file.schema.metadata.items()}
                self._open[name] = file, told, source
            file, told, _ = self._open[name]
            batch = file.get_batch(number)
        return batch.column(0).values.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *told["shape"])


def _of(client: int, numbers: Mapping[str, IntArray]) -> list[tuple[str, int]]:
    """The modalities, or tasks, of which a client has a batch, and the number of that."""
    return [(modality, int(batches[client])) for modality, batches in numbers.items() if batches[client] >= 0]


def numbered(owns: BoolArray) -> IntArray:
    """Batch numbers 0, 1, ... for those that own, -1 for the others."""
    return np.where(owns, np.cumsum(owns) - 1, -1).astype(np.int64)


def _renumbered(batches: IntArray, clients: IntArray) -> IntArray:
    """The numbers that batches have in what `pack` gives for these clients."""
    packed = np.full_like(batches, -1)
    packed[clients] = numbered(batches[clients] >= 0)
    return packed
