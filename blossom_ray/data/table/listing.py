"""What lies in a folder of own data: its files, and which names are none of the data's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blossom_ray.errors import DataError
from blossom_ray.text import brief, printable

_DEEPEST = 16
_FOLDERS_WITHOUT_ROWS = ("__MACOSX", "__pycache__", "lost+found")
WITHOUT_ROWS = re.compile(
    r"_success|_(common_)?metadata|_(committed|started)_\d+|(readme|license|notice|citation)(\..*)?|thumbs\.db|desktop\.ini"
    r"|(sha\d+|md5)sums?|.*\.(md|txt|rst|pdf|html|json|ya?ml|toml|log|crc|sha\d+|md5|py|ipynb)",
    re.IGNORECASE,
)
"""Names of what lies beside tables: marks of Spark, descriptions of Hugging Face, checksums, notes, code."""


class Entry(NamedTuple):
    """A file below a folder.

    Attributes:
        parts: Its path below the folder: names of folders, then its own.
        path: Where it is.
    """

    parts: tuple[str, ...]
    path: Path

    @property
    def place(self) -> str:
        """Its path below the folder, with `/`."""
        return "/".join(self.parts)


def files_below(folder: Path) -> list[Entry]:
    """All files below a folder, sorted by their paths, without hidden folders and what is hidden in folders.

    Raises:
        DataError: A folder in it is a link or lies too deep, or a name is no Unicode.
        OSError: A folder cannot be read.
    """
    return sorted(_files(folder, ()))


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[Entry]:
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            parts = (*above, entry.name)
            if entry.name.startswith(".") and (above or entry.is_dir()):
                continue
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{printable('/'.join(parts))} has a name that is not UTF-8; expected another"
                ) from None
            if not entry.is_dir():
                yield Entry(parts, folder / entry.name)
            elif entry.name not in _FOLDERS_WITHOUT_ROWS:
                place = brief("/".join(parts))
                if entry.is_symlink():
                    raise DataError(f"{place} is a link to a folder; expected the folder itself")
                if len(parts) > _DEEPEST:
                    raise DataError(f"{place} lies deep; expected at most {_DEEPEST} folders in each other")
                folders.append(parts)
    for parts in folders:
        yield from _files(folder / parts[-1], parts)
