"""What a person sees of a run: a live view on a terminal, a line per round elsewhere, a summary at the end.

A view consumes round records and knows nothing of who makes them. The live view is `live.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group, RenderableType

from blossom_ray.cli.console.live import LiveView, Pace
from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope
from blossom_ray.core.records import RoundRecord
from blossom_ray.studies.tables import (
    failure_line,
    format_bytes,
    format_score,
    format_seconds,
    line,
    plain_table,
    score_table,
    shown_scores,
    stopped_line,
    title,
)

if TYPE_CHECKING:
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runs.folder import Run


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
    """One line per round and one per failure: for logs and pipes. Lines are not wrapped."""

    def __init__(self, scenario: Scenario, console: Console) -> None:
        self._scenario = scenario
        self._console = console
        self._pace = Pace(scenario.rounds)

    def __enter__(self) -> Self:
        self._print(title(self._scenario))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, record: RoundRecord) -> None:
        """Print the round's line, and one for each of its failures."""
        self._pace.add(record)
        metrics, rounds = record.metrics, self._scenario.rounds
        parts = [
            f"round {record.round_index:>{len(str(rounds))}}/{rounds}",
            format_seconds(self._pace.last_s),
        ]
        if "train_loss" in metrics:
            parts.append(f"train loss {metrics['train_loss']:.3f}")
        for prefix in ("", "validation/"):
            if f"{prefix}loss" in metrics:
                parts.append(f"{prefix.replace('/', ' ')}loss {metrics[f'{prefix}loss']:.3f}")
                shown = shown_scores(self._scenario.task)
                parts += [f"{score.label} {format_score(score, metrics.get(prefix + score.name))}" for score in shown]
        parts += [
            f"up {format_bytes(sum(block.bytes_up for block in record.blocks))}",
            f"down {format_bytes(sum(block.bytes_down for block in record.blocks))}",
        ]
        if self._pace.left_s is not None and record.stopped is None:
            parts.append(f"left {format_seconds(self._pace.left_s)}")
        self._print("  ".join(parts))
        for failure in record.failures:
            self._print(f"  {failure_line(record.round_index, failure)}")
        if record.stopped is not None:
            self._print(stopped_line(record.stopped, self._scenario))

    def _print(self, text: str) -> None:
        self._console.print(line(text), soft_wrap=True)


def final_summary(run: Run) -> RenderableType:
    """The end of a run: scores of the last evaluated round or the best one, bytes by block, time, where it is kept."""
    import polars as pl

    num_clients = Counter(profile.modality_set for profile in run.scenario.profiles())
    parts: list[RenderableType] = [line(f"{title(run.scenario)}: {run.status}", "bold")]
    if run.stopped is not None:
        parts.append(line(f"{stopped_line(run.stopped, run.scenario)}, whose scores these are"))
    if final := run.final:
        parts.append(score_table(final, num_clients, run.scenario.task))
    traffic = plain_table("block", "scope", "down", "up")
    totals = run.blocks.group_by("block", "scope", "key", maintain_order=True)
    for block, scope, key, down, up in totals.agg(pl.col("bytes_down", "bytes_up").sum()).iter_rows():
        traffic.add_row(str(BlockInstance(block, Scope(scope), key)), scope, format_bytes(down), format_bytes(up))
    traffic.add_section()
    rounds = run.rounds
    down, up, seconds = rounds.select(pl.col("bytes_down", "bytes_up", "seconds").sum()).row(0)
    traffic.add_row("all blocks", "", format_bytes(down), format_bytes(up))
    parts += [traffic, line(f"{format_seconds(seconds)} for {rounds.height} rounds, round 0 included")]
    parts += [line(f"note: {note}") for note in run.manifest.get("notes", ())]
    if run.path is not None:
        parts.append(line(str(run.path)))
    return Group(*parts)
