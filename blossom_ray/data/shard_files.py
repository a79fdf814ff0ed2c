"""The files of shards: what they are called, and how rows stand in one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from blossom_ray.data.stored import StoredRows, slices
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import DataError, RunFolderError

ByteArray = npt.NDArray[np.uint8]
Part: TypeAlias = npt.NDArray[Any] | StoredRows
_HELD_OUT = "held-out/"
_SUFFIX = ".rows"
_LENGTH, _ALIGNMENT = np.dtype("<u8"), 64


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


def write_rows(path: Path, like: Part, parts: Iterable[Part], num_rows: int, *, stay_bytes: bool = False) -> None:
    """Write rows as they follow each other, behind a head that says what they are.

    Args:
        path: The file, without its suffix.
        like: Has the type and the shape of a row, and where rows are written as bytes, what these stand for.
        parts: The rows; of those that are stored a little is in memory at once.
        num_rows: How many there are in all parts.
        stay_bytes: Whether they are the bytes that `like` keeps.

    Raises:
        RunFolderError: The file cannot be written.
    """
    dtype, told = like.dtype, dict[str, object]()
    if stay_bytes and isinstance(like, StoredRows):
        scale = None if like.scale is None else [numbers.tolist() for numbers in like.scale]
        dtype, told = np.dtype(np.uint8), {"factor": like.factor, "scale": scale}
    told |= {"dtype": dtype.str, "shape": (num_rows, *like.shape[1:])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path_of(path), "wb") as file:
            file.write(_head(told))
            for part in parts:
                for piece in slices(part):
                    file.write(np.ascontiguousarray(part[piece], dtype).data)
    except OSError as error:
        raise RunFolderError(f"{path_of(path)} cannot be written: {error}") from error


def copy_rows(path: Path, starts: IntArray, sizes: IntArray) -> ByteArray:
    """Stretches of the rows of a file, in this order, as a file of their own in memory.

    Raises:
        DataError: The file is missing or damaged.
    """
    values, told = read_rows(open_rows(path), path.name)
    pieces = [values[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    head = np.frombuffer(_head({**told, "shape": (int(sizes.sum()), *values.shape[1:])}), np.uint8)
    found = np.concatenate([head, *(np.ascontiguousarray(piece).reshape(-1).view(np.uint8) for piece in pieces)])
    found.flags.writeable = False
    return found


def open_rows(path: Path) -> ByteArray:
    """A file of rows, mapped.

    Raises:
        DataError: It is missing.
    """
    with damage_told(path.name):
        return np.memmap(path_of(path), np.uint8, "r").view(np.ndarray)


def read_rows(file: ByteArray, name: str) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """The rows of a file, (n, *shape) as they are kept, a view; and what is told of them.

    Raises:
        DataError: It is damaged.
    """
    with damage_told(name):
        end = _LENGTH.itemsize + int(file[: _LENGTH.itemsize].view(_LENGTH)[0])
        told = json.loads(file[_LENGTH.itemsize : end].tobytes())
        return file[end:].view(told["dtype"]).reshape(told["shape"]), told


def _head(told: Mapping[str, object]) -> bytes:
    """What is told as JSON, behind its length; both together are whole cache lines, so that rows are aligned."""
    text = json.dumps(told).encode()
    text += b" " * (-(_LENGTH.itemsize + len(text)) % _ALIGNMENT)
    return np.array(len(text), _LENGTH).tobytes() + text


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
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{name}{_SUFFIX} is damaged ({error}); expected it as it was written") from error
