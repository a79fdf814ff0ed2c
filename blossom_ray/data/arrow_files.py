"""Arrow IPC files of samples and labels: written batch by batch, read without a copy.

Nothing here knows about clients: a file is a list of numbered batches. `shards.py` says whose they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.dataset import FloatArray, IntArray, Labels
from blossom_ray.errors import DataError, RunFolderError

ByteArray = npt.NDArray[np.uint8]
Rows = IntArray | slice

_SUFFIX = ".arrow"


def write_samples(path: Path, samples: FloatArray, batches: Iterable[Rows]) -> None:
    """Write one batch of samples after the other, each sample flattened into a fixed-size list.

    Args:
        path: The file, without suffix; its folder is made if it does not exist.
        samples: (N, *shape) float32. `shape` goes into the file's metadata.
        batches: Rows of each batch.

    Raises:
        RunFolderError: The file cannot be written.
    """
    size = math.prod(samples.shape[1:])
    shape = ",".join(str(length) for length in samples.shape[1:])
    field = pa.field("sample", pa.list_(pa.field("item", pa.float32(), nullable=False), size), nullable=False)
    schema = pa.schema([field], metadata={"shape": shape})
    with _writer(path, schema) as writer:
        for rows in batches:
            values = np.ascontiguousarray(samples[rows]).reshape(-1)
            column = pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type)
            writer.write_batch(pa.record_batch([column], schema=schema))


def write_labels(path: Path, labels: Labels, batches: Iterable[Rows]) -> None:
    """Write one batch of labels after the other.

    Args:
        path: The file, without suffix; its folder is made if it does not exist.
        labels: (N,) int64, or (N, C) float32, which are written as samples are.
        batches: Rows of each batch.

    Raises:
        RunFolderError: The file cannot be written.
    """
    if labels.ndim == 2:
        write_samples(path, np.asarray(labels, np.float32), batches)
        return
    schema = pa.schema([pa.field("label", pa.int64(), nullable=False)])
    with _writer(path, schema) as writer:
        for rows in batches:
            writer.write_batch(pa.record_batch([pa.array(labels[rows])], schema=schema))


def copy_batches(path: Path, numbers: IntArray) -> ByteArray:
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


class ArrowFiles:
    """Files read by name and batch number. Each is opened when it is first needed.

    Args:
        source: A folder with the files, or their contents by name.
    """

    def __init__(self, source: Path | Mapping[str, ByteArray]) -> None:
        self._source = source
        self._open: dict[str, tuple[Any, Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def samples(self, name: str, number: int) -> FloatArray:
        """A batch of samples, (n, *shape) float32: a read-only view of the file or of the buffer.

        Raises:
            DataError: The file is missing or damaged.
        """
        batch = self._batch(name, number)
        if name not in self._shapes:
            self._shapes[name] = tuple(map(int, batch.schema.metadata[b"shape"].split(b",")))
        values = batch.column(0).values.to_numpy(zero_copy_only=True)
        return np.asarray(values.reshape(batch.num_rows, *self._shapes[name]))

    def labels(self, name: str, number: int) -> Labels:
        """A batch of labels, (n,) int64 or (n, C) float32: a read-only view of the file or of the buffer.

        Raises:
            DataError: The file is missing or damaged.
        """
        batch = self._batch(name, number)
        if batch.schema.metadata is not None:
            return self.samples(name, number)
        return np.asarray(batch.column(0).to_numpy(zero_copy_only=True))

    def close(self) -> None:
        """Close the files. The memory behind views is given back with the last view of it."""
        for _, source in self._open.values():
            source.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batch(self, name: str, number: int) -> Any:
        with _damage_told(name):
            if name not in self._open:
                if isinstance(self._source, Path):
                    source = pa.memory_map(_file(self._source / name))
                else:
                    source = pa.BufferReader(pa.py_buffer(self._source[name]))
                self._open[name] = pa.ipc.open_file(source), source
            return self._open[name][0].get_batch(number)


def _file(path: Path) -> str:
    return f"{path}{_SUFFIX}"


@contextmanager
def _writer(path: Path, schema: Any) -> Iterator[Any]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(_file(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            yield writer
    except OSError as error:
        raise RunFolderError(f"{_file(path)} cannot be written: {error}") from error


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, KeyError) as error:
        raise DataError(f"{name}{_SUFFIX} is missing; expected the shards as they were written") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{name}{_SUFFIX} is damaged ({error}); expected it as it was written") from error
