"""Temporary folders of ours, and what killed processes have left of theirs.

An owner holds a lock on its folder, which goes with it however it ends, and has then written its host into it. Each new
folder sweeps those of this user and this host that nobody holds. What has no such file is none of ours, or just being
made, and stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
