"""Numbers with their units, and tables of texts, as the console, reports and comparisons show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from blossom_ray.core.scores import SCORES, Score, Task
from blossom_ray.text import printable

# Columns of words; all others but the first are numbers.
_LEFT = ("scope", "curve", "state")


@dataclass(frozen=True)
class TextTable:
    """A table of texts, for a terminal, a page or a paper.

    Attributes:
        columns: Headings.
        rows: One sequence of cells per row; the first cell names the row. One that begins with two spaces stands below
            the row before. A shorter row lacks its last cells.
        title: What stands above it.
        is_folded: Whether a reader of a page has to open it, by its title.
        shares: Of some cells, by row and place in it, a share of 1 that they are shaded by.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    is_folded: bool = False
    shares: Mapping[tuple[int, int], float] = field(default_factory=dict)


def format_score(score: Score, value: float | None) -> str:
    """A share of 0..1 in percent with one digit, `61.2 %`; any other score with four; `-` for none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if score.is_share else f"{value:.4g}"


def interval_text(value: float, limits: tuple[float, float], text: Callable[[float], str]) -> str:
    """The interval around a number: `± 1.2`, or in brackets where it was cut at a bound: `[0.0, 3.4]`."""
    low, high = limits
    if math.isclose(high - value, value - low, rel_tol=1e-6, abs_tol=1e-12):
        return f"± {text(high - value).lstrip('+')}"
    return f"[{text(low)}, {text(high)}]"


def shown_scores(task: Task) -> tuple[Score, ...]:
    """The scores of a task that the console shows."""
    return tuple(score for score in SCORES[task] if score.label)


def format_bytes(num_bytes: float) -> str:
    """Bytes with a decimal unit: `999 B`, `1.2 MB`."""
    return f"{num_bytes:.0f} B" if num_bytes < 1000 else _scaled(num_bytes, ("kB", "MB", "GB", "TB"))


def format_count(number: float) -> str:
    """A count, in thousands and so on from 10,000 on: `1050`, `131.0 k`, `2.5 M`."""
    return f"{number:.0f}" if number < 9999.5 else _scaled(number, ("k", "M", "G", "T"))


def _scaled(number: float, units: Sequence[str]) -> str:
    """A number of at least 1,000 in the largest fitting unit, each of them 1,000 times the one before."""
    for unit in units[:-1]:
        number /= 1000
        # 999.95 would be shown as 1000.0.
        if number < 999.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} {units[-1]}"


def format_seconds(seconds: float) -> str:
    """A duration: `0.42 s`, `7 s`, `1 min 05 s`, `2 h 03 min`."""
    if seconds < 9.95:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def modality_suffixes(metrics: Mapping[str, float], prefix: str = "", mark: Literal["/", "@"] = "/") -> list[str]:
    """The modality sets that a round's summary has scores for, as the ends of its names: `/acc`, `/acc+gyro`.

    Args:
        metrics: The summary.
        prefix: "" for the clients' own test splits, or `validation/` or `held_out/`.
        mark: `/`: the sets that clients own; `@`: those that samples have.
    """
    start = f"{prefix}loss{mark}"  # which every task has
    return [name[len(start) - 1 :] for name in metrics if name.startswith(start)]


def line(text: str, style: str = "") -> Text:
    """A text on one line, whatever line breaks a name in it has."""
    return Text(printable(text), style)


class _PlainTable(Table):
    """A table whose texts are lines."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        texts = (line(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*texts, style=style, end_section=end_section)


def plain_table(first: str, *others: str) -> Table:
    """An empty table whose first column gives way when the console is narrow."""
    table = _PlainTable(box=SIMPLE_HEAD, pad_edge=False)
    # The only column that may wrap, so the only one that Rich shrinks.
    table.add_column(line(first), overflow="ellipsis")
    for name in others:
        table.add_column(line(name), no_wrap=True, justify="left" if name in _LEFT else "right")
    return table
