"""The one maker of Rich consoles: names are text to them, and lines are broken by the terminal alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from blossom_ray.text import printable

# Rich takes any digits, 0 included, and then prints nothing or fails.
_SIZE = re.compile(r"[1-9][0-9]{1,3}", re.ASCII)


class _Terminal(Console):
    """A console whose texts have no control characters; those that it styles and moves the cursor with are its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


def terminal(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console for standard output or standard error.

    Markup, emoji codes and numbers in a text mean nothing. What stands in no table is not wrapped: a path can be
    copied, and taken by the next program, whatever the width.

    Args:
        stderr: Whether it is standard error.
        width: In columns; None: as wide as the terminal or COLUMNS says, 80 where neither says anything of sense.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES") or _SIZE.fullmatch(value)
    }
    return _Terminal(
        stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True, _environ=environment
    )
