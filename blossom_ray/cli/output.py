"""What commands print: JSON for machines, and the one message with which a command ends."""

from __future__ import annotations

import json
import sys
from math import isfinite
from typing import Any, NoReturn


def print_json(values: dict[str, Any]) -> None:
    """Print one object on one line; infinity and NaN, which JSON does not have, become null."""
    finite = {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in values.items()}
    print(json.dumps(finite), flush=True)


def fail(message: str, exit_code: int) -> NoReturn:
    """End the command with a message on standard error."""
    print(message, file=sys.stderr)
    raise SystemExit(exit_code)
