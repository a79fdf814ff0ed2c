"""One JSON object on one line, as `--json` prints and logs have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any


def json_line(values: Mapping[str, Any]) -> str:
    """An object as JSON without line breaks; infinity and NaN, which JSON does not have, become null."""
    # The one control character that is left as it is.
    return json.dumps(_finite(values), allow_nan=False).replace("\x7f", r"\u007f")


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
