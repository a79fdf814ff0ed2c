"""The `blossom-ray` command: puts a scenario, a runtime and a view together. One module per group of commands.

Nothing is imported here but what hears Ctrl-C, so that it is heard while the rest is imported.
"""

from __future__ import annotations

from blossom_ray.cli.entry import main

TYPE_CHECKING = False  # as in the package
if TYPE_CHECKING:
    from typing import Any

    from blossom_ray.cli.commands import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    if name == "app":
        from blossom_ray.cli import commands

        return commands.app
    raise AttributeError(f"module 'blossom_ray.cli' has no attribute {name!r}")
