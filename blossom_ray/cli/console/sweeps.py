"""What a person sees of a sweep: a live table on a terminal, a line per cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from blossom_ray.core.records import Progress
from blossom_ray.core.scores import find_score
from blossom_ray.errors import first_line
from blossom_ray.studies.sweeps.grid import Cell
from blossom_ray.studies.sweeps.sweeping import CellEvent
from blossom_ray.studies.tables import format_score, format_seconds, line, plain_table

# Off a terminal, rounds are told at most so often.
_TELL_EVERY_S = 60.0
_ENDS = ("skipped", "finished", "failed", "interrupted")


@contextmanager
def sweep_view(
    cells: Sequence[Cell], console: Console, column: str | None = None
) -> Iterator[Callable[[CellEvent], None]]:
    """A live view on a terminal, lines off one; yields what shows an event.

    The live view leaves the screen when the sweep ends well; lines, which are for logs and pipes, are not wrapped. The
    score in `column`, such as `validation/accuracy`, is shown; None: what each cell's task is judged by.
    """
    tally = _Tally(cells, column)
    if not console.is_terminal:
        told_s = time.monotonic()

        def tell(event: CellEvent) -> None:
            nonlocal told_s
            tally.add(event)
            if event.kind != "round" or time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s = time.monotonic()
                console.print(line(tally.text(event)), soft_wrap=True)

        yield tell
        return
    with Live(tally.picture(), console=console, auto_refresh=False) as live:

        def draw(event: CellEvent) -> None:
            tally.add(event)
            live.update(tally.picture(), refresh=True)

        yield draw
        live.transient = True


class _Tally:
    """How far the cells are, and how long the rest will take at the pace so far."""

    def __init__(self, cells: Sequence[Cell], column: str | None) -> None:
        self._column = column
        self._num_cells = len(cells)
        self._num_rounds = sum(cell.scenario.rounds for cell in cells)
        # By identity: rounds that are done, or given up with their cells; the last round; its score, or an earlier one.
        self._rounds: dict[str, int] = {}
        self._last: dict[str, Progress] = {}
        self._scores: dict[str, float] = {}
        self._running: dict[str, Cell] = {}
        self._failed: dict[str, str] = {}
        self._num_ended = 0
        self._begun_s: float | None = None
        self._num_timed = 0

    def add(self, event: CellEvent) -> None:
        """Take one more event in."""
        key = event.cell.identity
        if event.kind == "started" and self._begun_s is None:
            self._begun_s = time.monotonic()
        if event.progress is not None:
            self._rounds[key] = event.progress.round_index
            self._last[key] = event.progress
            (name, _), metrics = event.cell.scenario.judge, event.progress.metrics
            score = metrics.get(self._column) if self._column else metrics.get(name, metrics.get(f"validation/{name}"))
            if score is not None:
                self._scores[key] = score
            self._num_timed += event.progress.round_index > 0
        if event.kind not in _ENDS:
            self._running[key] = event.cell
            return
        self._running.pop(key, None)
        self._num_ended += 1
        self._rounds[key] = event.cell.scenario.rounds
        if event.kind == "failed":
            self._failed[event.cell.name] = first_line(event.error)

    def text(self, event: CellEvent) -> str:
        """An event in a line: `[ 3/12] finished  sharing=local  round 20/20  accuracy 61.2 %  0.25 s a round`."""
        total = str(self._num_cells)
        parts = [f"[{self._num_ended:>{len(total)}}/{total}] {event.kind:<8}  {event.cell.name}"]
        if event.kind == "failed":
            parts.append(self._failed[event.cell.name])
        elif event.kind in ("finished", "interrupted", "round") and event.cell.identity in self._last:
            rounds, score, seconds = self._columns(event.cell)
            label = self._column or event.cell.scenario.judge[1].label
            parts += [f"round {rounds}", *([f"{label} {score}"] if score else []), f"{seconds} a round"]
        if event.kind in _ENDS and event.kind != "skipped":
            parts += self._left()
        return "  ".join(parts)

    def picture(self) -> RenderableType:
        """Progress over all cells, the cells in progress, and what failed."""
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(self._num_rounds, sum(self._rounds.values()), width=24)
        grid.add_row(f"{self._num_ended} of {self._num_cells} cells", bar, *self._left())
        parts: list[RenderableType] = [grid]
        if self._running:
            table = plain_table("cell", "round", "score", "a round")
            for cell in self._running.values():
                table.add_row(cell.name, *self._columns(cell))
            parts.append(table)
        return Group(*parts, *(line(f"failed: {name}: {text}", "red") for name, text in self._failed.items()))

    def _left(self) -> list[str]:
        """How long the rounds that are left will take; nothing before the first round and after the last."""
        left = self._num_rounds - sum(self._rounds.values())
        if self._begun_s is None or not self._num_timed or not left:
            return []
        return [f"left {format_seconds((time.monotonic() - self._begun_s) / self._num_timed * left)}"]

    def _columns(self, cell: Cell) -> tuple[str, str, str]:
        """Round, score and seconds of the last round of a cell; empty where there is none yet."""
        last, score = self._last.get(cell.identity), self._scores.get(cell.identity)
        if last is None:
            return "", "", ""
        about = (self._column and find_score(self._column, cell.scenario.own_scores)) or cell.scenario.judge[1]
        return (
            f"{last.round_index}/{cell.scenario.rounds}",
            "" if score is None else format_score(about, score),
            format_seconds(last.seconds),
        )
