"""What a person sees of a run: a live view on a terminal, a line per round elsewhere, a summary at the end.

A view consumes round records and knows nothing of who makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from blossom_ray.blocks import BlockInstance, ClientProfile, Scope
from blossom_ray.console_tables import (
    ASCII_BARS,
    BARS,
    block_table,
    format_bytes,
    format_score,
    format_seconds,
    modality_suffixes,
    plain_table,
    score_table,
    shown_scores,
    title,
)
from blossom_ray.records import RoundRecord
from blossom_ray.scores import default_score

if TYPE_CHECKING:
    from blossom_ray.results import Run
    from blossom_ray.scenario import Scenario


class View(Protocol):
    """Shows the rounds of one run: a context manager that is updated with each record."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, record: RoundRecord) -> None:
        """Show one more round."""


def choose_view(scenario: Scenario, profiles: Sequence[ClientProfile], console: Console) -> View:
    """A live view on a terminal, a line per round off one."""
    return LiveView(scenario, profiles, console) if console.is_terminal else PlainView(scenario, console)


class PlainView:
    """One line per round: for logs and pipes. Lines are not wrapped."""

    def __init__(self, scenario: Scenario, console: Console) -> None:
        self._scenario = scenario
        self._console = console
        self._pace = _Pace(scenario.rounds)

    def __enter__(self) -> Self:
        self._print(title(self._scenario))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, record: RoundRecord) -> None:
        """Print the round's line."""
        self._pace.add(record)
        metrics, rounds = record.metrics, self._scenario.rounds
        parts = [
            f"round {record.round_index:>{len(str(rounds))}}/{rounds}",
            format_seconds(self._pace.last_s),
        ]
        if "train_loss" in metrics:
            parts.append(f"train loss {metrics['train_loss']:.3f}")
        if "loss" in metrics:
            parts.append(f"loss {metrics['loss']:.3f}")
            shown = shown_scores(self._scenario.task)
            parts += [f"{score.label} {format_score(score, metrics.get(score.name))}" for score in shown]
        parts += [
            f"up {format_bytes(sum(block.bytes_up for block in record.blocks))}",
            f"down {format_bytes(sum(block.bytes_down for block in record.blocks))}",
        ]
        if self._pace.left_s is not None:
            parts.append(f"left {format_seconds(self._pace.left_s)}")
        self._print("  ".join(parts))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """Progress, scores by modality set and traffic by block, redrawn with each round.

    It leaves the screen when the run ends well, since `final_summary` says the same; it stays when the run fails.
    """

    def __init__(self, scenario: Scenario, profiles: Sequence[ClientProfile], console: Console) -> None:
        self._scenario = scenario
        self._num_clients = Counter(profile.modality_set for profile in profiles)
        self._pace = _Pace(scenario.rounds)
        self._curves: dict[str, list[float]] = {}
        self._record: RoundRecord | None = None
        self._scored: Mapping[str, float] = {}
        self._bars = ASCII_BARS if console.options.ascii_only else BARS
        self._live = Live(self._render(), console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.transient = kind is None
        self._live.stop()

    def update(self, record: RoundRecord) -> None:
        """Redraw with the round. Scores of a round without evaluation stay those of the last one."""
        self._pace.add(record)
        self._record = record
        if record.evaluation:
            self._scored = record.metrics
            name = default_score(self._scenario.task).name
            for row in ("", *modality_suffixes(record.metrics)):
                if f"{name}{row}" in record.metrics:
                    self._curves.setdefault(row, []).append(record.metrics[f"{name}{row}"])
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [Text(title(self._scenario), style="bold"), self._progress()]
        if self._scored:
            parts.append(score_table(self._scored, self._num_clients, self._scenario.task, self._curves, self._bars))
        if self._record is not None:
            parts.append(block_table(self._record))
        return Group(*parts)

    def _progress(self) -> RenderableType:
        done = self._record.round_index if self._record is not None else 0
        grid = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [f"round {done}/{self._scenario.rounds}"]
        cells.append(ProgressBar(self._scenario.rounds, done, width=20))
        if self._record is not None:
            cells.append(f"{format_seconds(self._pace.last_s)} (mean {format_seconds(self._pace.mean_s)})")
        if self._pace.left_s is not None:
            cells.append(f"left {format_seconds(self._pace.left_s)}")
        grid.add_row(*cells)
        return grid


def final_summary(run: Run) -> RenderableType:
    """The end of a run: scores of the last evaluated round, bytes by block, time, and where it is kept."""
    import polars as pl

    num_clients = Counter(profile.modality_set for profile in run.scenario.profiles())
    parts: list[RenderableType] = [Text(f"{title(run.scenario)}: {run.status}", style="bold")]
    if final := run.final:
        parts.append(score_table(final, num_clients, run.scenario.task))
    traffic = plain_table("block", "scope", "down", "up")
    totals = run.blocks.group_by("block", "scope", "key", maintain_order=True)
    for block, scope, key, down, up in totals.agg(pl.col("bytes_down", "bytes_up").sum()).iter_rows():
        label = Text(str(BlockInstance(block, Scope(scope), key)))
        traffic.add_row(label, scope, format_bytes(down), format_bytes(up))
    traffic.add_section()
    rounds = run.rounds
    down, up, seconds = rounds.select(pl.col("bytes_down", "bytes_up", "seconds").sum()).row(0)
    traffic.add_row("all blocks", "", format_bytes(down), format_bytes(up))
    parts += [traffic, Text(f"{format_seconds(seconds)} for {rounds.height} rounds, round 0 included")]
    if run.path is not None:
        parts.append(Text(str(run.path), overflow="fold"))
    return Group(*parts)


class _Pace:
    """Seconds per round so far, and what is left at that pace. Round 0 trains nothing and does not count."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._total_s = 0.0
        self._done = 0
        self.last_s = 0.0

    def add(self, record: RoundRecord) -> None:
        self.last_s = record.seconds.get("total", 0.0)
        if record.round_index > 0:
            self._total_s += self.last_s
            self._done += 1
            self._num_left = self._num_rounds - record.round_index

    @property
    def mean_s(self) -> float:
        return self._total_s / self._done if self._done else self.last_s

    @property
    def left_s(self) -> float | None:
        """None before the first round and after the last."""
        return self.mean_s * self._num_left if self._done and self._num_left else None
