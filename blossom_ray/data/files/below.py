"""A path that a row of a table names: followed to a regular file below the table's folder, and nowhere else."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from blossom_ray.data.modalities.base import UndecodableError
from blossom_ray.text import brief

_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]+://")


def file_below(folder: Path, text: str) -> Path:
    """The file that a relative path leads to, which is not opened.

    Args:
        folder: Where the path counts from.
        text: The path, with `/` between folders. Links may lead to other files below the folder.

    Raises:
        UndecodableError: It is absolute or a URI, has `..`, leads out of the folder by a link, or to no regular file.
    """

    def refused(found: str, expected: str = "a relative path of a file below the table's folder") -> UndecodableError:
        return UndecodableError(f"is '{brief(text)}', {found}; expected {expected}")

    if _ABSOLUTE.match(text):
        raise refused("which is no relative path")
    if ".." in text.split("/"):
        raise refused("which has '..'")
    try:
        place = os.fspath(folder)
        for part in text.split("/"):
            place = f"{place}/{part}"
            mode = os.lstat(place).st_mode
            if stat.S_ISLNK(
                mode
            ):  # else it cannot leave the folder, and to resolve a path takes longer than to read it
                top = os.path.realpath(folder, strict=True)
                place = os.path.realpath(os.path.join(top, text), strict=True)
                if os.path.commonpath((top, place)) != top:
                    raise refused("a link that leads out of the table's folder", "the file itself, as cp -rL copies it")
                mode = os.stat(place).st_mode
                break
    except (OSError, ValueError) as error:
        hint = ", with / between folders" if "\\" in text else ""
        found = f"which cannot be found ({getattr(error, 'strerror', None) or error})"
        raise refused(found, f"a relative path of a file below the table's folder{hint}") from error
    if not stat.S_ISREG(mode):
        raise refused("which is a folder" if stat.S_ISDIR(mode) else "which is no regular file")
    return Path(place)
