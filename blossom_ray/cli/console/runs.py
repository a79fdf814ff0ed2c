"""What a person sees of a run: a live view on a terminal, a line per round elsewhere, a summary at the end.

A view consumes round records and knows nothing of who makes them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from blossom_ray.cli.console.rounds import (
    ASCII_BARS,
    BARS,
    actor_summary,
    actor_table,
    block_summary,
    block_table,
    failure_line,
    score_tables,
    split_prefix,
    stopped_line,
    title,
)
from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.progress import listening
from blossom_ray.core.records import RoundRecord
from blossom_ray.core.scores import default_score, of_task
from blossom_ray.data.summary import ObservedRows, observed_lines
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import Run
from blossom_ray.studies.tables import (
    format_bytes,
    format_score,
    format_seconds,
    line,
    modality_suffixes,
    plain_table,
    shown_scores,
)

# Redrawn so often, however many rounds a second there are: drawing takes milliseconds of a core that may be training.
_DRAWN_PER_SECOND = 2
_SHOWN_FAILURES = 3
# More actors are summed up in a line, whatever room there is.
_MOST_ACTOR_ROWS = 16
# A round that has gone on for longer is said to be going on.
_SILENCE_S = 2.0


@contextmanager
def run_view(scenario: Scenario, console: Console) -> Iterator[Callable[[RoundRecord], None]]:
    """A live view on a terminal; off one a line per round and per failure, not wrapped, for logs and pipes.

    Yields what shows a round.
    """
    if console.is_terminal:
        with LiveView(scenario, console) as view, listening(view.begin):
            yield view.update
        return
    pace = Pace(scenario.rounds)

    def tell(record: RoundRecord) -> None:
        pace.add(record)
        for text in _lines(record, scenario, pace):
            console.print(line(text), soft_wrap=True)

    console.print(line(title(scenario)), soft_wrap=True)
    yield tell


def _lines(record: RoundRecord, scenario: Scenario, pace: Pace) -> Iterator[str]:
    rounds = scenario.rounds
    parts = [f"round {record.round_index:>{len(str(rounds))}}/{rounds}", format_seconds(pace.last_s)]
    for task, section in scenario.learned.items():
        metrics, shown = of_task(record.metrics, task), shown_scores(section.kind)
        told = [f"train loss {metrics['train_loss']:.3f}"] if "train_loss" in metrics else []
        for prefix in ("", "validation/", "unseen/", "unseen/fine_tuned/"):
            if f"{prefix}loss" in metrics:
                told.append(f"{prefix.replace('/', ' ').replace('_', '-')}loss {metrics[f'{prefix}loss']:.3f}")
                told += [f"{score.label} {format_score(score, metrics.get(prefix + score.name))}" for score in shown]
        parts += [f"{task}:", *told] if task and told else told
    parts += [
        f"up {format_bytes(sum(block.bytes_up for block in record.blocks))}",
        f"down {format_bytes(sum(block.bytes_down for block in record.blocks))}",
    ]
    if pace.left_s is not None and record.stopped is None:
        parts.append(f"left {format_seconds(pace.left_s)}")
    yield "  ".join(parts)
    yield from (f"  {failure_line(record.round_index, failure)}" for failure in record.failures)
    if record.stopped is not None:
        yield stopped_line(record.stopped, scenario)


class _Part(NamedTuple):
    """A part of the screen, and what stands for it where there is no room."""

    full: RenderableType
    short: RenderableType | None = None


class LiveView:
    """Progress, scores by modality set, traffic by block, actors and failures.

    What does not fit on the screen gives way to a line that sums it up: actors first, then blocks. The view leaves the
    screen when the run ends well, since `final_summary` says the same; it stays when the run fails.
    """

    def __init__(self, scenario: Scenario, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._scenario, self._console, self._clock = scenario, console, clock
        self._pace = Pace(scenario.rounds)
        self._curves: dict[str, dict[str, list[float]]] = {task: {} for task in scenario.learned}
        # Where the last round alone has scores on test splits, the curves are of those of all rounds.
        self._prefix = "" if scenario.evaluation.split == "test" else "validation/"
        self._record: RoundRecord | None = None
        self._begun = "starting"
        self._since_s = clock()
        self._scored: Mapping[str, float] = {}
        self._failures: list[str] = []
        self._replaced: Counter[int] = Counter()
        self._bars = ASCII_BARS if console.options.ascii_only else BARS
        # A thread of Rich draws while `update` is called from another.
        self._lock = Lock()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=_DRAWN_PER_SECOND)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def begin(self, what: str, done: int, total: int) -> None:
        """Say what of the start is going on."""
        with self._lock:
            self._begun = f"{what}, {done:,} of {total:,}" if total else what

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live.transient = kind is None
        self._live.stop()

    def update(self, record: RoundRecord) -> None:
        """Take the round in. Scores of a round without evaluation stay those of the last one."""
        with self._lock:
            self._pace.add(record)
            self._record, self._since_s = record, self._clock()
            self._failures += [failure_line(record.round_index, failure) for failure in record.failures]
            self._replaced.update({actor.actor: actor.times_replaced for actor in record.actors})
            if record.num_evaluated:
                self._scored = record.metrics
                for task, section in self._scenario.learned.items():
                    name, metrics = self._prefix + default_score(section.kind).name, of_task(record.metrics, task)
                    for row in ("", *modality_suffixes(metrics, self._prefix)):
                        if f"{name}{row}" in metrics:
                            self._curves[task].setdefault(row, []).append(metrics[f"{name}{row}"])
        if record.round_index <= 1:  # who waits for the first ones is looking
            self._live.refresh()

    def _render(self) -> RenderableType:
        def height(part: RenderableType) -> int:
            return len(self._console.render_lines(part, pad=False))

        with self._lock:
            parts = [*self._parts()]
        drawn, heights = [part.full for part in parts], [height(part.full) for part in parts]
        # Shortened from the last one on, until all of them fit.
        for index, part in reversed([*enumerate(parts)]):
            if part.short is not None and sum(heights) >= self._console.height:
                drawn[index], heights[index] = part.short, height(part.short)
        return Group(*drawn)

    def _parts(self) -> Iterator[_Part]:
        record = self._record
        yield _Part(line(title(self._scenario), "bold"))
        yield _Part(self._progress())
        if self._failures:
            # Above the tables: what does not fit on the screen at all is cut off below.
            yield _Part(self._failure_lines(_SHOWN_FAILURES), self._failure_lines(1))
        if self._scored:
            for table in score_tables(self._scored, self._scenario, self._shown_curves(), self._bars):
                yield _Part(table)
        if record is not None:
            yield _Part(block_table(record), line(block_summary(record)))
            if record.actors:
                summary = line(actor_summary(record, self._replaced))
                is_many = len(record.actors) > _MOST_ACTOR_ROWS
                yield _Part(summary if is_many else actor_table(record, self._replaced), summary)

    def _shown_curves(self) -> dict[str, dict[str, list[float]]]:
        """By task; none where what was scored last is no part of them."""
        scored = {task: split_prefix(of_task(self._scored, task)) for task in self._curves}
        return {task: own if scored[task] == self._prefix else {} for task, own in self._curves.items()}

    def _failure_lines(self, num_shown: int) -> RenderableType:
        count = len(self._failures)
        head = f"{count} failure{'s' * (count > 1)}" + (f", the last {num_shown}:" if count > num_shown else ":")
        shown = [line(text, "red") for text in (head, *(f"  {failure}" for failure in self._failures[-num_shown:]))]
        for text in shown:
            text.no_wrap, text.overflow = True, "ellipsis"
        return Group(*shown)

    def _progress(self) -> RenderableType:
        rounds, record = self._scenario.rounds, self._record
        waited_s = self._clock() - self._since_s
        is_silent = waited_s >= _SILENCE_S
        if record is None:
            return line(self._begun + (f", {format_seconds(waited_s)}" if is_silent else ""))
        done = record.round_index
        grid = Table.grid(padding=(0, 2))
        pace = f"{format_seconds(self._pace.last_s)} (mean {format_seconds(self._pace.mean_s)})"
        cells: list[RenderableType] = [f"round {done}/{rounds}", ProgressBar(rounds, done, width=16), pace]
        if is_silent and done < rounds:
            cells.append(f"next for {format_seconds(waited_s)}")
        if self._pace.left_s is not None:
            cells.append(f"left {format_seconds(max(0.0, self._pace.left_s - waited_s))}")
        grid.add_row(*cells)
        return grid


def final_summary(run: Run) -> RenderableType:
    """The end of a run: scores of the last evaluated round or the best one, bytes by block, time, where it is kept."""
    import polars as pl

    parts: list[RenderableType] = [line(f"{title(run.scenario)}: {run.status}", "bold")]
    if run.stopped is not None:
        parts.append(line(f"{stopped_line(run.stopped, run.scenario)}, whose scores these are"))
    if final := run.final:
        parts += score_tables(final, run.scenario)
    traffic = plain_table("block", "scope", "down", "up")
    totals = run.blocks.group_by("block", "scope", "key", maintain_order=True)
    for block, scope, key, down, up in totals.agg(pl.col("bytes_down", "bytes_up").sum()).iter_rows():
        instance = BlockInstance.of_column(block, scope, key)
        traffic.add_row(str(instance), scope, format_bytes(down), format_bytes(up))
    traffic.add_section()
    rounds = run.rounds
    down, up, seconds = rounds.select(pl.col("bytes_down", "bytes_up", "seconds").sum()).row(0)
    traffic.add_row("all blocks", "", format_bytes(down), format_bytes(up))
    parts += [traffic, line(f"{format_seconds(seconds)} for {rounds.height} rounds, round 0 included")]
    observed = {
        name: {split: ObservedRows(found["rows"], found["observed"], ()) for split, found in own.items()}
        for name, own in (run.manifest.get("data") or {}).get("observed", {}).items()
    }
    parts += map(line, observed_lines(observed))
    parts += [line(f"note: {note}") for note in run.manifest.get("notes", ())]
    if run.path is not None:
        parts.append(line(str(run.path)))
    return Group(*parts)


class Pace:
    """Seconds per round so far, and what is left at that pace. Round 0 trains nothing and does not count."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._total_s = 0.0
        self._done = 0
        self.last_s = 0.0

    def add(self, record: RoundRecord) -> None:
        """Take one more round in."""
        self.last_s = record.seconds.get("total", 0.0)
        if record.round_index > 0:
            self._total_s += self.last_s
            self._done += 1
            self._num_left = self._num_rounds - record.round_index

    @property
    def mean_s(self) -> float:
        """Mean over the rounds that trained."""
        return self._total_s / self._done if self._done else self.last_s

    @property
    def left_s(self) -> float | None:
        """None before the first round and after the last."""
        return self.mean_s * self._num_left if self._done and self._num_left else None
