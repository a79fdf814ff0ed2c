"""What a report sets side by side: runs that differ in nothing but their seed, and their curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import polars as pl

from blossom_ray.core.scores import Score, default_score
from blossom_ray.studies.comparison.entries import RunEntry, grouping_of
from blossom_ray.studies.comparison.intervals import Interval, t_interval
from blossom_ray.studies.comparison.scores import score_of
from blossom_ray.studies.reports.charts import Curve
from blossom_ray.studies.tables import shown_scores

if TYPE_CHECKING:
    from blossom_ray.runs.folder import Run


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: What tells it from the others of its panel; "" where there are no others.
        runs: Its runs, at least one.
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

    def modality_sets(self, kind: str = "{}") -> list[str]:
        """The modality sets that a kind of scoring, as in `last`, has scores for, sorted."""
        start = f"{kind.format('loss')}/"
        return sorted(name.removeprefix(start) for name in self.rounds.columns if name.startswith(start))

    def last(self, kind: str, end: str) -> list[dict[str, Any]]:
        """Of each run that has one, the last round of a kind of scoring, told by its loss, which all of them have.

        Args:
            kind: The names of its columns in the table `rounds`, such as `fine_tuned/{}`.
            end: What they end with, such as `/acc` for the clients of one modality set.
        """
        column = f"{kind.format('loss')}{end}"
        tables = (run.rounds for run in self.runs if column in run.rounds.columns)
        scored = (table.filter(pl.col(column).is_not_null())[-1:] for table in tables)
        return [row for table in scored for row in table.to_dicts()]

    def curve(self, column: str, *, label: str | None = None) -> Curve:
        """A column over rounds: the mean over runs in its 95 % interval; of one run, in the spread over clients.

        Args:
            column: A column of the table `rounds`. Shares are scaled to percent.
            label: The curve's label; None: the variant's.
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
        edges = [_scaled(known[edge], factor) for edge in around if edge in known.columns]
        return Curve(name, known["round"].to_list(), _scaled(known[column], factor), *edges)


def variants_of(entries: Sequence[RunEntry], baseline: Sequence[str], notes: Sequence[str] = ()) -> list[Variant]:
    """The runs among some entries by setting, in order, in the panels that the tables of a comparison have.

    Args:
        entries: With their settings. Those without a run, or without a complete round, are left out.
        baseline: The keys whose values stand side by side in a panel.
        notes: The numbered notes of runs.
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


def format_value(column: str, value: float | None) -> str:
    """A score for people: percent with one digit, or four digits of a loss or an error; "" for none."""
    if value is None or math.isnan(value):
        return ""
    return f"{100 * value:.1f} %" if score_of(column).is_share else f"{value:.4g}"


def interval(column: str, values: Sequence[float]) -> Interval | None:
    """The 95 % interval over seeds of a mean, within 0 and 1 for shares; None where there is one value alone."""
    limits = t_interval(values) if all(map(math.isfinite, values)) else None
    if limits is None or not score_of(column).is_share:
        return limits
    return max(limits[0], 0.0), min(limits[1], 1.0)


def format_mean(column: str, values: Sequence[float]) -> str:
    """The mean of a column over runs for people, with its interval over seeds; "" for no value."""
    value, limits = fmean(values) if values else None, interval(column, values)
    text = format_value(column, value)
    if not text or value is None or limits is None:
        return text
    factor, digits = scale(column), ".1f" if score_of(column).is_share else ".4g"
    low, high = factor * (value - limits[0]), factor * (limits[1] - value)
    unit = " %" if score_of(column).is_share else ""
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-12):
        return f"{text.removesuffix(unit)} ± {high:{digits}}{unit}"
    return f"{text.removesuffix(unit)} [{factor * limits[0]:{digits}}, {factor * limits[1]:{digits}}]{unit}"


def _scaled(values: pl.Series, factor: float) -> list[float]:
    return [math.nan if value is None else factor * value for value in values.to_list()]
