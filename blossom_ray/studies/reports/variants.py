"""What a report sets side by side: runs that differ in nothing but their seed, and their curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

import polars as pl

from blossom_ray.core.scores import Score, default_score
from blossom_ray.runs.folder import Run
from blossom_ray.studies.comparison.entries import RunEntry, grouping_of
from blossom_ray.studies.comparison.intervals import Interval, t_interval
from blossom_ray.studies.comparison.scores import score_of
from blossom_ray.studies.reports.charts import Curve
from blossom_ray.studies.tables import format_score, interval_text, shown_scores


@dataclass(frozen=True)
class Variant:
    """Runs, at least one, that differ in nothing but their seed.

    Attributes:
        label: What tells it from the others of its panel; "" where there are no others.
        panel: What it has in common with the others of its panel, such as a partition; "" where all share one.
        notes: The numbered notes of the report's runs.
    """

    label: str
    runs: Sequence[Run]
    panel: str = ""
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Panel and label."""
        return ", ".join(part for part in (self.panel, self.label) if part)

    @cached_property
    def rounds(self) -> pl.DataFrame:
        """The scored rounds of all runs, one run below the other."""
        frames = [run.rounds.filter(pl.col("num_evaluated") > 0) for run in self.runs]
        return pl.concat(frames, how="diagonal")

    @property
    def marks(self) -> str:
        """The numbers of the notes that its runs noted: `[1] [3]`."""
        noted = {str(text) for run in self.runs for text in run.manifest.get("notes", ())}
        return " ".join(f"[{number}]" for number, text in enumerate(self.notes, 1) if text in noted)

    def modality_sets(self, kind: str = "{}", mark: Literal["/", "@"] = "/") -> list[str]:
        """The modality sets that a kind of scoring, as in `last`, has scores for, sorted.

        Those that clients own or, with `@`, those that samples have.
        """
        start = f"{kind.format('loss')}{mark}"
        return sorted(name.removeprefix(start) for name in self.rounds.columns if name.startswith(start))

    def last(self, kind: str, end: str) -> list[dict[str, Any]]:
        """Of each run that has one, the last round of a kind of scoring, told by its loss, which all of them have.

        `kind` is what its columns in the table `rounds` are called, such as `fine_tuned/{}`, and `end` what they end
        with, such as `/acc` for the clients of one modality set.
        """
        column = f"{kind.format('loss')}{end}"
        tables = (run.rounds for run in self.runs if column in run.rounds.columns)
        scored = (table.filter(pl.col(column).is_not_null())[-1:] for table in tables)
        return [row for table in scored for row in table.to_dicts()]

    def curve(self, column: str, *, label: str | None = None) -> Curve:
        """A column of the tables `rounds`, shares in percent; `label` None: the variant's.

        It is the mean over runs in its 95 % interval; of one run, the score in the spread over clients.
        """
        name, factor = self.label if label is None else label, scale(column)
        if column not in self.rounds.columns:
            return Curve(name, [], [])
        known = self.rounds.filter(pl.col(column).is_not_null())
        if len(self.runs) > 1:
            by_round = known.group_by("round", maintain_order=True).agg(values=pl.col(column)).sort("round").rows()
            limits = [interval(column, values) or (math.nan, math.nan) for _, values in by_round]
            means = [factor * fmean(values) for _, values in by_round]
            edges = [[factor * limit[side] for limit in limits] for side in (0, 1)]
            return Curve(name, [number for number, _ in by_round], means, *edges)
        around = [f"{column}_p10", f"{column}_p90"]
        values, *edges = (
            [math.nan if value is None else factor * value for value in known[each].to_list()]
            for each in (column, *around)
            if each in known.columns
        )
        return Curve(name, known["round"].to_list(), values, *edges)


def variants_of(entries: Sequence[RunEntry], baseline: Sequence[str], notes: Sequence[str] = ()) -> list[Variant]:
    """The runs of entries by setting, in order, in the panels that the tables of a comparison have.

    Entries without a complete round are left out. The values of the keys in `baseline` stand side by side in a panel.
    """
    used = [(entry.setting, entry.run) for entry in entries if entry.run is not None and entry.run.rounds.height]
    settings = [setting for setting, _ in used]
    grouping = grouping_of(settings, [*settings[0]] if settings else [], baseline)
    return [
        Variant(name, [run for _, run in members], panel, notes)
        for panel, names in grouping.panels(used, lambda pair: pair[0]).items()
        for name, members in names.items()
    ]


def headline_scores(variants: Sequence[Variant]) -> tuple[Score, ...]:
    """The scores that get a chart or a column: those that the console shows, the task's first one first.

    Runs of several tasks have no score in common; those of the first run are taken.
    """
    task = variants[0].runs[0].scenario.task
    first = default_score(task)
    return (first, *(score for score in shown_scores(task) if score != first))


def scale(column: str) -> float:
    """100 for shares, which are shown in percent, else 1."""
    return 100.0 if score_of(column).is_share else 1.0


def interval(column: str, values: Sequence[float]) -> Interval | None:
    """The 95 % interval over seeds of a mean, within 0 and 1 for shares; None where there is one value alone."""
    limits = t_interval(values) if all(map(math.isfinite, values)) else None
    if limits is None or not score_of(column).is_share:
        return limits
    return max(limits[0], 0.0), min(limits[1], 1.0)


def format_mean(column: str, values: Sequence[float]) -> str:
    """The mean of a column over runs for people, with its interval over seeds; "" for no value."""
    if not values or math.isnan(value := fmean(values)):
        return ""
    score, limits = score_of(column), interval(column, values)
    if limits is None:
        return format_score(score, value)
    text: Callable[[float], str] = (lambda number: f"{100 * number:.1f}") if score.is_share else "{:.4g}".format
    return f"{text(value)} {interval_text(value, limits, text)}{' %' * score.is_share}"
