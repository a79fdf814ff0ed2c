"""Where downloaded data sets lie below a folder, by the members that every copy of them has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from blossom_ray.data.files.archives import open_archive
from blossom_ray.data.sets import iemocap, ku_har, meld, mnist, ptb_xl_files, uci_har
from blossom_ray.errors import DataError

LANDMARKS: Mapping[str, tuple[str, ...]] = {
    "uci-har": (uci_har.LANDMARK,),
    "ku-har": (ku_har.SUBSAMPLES, ku_har.RECORDINGS),
    # A prepared file has an array of this name.
    "ptb-xl": (ptb_xl_files.DATABASE, "signal.npy"),
    "av-mnist": mnist.LANDMARKS,
    "meld": (meld.LANDMARK,),
    "iemocap": (iemocap.LANDMARK,),
}

_MOST_CANDIDATES = 1000
_ARCHIVES = (".zip", ".npz")


def find(path: Path) -> dict[str, Path]:
    """The data sets that are at `path` or up to two folders below it, each with a path that `data.path` may name.

    Folders and archives are looked at, not their content, so what is found may still be damaged.

    Args:
        path: A folder, or an archive.
    """
    found: dict[str, Path] = {}
    for candidate in islice(_candidates(path), _MOST_CANDIDATES):
        for name, landmarks in LANDMARKS.items():
            if name not in found and any(_holds(candidate, landmark) for landmark in landmarks):
                found[name] = candidate
    return found


def _candidates(path: Path, depth: int = 2) -> Iterator[Path]:
    """The path itself, folders up to `depth` below it, and archives in all of these; nearest first."""
    yield path
    folders = [path]
    for level in range(depth + 1):
        entries = [entry for folder in folders for entry in _entries(folder)]
        folders = [entry for entry in entries if os.path.isdir(entry)] if level < depth else []
        archives = [entry for entry in entries if entry.suffix.lower() in _ARCHIVES and entry not in folders]
        yield from (*folders, *archives)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:  # a folder that may not be entered holds nothing for this user
        return []


def _holds(path: Path, landmark: str) -> bool:
    try:
        with open_archive(path, landmark=landmark, depth=1):
            return True
    except (DataError, OSError):
        return False
