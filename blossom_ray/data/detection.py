"""Where downloaded data sets lie below a folder, by the members that every copy of them has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from blossom_ray.data import ku_har, ptb_xl_official, uci_har
from blossom_ray.data.archives import open_archive
from blossom_ray.errors import DataError

LANDMARKS: Mapping[str, tuple[str, ...]] = {
    "uci-har": (uci_har.LANDMARK,),
    "ku-har": (ku_har.SUBSAMPLES, ku_har.RECORDINGS),
    # A prepared file has an array of this name.
    "ptb-xl": (ptb_xl_official.DATABASE, "signal.npy"),
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
    """The path itself, then what it holds, nearest first."""
    level = [path]
    for _ in range(depth + 1):
        yield from level
        level = [entry for folder in level for entry in _entries(folder)]


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        return [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in _ARCHIVES]
    except OSError:  # a folder that may not be entered holds nothing for this user
        return []


def _holds(path: Path, landmark: str) -> bool:
    try:
        with open_archive(path, landmark=landmark):
            return True
    except DataError:
        return False
