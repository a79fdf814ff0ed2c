"""The Arrow files of shards: what they are called, and a batch of rows into one of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.stored import StoredRows
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import DataError, RunFolderError

ByteArray = npt.NDArray[np.uint8]
Batch: TypeAlias = npt.NDArray[Any] | StoredRows
_HELD_OUT = "held-out/"
_SUFFIX = ".arrow"


def key_of(modality: str, dataset: str) -> str:
    """What a modality is called among those of all data sets."""
    return f"{dataset}/{modality}" if dataset else modality


def modality_of(key: str) -> str:
    """The modality of a key."""
    return key.rpartition("/")[2]


def inputs_name(key: str) -> str:
    """The file with the samples of a modality."""
    return f"input-{key}"


def labels_name(task: str) -> str:
    """The file with the labels of some tasks."""
    return f"labels-{task}" if task else "labels"


def gaps_name(key: str) -> str:
    """The file that says in which rows a modality is observed."""
    return f"observed-{key}"


def scale_name(key: str) -> str:
    """The file with the scales of the held-out set in which clients see a modality."""
    return f"scale-{key}"


def held_out_place(view: int) -> str:
    """What the names of files of the held-out set begin with, as some clients see it."""
    return f"{_HELD_OUT}{view}/"


def write_batches(path: Path, like: Batch, batches: Iterable[Batch], *, stay_bytes: bool = False) -> None:
    """Write batches of rows, each row flattened into a fixed-size list; its shape, as in `like`, is metadata.

    Of rows that stay bytes it is metadata, too, what they stand for.
    """
    dtype, told = like.dtype, {"shape": json.dumps(like.shape[1:])}
    if stay_bytes and isinstance(like, StoredRows):
        scale = None if like.scale is None else [numbers.tolist() for numbers in like.scale]
        dtype, told = np.dtype(np.uint8), told | {"factor": json.dumps(like.factor), "scale": json.dumps(scale)}
    item = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    row = pa.field("row", pa.list_(item, math.prod(like.shape[1:])), nullable=False)
    schema = pa.schema([row], metadata=told)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(path_of(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows in batches:
                if isinstance(rows, StoredRows):
                    rows = (rows.as_kept() if stay_bytes else rows).in_one_piece(path.parent, dtype)
                flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, type=row.type)
                writer.write_batch(pa.record_batch([column], schema=schema))
    except OSError as error:
        raise RunFolderError(f"{path_of(path)} cannot be written: {error}") from error


def copy_batches(path: Path, numbers: IntArray) -> ByteArray:
    """Some batches of a file, in this order, as a file of their own in memory."""
    with damage_told(path.name), pa.memory_map(path_of(path)) as source:
        reader = pa.ipc.open_file(source)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, reader.schema) as writer:
            for number in numbers.tolist():
                writer.write_batch(reader.get_batch(number))
    return np.frombuffer(sink.getvalue(), np.uint8)


def path_of(path: Path) -> str:
    """A file with its suffix."""
    return f"{path}{_SUFFIX}"


def is_there(path: Path) -> bool:
    """Whether there is a file."""
    return os.path.exists(path_of(path))


@contextmanager
def damage_told(name: str) -> Iterator[None]:
    """What is missing or damaged, with the name of the file."""
    try:
        yield
    except (FileNotFoundError, KeyError) as error:
        raise DataError(f"{name}{_SUFFIX} is missing; expected the shards as they were written") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{name}{_SUFFIX} is damaged ({error}); expected it as it was written") from error
