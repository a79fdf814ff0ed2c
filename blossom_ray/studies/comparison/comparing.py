"""Compares runs: scores and gains over a baseline, paired by seed on the same federation, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import polars as pl

from blossom_ray.core.scores import Score, default_score
from blossom_ray.errors import BlossomError, InputError
from blossom_ray.scenario.tree import Seeds
from blossom_ray.studies.comparison.by_class import CLASS_SCORES, by_class
from blossom_ray.studies.comparison.choosing import (
    NO_SCORE,
    Choice,
    Summary,
    choose_values,
    tuned_keys,
    validation_metric,
)
from blossom_ray.studies.comparison.grouping import Grouping, grouping_of, key_labels
from blossom_ray.studies.comparison.intervals import Interval, bootstrap_interval, holm, t_interval, t_test
from blossom_ray.studies.comparison.pairing import PLAIN, ROUNDS, SCORING, Row, Rows, gain, points, rounds_text
from blossom_ray.studies.comparison.run_compute import COMPUTE, Compute
from blossom_ray.studies.comparison.run_notes import RunNote, kernel_notes, run_notes
from blossom_ray.studies.comparison.run_scores import (
    SUMMARIES,
    VALIDATION,
    client_scores,
    paired_arrays,
    score_of,
    split_column,
)
from blossom_ray.studies.comparison.run_selection import Entry, Source, collect, varied_keys
from blossom_ray.studies.sweeps.grid import value_text
from blossom_ray.text import brief, quoted

_TO_TARGET = ("rounds_to_target", "bytes_down_to_target", "bytes_up_to_target")
_GAINS = tuple(f"gain_{name}" for name in SUMMARIES)
_POINTS = tuple(f"points_{name}" for name in SUMMARIES)
_UNWEIGHTED = tuple(f"unweighted_{name}" for name in SUMMARIES)
_P = tuple(f"{start}_{name}" for start in ("p", "p_holm") for name in SUMMARIES)
_GAIN_ROUNDS = tuple(f"{name}_rounds" for name in _GAINS)
_RUN_COLUMNS = (
    "seed", "training_seed", "modalities", "status", *SUMMARIES, "best_round", "last5_rounds", *_UNWEIGHTED, *_POINTS,
    *_GAINS, *_GAIN_ROUNDS, *COMPUTE, *_TO_TARGET, "note", "run_notes", "run",
)  # fmt: skip
_TABLE_COLUMNS = (
    "modalities", "num_seeds", "num_pairs",
    *(f"{name}{end}" for name in (*SUMMARIES, *_POINTS, *_GAINS) for end in ("", "_low", "_high")),
    *_UNWEIGHTED, *_P,
    "last5_rounds", *_GAIN_ROUNDS, "interval", *COMPUTE, *_TO_TARGET, "num_reached",
    "run_notes",
)  # fmt: skip
MARK = "*"
"""Behind a gain that is over other rounds than the scores beside it, and a score that is over others than most."""
BEST_NOTES = (
    "best is optimistic: its round is chosen on the test scores that it then reports",
    "best is the test score of the round with the best validation score",
    "best is optimistic: its round is chosen on the validation scores that it then reports",
    "best is compared between runs alone that have validation scores, or that have none",
)
"""How the best round was chosen; a note about it begins with one of these."""
_ONCE_NOTE = (
    "a test split that was scored once, at the end (evaluation.split: validation), has that score as final, and no "
    "last 5, best or rounds to a target"
)
_STOP_NOTE = "runs that stop early (stop) count by their own last or best rounds, not by those that both were scored in"
_FEW_SEEDS = 3
_MODALITIES = "modalities"
# Another share of the compute than this makes a difference that a reader should know of.
_UNEQUAL = 0.01
DEFAULT_BASELINE = {"sharing": "full-model"}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Scores are as in the runs' tables, gains in percent.

    Attributes:
        metric: The metric.
        lower_is_better: Whether smaller scores are better; gains are positive where the score is better.
        is_share: Whether scores are shares of 1, which are shown in percent.
        keys: Keys in which the rows differ, as columns of both frames; `seed` besides. Where runs were also scored
            after local fine-tuning, `scoring` is one: `plain` or `fine-tuned`.
        baseline: Value by key of the setting that gains are measured against; empty where there are no gains.
        target: The score that `rounds_to_target` and so on are about.
        up_to: The last round that was looked at; None: each run's last.
        part: `modalities`, or `class` in a comparison of classes, whose frames have that column in its place.
        runs: A row per run and modality set (`all clients` first): the keys, `seed`, `training_seed`, `modalities`,
            `status`, `final`, `last5`, `best`, `best_round`, `last5_rounds` (what it is over), for each of the three
            scores `unweighted_` (mean over clients, each counting once), `points_` (difference, in percent points for
            shares), `gain_` and
            `gain_..._rounds`, what the whole run took, whatever the modality set: `num_examples` (training samples
            seen, over all clients), `num_steps` (optimizer steps that a model goes through: the mean over a round's
            clients, summed over rounds), `bytes_down`, `bytes_up`; `rounds_to_target`, `bytes_down_to_target`,
            `bytes_up_to_target`, `note` (why there is no gain), `run_notes` (what the run noted of itself), `run` (its
            folder).
        table: A row per setting and modality set: the keys, `modalities`, `num_seeds`, `num_pairs`, and for each of
            `final`, `last5`, `best` the mean over seeds with `_low` and `_high`, the same for `points_` and `gain_`,
            `unweighted_`, `p_` (t test of the points, paired by seed) and `p_holm_` (adjusted for all rows with a p);
            `last5_rounds`, `gain_final_rounds` and so on are as in `runs`. `interval` says what the intervals come
            from: `seeds`, `clients` or null. `num_examples` to `bytes_up` are means over seeds. The medians
            `rounds_to_target`, `bytes_down_to_target` and `bytes_up_to_target`, null where less than half of the seeds
            reach it, and `num_reached`. `run_notes`: what runs of the row noted of themselves.
        unused: Place and status of runs that are not used.
        run_notes: What the runs noted of themselves, each text once.
        summary: The score whose gains are shown where none is asked for: `last5`; `final` where test splits were scored
            once; `best` where runs stopped early, and were scored in other rounds, too.
        choice: What was chosen on validation; `table` has the values and the budget as columns more. None: nothing was.
        notes: What a reader of the numbers should know.

    The baseline's own rows have no points and no gain. A gain is null, where points are not, if a baseline of the row
    is near chance or the score can be below 0. `gain_final_rounds` and its like are null where a gain is that of the
    scores beside it; else they are the rounds that both runs were scored in, which the gain is over.
    """

    metric: str
    lower_is_better: bool
    is_share: bool
    keys: tuple[str, ...]
    baseline: Mapping[str, str]
    target: float | None
    up_to: int | None
    part: str
    runs: pl.DataFrame
    table: pl.DataFrame
    unused: tuple[tuple[str, str], ...]
    run_notes: tuple[RunNote, ...]
    summary: Summary
    choice: Choice | None
    notes: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """A short name for each key: `fusion` for `model.fusion.kind`."""
        return key_labels(self.keys)

    @property
    def grouping(self) -> Grouping:
        """How the rows of `table` are set out for people."""
        return grouping_of(self.table.to_dicts(), self.keys, self.baseline)

    def notes_of(self, row: Mapping[str, Any]) -> list[int]:
        """Places in `run_notes`, from 1 on, of those that concern a row of `table`."""
        setting = _in_words(row, self.keys)
        return [number for number, note in enumerate(self.run_notes, 1) if setting in note.runs]


def compare(
    *sources: Source | Iterable[Source],
    metric: str | None = None,
    baseline: Mapping[str, Any] | None = None,
    by: Sequence[str] | None = None,
    target: float | None = None,
    up_to: int | None = None,
    per_class: bool = False,
    choose: str | None = None,
    tune: str | Sequence[str] = (),
    choose_by: Summary | None = None,
) -> Comparison:
    """Compare runs.

    A setting's gain is 100 (s - s_baseline) / |s_baseline| percent, its sign turned where lower scores are better. It
    is taken within a seed, between runs on the same federation: same data, same rows per client, and over the rounds
    in which both were scored, unless the baseline is another number of `rounds`. With several seeds, mean and 95 %
    interval (Student t) are over seeds; with one, the interval is a bootstrap over its clients, both sides of a gain
    with the same clients.

    With `choose`, the values of the keys in `tune` are chosen first, for every setting of the other keys: those whose
    mean score over seeds is the best one on the clients' validation splits. What is compared are the test scores of the
    runs with these values, and of no others.

    Args:
        sources: Run folders, folders of sweeps, such opened, or lists of them. Only finished runs are used.
        metric: A column of the table `rounds`, such as `macro_f1_present`, `held_out/accuracy` or, of one modality set
            alone, `accuracy/acc+gyro`; None: what the runs' task is judged by, such as `accuracy`.
        baseline: Value by varied key that the others are measured against; None: `sharing` `full-model`, where it is
            there.
        by: Keys to tell apart; over the others, scores and gains are averaged within a seed. `scoring` is always one
            where runs have it. None: all keys.
        target: A score; the table then says after how many rounds and bytes it is reached.
        up_to: A round, >= 1; runs count as if they had ended with it, to see how gains move. None: all rounds.
        per_class: Compare scores of single classes, from the table `classes`. The metric is then `recall` (the default;
            that of a multilabel task is `auroc`), `precision` or `f1`, also as `held_out/recall/acc`.
        choose: A score on validation, such as `accuracy`; None: nothing is chosen.
        tune: The keys whose values are chosen, such as `training.optimizer.lr`.
        choose_by: The score of a run on validation that counts: of its last scored round, the mean of the last five, or
            the best. None: the best where runs stop early, else the mean.

    Raises:
        InputError: No such metric, key or baseline, or no runs; `up_to` is not at least 1; there is nothing to choose
            from, such as scores on validation.
        RunFolderError: A folder is no run and no sweep, or is damaged.

    Examples:
        >>> from blossom_ray import compare
        >>> compare("sweeps/quickstart", metric="macro_f1_present").table
    """
    if up_to is not None and up_to < 1:
        raise InputError(f"up_to is {up_to}; expected a round from 1 on")
    return compare_entries(
        collect(sources),
        metric=metric,
        baseline=baseline,
        by=by,
        target=target,
        up_to=up_to,
        per_class=per_class,
        choose=choose,
        tune=tune,
        choose_by=choose_by,
    )


def compare_entries(
    entries: Sequence[Entry],
    *,
    metric: str | None = None,
    baseline: Mapping[str, Any] | None = None,
    by: Sequence[str] | None = None,
    target: float | None = None,
    up_to: int | None = None,
    per_class: bool = False,
    choose: str | None = None,
    tune: str | Sequence[str] = (),
    choose_by: Summary | None = None,
) -> Comparison:
    """As `compare`, of runs that have been collected."""
    asked, given, choice = metric, entries, None
    if choose is not None:
        if metric is not None and metric.startswith(VALIDATION):
            raise InputError(f"the metric is {quoted(metric)}, which values are chosen on; expected a test score")
        choice, entries = _chosen(entries, choose, tune, choose_by, up_to)
    elif tune:
        raise InputError(NO_SCORE)
    if per_class:
        entries, metric = by_class(entries, metric)
    metric = metric or _default_metric(entries)
    score = score_of(metric, [*_own_scores(entries), *(CLASS_SCORES if per_class else ())])
    rows = Rows(entries, metric, score, target, up_to)
    keys = tuple(rows.rows[0].setting)
    chosen = _baseline(rows.rows, keys, baseline)
    grouping = _grouping(keys, by)
    # Runs whose rounds were chosen count as they are.
    rows.pair(chosen, own_ends=ROUNDS in chosen or (choice is not None and ROUNDS in choice.keys))
    table = _table_frame(rows.rows, grouping, score)
    part = "class" if per_class else _MODALITIES
    used = [
        (_in_words(entry.setting, grouping), entry.run)
        for entry in entries
        if entry.run is not None and entry.status == "finished"
    ]
    return Comparison(
        metric=asked or metric,
        lower_is_better=score.lower_is_better,
        is_share=score.is_share,
        keys=grouping,
        baseline=chosen,
        target=target,
        up_to=up_to,
        part=part,
        runs=_runs_frame(rows.rows, keys).rename({_MODALITIES: part}),
        table=(table if choice is None else choice.beside(table, grouping)).rename({_MODALITIES: part}),
        unused=tuple((entry.place, entry.status) for entry in given if entry.status != "finished"),
        run_notes=run_notes(used),
        summary=_usual_summary(rows.rows),
        choice=choice,
        notes=tuple(
            dict.fromkeys(
                rows.notes
                + _notes(rows.rows, table, score)
                + _on_compute(rows.rows, grouping)
                + kernel_notes(used)
                + _going_on(given)
            )
        ),
    )


def _chosen(
    entries: Sequence[Entry], choose: str, tune: str | Sequence[str], by: Summary | None, up_to: int | None
) -> tuple[Choice, list[Entry]]:
    metric = validation_metric(choose, entries)
    tuned = tuned_keys(tune, tuple(entries[0].setting))
    score = score_of(metric, _own_scores(entries))
    wanted, keys = split_column(metric)[0], tuple(entries[0].setting)
    rows = [row for row in Rows(entries, metric, score, None, up_to).rows if row.metric == wanted]
    table, runs = _table_frame(rows, keys, score), _runs_frame(rows, keys)
    summary = by or ("best" if _all_stop(rows) else "last5")
    return choose_values(entries, tuned, table, runs, metric=metric, summary=summary, score=score)


def _usual_summary(rows: Sequence[Row]) -> Summary:
    scores = [row.scores for row in rows if row.scores is not None]
    if scores and all(each.is_once for each in scores):
        return "final"
    return "best" if _all_stop(rows) else "last5"


def _all_stop(rows: Sequence[Row]) -> bool:
    runs = [row.entry.run for row in rows if row.scores is not None]
    return len(runs) > 0 and all(run is not None and run.scenario.stop is not None for run in runs)


def _default_metric(entries: Sequence[Entry]) -> str:
    """What the task of the runs is judged by.

    Raises:
        InputError: They have several tasks.
    """
    tasks = dict.fromkeys(entry.run.scenario.task for entry in entries if entry.run is not None)
    if len(tasks) > 1:
        raise InputError(f"the runs have the tasks {', '.join(tasks)}; expected a metric that they share")
    return default_score(next(iter(tasks), "classification")).name


def _own_scores(entries: Sequence[Entry]) -> list[Score]:
    """The metrics that the runs bring along."""
    return [score for entry in entries if entry.run is not None for score in entry.run.scenario.own_scores]


def _baseline(rows: Sequence[Row], keys: Sequence[str], asked: Mapping[str, Any] | None) -> dict[str, str]:
    wanted = {key: value_text(value) for key, value in (DEFAULT_BASELINE if asked is None else asked).items()}
    for key, value in wanted.items():
        values = list(dict.fromkeys(row.setting.get(key, "") for row in rows))
        if key in keys and value in values:
            continue
        if asked is None:
            return {}
        if key not in keys:
            varied = ", ".join(keys) or "nothing but the seed"
            raise InputError(
                f"the baseline's {brief(key)} is the same in all runs; expected a key in which they differ: {varied}"
            )
        raise InputError(f"the baseline's {brief(key)} is {quoted(value)}; expected one of {', '.join(values)}")
    return wanted


def _grouping(keys: tuple[str, ...], by: Sequence[str] | None) -> tuple[str, ...]:
    if by is None:
        return keys
    grouping = varied_keys("by", by, keys)
    # A mean of plain and fine-tuned scores is the score of nothing.
    return (*grouping, SCORING) if SCORING in keys and SCORING not in grouping else grouping


def _in_words(setting: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The setting of a run, which is the same for its plain and its fine-tuned scores."""
    return ", ".join(str(setting[key]) for key in keys if key != SCORING)


def _row_in_words(row: Row, keys: Iterable[str]) -> str:
    """The setting of a row."""
    return ", ".join(row.setting[key] for key in keys if (key, row.setting[key]) != (SCORING, PLAIN))


def _notes(rows: Sequence[Row], table: pl.DataFrame, score: Score) -> list[str]:
    seeds = {row.entry.seeds for row in rows if row.scores is not None}
    notes = _best_notes(rows)
    num_pairs = table["num_pairs"].max()
    if (number := table["p_final"].count()) > 0:
        notes.append(f"p: t test paired by seed; Holm: p adjusted for the {number} comparisons of this table")
    if isinstance(num_pairs, int) and 2 <= num_pairs <= _FEW_SEEDS:
        notes.append(
            f"{num_pairs} seeds: that a difference has the same sign in each is no evidence, since by chance one in "
            f"{2 ** (num_pairs - 1)} has"
        )
    federations = {seed.federation for seed in seeds}
    if len(federations) < len(seeds):
        notes.append(
            f"{len(seeds)} pairs of seeds in {len(federations)} federation{'s' * (len(federations) > 1)}: intervals "
            "over them do not cover how federations differ"
        )
    if len(seeds) == 1:
        notes.append("one seed: there is no interval over seeds; those in brackets are over its clients alone")
    if len({_last_rounds(row) for row in rows} - {None}) > 1:
        notes.append(f"{MARK} last 5 over other rounds than in most rows, since fewer or others were scored")
    if any(row.pair is not None and any(row.pair.rounds.values()) for row in rows):
        notes.append(f"{MARK} gain over the rounds alone that both were scored in; scores beside it are over their own")
    if any(row.scores is not None and row.scores.is_once for row in rows):
        notes.append(_ONCE_NOTE)
    if any(row.pair is not None and row.pair.is_apart and _all_stop([row]) for row in rows):
        notes.append(_STOP_NOTE)
    if score.lower_is_better:
        notes.append("lower scores are better here; positive points and gains are lower scores")
    return notes


def _on_compute(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Which rows took more or less to compute than what they are compared with."""
    sides: dict[tuple[str, str], list[tuple[Compute, Compute]]] = {}
    for row, against in _compared(rows):
        names = (_row_in_words(row, keys), _row_in_words(against, keys))
        if row.compute is not None and against.compute is not None and names[0] != names[1]:
            sides.setdefault(names, []).append((row.compute, against.compute))
    unequal: dict[str, list[str]] = {}
    for (name, other), pairs in sides.items():
        ratios = {
            "samples": _ratio([(own.num_examples, base.num_examples) for own, base in pairs]),
            "steps": _ratio([(own.num_steps, base.num_steps) for own, base in pairs]),
        }
        times: dict[str, list[str]] = {}
        for word, ratio in ratios.items():
            if ratio is not None and abs(ratio - 1) > _UNEQUAL:
                times.setdefault(f"{ratio:.3g} x", []).append(word)
        if times:
            parts = [f"{ratio} the {' and '.join(words)}" for ratio, words in times.items()]
            unequal.setdefault(f"{' and '.join(parts)} of {other}", []).append(name)
    return [f"unequal compute: {'; '.join(names)}: {times}" for times, names in unequal.items()]


def _compared(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Rows with their baseline's; where none has one, with the one of the same federation that took least."""
    pairs = [(row, row.pair.against) for row in rows if row.pair is not None]
    if pairs:
        yield from pairs
        return
    alike: dict[Any, list[Row]] = {}
    for row in rows:
        if row.scores is not None and row.federation is not None:
            alike.setdefault((row.federation, row.modalities), []).append(row)
    for members in alike.values():
        least = min(members, key=_took)
        yield from ((row, least) for row in members)


def _took(row: Row) -> list[float]:
    """Samples, then steps, to order rows by; what is not known comes last."""
    numbers = [] if row.compute is None else [row.compute.num_examples, row.compute.num_steps]
    return [math.inf if number is None else number for number in numbers] or [math.inf]


def _ratio(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """How many times as much the first ones are together; None where one of them is not known."""
    known = [(own, base) for own, base in pairs if own is not None and base]
    if len(known) < len(pairs):
        return None
    return math.fsum(own for own, _ in known) / math.fsum(base for _, base in known)


def _best_notes(rows: Sequence[Row]) -> list[str]:
    """How the best rounds were chosen, with the numbers of runs where that was not in one way."""
    runs: dict[str, set[str]] = {}
    for row in rows:
        if row.scores is not None and row.scores.own.rounds["best"]:
            is_validated = row.scores.judge.startswith(VALIDATION)
            note = BEST_NOTES[2 if row.metric.startswith(VALIDATION) else 1 if is_validated else 0]
            runs.setdefault(note, set()).add(row.entry.identity)
    if len(runs) < 2:
        return list(runs)
    return [*(f"{note} ({len(each)} run{'s' * (len(each) > 1)})" for note, each in runs.items()), BEST_NOTES[3]]


def _going_on(entries: Sequence[Entry]) -> list[str]:
    """What to do about runs that have begun and not finished."""
    if all(entry.run is None or entry.status == "finished" for entry in entries):
        return []
    return ["a run that has not finished goes on with: blossom-ray resume RUN; cells of a sweep with its own command"]


def _runs_frame(rows: Sequence[Row], keys: Sequence[str]) -> pl.DataFrame:
    records = []
    for row in rows:
        scores = row.scores
        values: dict[str, Any] = {**{key: row.setting[key] for key in keys}, "seed": row.entry.seeds.federation}
        values["training_seed"] = row.entry.seeds.training
        values |= {"modalities": row.modalities, "status": row.entry.status}
        values |= {name: None if scores is None else scores.own.values[name] for name in SUMMARIES}
        values["best_round"] = None if scores is None else next(iter(scores.own.rounds["best"]), None)
        values["last5_rounds"] = _last_rounds(row)
        values |= {f"unweighted_{name}": _unweighted(row, name) for name in SUMMARIES}
        values |= {f"points_{name}": row.points[name] for name in SUMMARIES}
        values |= {f"gain_{name}": row.gains[name] for name in SUMMARIES}
        values |= {f"gain_{name}_rounds": None if row.pair is None else row.pair.rounds[name] for name in SUMMARIES}
        values |= {name: None if row.compute is None else getattr(row.compute, name) for name in COMPUTE}
        values["rounds_to_target"] = None if scores is None else scores.target_round
        values["bytes_down_to_target"] = None if scores is None else scores.bytes_down
        values["bytes_up_to_target"] = None if scores is None else scores.bytes_up
        records.append({**values, "note": row.note, "run_notes": _noted([row]), "run": row.entry.place})
    words = dict.fromkeys(
        (*keys, "modalities", "status", "last5_rounds", *_GAIN_ROUNDS, "note", "run_notes", "run"), pl.String
    )
    counts = dict.fromkeys(("seed", "training_seed", "best_round", *_TO_TARGET), pl.Int64)
    return _frame(records, {**words, **counts}, [*keys, *_RUN_COLUMNS])


def _table_frame(rows: Sequence[Row], grouping: Sequence[str], score: Score) -> pl.DataFrame:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.scores is not None:
            groups.setdefault((*(row.setting[key] for key in grouping), row.modalities), []).append(row)
    records = []
    for place, members in groups.items():
        record: dict[str, Any] = dict(zip((*grouping, "modalities"), place, strict=True))
        seeds = {row.entry.seeds for row in members}
        paired = {row.entry.seeds for row in members if row.pair is not None}
        record |= {"num_seeds": len(seeds), "num_pairs": len(paired)}
        alone = members[0] if len(members) == 1 else None
        interval = "seeds" if len(seeds) > 1 else "clients" if alone is not None else None
        intervals: list[Interval | None] = []
        for name in SUMMARIES:
            scored = ((row.entry.seeds, row.scores) for row in members if row.scores is not None)
            by_seed = _by_seed((seed, scores.own.values[name]) for seed, scores in scored)
            limits = t_interval(by_seed) if interval == "seeds" else _over_clients(alone, name, None)
            record |= _columns(name, by_seed, limits, (0, 1) if score.is_share else None)
            intervals.append(limits)
            averages = _by_seed((row.entry.seeds, _unweighted(row, name)) for row in members)
            record[f"unweighted_{name}"] = _mean(averages)
        for name in SUMMARIES:
            differences = _by_seed((row.entry.seeds, row.points[name]) for row in members)
            limits = (
                t_interval(differences) if interval == "seeds" else _over_clients(alone, name, partial(points, score))
            )
            record |= _columns(f"points_{name}", differences, limits if differences else None)
            record[f"p_{name}"] = t_test(differences)
            # Percent of some of the pairs alone would leave out those whose baseline failed.
            percent = [(row.entry.seeds, row.gains[name]) for row in members if row.pair is not None]
            by_seed = _by_seed(percent) if all(value is not None for _, value in percent) else []
            limits = t_interval(by_seed) if interval == "seeds" else _over_clients(alone, name, partial(gain, score))
            record |= _columns(f"gain_{name}", by_seed, limits if by_seed else None)
            record[f"gain_{name}_rounds"] = _each_once(row.pair.rounds[name] for row in members if row.pair is not None)
        for name in COMPUTE:
            took = [(row.entry.seeds, getattr(row.compute, name)) for row in members]
            record[name] = _mean(_by_seed(took)) if all(value is not None for _, value in took) else None
        record["run_notes"] = _noted(members)
        record["last5_rounds"] = _each_once(map(_last_rounds, members))
        record["interval"] = interval if any(intervals) else None
        records.append(record | _to_target(members))
    for name in SUMMARIES:
        for record, p in zip(records, holm([record[f"p_{name}"] for record in records]), strict=True):
            record[f"p_holm_{name}"] = p
    words = dict.fromkeys((*grouping, "modalities", "last5_rounds", *_GAIN_ROUNDS, "interval", "run_notes"), pl.String)
    counts = dict.fromkeys(("num_seeds", "num_pairs", "num_reached"), pl.Int64)
    return _frame(records, {**words, **counts}, [*grouping, *_TABLE_COLUMNS])


def _noted(rows: Iterable[Row]) -> str | None:
    return _each_once(note.text for note in run_notes(("", row.entry.run) for row in rows if row.entry.run is not None))


def _last_rounds(row: Row) -> str | None:
    return None if row.scores is None else rounds_text(row.scores.own.rounds["last5"])


def _each_once(texts: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(filter(None, texts))) or None


def _frame(records: Sequence[Mapping[str, Any]], types: Mapping[str, Any], columns: Sequence[str]) -> pl.DataFrame:
    """A frame with these columns, floats where no type is said, whether or not there are records."""
    return pl.DataFrame(records, schema={name: types.get(name, pl.Float64) for name in columns})


def _by_seed(pairs: Iterable[tuple[Seeds, float | None]]) -> list[float]:
    """One value per seed, the mean over its settings; in order of seeds."""
    values: dict[Seeds, list[float]] = {}
    for seed, value in pairs:
        if value is not None:
            values.setdefault(seed, []).append(value)
    return [math.fsum(each) / len(each) for _, each in sorted(values.items())]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _columns(
    name: str, by_seed: Sequence[float], limits: Interval | None, bounds: Interval | None = None
) -> dict[str, float | None]:
    """Mean and limits, within bounds where all values are; an interval that leaves them says nothing more out there."""
    low, high = limits or (None, None)
    if bounds and limits and all(bounds[0] <= value <= bounds[1] for value in by_seed):
        low, high = max(limits[0], bounds[0]), min(limits[1], bounds[1])
    return {name: _mean(by_seed), f"{name}_low": low, f"{name}_high": high}


def _unweighted(row: Row, name: str) -> float | None:
    """The mean over clients, each of them counting once; None where the tables have no scores of single clients."""
    if row.scores is None or row.entry.run is None:
        return None
    found = _client_scores(row, row.scores.own.rounds[name])
    return _mean([score for score, _ in found.values()]) if found else None


def _client_scores(row: Row, rounds: tuple[int, ...]) -> dict[int, tuple[float, float]] | None:
    try:
        return None if row.entry.run is None else client_scores(row.entry.run, row.metric, row.modalities, rounds)
    except BlossomError:
        return None


def _over_clients(row: Row | None, name: str, of_sides: Callable[[Any, Any], Any] | None) -> Interval | None:
    """The bootstrap interval of one run's score, or, with `of_sides`, of its gain or points over the baseline's run."""
    if row is None or row.scores is None:
        return None
    over = [(row, row.scores.own)]
    if of_sides is not None:
        if row.pair is None:
            return None
        over = [(row, row.pair.own), (row.pair.against, row.pair.base)]
    sides = []
    for each, its in over:
        found = _client_scores(each, its.rounds[name])
        if not found:
            return None
        sides.append(found)
    values, weights = paired_arrays(*sides)
    if of_sides is None:
        return bootstrap_interval(values[0], weights[0], row.entry.seeds.federation)
    return bootstrap_interval(values, weights, row.entry.seeds.federation, of_sides=of_sides)


def _to_target(members: Sequence[Row]) -> dict[str, Any]:
    reached = [row.scores for row in members if row.scores is not None and row.scores.target_round is not None]
    missing = [math.inf] * (len(members) - len(reached))
    columns = {
        "rounds_to_target": [scores.target_round for scores in reached],
        "bytes_down_to_target": [scores.bytes_down for scores in reached],
        "bytes_up_to_target": [scores.bytes_up for scores in reached],
    }
    medians = {name: median([float(value or 0) for value in values] + missing) for name, values in columns.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in medians.items()}
    return {**finite, "num_reached": len(reached)}
