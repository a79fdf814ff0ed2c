"""Rows of a comparison: one per run and modality set, with its gains over its pair on the same federation; as frames.

A gain is taken between two rows that differ in the baseline's keys alone, over the rounds in which both were scored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median
from typing import Any

import polars as pl

from blossom_ray.core.blocks import Scope
from blossom_ray.core.scores import Score
from blossom_ray.errors import BlossomError
from blossom_ray.runs.folder import Run
from blossom_ray.scenario.tree import Seeds
from blossom_ray.studies.comparison.entries import FINE_TUNED, PLAIN, SCORING, RunEntry
from blossom_ray.studies.comparison.intervals import (
    Interval,
    OfSides,
    gain,
    holm,
    interval_over_clients,
    points,
    t_interval,
    t_test,
)
from blossom_ray.studies.comparison.scores import (
    ALL,
    COMPUTE,
    NO_CLIENTS,
    NUM_LAST,
    SUMMARIES,
    TO_TARGET,
    TUNED,
    UNSCORED,
    UNSEEN,
    VALIDATION,
    Compute,
    RunScores,
    Summaries,
    client_scores,
    find_metric,
    metric_columns,
    run_compute,
    run_scores,
)

_GAIN_ROUNDS = tuple(f"gain_{name}_rounds" for name in SUMMARIES)
_UNWEIGHTED = tuple(f"unweighted_{name}" for name in SUMMARIES)
_LOST = tuple(f"{start}_{name}" for start in ("lost", "tied", "compared") for name in SUMMARIES)
_POINTS, _GAINS = (tuple(f"{start}_{name}" for name in SUMMARIES) for start in ("points", "gain"))
_RUN_COLUMNS = (
    "seed", "training_seed", "modalities", "status", *SUMMARIES, "best_round", "last5_rounds", *_UNWEIGHTED, *_POINTS,
    *_GAINS, *_GAIN_ROUNDS, *_LOST, *COMPUTE, *TO_TARGET, "note", "run_notes", "run",
)  # fmt: skip
_TABLE_COLUMNS = (
    "modalities", "num_seeds", "num_pairs",
    *(f"{name}{end}" for name in (*SUMMARIES, *_POINTS, *_GAINS) for end in ("", "_low", "_high")),
    *_UNWEIGHTED, *(f"{start}_{name}" for start in ("p", "p_holm") for name in SUMMARIES),
    "last5_rounds", *_GAIN_ROUNDS, *_LOST, "interval", *COMPUTE, *TO_TARGET, "num_reached", "run_notes",
)  # fmt: skip
_WORDS = ("modalities", "status", "last5_rounds", *_GAIN_ROUNDS, "interval", "note", "run_notes", "run")
_COUNTS = ("seed", "training_seed", "best_round", "num_seeds", "num_pairs", "num_reached", *_LOST)
_OBSERVING = re.compile(r"(data|datasets\.\w+)\.(observed|without_modality)|clients")
"""How the keys begin that say which modalities are observed in which rows."""
_NEAR_CHANCE = 0.1
"""A score less than this share of the way from chance to 1 is near chance."""


@dataclass(frozen=True)
class Pair:
    """The summaries of a row and of the baseline's over the rounds in which both were scored.

    Attributes:
        rounds: By summary, these rounds in words where it is not, on both sides, the one of the row's own scores.
        is_apart: Whether each side is over its own rounds instead.
    """

    against: Row
    own: Summaries
    base: Summaries
    rounds: Mapping[str, str | None]
    is_apart: bool = False


@dataclass
class Row:
    """One run's scores over one modality set, with its gains once it is paired."""

    entry: RunEntry
    setting: Mapping[str, str]
    metric: str
    modalities: str
    scores: RunScores = UNSCORED
    compute: Compute = field(default_factory=Compute)
    pair: Pair | None = None
    gains: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(SUMMARIES))
    points: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(SUMMARIES))
    note: str | None = None
    _clients: dict[tuple[int, ...], pl.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def federation(self) -> tuple[str, str, str] | None:
        """The digests of the data, of their partition and of what is observed; None where the run does not say."""
        data = {} if self.entry.run is None else self.entry.run.manifest.get("data", {})
        if not isinstance(data, Mapping) or not {"fingerprint", "partition"} <= data.keys():
            return None
        return str(data["fingerprint"]), str(data["partition"]), str(data.get("observation", ""))

    @property
    def last_rounds(self) -> str | None:
        """The rounds that the mean of the last scores is over, in words."""
        return rounds_text(self.scores.own.rounds["last5"])

    def clients(self, rounds: tuple[int, ...]) -> pl.DataFrame:
        """As `client_scores`, over some rounds; empty where the tables have no scores of single clients."""
        if rounds not in self._clients:
            found = NO_CLIENTS
            if self.entry.run is not None and rounds:
                with suppress(BlossomError):
                    found = client_scores(self.entry.run, self.metric, self.modalities, rounds)
            self._clients[rounds] = found
        return self._clients[rounds]

    def beside(self, summary: str) -> pl.DataFrame:
        """The clients that are scored here and in the baseline's run: `client`, `score`, `weight`, `score_base`, ..."""
        if self.pair is None:
            return NO_CLIENTS
        base = self.pair.against.clients(self.pair.base.rounds[summary])
        own = self.clients(self.pair.own.rounds[summary])
        return own.join(base, on="client", suffix="_base", maintain_order="left")

    def unweighted(self, summary: str) -> float | None:
        """The mean over clients, each of them counting once; None where there are no scores of single clients."""
        return _mean(self.clients(self.scores.own.rounds[summary])["score"].to_list())

    def lost(self, summary: str, score: Score) -> dict[str, int | None]:
        """How many clients score less than they do in the baseline's run, as much, and have both scores."""
        counts: dict[str, int | None] = dict.fromkeys((f"lost_{summary}", f"tied_{summary}", f"compared_{summary}"))
        if self.pair is None or self.points[summary] is None:
            return counts
        both = self.beside(summary)
        if both.is_empty():
            return counts
        differences = points(score, both["score"].to_numpy(), both["score_base"].to_numpy())
        found = (int((differences < 0).sum()), int((differences == 0).sum()), len(differences))
        return dict(zip(counts, found, strict=True))

    @property
    def is_at_random(self) -> bool:
        """Whether scores are of clients that never train, with blocks of their own that nobody has trained."""
        if not self.metric.startswith(UNSEEN) or TUNED in self.metric or self.entry.run is None:
            return False
        scenario = self.entry.run.scenario
        return Scope.PRIVATE in scenario.scheme.scopes.values() and scenario.evaluation.unseen.start == "initial"

    @property
    def noted(self) -> list[str]:
        """What the run noted of itself."""
        return [] if self.entry.run is None else [*map(str, self.entry.run.manifest.get("notes", ()))]


def make_rows(
    entries: Sequence[RunEntry], metric: str, score: Score, target: float | None, up_to: int | None
) -> list[Row]:
    """The rows of all entries, several for a run; one without scores, and with a note, for each that is not used.

    The metric is a column of the table `rounds`, of all clients or, alone, of one modality set. `up_to` is the last
    round that counts; None: each run's last.

    Raises:
        InputError: No run has such a column.
    """
    runs = [entry.finished for entry in entries if entry.finished is not None]
    metric, only = find_metric(metric, runs)
    start = next((prefix for prefix in (VALIDATION, UNSEEN) if metric.startswith(prefix)), "")
    tuned = f"{start}{TUNED}{metric.removeprefix(start)}"
    has_tuned = any(metric_columns(run, tuned) for run in runs)
    rows = []
    for entry in entries:
        run = entry.finished
        plain = {**entry.setting, SCORING: PLAIN} if has_tuned else entry.setting
        if run is None:
            rows.append(Row(entry, plain, metric, ALL, note=f"not used: {entry.status}"))
            continue
        scorings = {metric: plain, tuned: {**entry.setting, SCORING: FINE_TUNED}} if has_tuned else {metric: plain}
        for name, setting in scorings.items():
            compute = run_compute(run, is_tuned=TUNED in name and start != UNSEEN, up_to=up_to)
            for modalities, column in metric_columns(run, name).items():
                if only and modalities != only:
                    continue
                scores = run_scores(run, column, lower_is_better=score.lower_is_better, target=target, up_to=up_to)
                end = "ends" if up_to is None else f"comes to round {up_to}"
                note = None if scores.scored else f"{entry.place} {end} with no finite {name}"
                rows.append(Row(entry, setting, name, modalities, scores, compute, note=note))
        if not metric_columns(run, metric):
            rows.append(Row(entry, plain, metric, ALL, note=f"{entry.place} has no {metric}"))
    return rows


def pair_rows(rows: Sequence[Row], baseline: Mapping[str, str], score: Score, *, own_ends: bool) -> list[str]:
    """Give each row its gains over the row that differs from it in the baseline's keys alone; why some have none.

    If `own_ends`, each row counts by its own rounds, not by those in which both were scored.
    """
    if not baseline:
        return []
    # Clients that never train are compared before fine-tuning, or after it: some begin with a head at random.
    is_unseen = rows[0].metric.startswith(UNSEEN)
    plain = {SCORING: PLAIN} if SCORING in rows[0].setting and SCORING not in baseline and not is_unseen else {}
    places = {_place(row.setting, row): row for row in rows if row.scores.scored}
    notes = []
    for row in rows:
        if not row.scores.scored:
            continue
        against = places.get(_place({**row.setting, **baseline, **plain}, row))
        row.note = _obstacle(row, against, varied=baseline)
        if against is row:
            continue
        if row.note is None and against is not None:
            row.pair = _pair(row, against, own_ends=own_ends or _stop_apart(row, against))
            if row.pair is None:
                row.note = f"{row.entry.place} and its baseline have no scored rounds in common"
            else:
                # Best rounds compare where both were chosen on validation, or neither.
                judges = {each.scores.judge.startswith(VALIDATION) for each in (row, against)}
                for name in SUMMARIES:
                    own, base = row.pair.own.values[name], row.pair.base.values[name]
                    if own is None or base is None or (name == "best" and len(judges) > 1):
                        continue
                    row.points[name] = float(points(score, own, base))
                    obstacle = _percent_obstacle(score, base, row.entry.run)
                    row.gains[name] = None if obstacle else float(gain(score, own, base))
                    row.note = row.note or obstacle
        if row.note is not None:
            notes.append(row.note)
    return notes


def all_stop(rows: Iterable[Row]) -> bool:
    """Whether all rows with scores are of runs that stop early."""
    runs = [row.entry.run for row in rows if row.scores.scored]
    return len(runs) > 0 and all(run is not None and run.scenario.stop is not None for run in runs)


def runs_frame(rows: Iterable[Row], keys: Sequence[str], score: Score) -> pl.DataFrame:
    """A row per row: the frame `runs` of a comparison."""
    records = []
    for row in rows:
        own, pair = row.scores.own, row.pair
        record: dict[str, Any] = {key: row.setting[key] for key in keys}
        record |= {"seed": row.entry.seeds.federation, "training_seed": row.entry.seeds.training}
        record |= {"modalities": row.modalities, "status": row.entry.status, "run": row.entry.place}
        for name in SUMMARIES:
            record |= {name: own.values[name], f"unweighted_{name}": row.unweighted(name)}
            record |= {f"points_{name}": row.points[name], f"gain_{name}": row.gains[name]}
            record[f"gain_{name}_rounds"] = None if pair is None else pair.rounds[name]
            record |= row.lost(name, score)
        record |= {"best_round": next(iter(own.rounds["best"]), None), **row.scores.to_target, **vars(row.compute)}
        record |= {"last5_rounds": row.last_rounds, "note": row.note, "run_notes": _each_once(row.noted)}
        records.append(record)
    types = dict.fromkeys((*keys, *_WORDS), pl.String) | dict.fromkeys((*_COUNTS, *TO_TARGET), pl.Int64)
    return _frame(records, types, [*keys, *_RUN_COLUMNS])


def table_frame(rows: Iterable[Row], grouping: Sequence[str], score: Score) -> pl.DataFrame:
    """A row per setting and modality set: the frame `table` of a comparison, with intervals over seeds or clients."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.scores.scored:
            groups.setdefault((*(row.setting[key] for key in grouping), row.modalities), []).append(row)
    records = [
        dict(zip((*grouping, "modalities"), place, strict=True)) | _record(members, score)
        for place, members in groups.items()
    ]
    for name in SUMMARIES:
        for record, p in zip(records, holm([record[f"p_{name}"] for record in records]), strict=True):
            record[f"p_holm_{name}"] = p
    types = dict.fromkeys((*grouping, *_WORDS), pl.String) | dict.fromkeys(_COUNTS, pl.Int64)
    return _frame(records, types, [*grouping, *_TABLE_COLUMNS])


def rounds_text(rounds: Sequence[int]) -> str | None:
    """Rounds, ascending, in a few words; None for none."""
    if not rounds:
        return None
    first, last = rounds[0], rounds[-1]
    if len(rounds) > 2 and last - first == len(rounds) - 1:
        return f"{first} to {last}"
    return ", ".join(map(str, rounds)) if len(rounds) <= NUM_LAST else f"{len(rounds)} of {first} to {last}"


def _place(setting: Mapping[str, str], row: Row) -> tuple[Any, ...]:
    return (*sorted(setting.items()), row.entry.seeds, row.modalities)


def _obstacle(row: Row, against: Row | None, *, varied: Iterable[str]) -> str | None:
    """Why two rows are no pair, where they differ in the `varied` keys."""
    if against is None:
        return f"seed {row.entry.seeds}: there is no finished run of the baseline for every setting"
    here, there = row.federation, against.federation
    if here is None or there is None:
        return "a run does not say which federation it had, so it is not paired"
    is_asked = any(_OBSERVING.match(key) for key in varied)
    for name, mine, other in zip(("data", "partition", "pattern of observed rows"), here, there, strict=True):
        if mine != other and not (is_asked and name.startswith("pattern")):
            return f"{row.entry.place} and {against.entry.place} had another {name}, so they are not paired"
    if any(each.is_at_random for each in (row, against)):
        return "before fine-tuning, private blocks of clients that never train have initial values, so there is no gain"
    return None


def _pair(row: Row, against: Row, *, own_ends: bool) -> Pair | None:
    """Two rows over the rounds that both have, or, with `own_ends`, each over its own; None where there are none."""
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
    is_once = row.scores.is_once and against.scores.is_once
    has_stop = any(run is not None and run.scenario.stop is not None for run in runs)
    return has_stop and (is_once or row.metric == against.metric)


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


def _record(members: Sequence[Row], score: Score) -> dict[str, Any]:
    """The numbers of a setting, over the runs that have it."""
    num_seeds = len({row.entry.seeds for row in members})
    alone = members[0] if len(members) == 1 else None

    def over_seeds(values: Iterable[float | None]) -> list[float]:
        """One value per seed, the mean over its settings; in order of seeds."""
        found: dict[Seeds, list[float]] = {}
        for row, value in zip(members, values, strict=True):
            if value is not None:
                found.setdefault(row.entry.seeds, []).append(value)
        return [fmean(each) for _, each in sorted(found.items())]

    def columns(column: str, values: list[float], summary: str, of_sides: OfSides | None) -> dict[str, float | None]:
        """Mean and limits; an interval that leaves the bounds of a share says nothing more out there."""
        limits = None
        if values:
            limits = t_interval(values) if num_seeds > 1 else _over_clients(alone, summary, of_sides)
        low, high = limits or (None, None)
        if limits and score.is_share and of_sides is None and all(0 <= value <= 1 for value in values):
            low, high = max(limits[0], 0.0), min(limits[1], 1.0)
        return {column: _mean(values), f"{column}_low": low, f"{column}_high": high}

    record: dict[str, Any] = {"num_seeds": num_seeds}
    record["num_pairs"] = len({row.entry.seeds for row in members if row.pair is not None})
    for name in SUMMARIES:
        record |= columns(name, over_seeds(row.scores.own.values[name] for row in members), name, None)
        record[f"unweighted_{name}"] = _mean(over_seeds(row.unweighted(name) for row in members))
        differences = over_seeds(row.points[name] for row in members)
        record |= columns(f"points_{name}", differences, name, partial(points, score))
        record[f"p_{name}"] = t_test(differences)
        # Percent of some of the pairs alone would leave out those whose baseline failed.
        is_whole = all(row.gains[name] is not None for row in members if row.pair is not None)
        percent = over_seeds(row.gains[name] for row in members) if is_whole else []
        record |= columns(f"gain_{name}", percent, name, partial(gain, score))
        record[f"gain_{name}_rounds"] = _each_once(row.pair.rounds[name] for row in members if row.pair is not None)
        lost = [row.lost(name, score) for row in members]
        for column in lost[0]:
            counts = [each[column] for each in lost]
            record[column] = sum(filter(None, counts)) if any(count is not None for count in counts) else None
    for column in COMPUTE:
        took = [getattr(row.compute, column) for row in members]
        record[column] = None if None in took else _mean(over_seeds(took))
    reached = [row.scores.to_target for row in members if row.scores.to_target]
    for column in TO_TARGET:
        middle = median([*(float(each[column]) for each in reached), *[math.inf] * (len(members) - len(reached))])
        record[column] = middle if math.isfinite(middle) else None
    has_interval = any(record[f"{name}_low"] is not None for name in SUMMARIES)
    record["interval"] = ("seeds" if num_seeds > 1 else "clients") if has_interval else None
    record |= {"num_reached": len(reached), "run_notes": _each_once(note for row in members for note in row.noted)}
    return record | {"last5_rounds": _each_once(row.last_rounds for row in members)}


def _over_clients(row: Row | None, summary: str, of_sides: OfSides | None) -> Interval | None:
    """The interval of one run's score over its clients, or, with `of_sides`, of its gain or points."""
    if row is None:
        return None
    sides = [""] if of_sides is None else ["", "_base"]
    found = row.clients(row.scores.own.rounds[summary]) if of_sides is None else row.beside(summary)
    if found.is_empty():
        return None
    values, weights = (found.select(f"{part}{side}" for side in sides).to_numpy().T for part in ("score", "weight"))
    return interval_over_clients(values, weights, row.entry.seeds.federation, of_sides=of_sides)


def _frame(records: Sequence[Mapping[str, Any]], types: Mapping[str, Any], columns: Sequence[str]) -> pl.DataFrame:
    """A frame with these columns, floats where no type is said, whether or not there are records."""
    return pl.DataFrame(records, schema={name: types.get(name, pl.Float64) for name in columns})


def _each_once(texts: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(filter(None, texts))) or None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
