"""Where data may be: a path on this machine, or a URI."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(path: str) -> bool:
    """Whether a `data.path` is a URI, such as `s3://bucket/file`, which is looked at only when the data are read."""
    return _SCHEME.match(path) is not None
