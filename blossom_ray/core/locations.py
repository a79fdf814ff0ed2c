"""Where data and runs may be: a path on this machine as a user writes it, or a URI."""

from __future__ import annotations

import os
import re
from pathlib import Path

from blossom_ray.errors import InputError
from blossom_ray.text import brief

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# A `Path` has made one slash of the two.
_LIKE_A_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)//?")
_URI = "is a URI"
_LONGEST_NAME = 255
# Linux takes 4,095 bytes; the files of a run lie some folders deeper.
_LONGEST_PATH = 3840


def is_uri(path: str) -> bool:
    """Whether a `data.path` is a URI, such as `s3://bucket/file`, which is looked at only when the data are read."""
    return _SCHEME.match(path) is not None


def local_path(path: str | Path, what: str) -> Path:
    """A path that a user gave, with `~` for the home folder, which a shell does not replace in `--out=~/x`.

    Args:
        path: As it was given.
        what: What it was given as, such as `--out`.

    Raises:
        InputError: It is a URI, or can be no path: it is not UTF-8, too long, holds NUL, or names nobody's home.
    """
    text = str(path)
    if wrong := _fault(text):
        written = _LIKE_A_URI.sub(r"\1//", text, count=1) if wrong == _URI else text
        raise InputError(f"{what} is '{brief(written)}', which {wrong}; expected a path on this machine")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{what} is '{brief(text)}', and that home is not known; expected a path on this machine"
        ) from error


def _fault(text: str) -> str | None:
    """What keeps a text from being a path, if anything does."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if (scheme := _LIKE_A_URI.match(text)) and not os.path.isdir(scheme[1]):
        return _URI
    if "\0" in text:
        return "holds a NUL character"
    if len(encoded) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in encoded.split(b"/")):
        return f"is too long ({len(encoded):,} bytes)"
    return None
