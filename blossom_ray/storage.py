"""Files of run folders: written so that they are whole or absent, never through links; read where they are files.

A folder may come from elsewhere. What is written stays in it, whatever links lie there: a file is made anew under a
temporary name, and one that grows in place must have no other name. What is read is a regular file of bounded size:
no pipe, no device, nothing without an end. What a full disk means stands here as well; what stands in the files is the
business of `checkpoint.py` and `runs/`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from blossom_ray.errors import RunFolderError, StorageError

if TYPE_CHECKING:
    import numpy as np


import fcntl
import socket
import tempfile
from contextlib import suppress

_HINT = "make space, then go on from the last checkpoint with: blossom-ray resume RUN (the run folder)"
_NO_FILE = "is a pipe, a device or a socket; expected a regular file"
# The disk is at its end, not the path wrong: space, quota, largest file, hardware.
_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


MOST_JSON_BYTES = 16 * 2**20
"""More than the description of any run, checkpoint or sweep has."""


class RefusedFileError(OSError):
    """What lies at a path is not read or not written, however the system sees it; its text is the reason."""

    def __str__(self) -> str:
        return str(self.strerror)


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
        reason = os.strerror(number) if number and not isinstance(error, RefusedFileError) else str(error)
        if number in _EXHAUSTED:
            raise StorageError(f"{place}: {reason}", _HINT) from error
        raise RunFolderError(f"{place}: {reason}; expected a folder that can be written") from error


@contextmanager
def refuse_foreign(path: Path) -> Iterator[None]:
    """Say which file or folder of a checkpoint did not hold what it should; only one that somebody made up gets so far.

    Raises:
        RunFolderError: Reading it failed, for whatever reason.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RunFolderError(f"{path}: is no checkpoint of this run ({type(error).__name__}: {error})") from error


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Write a file as a whole or not at all: yields a temporary path, which then takes the place of `path`.

    Args:
        path: The file.
        shared: Whether other processes may write it at the same time.
    """
    temporary = new_temporary(path.with_name(f"{path.name}.{os.getpid()}") if shared else path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder as a whole or not at all: yields a new one, which then takes the place of `path`.

    Whoever calls holds a lock, so what lies there unfinished is of a process that was killed.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    before = unfinished / ".replaced"
    try:
        yield unfinished
        if path.exists():
            path.replace(before)
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(path / before.name, ignore_errors=True)


def new_temporary(path: Path) -> Path:
    """A new, empty file for what is to become `path`; a link that lies there goes, and not what it leads to."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    return temporary


@contextmanager
def appending(path: Path) -> Iterator[int]:
    """A descriptor of a file that grows in place, which is made where it is missing, for reading and appending.

    Raises:
        RefusedFileError: It is a link, has other names, or is no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    if path.is_symlink():
        raise RefusedFileError(errno.ELOOP, "is a link, which nothing is written through", str(path))
    descriptor = os.open(path, flags, 0o666)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedFileError(errno.EINVAL, _NO_FILE, str(path))
        if found.st_nlink > 1:
            raise RefusedFileError(errno.EMLINK, "is a file that has other names (hard links)", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def own_folder(path: Path) -> Path:
    """The path of a folder inside a run folder, which may be missing.

    Raises:
        RefusedFileError: It is a link, behind which nothing is written or removed.
    """
    if path.is_symlink():
        raise RefusedFileError(errno.ELOOP, "is a link, behind which nothing is written or removed", str(path))
    return path


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, as far as that goes; nothing behind links."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def read_file(path: Path, at_most: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: The file, or a link to one.
        at_most: Bytes that it may have.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger (a `RefusedFileError` of `EOVERFLOW`).
    """
    # Without waiting: a pipe that nobody writes into would be opened for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        facts = os.fstat(descriptor)
        _check_regular(facts, path)
        with open(descriptor, "rb", closefd=False) as file:
            # As much as there is: a buffer for as much as there may be takes longer than to read a small file.
            content = file.read(min(facts.st_size, at_most) + 1)
            content += file.read(at_most + 1 - len(content)) if len(content) > facts.st_size else b""
    finally:
        os.close(descriptor)
    if len(content) > at_most:
        raise RefusedFileError(errno.EOVERFLOW, f"is larger than {at_most / 2**20:.3g} MiB", str(path))
    return content


def regular(path: Path) -> Path:
    """The path, for a library that opens it by its name.

    Raises:
        OSError: It is no regular file.
    """
    _check_regular(path.stat(), path)
    return path


def checksum(path: Path) -> str:
    """SHA-256 (hex) of a file. One with the size and the time that it had when it was last asked for is not read again.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    told = regular(path).stat()
    return _checksum(path.absolute(), told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=256)
def _checksum(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001  # by these it is known to be the same file
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise RefusedFileError(errno.EINVAL, _NO_FILE, str(path))


def save_synced(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors and wait until they are on disk."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.asarray(values, order="C") for name, values in tensors.items()}, path, metadata)
    sync(path)


def write_synced(path: Path, content: bytes) -> None:
    """Write bytes into a new file and wait until they are on disk."""
    with path.open("xb") as file:
        file.write(content)
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


_PREFIX = "blossom-ray-"
_OWNER = ".owner"


@contextmanager
def temporary_folder(kind: str = "") -> Iterator[Path]:
    """A folder that is gone afterwards, or, where this process is killed, once another one makes such a folder.

    Args:
        kind: A word for its name.
    """
    _sweep(Path(tempfile.gettempdir()))
    descriptor = None
    try:
        with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{kind}-" if kind else _PREFIX) as name:
            folder = Path(name) / "files"
            folder.mkdir()
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
            # A file system without locks, or a full one: the folder is then swept by nobody else.
            with suppress(OSError):
                # Before the file is there, nobody else asks for the lock.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (Path(name) / _OWNER).write_text(socket.gethostname(), encoding="utf-8")
            yield folder
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the folders whose owners are gone. Whatever cannot be looked at or removed stays."""
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            if entry.name.startswith(_PREFIX):
                with suppress(OSError):
                    _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        opened = os.fstat(descriptor)
        if opened.st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner = os.open(_OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        with os.fdopen(owner, "rb") as file:
            is_ours = file.read(1024) == socket.gethostname().encode()
        # Held, so that of two that sweep one removes it.
        if is_ours and os.path.samestat(os.lstat(path), opened):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
