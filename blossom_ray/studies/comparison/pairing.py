"""Rows of a comparison: one per run and modality set, with scores, and gains over its pair on the same federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from blossom_ray.core.phrases import did_you_mean, shortened
from blossom_ray.core.scores import Score
from blossom_ray.errors import InputError
from blossom_ray.runs.folder import Run
from blossom_ray.studies.comparison.run_compute import Compute, run_compute
from blossom_ray.studies.comparison.run_scores import (
    ALL,
    NUM_LAST,
    SUMMARIES,
    VALIDATION,
    RunScores,
    Summaries,
    metric_columns,
    metric_names,
    run_scores,
    split_column,
    tuned_metric,
)
from blossom_ray.studies.comparison.run_selection import Entry

TUNED_PREFIX = "fine_tuned/"
SCORING, PLAIN, TUNED = "scoring", "plain", "fine-tuned"
"""The key that tells scores after local fine-tuning from plain ones, where runs have both."""
ROUNDS = "rounds"
"""The key whose values, where it is the baseline's, are compared by where each run ended."""
Number = TypeVar("Number", float, npt.NDArray[np.float64])
_NEAR_CHANCE = 0.1
"""A score less than this share of the way from chance to 1 is near chance."""
# In an error message: runs may have hundreds of columns.
_MOST_NAMED = 8


@dataclass(frozen=True)
class Pair:
    """Two rows over the rounds in which both were scored.

    Attributes:
        against: The baseline's row.
        own: The summaries of the row over these rounds.
        base: Those of the baseline's row.
        rounds: By summary, these rounds in words where it is not, on both sides, the one of the row's own scores.
        is_apart: Whether each side is over its own rounds.
    """

    against: Row
    own: Summaries
    base: Summaries
    rounds: Mapping[str, str | None]
    is_apart: bool = False


@dataclass
class Row:
    """One run's scores over one modality set, with its gains once it is paired."""

    entry: Entry
    setting: Mapping[str, str]
    metric: str
    modalities: str
    scores: RunScores | None
    compute: Compute | None = None
    pair: Pair | None = None
    gains: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(SUMMARIES))
    points: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(SUMMARIES))
    note: str | None = None

    @property
    def federation(self) -> tuple[str, str] | None:
        """The fingerprint of the data and the digest of their partition; None where the run does not say."""
        data = {} if self.entry.run is None else self.entry.run.manifest.get("data", {})
        if not isinstance(data, Mapping) or not {"fingerprint", "partition"} <= data.keys():
            return None
        return str(data["fingerprint"]), str(data["partition"])


class Rows:
    """The rows of all entries, and what pairing them tells."""

    def __init__(
        self, entries: Sequence[Entry], metric: str, score: Score, target: float | None, up_to: int | None
    ) -> None:
        self.notes: list[str] = []
        self.rows: list[Row] = []
        self._score = score
        used = [entry for entry in entries if entry.run is not None and entry.status == "finished"]
        metric, only = _metric(metric, [entry.run for entry in used if entry.run is not None])
        tuned = tuned_metric(metric)
        has_tuned = any(entry.run is not None and metric_columns(entry.run, tuned) for entry in used)
        for entry in entries:
            run = entry.run if entry.status == "finished" else None
            plain = {**entry.setting, SCORING: PLAIN} if has_tuned else entry.setting
            if run is None:
                self.rows.append(Row(entry, plain, metric, ALL, None, note=f"not used: {entry.status}"))
                continue
            scorings = {metric: plain, tuned: {**entry.setting, SCORING: TUNED}} if has_tuned else {metric: plain}
            for name, setting in scorings.items():
                compute = run_compute(run, is_tuned=TUNED_PREFIX in name, up_to=up_to)
                for modalities, column in metric_columns(run, name).items():
                    if only and modalities != only:
                        continue
                    scores = run_scores(run, column, lower_is_better=score.lower_is_better, target=target, up_to=up_to)
                    note = None if scores is not None else f"{entry.place} {_end(up_to)} with no finite {name}"
                    self.rows.append(Row(entry, setting, name, modalities, scores, compute, note=note))
            if not metric_columns(run, metric):
                self.rows.append(Row(entry, plain, metric, ALL, None, note=f"{entry.place} has no {metric}"))
        self.notes += [row.note for row in self.rows if row.note is not None and row.entry in used]

    def pair(self, baseline: Mapping[str, str], *, own_ends: bool) -> None:
        """Give each row its gains over the row that differs from it in the baseline's keys alone.

        Args:
            baseline: Value by key; empty: there are no gains.
            own_ends: Whether each row counts by its own rounds, not by those in which both were scored.
        """
        if not baseline:
            return
        plain = {SCORING: PLAIN} if SCORING in self.rows[0].setting and SCORING not in baseline else {}
        places = {_place(row.setting, row): row for row in self.rows if row.scores is not None}
        for row in self.rows:
            if row.scores is None:
                continue
            against = places.get(_place({**row.setting, **baseline, **plain}, row))
            row.note = _obstacle(row, against)
            if against is row:
                continue
            if row.note is None and against is not None:
                row.pair = _pair(row, against, own_ends=own_ends or _stop_apart(row, against))
                if row.pair is None:
                    row.note = f"{row.entry.place} and its baseline have no scored rounds in common"
                else:
                    for name in SUMMARIES:
                        own, base = row.pair.own.values[name], row.pair.base.values[name]
                        if own is None or base is None or (name == "best" and _judged_apart(row, against)):
                            continue
                        row.points[name] = float(points(self._score, own, base))
                        obstacle = _percent_obstacle(self._score, base, row.entry.run)
                        row.gains[name] = None if obstacle else float(gain(self._score, own, base))
                        row.note = row.note or obstacle
            if row.note is not None:
                self.notes.append(row.note)


def _metric(asked: str, runs: Sequence[Run]) -> tuple[str, str]:
    """The metric that is asked for, and the one modality set, "" for all, where a column of such a set is.

    Raises:
        InputError: No run has such a column.
    """
    names = dict.fromkeys(name for run in runs for name in metric_names(run))
    columns = dict.fromkeys(column for run in runs for column in run.rounds.columns if column != "round")
    if asked in names or not runs:
        return asked, ""
    if asked in columns:
        return split_column(asked)
    first = [*names][:_MOST_NAMED]
    more = f" or another of the {len(columns)} columns of the table rounds" if len(columns) > len(first) else ""
    near = did_you_mean(asked, [*names, *columns])
    raise InputError(f"the metric is {shortened(asked)!r}; expected one of {', '.join(first)}{more}{near}")


def _end(up_to: int | None) -> str:
    return "ends" if up_to is None else f"comes to round {up_to}"


def _place(setting: Mapping[str, str], row: Row) -> tuple[Any, ...]:
    return (*sorted(setting.items()), row.entry.seeds, row.modalities)


def _obstacle(row: Row, against: Row | None) -> str | None:
    """Why two rows are no pair."""
    if against is None:
        return f"seed {row.entry.seeds}: there is no finished run of the baseline for every setting"
    here, there = row.federation, against.federation
    if here is None or there is None:
        return "a run does not say which federation it had, so it is not paired"
    for name, mine, other in zip(("data", "partition"), here, there, strict=True):
        if mine != other:
            return f"{row.entry.place} and {against.entry.place} had another {name}, so they are not paired"
    return None


def _pair(row: Row, against: Row, *, own_ends: bool) -> Pair | None:
    """Two rows over the rounds that both have, or, with `own_ends`, each over its own; None where there are none."""
    if row.scores is None or against.scores is None:
        return None
    if own_ends:
        return Pair(against, row.scores.own, against.scores.own, dict.fromkeys(SUMMARIES), is_apart=True)
    common = [number for number in row.scores.scored if number in against.scores.scored]
    own, base = (each.over(common) for each in (row.scores, against.scores))
    if own is None or base is None:
        return None
    used = {"final": own.rounds["final"], "last5": own.rounds["last5"], "best": tuple(common)}
    shown = {
        name: own.rounds[name] == row.scores.own.rounds[name] and base.rounds[name] == against.scores.own.rounds[name]
        for name in SUMMARIES
    }
    return Pair(against, own, base, {name: None if shown[name] else rounds_text(used[name]) for name in SUMMARIES})


def _stop_apart(row: Row, against: Row) -> bool:
    """Whether `stop` gave each row an end of its own.

    Plain and fine-tuned scores end alike only where both were taken once.
    """
    runs = (row.entry.run, against.entry.run)
    is_once = all(each.scores is not None and each.scores.is_once for each in (row, against))
    has_stop = any(run is not None and run.scenario.stop is not None for run in runs)
    return has_stop and (is_once or row.metric == against.metric)


def _judged_apart(row: Row, against: Row) -> bool:
    """Whether the best round of one was chosen on validation and that of the other was not."""
    judges = [each.scores.judge for each in (row, against) if each.scores is not None]
    return len({judge.startswith(VALIDATION) for judge in judges}) > 1


def rounds_text(rounds: Sequence[int]) -> str | None:
    """Rounds, ascending, in a few words; None for none."""
    if not rounds:
        return None
    first, last = rounds[0], rounds[-1]
    if len(rounds) > 2 and last - first == len(rounds) - 1:
        return f"{first} to {last}"
    return ", ".join(map(str, rounds)) if len(rounds) <= NUM_LAST else f"{len(rounds)} of {first} to {last}"


def _percent_obstacle(score: Score, base: float, run: Run | None) -> str | None:
    """Why percent of a baseline's score would mislead: they are large where it is small, whatever is compared."""
    if score.is_signed:
        return f"{score.name} can be below 0, so there is no gain in percent"
    if base <= 0:
        return "the baseline scores 0 or less, so there is no gain in percent"
    chance = score.chance
    if chance == "classes":
        data = {} if run is None else run.manifest.get("data") or {}
        classes = data.get("num_classes") if data.get("task") == "classification" else None
        chance = 1 / classes if isinstance(classes, int) and classes > 1 else None
    if chance is not None and base - chance < _NEAR_CHANCE * (1 - chance):
        return f"a baseline is near chance ({100 * chance:.1f} %) or below, so there is no gain in percent"
    return None


def gain(score: Score, own: Number, base: Number) -> Number:
    """The gain in percent of the baseline's score, positive where the own one is better."""
    return (-1 if score.lower_is_better else 1) * 100 * (own - base) / abs(base)


def points(score: Score, own: Number, base: Number) -> Number:
    """The difference, positive where the own score is better: percent points of shares, else in the score's unit."""
    return (-1 if score.lower_is_better else 1) * (100 if score.is_share else 1) * (own - base)
