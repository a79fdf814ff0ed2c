"""Clients' shards: written once per federation, read by memory map or from a buffer, without a copy.

One Arrow file per modality and one for labels, each with one batch per client that owns it. A client's batch
holds its train rows, then its validation rows, then its test rows. The held-out set lies beside them, with a single
batch per file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels
from blossom_ray.data.division.federation import Federation
from blossom_ray.errors import DataError, RunFolderError

ByteArray = npt.NDArray[np.uint8]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Rows = IntArray | slice

_LABELS = "labels"
_CLIENTS = "clients"
_HELD_OUT = "held-out/"
_SUFFIX = ".arrow"


class Samples(NamedTuple):
    """Some samples of a client; views of its shard.

    Attributes:
        inputs: Own modalities to (n, *shape) float32.
        labels: (n,) int64, or (n, C) float32, as in `Dataset`.
        observed: Of the modalities that some of these samples lack: (n,) bool, which have it.
    """

    inputs: dict[str, FloatArray]
    labels: Labels
    observed: dict[str, BoolArray]


@dataclass(frozen=True)
class Shard:
    """One client's samples, or the held-out set: read-only views of the Arrow data.

    Attributes:
        inputs: Own modalities to (n, *shape) float32: train rows, then validation rows, then test rows.
        labels: (n,) int64, or (n, C) float32, as in `Dataset`.
        num_train: How many of the n rows are for training; 0 for the held-out set.
        num_validation: How many of the next rows are for validation; the rest are test rows.
        observed: Of the modalities that some row lacks: (n,) bool, which have it. The inputs of the others are zeros.
    """

    inputs: Mapping[str, FloatArray]
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
        inputs = {modality: values[rows] for modality, values in self.inputs.items()}
        observed = {modality: has[rows] for modality, has in self.observed.items() if not has[rows].all()}
        return Samples(inputs, self.labels[rows], observed)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each client's samples stand in the files. Small: every process that reads them has one.

    Attributes:
        folder: The folder with the files.
        shapes: Shape of one sample by modality.
        batches: Modality to the number of each client's batch in its file, (num_clients,) int64; -1 where the
            client does not own it. In the file of labels, batches have the numbers of their clients.
        num_train: (num_clients,) int64: train rows of each client.
        num_validation: (num_clients,) int64: validation rows of each client.
        num_test: (num_clients,) int64: test rows of each client.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]
    batches: Mapping[str, IntArray]
    num_train: IntArray
    num_validation: IntArray
    num_test: IntArray

    @property
    def num_samples(self) -> IntArray:
        """(num_clients,) int64: rows of each client, for whatever they are."""
        return self.num_train + self.num_validation + self.num_test


def write_shards(
    dataset: Dataset, federation: Federation, profiles: Sequence[ClientProfile], folder: Path
) -> ShardIndex:
    """Write every client's samples; one client at a time is in memory besides the data set.

    Args:
        dataset: With the modalities of all clients.
        federation: Rows of each client.
        profiles: The clients in the order of their ids.
        folder: Made if it does not exist; files of the same name are replaced.

    Raises:
        RunFolderError: The files cannot be written.
    """
    _write(folder / _LABELS, dataset.labels, map(federation.rows, range(len(profiles))))
    batches = {}
    for modality, samples in dataset.inputs.items():
        owns = np.array([modality in profile.modalities for profile in profiles])
        _write(folder / _file_name(modality), samples, map(federation.rows, np.flatnonzero(owns).tolist()))
        batches[modality] = _numbered(owns)
    return ShardIndex(
        folder=folder,
        shapes=dataset.input_shapes,
        batches=batches,
        num_train=federation.train.counts,
        num_validation=federation.validation.counts,
        num_test=federation.test.counts,
    )


def write_held_out(held_out: Dataset, folder: Path) -> None:
    """Write the held-out global test set beside the shards in `folder`.

    Raises:
        RunFolderError: The files cannot be written.
    """
    for modality, samples in held_out.inputs.items():
        _write(folder / (_HELD_OUT + _file_name(modality)), samples, [slice(None)])
    _write(folder / (_HELD_OUT + _LABELS), held_out.labels, [slice(None)])


def pack(index: ShardIndex, clients: Sequence[int]) -> dict[str, ByteArray]:
    """The samples of these clients alone, for a process that cannot map the files.

    Args:
        index: What `write_shards` returned.
        clients: Ids in any order, each once.

    Returns:
        One Arrow file as a uint8 vector for the labels, one for each modality that one of the clients owns, and
        the clients' ids; `ShardReader` reads them.

    Raises:
        DataError: A file is missing or damaged.
    """
    chosen = np.array(clients, np.int64)
    numbers = {_file_name(modality): batches[chosen] for modality, batches in index.batches.items()}
    owned = {_LABELS: chosen} | {name: own[own >= 0] for name, own in numbers.items() if (own >= 0).any()}
    return {
        _CLIENTS: chosen.view(np.uint8),
        **{name: _copy_batches(index.folder / name, own) for name, own in owned.items()},
    }


def pack_held_out(index: ShardIndex, modalities: Iterable[str]) -> dict[str, ByteArray]:
    """The held-out set in these modalities, to be merged into what `pack` gives; empty where none was written.

    Apart from `pack`, since many processes can share one copy of it.

    Raises:
        DataError: A file is missing or damaged.
    """
    if not (index.folder / _HELD_OUT).is_dir():
        return {}
    names = (_HELD_OUT + name for name in (_LABELS, *map(_file_name, modalities)))
    return {name: _copy_batches(index.folder / name, np.zeros(1, np.int64)) for name in names}


class ShardReader:
    """Reads shards without copying them. Files are opened when they are first needed.

    Args:
        index: What `write_shards` returned, with its folder still in place where there are no buffers.
        buffers: What `pack` returned, with what `pack_held_out` returned where the held-out set is needed. They must
            not change while views are in use.
    """

    def __init__(self, index: ShardIndex, buffers: Mapping[str, ByteArray] | None = None) -> None:
        self._index, self._buffers = index, buffers
        self._open: dict[str, tuple[Any, tuple[int, ...], Any]] = {}
        self._labels, self._batches = np.arange(len(index.num_train)), index.batches
        if buffers is None:
            self._has_held_out = (index.folder / _HELD_OUT).is_dir()
        else:
            self._has_held_out = _HELD_OUT + _LABELS in buffers
            packed = np.frombuffer(buffers[_CLIENTS], np.int64)
            self._labels = _renumbered(self._labels, packed)
            self._batches = {modality: _renumbered(batches, packed) for modality, batches in index.batches.items()}

    def shard(self, client: int) -> Shard:
        """One client's samples, in its own modalities.

        Raises:
            KeyError: The packed buffers do not hold this client.
            DataError: A file is missing or damaged.
        """
        number = int(self._labels[client])
        if number < 0:
            raise KeyError(client)
        inputs = {
            modality: self._array(_file_name(modality), int(batches[client]))
            for modality, batches in self._batches.items()
            if batches[client] >= 0
        }
        labels = self._array(_LABELS, number)
        return Shard(inputs, labels, int(self._index.num_train[client]), int(self._index.num_validation[client]))

    def held_out(self, modalities: Iterable[str]) -> Shard | None:
        """The held-out global test set in these modalities, all rows test rows; None where there is none.

        Raises:
            DataError: A file is missing or damaged.
        """
        if not self._has_held_out:
            return None
        inputs = {modality: self._array(_HELD_OUT + _file_name(modality), 0) for modality in modalities}
        return Shard(inputs, self._array(_HELD_OUT + _LABELS, 0), num_train=0)

    def close(self) -> None:
        """Close the files. The memory behind shards is given back when the last view of it goes."""
        for _, _, source in self._open.values():
            source.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _array(self, name: str, number: int) -> Any:
        """A batch, (n, *shape) float32 or int64: a read-only view of the file or of the buffer."""
        with _damage_told(name):
            if name not in self._open:
                if self._buffers is None:
                    source = pa.memory_map(_file(self._index.folder / name))
                else:
                    source = pa.BufferReader(pa.py_buffer(self._buffers[name]))
                file = pa.ipc.open_file(source)
                self._open[name] = file, tuple(json.loads(file.schema.metadata[b"shape"])), source
            file, shape, _ = self._open[name]
            batch = file.get_batch(number)
        return batch.column(0).values.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *shape)


def _file_name(modality: str) -> str:
    return f"input-{modality}"


def _numbered(owns: npt.NDArray[np.bool_]) -> IntArray:
    """Batch numbers 0, 1, ... for those that own, -1 for the others."""
    return np.where(owns, np.cumsum(owns) - 1, -1).astype(np.int64)


def _renumbered(batches: IntArray, clients: IntArray) -> IntArray:
    """The numbers that batches have in what `pack` gives for these clients."""
    packed = np.full_like(batches, -1)
    packed[clients] = _numbered(batches[clients] >= 0)
    return packed


def _write(path: Path, values: Labels, batches: Iterable[Rows]) -> None:
    """Write one batch of rows after the other, each row flattened into a fixed-size list; its shape is metadata."""
    item = pa.field("item", pa.from_numpy_dtype(values.dtype), nullable=False)
    field = pa.field("row", pa.list_(item, math.prod(values.shape[1:])), nullable=False)
    schema = pa.schema([field], metadata={"shape": json.dumps(values.shape[1:])})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(_file(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows in batches:
                flat = pa.array(np.ascontiguousarray(values[rows]).reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
                writer.write_batch(pa.record_batch([column], schema=schema))
    except OSError as error:
        raise RunFolderError(f"{_file(path)} cannot be written: {error}") from error


def _copy_batches(path: Path, numbers: IntArray) -> ByteArray:
    """Some batches of a file, in this order, as a file of their own in memory."""
    with _damage_told(path.name), pa.memory_map(_file(path)) as source:
        reader = pa.ipc.open_file(source)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, reader.schema) as writer:
            for number in numbers.tolist():
                writer.write_batch(reader.get_batch(number))
    return np.frombuffer(sink.getvalue(), np.uint8)


def _file(path: Path) -> str:
    return f"{path}{_SUFFIX}"


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, KeyError) as error:
        raise DataError(f"{name}{_SUFFIX} is missing; expected the shards as they were written") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{name}{_SUFFIX} is damaged ({error}); expected it as it was written") from error
