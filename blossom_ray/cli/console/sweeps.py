"""What a person sees of a sweep: a live table on a terminal, a line per cell elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from blossom_ray.core.records import Progress
from blossom_ray.core.scores import default_score, find_score
from blossom_ray.studies.sweeps.grid import Cell
from blossom_ray.studies.sweeps.sweeping import CellEvent
from blossom_ray.studies.tables import format_score, format_seconds, line, plain_table

# Off a terminal, rounds are told at most so often.
_TELL_EVERY_S = 60.0
_ENDS = ("skipped", "finished", "failed", "interrupted")


class SweepView(Protocol):
    """Shows the events of one sweep: a context manager that is updated with each of them."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, event: CellEvent) -> None:
        """Show one more event."""


def choose_sweep_view(cells: Sequence[Cell], console: Console, column: str | None = None) -> SweepView:
    """A live view on a terminal, lines off one.

    Args:
        cells: The sweep's cells.
        console: Where it is shown.
        column: The score that is shown, such as `validation/accuracy`; None: what each cell's task is judged by.
    """
    return (LiveSweepView if console.is_terminal else PlainSweepView)(cells, console, column)


class PlainSweepView:
    """A line when a cell begins and ends, now and then one on a round: for logs and pipes. Lines are not wrapped."""

    def __init__(self, cells: Sequence[Cell], console: Console, column: str | None = None) -> None:
        self._console = console
        self._tally = _Tally(cells, column)
        self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, event: CellEvent) -> None:
        """Print the event's line."""
        self._tally.add(event)
        if event.kind == "round" and time.monotonic() - self._told_s < _TELL_EVERY_S:
            return
        self._told_s = time.monotonic()
        parts = [f"{self._tally.place()} {event.kind:<8}  {event.cell.name}", *self._details(event)]
        if event.kind in _ENDS and event.kind != "skipped" and self._tally.left_s is not None:
            parts.append(f"left {format_seconds(self._tally.left_s)}")
        self._console.print(line("  ".join(parts)), soft_wrap=True)

    def _details(self, event: CellEvent) -> list[str]:
        if event.kind == "failed":
            return [str(event.error).splitlines()[0]]
        if event.kind in ("finished", "interrupted", "round"):
            return self._tally.words(event.cell)
        return []


class LiveSweepView:
    """Progress over all cells, the cells in progress, and what failed, redrawn with each event."""

    def __init__(self, cells: Sequence[Cell], console: Console, column: str | None = None) -> None:
        self._tally = _Tally(cells, column)
        self._running: dict[str, Cell] = {}
        self._failed: dict[str, str] = {}
        self._live = Live(self._render(), console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.transient = kind is None
        self._live.stop()

    def update(self, event: CellEvent) -> None:
        """Redraw with the event."""
        self._tally.add(event)
        if event.kind in _ENDS:
            self._running.pop(event.cell.identity, None)
        else:
            self._running[event.cell.identity] = event.cell
        if event.kind == "failed":
            self._failed[event.cell.name] = str(event.error).splitlines()[0]
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        tally = self._tally
        grid = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [f"{tally.num_ended} of {tally.num_cells} cells"]
        cells.append(ProgressBar(tally.num_rounds, tally.num_done, width=24))
        if tally.left_s is not None:
            cells.append(f"left {format_seconds(tally.left_s)}")
        grid.add_row(*cells)
        parts: list[RenderableType] = [grid]
        if self._running:
            table = plain_table("cell", "round", "score", "a round")
            for cell in self._running.values():
                table.add_row(cell.name, *tally.columns(cell))
            parts.append(table)
        parts += [line(f"failed: {name}: {text}", "red") for name, text in self._failed.items()]
        return Group(*parts)


class _Tally:
    """How far the cells are, and how long the rest will take at the pace so far."""

    def __init__(self, cells: Sequence[Cell], column: str | None) -> None:
        self._column = column
        self.num_cells = len(cells)
        self.num_rounds = sum(cell.scenario.rounds for cell in cells)
        self._rounds: dict[str, int] = {}
        self._last: dict[str, Progress] = {}
        self._scores: dict[str, float] = {}
        self._ends: Counter[str] = Counter()
        self._begun_s: float | None = None
        self._num_timed = 0

    @property
    def num_ended(self) -> int:
        """Cells that have ended, one way or another."""
        return self._ends.total()

    @property
    def num_done(self) -> int:
        """Rounds that are done, or given up with their cells."""
        return sum(self._rounds.values())

    @property
    def left_s(self) -> float | None:
        """Seconds for the rounds that are left; None before the first round and after the last."""
        left = self.num_rounds - self.num_done
        if self._begun_s is None or not self._num_timed or not left:
            return None
        return (time.monotonic() - self._begun_s) / self._num_timed * left

    def add(self, event: CellEvent) -> None:
        """Take one more event in."""
        key = event.cell.identity
        if event.kind == "started" and self._begun_s is None:
            self._begun_s = time.monotonic()
        if event.progress is not None:
            self._rounds[key] = event.progress.round_index
            self._last[key] = event.progress
            metrics = event.progress.metrics
            score = metrics.get(self._column) if self._column else _score(event.cell, event.progress)
            if score is not None:
                self._scores[key] = score
            self._num_timed += event.progress.round_index > 0
        if event.kind in _ENDS:
            self._ends[event.kind] += 1
            self._rounds[key] = event.cell.scenario.rounds

    def place(self) -> str:
        """How many cells have ended, such as `[ 3/12]`."""
        total = str(self.num_cells)
        return f"[{self.num_ended:>{len(total)}}/{total}]"

    def words(self, cell: Cell) -> list[str]:
        """The last round of a cell in words."""
        if cell.identity not in self._last:
            return []
        rounds, score, seconds = self.columns(cell)
        return [
            f"round {rounds}",
            *([f"{self._column or default_score(cell.scenario.task).label} {score}"] if score else []),
            f"{seconds} a round",
        ]

    def columns(self, cell: Cell) -> tuple[str, str, str]:
        """Round, score and seconds of the last round of a cell; empty where there is none yet."""
        last = self._last.get(cell.identity)
        if last is None:
            return "", "", ""
        score, task = self._scores.get(cell.identity), cell.scenario.task
        about = (self._column and find_score(self._column, cell.scenario.own_scores)) or default_score(task)
        return (
            f"{last.round_index}/{cell.scenario.rounds}",
            "" if score is None else format_score(about, score),
            format_seconds(last.seconds),
        )


def _score(cell: Cell, progress: Progress) -> float | None:
    name = default_score(cell.scenario.task).name
    return progress.metrics.get(name, progress.metrics.get(f"validation/{name}"))
