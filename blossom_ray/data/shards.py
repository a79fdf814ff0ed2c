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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels
from blossom_ray.data.division.federation import Federation
from blossom_ray.errors import DataError, RunFolderError

ByteArray = npt.NDArray[np.uint8]
Rows = IntArray | slice

_LABELS = "labels"
_CLIENTS = "clients"
_HELD_OUT = "held-out/"
_SUFFIX = ".arrow"


@dataclass(frozen=True)
class Shard:
    """One client's samples, or the held-out set: read-only views of the Arrow data.

    Attributes:
        inputs: Own modalities to (n, *shape) float32: train rows, then validation rows, then test rows.
        labels: (n,) int64, or (n, C) float32, as in `Dataset`.
        num_train: How many of the n rows are for training; 0 for the held-out set.
        num_validation: How many of the next rows are for validation; the rest are test rows.
    """

    inputs: Mapping[str, FloatArray]
    labels: Labels
    num_train: int
    num_validation: int = 0

    def train(self) -> tuple[dict[str, FloatArray], Labels]:
        """Inputs and labels of the train rows; views."""
        return self._rows(slice(None, self.num_train))

    def validation(self) -> tuple[dict[str, FloatArray], Labels]:
        """Inputs and labels of the validation rows, of which there may be none; views."""
        return self._rows(slice(self.num_train, self.num_train + self.num_validation))

    def test(self) -> tuple[dict[str, FloatArray], Labels]:
        """Inputs and labels of the test rows; views."""
        return self._rows(slice(self.num_train + self.num_validation, None))

    def _rows(self, rows: slice) -> tuple[dict[str, FloatArray], Labels]:
        return {modality: values[rows] for modality, values in self.inputs.items()}, self.labels[rows]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each client's samples stand in the files. Small: every process that reads them has one.

    Attributes:
        folder: The folder with the files.
        shapes: Shape of one sample by modality.
        batches: Modality to the number of each client's batch in its file, (num_clients,) int64; -1 where the
            client does not own it.
        label_batches: The same for the file of labels.
        num_train: (num_clients,) int64: train rows of each client.
        num_validation: (num_clients,) int64: validation rows of each client.
        num_test: (num_clients,) int64: test rows of each client.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]
    batches: Mapping[str, IntArray]
    label_batches: IntArray
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
    everyone = np.ones(len(profiles), np.bool_)
    _write(folder / _LABELS, dataset.labels, _own_rows(federation, everyone))
    batches = {}
    for modality, samples in dataset.inputs.items():
        owns = np.array([modality in profile.modalities for profile in profiles])
        _write(folder / _file_name(modality), samples, _own_rows(federation, owns))
        batches[modality] = _numbered(owns)
    return ShardIndex(
        folder=folder,
        shapes=dataset.input_shapes,
        batches=batches,
        label_batches=_numbered(everyone),
        num_train=federation.num_train,
        num_validation=federation.num_validation,
        num_test=federation.num_test,
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
        the clients' ids; `ShardReader.from_buffers` reads them.

    Raises:
        DataError: A file is missing or damaged.
    """
    chosen = np.array(clients, np.int64)
    buffers = {
        _CLIENTS: chosen.view(np.uint8),
        _LABELS: _copy_batches(index.folder / _LABELS, index.label_batches[chosen]),
    }
    for modality, batches in index.batches.items():
        numbers = batches[chosen]
        if (numbers >= 0).any():
            name = _file_name(modality)
            buffers[name] = _copy_batches(index.folder / name, numbers[numbers >= 0])
    return buffers


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
        index: What `write_shards` returned, with its folder still in place.
    """

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._files = _ArrowFiles(index.folder)
        self._has_held_out = (index.folder / _HELD_OUT).is_dir()

    @classmethod
    def from_buffers(cls, index: ShardIndex, buffers: Mapping[str, ByteArray]) -> Self:
        """A reader of packed shards, which needs no folder.

        Args:
            index: What `write_shards` returned.
            buffers: What `pack` returned, with what `pack_held_out` returned where the held-out set is needed.
                They must not change while views are in use.
        """
        reader = cls(_packed(index, np.frombuffer(buffers[_CLIENTS], np.int64)))
        reader._files = _ArrowFiles(buffers)
        reader._has_held_out = _HELD_OUT + _LABELS in buffers
        return reader

    def shard(self, client: int) -> Shard:
        """One client's samples, in its own modalities.

        Raises:
            KeyError: The packed buffers do not hold this client.
            DataError: A file is missing or damaged.
        """
        number = int(self._index.label_batches[client])
        if number < 0:
            raise KeyError(client)
        inputs = {
            modality: self._files.array(_file_name(modality), int(batches[client]))
            for modality, batches in self._index.batches.items()
            if batches[client] >= 0
        }
        labels = self._files.array(_LABELS, number)
        return Shard(inputs, labels, int(self._index.num_train[client]), int(self._index.num_validation[client]))

    def held_out(self, modalities: Iterable[str]) -> Shard | None:
        """The held-out global test set in these modalities, all rows test rows; None where there is none.

        Raises:
            DataError: A file is missing or damaged.
        """
        if not self._has_held_out:
            return None
        inputs = {modality: self._files.array(_HELD_OUT + _file_name(modality), 0) for modality in modalities}
        return Shard(inputs, self._files.array(_HELD_OUT + _LABELS, 0), num_train=0)

    def close(self) -> None:
        """Close the files. The memory behind shards is given back when the last view of it goes."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _file_name(modality: str) -> str:
    return f"input-{modality}"


def _own_rows(federation: Federation, owns: npt.NDArray[np.bool_]) -> Iterable[IntArray]:
    for client in np.flatnonzero(owns).tolist():
        yield federation.rows(client)


def _numbered(owns: npt.NDArray[np.bool_]) -> IntArray:
    """Batch numbers 0, 1, ... for those that own, -1 for the others."""
    return np.where(owns, np.cumsum(owns) - 1, -1).astype(np.int64)


def _packed(index: ShardIndex, clients: IntArray) -> ShardIndex:
    """The index of what `pack` gives for these clients."""

    def numbers(batches: IntArray) -> IntArray:
        packed = np.full_like(batches, -1)
        packed[clients] = _numbered(batches[clients] >= 0)
        return packed

    return replace(
        index,
        batches={modality: numbers(batches) for modality, batches in index.batches.items()},
        label_batches=numbers(index.label_batches),
    )


def _write(path: Path, values: Labels, batches: Iterable[Rows]) -> None:
    """Write one batch of rows after the other, each row flattened into a fixed-size list.

    Args:
        path: The file, without suffix; its folder is made if it does not exist.
        values: (N, *shape) float32 or int64. `shape` goes into the file's metadata.
        batches: Rows of each batch.

    Raises:
        RunFolderError: The file cannot be written.
    """
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
    """Some batches of a file, in this order, as a file of their own in memory.

    Args:
        path: The file, without suffix.
        numbers: (n,) int64: batches to copy.

    Raises:
        DataError: The file is missing or damaged.
    """
    with _damage_told(path.name), pa.memory_map(_file(path)) as source:
        reader = pa.ipc.open_file(source)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, reader.schema) as writer:
            for number in numbers.tolist():
                writer.write_batch(reader.get_batch(number))
    return np.frombuffer(sink.getvalue(), np.uint8)


class _ArrowFiles:
    """Files read by name and batch number. Each is opened when it is first needed.

    Args:
        source: A folder with the files, or their contents by name.
    """

    def __init__(self, source: Path | Mapping[str, ByteArray]) -> None:
        self._source = source
        self._open: dict[str, tuple[Any, tuple[int, ...], Any]] = {}

    def array(self, name: str, number: int) -> Any:
        """A batch, (n, *shape) float32 or int64: a read-only view of the file or of the buffer.

        Raises:
            DataError: The file is missing or damaged.
        """
        with _damage_told(name):
            if name not in self._open:
                if isinstance(self._source, Path):
                    source = pa.memory_map(_file(self._source / name))
                else:
                    source = pa.BufferReader(pa.py_buffer(self._source[name]))
                file = pa.ipc.open_file(source)
                self._open[name] = file, tuple(json.loads(file.schema.metadata[b"shape"])), source
            file, shape, _ = self._open[name]
            batch = file.get_batch(number)
        return batch.column(0).values.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *shape)

    def close(self) -> None:
        """Close the files. The memory behind views is given back with the last view of it."""
        for _, _, source in self._open.values():
            source.close()
        self._open.clear()


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
