"""Clients' shards: written once per federation, read by memory map or from a buffer, without a copy.

One file of rows per modality and one for the labels of each set of tasks, with those of one client that has it after
the other's: a client's train rows, then its validation rows, then its test rows. Where clients do not observe a
modality in all of their rows, one more file says in which. The held-out set lies beside them, in files for each way in
which clients see it; where each client scales it by numbers of its own, a file with these says how. Samples that are
kept as bytes stay bytes where they are many, and are read as float32 by the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.shard_files import (
    ByteArray,
    copy_rows,
    damage_told,
    gaps_name,
    held_out_place,
    inputs_name,
    is_there,
    labels_name,
    modality_of,
    open_rows,
    read_rows,
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
    """One client's samples, or the held-out set: read-only views of what was written.

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
        if len(range(len(self.labels))[rows]) == len(self.labels):
            observed = {modality: has for modality, has in self.observed.items() if not has.all()}
            return Samples(dict(self.inputs), self.labels, observed)
        inputs = {modality: taken(values, rows) for modality, values in self.inputs.items()}
        observed = {modality: has[rows] for modality, has in self.observed.items() if not has[rows].all()}
        return Samples(inputs, self.labels[rows], observed)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each client's samples stand in the files. Small: every process that reads them has one.

    Attributes:
        folder: The folder with the files.
        inputs: Modality to the first of each client's rows in its file, (num_clients,) int64; -1 where the client does
            not own it. With several data sets, of `<data set>/<modality>`.
        num_train: (num_clients,) int64: train rows of each client.
        num_validation: (num_clients,) int64: validation rows of each client.
        num_test: (num_clients,) int64: test rows of each client.
        gaps: Of modalities with a file that says in which of these rows they are observed: (num_clients,) bool, of whom
            some row lacks it.
        views: (num_clients,) int64: which way of seeing the held-out set is each client's.
        labels: By tasks, such as `activity+who`, as `inputs`, of the files of labels; -1 where a client has others.
        scales: As `inputs`, of the files that say how clients scale the held-out set, each by numbers of its own, in a
            row of each.
    """

    folder: Path
    inputs: Mapping[str, IntArray]
    num_train: IntArray
    num_validation: IntArray
    num_test: IntArray
    gaps: Mapping[str, BoolArray]
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

        def spread(of: Callable[[ShardIndex], Mapping[str, npt.NDArray[Any]]], fill: int) -> dict[str, Any]:
            found: dict[str, npt.NDArray[Any]] = {}
            for clients, index in parts:
                for name, numbers in of(index).items():
                    whole = found.setdefault(name, np.full(num_clients, fill, numbers.dtype))
                    whole[np.asarray(clients)] = numbers
            return found

        counts = ("num_train", "num_validation", "num_test", "views")
        return cls(
            folder=parts[0][1].folder,
            inputs=spread(lambda index: index.inputs, -1),
            gaps=spread(lambda index: index.gaps, 0),
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
        One file as a uint8 vector for the labels of each task and for each modality that one of the clients has, one
        for each that one of them does not observe throughout, or scales by numbers of its own, and the clients' ids;
        `ShardReader` reads them.

    Raises:
        DataError: A file is missing or damaged.
    """
    chosen = np.array(clients, np.int64)
    sizes = index.num_samples
    files = [(labels_name(task), starts, sizes) for task, starts in index.labels.items()]
    files += [(inputs_name(key), starts, sizes) for key, starts in index.inputs.items()]
    files += [(gaps_name(key), index.inputs[key], sizes) for key, lacks in index.gaps.items() if lacks[chosen].any()]
    files += [(scale_name(key), starts, np.ones_like(starts)) for key, starts in index.scales.items()]
    found = {_CLIENTS: chosen.view(np.uint8)}
    for name, starts, lengths in files:
        owned = chosen[starts[chosen] >= 0]
        if len(owned):
            found[name] = copy_rows(index.folder / name, starts[owned], lengths[owned])
    return found


def pack_held_out(index: ShardIndex, clients: Sequence[int]) -> dict[str, ByteArray]:
    """The held-out set as these clients see it, to be merged into what `pack` gives; empty where none was written.

    Apart from `pack`, since many processes can share one copy of it.

    Raises:
        DataError: A file is missing or damaged.
    """
    if not (index.folder / held_out_place(0)).is_dir():
        return {}
    owned = [modality for modality, starts in index.inputs.items() if (starts[list(clients)] >= 0).any()]
    files = [*map(labels_name, index.labels), *map(inputs_name, owned), *map(gaps_name, owned)]
    views = np.unique(index.views[list(clients)]).tolist()
    names = [name for view in views for file in files if is_there(index.folder / (name := held_out_place(view) + file))]
    return {name: open_rows(index.folder / name) for name in names}


class ShardReader:
    """Reads shards without copying them. Files are opened when they are first needed.

    Args:
        index: What `write_shards` returned, with its folder still in place where there are no buffers.
        buffers: What `pack` returned, with what `pack_held_out` returned where the held-out set is needed. They must
            not change while views are in use.
    """

    def __init__(self, index: ShardIndex, buffers: Mapping[str, ByteArray] | None = None) -> None:
        self._index, self._buffers = index, buffers
        self._open: dict[str, tuple[npt.NDArray[Any], dict[str, Any]]] = {}
        self._held_out: dict[tuple[str, ...], Shard] = {}
        self._num_samples = index.num_samples
        self._labels, self._inputs, self._scales = index.labels, index.inputs, index.scales
        if buffers is not None:
            packed = np.frombuffer(buffers[_CLIENTS], np.int64)
            self._labels = _moved(index.labels, packed, self._num_samples)
            self._inputs = _moved(index.inputs, packed, self._num_samples)
            self._scales = _moved(index.scales, packed, np.ones_like(self._num_samples))

    def shard(self, client: int) -> Shard:
        """One client's samples, in its own modalities.

        Raises:
            KeyError: The packed buffers do not hold this client.
            DataError: A file is missing or damaged.
        """
        own = _of(client, self._labels)
        if not own:
            raise KeyError(client)
        (task, first), size = own[0], int(self._num_samples[client])
        inputs, observed, scales = {}, {}, self._own_scales(client)
        for key, start in _of(client, self._inputs):
            name, rows = modality_of(key), slice(start, start + size)
            if key in self._index.gaps and self._index.gaps[key][client]:
                observed[name] = self._rows(gaps_name(key))[rows]
            inputs[name] = self._samples(inputs_name(key), rows, observed.get(name), scales.get(key))
        return Shard(
            inputs=inputs,
            labels=self._rows(labels_name(task))[first : first + size],
            num_train=int(self._index.num_train[client]),
            num_validation=int(self._index.num_validation[client]),
            observed=observed,
        )

    def held_out(self, client: int) -> Shard | None:
        """The held-out global test set as a client sees it, all rows test rows; None where its task has none.

        Clients that see the same get the same object, but for those that scale it by numbers of their own.

        Raises:
            DataError: A file is missing or damaged.
        """
        place, scales = held_out_place(int(self._index.views[client])), self._own_scales(client)
        labels = place + labels_name(_of(client, self._labels)[0][0])
        keys = [key for key, _ in _of(client, self._inputs)]
        if not scales and (labels, *keys) in self._held_out:
            return self._held_out[labels, *keys]
        if not self._has_file(labels):
            return None
        inputs, observed = {}, {}
        for key in keys:
            name = modality_of(key)
            if self._has_file(place + gaps_name(key)):
                observed[name] = self._rows(place + gaps_name(key))
            found = self._samples(place + inputs_name(key), slice(None), observed.get(name), scales.get(key))
            if key in scales and isinstance(found, np.ndarray):
                own = as_seen(found, slice(None), observed.get(name), scales[key])
                found = own.in_one_piece(self._index.folder if self._buffers is None else None)
            inputs[name] = found
        held_out = Shard(inputs=inputs, labels=self._rows(labels), num_train=0, observed=observed)
        if not scales:
            self._held_out[labels, *keys] = held_out
        return held_out

    def close(self) -> None:
        """Close the files. The memory behind shards is given back when the last view of it goes."""
        self._open.clear()
        self._held_out.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_file(self, name: str) -> bool:
        return is_there(self._index.folder / name) if self._buffers is None else name in self._buffers

    def _own_scales(self, client: int) -> dict[str, Scale]:
        return {key: Scale(*self._rows(scale_name(key))[start]) for key, start in _of(client, self._scales)}

    def _samples(self, name: str, rows: slice, observed: BoolArray | None, scale: Scale | None) -> Rows:
        """Rows as float32; bytes become what they stand for when they are read, in this scale or that of all."""
        values = self._rows(name)[rows]
        told = self._open[name][1]
        if "factor" not in told:
            return values
        pooled = None if told["scale"] is None else Scale(*map(np.array, told["scale"]))
        found = replace(StoredRows.of(values), factor=told["factor"])
        return as_seen(found, slice(None), observed, scale or pooled)

    def _rows(self, name: str) -> npt.NDArray[Any]:
        """All rows of a file or a buffer, (n, *shape) as they are kept: a read-only view."""
        if name not in self._open:
            if self._buffers is None:
                file = open_rows(self._index.folder / name)
            else:
                with damage_told(name):
                    file = self._buffers[name]
            self._open[name] = read_rows(file, name)
        return self._open[name][0]


def first_rows(owns: BoolArray, sizes: IntArray) -> IntArray:
    """Where the rows of those that own begin, one's after the other's; -1 for the others."""
    held = np.where(owns, sizes, 0)
    return np.where(owns, np.cumsum(held) - held, -1)


def _of(client: int, starts: Mapping[str, IntArray]) -> list[tuple[str, int]]:
    """The modalities, or tasks, of which a client has rows, and the first of these."""
    return [(name, int(own[client])) for name, own in starts.items() if own[client] >= 0]


def _moved(starts: Mapping[str, IntArray], clients: IntArray, sizes: IntArray) -> dict[str, IntArray]:
    """Where the rows of these clients begin in what `pack` gives for them."""
    moved = {}
    for name, own in starts.items():
        moved[name] = np.full_like(own, -1)
        moved[name][clients] = first_rows(own[clients] >= 0, sizes[clients])
    return moved
