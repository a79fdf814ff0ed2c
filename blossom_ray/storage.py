"""Writing files so that they are whole or absent, and what a full disk means.

What stands in the files is the business of `checkpoint.py` and `results/`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from blossom_ray.errors import RunFolderError, StorageError

_HINT = "make space, then go on from the last checkpoint with: blossom-ray resume RUN (the run folder)"
# The disk is at its end, not the path wrong: space, quota, largest file, hardware.
_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in our words what went wrong when something under `path` was written.

    Raises:
        StorageError: The disk is full, a quota or limit is reached, or the disk fails.
        RunFolderError: The path cannot be written, or is no Unicode, which Arrow refuses.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise RunFolderError(f"{path}: is not UTF-8; expected a folder whose name is") from error
    except (OSError, SafetensorError) as error:
        number = _number(error)
        place = getattr(error, "filename", None) or path
        reason = os.strerror(number) if number else str(error)
        if number in _EXHAUSTED:
            raise StorageError(f"{place}: {reason}", _HINT) from error
        raise RunFolderError(f"{place}: {reason}; expected a folder that can be written") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all: yields a temporary path, which then takes the place of `path`."""
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """The name of a file until it is whole."""
    return path.with_name(f".{path.name}.partial")


def save_synced(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors and wait until they are on disk."""
    save_file({name: np.asarray(values, order="C") for name, values in tensors.items()}, path, metadata)
    sync(path)


def write_synced(path: Path, content: bytes) -> None:
    """Write bytes and wait until they are on disk."""
    path.write_bytes(content)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(error: Exception) -> int | None:
    """The system's error number; safetensors has it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
