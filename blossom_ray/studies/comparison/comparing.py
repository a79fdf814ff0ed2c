"""Compares runs: scores and gains over a baseline, paired by seed on the same federation, with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from blossom_ray.errors import InputError
from blossom_ray.studies.comparison.choosing import NO_SCORE, Choice, choose_values
from blossom_ray.studies.comparison.entries import (
    CLASS_SCORES,
    SCORING,
    Grouping,
    RunEntry,
    Source,
    by_class,
    collect,
    grouping_of,
    key_labels,
    own_scores,
    varied_keys,
)
from blossom_ray.studies.comparison.notes import (
    RunNote,
    compute_notes,
    kernel_notes,
    run_notes,
    score_notes,
    setting_in_words,
)
from blossom_ray.studies.comparison.rows import Row, all_stop, make_rows, pair_rows, runs_frame, table_frame
from blossom_ray.studies.comparison.scores import VALIDATION, Summary, score_of, usual_score
from blossom_ray.studies.comparison.tasks import by_task
from blossom_ray.studies.sweeps.grid import value_text
from blossom_ray.text import brief, quoted

DEFAULT_BASELINE = {"sharing": "full-model"}
_MODALITIES = "modalities"
_GOING_ON = "a run that has not finished goes on with: blossom-ray resume RUN; cells of a sweep with its own command"
ROUNDS = "rounds"
"""The key whose values, where it is the baseline's, are compared by where each run ended."""


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
            folder). With a pair, `lost_`, `tied_` and `compared_` of each score: clients below their own score in the
            baseline's run, at the same one, and those that have both.
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
        setting = setting_in_words(row, self.keys)
        return [number for number, note in enumerate(self.run_notes, 1) if setting in note.runs]


@dataclass(frozen=True)
class Question:
    """What is asked of some runs: the arguments of `compare`, which says what each means."""

    metric: str | None = None
    baseline: Mapping[str, Any] | None = None
    by: Sequence[str] | None = None
    target: float | None = None
    up_to: int | None = None
    per_class: bool = False
    choose: str | None = None
    tune: str | Sequence[str] = ()
    choose_by: Summary | None = None


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
    interval (Student t) are over seeds; with one, the interval is over its clients, both sides of a gain with the
    same clients.

    With `choose`, the values of the keys in `tune` are chosen first, for every setting of the other keys: those whose
    mean score over seeds is the best one on the clients' validation splits. What is compared are the test scores of the
    runs with these values, and of no others.

    Args:
        sources: Run folders, folders of sweeps, such opened, or lists of them. Only finished runs are used.
        metric: A column of the table `rounds`, such as `macro_f1_present`, `held_out/accuracy` or, of one modality set
            alone, `accuracy/acc+gyro`; None: what the runs' task is judged by, such as `accuracy`. With `tasks`, a
            score of one of them, such as `activity/accuracy`: its clients are compared.
        baseline: Value by varied key that the others are measured against; None: `sharing` `full-model`, where it is
            there, or else 1.0 of `observed` of the data, of its shares for testing where these vary.
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
    question = Question(metric, baseline, by, target, up_to, per_class, choose, tune, choose_by)
    return compare_entries(collect(sources), question)


def compare_entries(entries: Sequence[RunEntry], question: Question) -> Comparison:
    """As `compare`, of runs that have been collected."""
    metric, up_to, given, choice = question.metric, question.up_to, entries, None
    if question.choose is not None:
        if metric is not None and metric.startswith(VALIDATION):
            raise InputError(f"the metric is {quoted(metric)}, which values are chosen on; expected a test score")
        choice, entries = choose_values(entries, question.choose, question.tune, question.choose_by, up_to)
    elif question.tune:
        raise InputError(NO_SCORE)
    entries, metric = by_task(entries, metric)
    if question.per_class:
        entries, metric = by_class(entries, metric)
    metric = metric or _default_metric(entries)
    score = score_of(metric, [*own_scores(entries), *(CLASS_SCORES if question.per_class else ())])
    rows = make_rows(entries, metric, score, question.target, up_to)
    notes = [row.note for row in rows if row.note is not None and row.entry.finished is not None]
    keys = tuple(rows[0].setting)
    baseline = _baseline(rows, keys, question.baseline)
    grouping = keys if question.by is None else varied_keys("by", question.by, keys)
    if SCORING in keys and SCORING not in grouping:
        # A mean of plain and fine-tuned scores is the score of nothing.
        grouping = (*grouping, SCORING)
    # Runs whose rounds were chosen count as they are.
    own_ends = ROUNDS in baseline or (choice is not None and ROUNDS in choice.keys)
    notes += pair_rows(rows, baseline, score, own_ends=own_ends)
    table = table_frame(rows, grouping, score)
    used = [(setting_in_words(entry.setting, grouping), entry.finished) for entry in entries if entry.finished]
    notes += [*score_notes(rows, table, score), *compute_notes(rows, grouping), *kernel_notes(used)]
    if any(entry.run is not None and entry.status != "finished" for entry in given):
        notes.append(_GOING_ON)
    part = "class" if question.per_class else _MODALITIES
    are_once = {row.scores.is_once for row in rows if row.scores.scored}
    return Comparison(
        metric=question.metric or metric,
        lower_is_better=score.lower_is_better,
        is_share=score.is_share,
        keys=grouping,
        baseline=baseline,
        target=question.target,
        up_to=up_to,
        part=part,
        runs=runs_frame(rows, keys, score).rename({_MODALITIES: part}),
        table=(table if choice is None else choice.beside(table, grouping)).rename({_MODALITIES: part}),
        unused=tuple((entry.place, entry.status) for entry in given if entry.status != "finished"),
        run_notes=run_notes(used),
        summary="final" if are_once == {True} else "best" if all_stop(rows) else "last5",
        choice=choice,
        notes=tuple(dict.fromkeys(notes)),
    )


def _default_metric(entries: Sequence[RunEntry]) -> str:
    """What the task of the runs is judged by.

    Raises:
        InputError: They have several tasks.
    """
    tasks = dict.fromkeys(entry.run.scenario.task for entry in entries if entry.run is not None)
    if len(tasks) > 1:
        raise InputError(f"the runs have the tasks {', '.join(tasks)}; expected a metric that they share")
    return usual_score([entry.finished for entry in entries if entry.finished], next(iter(tasks), "classification"))


def _all_observed(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, str]:
    """What runs are measured against that differ in which part of rows is observed: all, of those for testing."""
    shares = [key for key in keys if re.match(r"(data|datasets\.\w+)\.observed\.", key)]
    values = {key: {row.setting[key] for row in rows} for key in shares}
    tested = [key for key in shares if key.endswith(".test")] or shares
    return dict.fromkeys(tested, "1.0") if all("1.0" in values[key] for key in tested) else {}


def _baseline(rows: Sequence[Row], keys: Sequence[str], asked: Mapping[str, Any] | None) -> dict[str, str]:
    wanted = {key: value_text(value) for key, value in (DEFAULT_BASELINE if asked is None else asked).items()}
    for key, value in wanted.items():
        values = list(dict.fromkeys(row.setting.get(key, "") for row in rows))
        if key in keys and value in values:
            continue
        if asked is None:
            return _all_observed(rows, keys)
        if key not in keys:
            varied = ", ".join(keys) or "nothing but the seed"
            raise InputError(
                f"the baseline's {brief(key)} is the same in all runs; expected a key in which they differ: {varied}"
            )
        raise InputError(f"the baseline's {brief(key)} is {quoted(value)}; expected one of {', '.join(values)}")
    return wanted
