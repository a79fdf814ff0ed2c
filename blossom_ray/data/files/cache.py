"""Arrays that are costly to decode, built once and kept on disk as memory-mapped `.npy` files, without pickles.

An entry is a folder `<name>-<hash of the key>` with one file per array and an index with their checksums. It is
written under another name and renamed when it is whole, so what is there is complete. Nothing here knows what the
arrays mean; a loader puts into the key whatever they follow from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from blossom_ray.errors import DataError
from blossom_ray.storage import replacing_folder

FOLDER_VARIABLE = "BLOSSOM_RAY_CACHE"
_INDEX = "index.json"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")

Arrays = Mapping[str, np.ndarray]


def cache_folder() -> Path:
    """The folder that `BLOSSOM_RAY_CACHE` names, else `blossom-ray` in the user's cache folder.

    That is `$XDG_CACHE_HOME/blossom-ray` or `~/.cache/blossom-ray`. Whoever needs the space may delete it.

    Raises:
        DataError: The user has no home.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blossom-ray"
    except RuntimeError as error:
        raise DataError(f"the cache folder is unknown ({error}); expected its path in {FOLDER_VARIABLE}") from error


def cached(name: str, key: Mapping[str, object], build: Callable[[], Arrays], *, folder: Path | None = None) -> Arrays:
    """What `build` returns: from the cache if it was built from an equal key before, else built and kept.

    A second process that asks for the same entry waits until it is there. An entry that is damaged is built anew.

    Args:
        name: What the entry's name begins with: the data set. Letters, digits, `_` and `-`.
        key: All that the arrays follow from: the source's content (`Archive.state`), the options, and a number that
            a loader raises when its decoding changes. Values that JSON has; their order does not matter.
        build: Makes the arrays, of any type but objects; called at most once. What it raises passes through.
        folder: Where entries lie; `cache_folder()` by default.

    Returns:
        The arrays by name, read-only, mapped from the files: memory is used as they are read.

    Raises:
        DataError: The folder cannot be written.
    """
    root = cache_folder() if folder is None else folder
    # Through JSON once, so that tuples and lists are told apart neither now nor when the index is read.
    facts = json.loads(json.dumps({**key}, sort_keys=True, allow_nan=False))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    entry = root / f"{name}-{digest[:32]}"
    found = _read(entry, facts)
    if found is not None:
        return found
    from filelock import FileLock  # which imports asyncio

    with writable(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{entry.name}.lock")
        lock.acquire()
    try:
        found = _read(entry, facts)  # another process may have built it meanwhile
        return _built(entry, facts, build) if found is None else found
    finally:
        lock.release()


def entries(name: str, folder: Path | None = None) -> dict[Path, int]:
    """The entries of a data set that are in the cache, each with its bytes.

    Args:
        name: What their names begin with, as in `cached`.
        folder: Where entries lie; `cache_folder()` by default.
    """
    root = cache_folder() if folder is None else folder
    found = (path for path in root.glob(f"{name}-*") if re.fullmatch(r"[0-9a-f]{32}", path.name[len(name) + 1 :]))
    return {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in sorted(found)}


def _built(entry: Path, facts: dict[str, Any], build: Callable[[], Arrays]) -> Arrays:
    root = entry.parent
    with ExitStack() as written:
        with writable(root):  # before the work, not after it
            folder = written.enter_context(replacing_folder(entry))
        arrays = build()
        with writable(root):
            _write(folder, facts, arrays)
            del arrays
            written.close()
    found = _read(entry, facts)
    if found is None:
        raise DataError(f"{entry} was written and cannot be read back; expected a disk that keeps what is written")
    return found


def _write(folder: Path, facts: dict[str, Any], arrays: Arrays) -> None:
    checksums = {}
    for name, values in arrays.items():
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"an array is called {name!r}; expected letters, digits, _ and -")
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
        checksums[name] = _checksum(folder / f"{name}.npy")
    index = {"key": facts, "sha256": checksums}
    (folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _read(entry: Path, facts: dict[str, Any]) -> Arrays | None:
    """The entry's arrays, or None where there is none or it is damaged."""
    try:
        index = json.loads((entry / _INDEX).read_text(encoding="utf-8"))
        if index["key"] != facts:
            return None
        arrays = {}
        for name, checksum in index["sha256"].items():
            file = entry / f"{name}.npy"
            if _checksum(file) != checksum:
                return None
            try:
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except ValueError:  # an array without values cannot be mapped
                arrays[name] = np.load(file, allow_pickle=False)
                arrays[name].setflags(write=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return arrays


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Say in our words that the cache folder cannot be written.

    Raises:
        DataError: It cannot.
    """
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the cache folder {root} cannot be written ({reason}); expected a folder with room, "
            f"or the path of another one in {FOLDER_VARIABLE}"
        ) from error
