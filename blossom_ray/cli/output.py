"""What commands print: JSON for machines, and the one message with which a command ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from typing import Any, NoReturn


def print_json(values: dict[str, Any]) -> None:
    """Print one object on one line; infinity and NaN, which JSON does not have, become null."""
    print(json.dumps(_finite(values), allow_nan=False), flush=True)


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


def fail(message: str, exit_code: int) -> NoReturn:
    """End the command with a message on standard error."""
    print(message, file=sys.stderr)
    raise SystemExit(exit_code)
