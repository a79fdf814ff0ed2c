"""What commands print: JSON for machines, and the one message with which a command ends."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from blossom_ray.results.json_lines import json_line


def print_json(values: dict[str, Any]) -> None:
    """Print one object on one line; infinity and NaN, which JSON does not have, become null."""
    print(json_line(values), flush=True)


def warn(message: str) -> None:
    """Say something on standard error."""
    print(message, file=sys.stderr, flush=True)


def fail(message: str, exit_code: int) -> NoReturn:
    """End the command with a message on standard error."""
    print(message, file=sys.stderr)
    raise SystemExit(exit_code)
