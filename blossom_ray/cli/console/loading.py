"""A bar while data are read, decoded or made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from blossom_ray.cli.console.terminal import terminal
from blossom_ray.core.progress import listening


@contextmanager
def loading_bar(*, hidden: bool = False) -> Iterator[None]:
    """A bar on standard error, if that is a terminal, for whatever loaders tell of their progress inside."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        with listening(update):
            yield
