"""The scores of one run in a few numbers: the last one, the best one, the mean of the last five, what a score cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.core.scores import Score, default_score, find_score
from blossom_ray.runs.folder import Run
from blossom_ray.runs.tables import ROUND_COLUMNS

ALL = "all clients"
"""The row over all clients, beside those of modality sets, none of which can have this name."""
SUMMARIES = ("final", "last5", "best")
NUM_LAST = 5
VALIDATION = "validation/"
"""What a column's name begins with that is about the clients' validation splits."""
_PREFIXES = (VALIDATION, "held_out/", "fine_tuned/")


@dataclass(frozen=True)
class Summaries:
    """A run's scores in a few numbers.

    Attributes:
        values: Score by `final` (last scored round), `last5` (mean of the last five scored rounds, or of as many as
            there are) and `best`; None where there is none.
        rounds: The rounds that each of them is from, none where there is no value.
    """

    values: Mapping[str, float | None]
    rounds: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RunScores:
    """One metric of one run, over all clients or those of one modality set, without round 0, which trains nothing.

    Attributes:
        scored: Score by scored round, in order.
        judge: The column that the best round is chosen by: that of `stop`, or of validation where the run has it, else
            that of the scores.
        judged: Score by round in that column, the sign turned where lower ones are better.
        is_once: Whether a test split was scored once, at the end: `final` is its score, and there are no others.
        own: The summaries of all of them.
        target_round: The first round that reaches the target, None where none does or none is asked for.
        bytes_down: Bytes sent to clients of the whole federation up to that round, round 0 included; None as it is.
        bytes_up: Bytes that they sent back, as `bytes_down`.
    """

    scored: Mapping[int, float]
    judge: str
    judged: Mapping[int, float]
    is_once: bool
    own: Summaries
    target_round: int | None
    bytes_down: int | None
    bytes_up: int | None

    def over(self, rounds: Iterable[int]) -> Summaries | None:
        """The summaries over some of the scored rounds, as `summaries`."""
        return summaries({number: self.scored[number] for number in rounds}, self.judged, is_once=self.is_once)


def score_of(metric: str, own: Iterable[Score] = ()) -> Score:
    """What a metric is about: its direction and unit. One that nobody knows counts as a share of 1, higher better.

    Bytes, seconds and counts are better when lower.

    Args:
        metric: The metric's name, as in the tables.
        own: The metrics that the runs' scenarios bring.
    """
    if metric in ROUND_COLUMNS:
        return Score(metric, "", lower_is_better=True, is_share=False)
    for prefix in _PREFIXES:
        metric = metric.removeprefix(prefix)
    return find_score(metric, own) or Score(metric, "")


def metric_columns(run: Run, metric: str) -> dict[str, str]:
    """Columns of a metric by modality set, `ALL` first; empty where the run does not have it."""
    columns = [ALL] if metric in run.rounds.columns else []
    sets = [name.removeprefix(f"{metric}/") for name in run.rounds.columns if name.startswith(f"{metric}/")]
    return {name: metric if name == ALL else f"{metric}/{name}" for name in (*columns, *sets)}


def metric_names(run: Run) -> list[str]:
    """The metrics that a run's rounds have, without the modality sets."""
    names = dict.fromkeys(split_column(column)[0] for column in run.rounds.columns)
    return [name for name in names if name not in ROUND_COLUMNS]


def split_column(column: str) -> tuple[str, str]:
    """A column's metric, and the modality set that it is about; "" where it is about all clients."""
    prefix = ""
    while more := next((each for each in _PREFIXES if column.startswith(prefix + each)), ""):
        prefix += more
    name, _, modalities = column.removeprefix(prefix).partition("/")
    return prefix + name, modalities


def validation_columns(run: Run) -> list[str]:
    """The columns of a run's rounds that are about validation splits."""
    return [name for name in run.rounds.columns if name.startswith(VALIDATION)]


def tuned_metric(metric: str) -> str:
    """The same metric after local fine-tuning: `fine_tuned/accuracy`, `validation/fine_tuned/accuracy`."""
    start = VALIDATION if metric.startswith(VALIDATION) else ""
    return f"{start}fine_tuned/{metric.removeprefix(start)}"


def _judge(run: Run, column: str) -> str:
    """The column that says which round is the best one: one for all modality sets, since one model is kept."""
    known = validation_columns(run)
    if (stop := run.scenario.stop) is not None:
        watched = VALIDATION + (stop.metric or default_score(run.scenario.task).name).removeprefix(VALIDATION)
        if watched in known:
            return watched
    metric = split_column(column)[0].removeprefix(VALIDATION)
    plain = metric
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    names = (metric, plain, plain.removesuffix("_trained"))
    return next((VALIDATION + name for name in names if VALIDATION + name in known), column)


def run_scores(
    run: Run, column: str, *, lower_is_better: bool, target: float | None, up_to: int | None = None
) -> RunScores | None:
    """The scores in one column of a run's rounds; None without any after round 0, or if one of the last is not finite.

    The best round is the one with the best score on validation, where the run has such of this metric, and with `stop`
    the one by which it has stopped; what counts is the score in `column` in that round.

    Args:
        run: The run.
        column: From `metric_columns`.
        lower_is_better: Whether the best score is the smallest.
        target: The score to reach.
        up_to: The last round to look at, as if the run had ended with it; None: the run's last.
    """
    rounds = run.rounds if up_to is None else run.rounds.filter(run.rounds["round"] <= up_to)
    judge = _judge(run, column)
    table = rounds.select("round", "bytes_down", "bytes_up", score=column, judged=judge).rows()
    scored = {number: score for number, _, _, score, _ in table if number > 0 and score is not None}
    is_lower = lower_is_better if judge == column else score_of(judge, run.scenario.own_scores).lower_is_better
    judged = {number: -score if is_lower else score for number, *_, score in table if number > 0 and score is not None}
    is_once = run.scenario.evaluation.split == "validation" and not column.startswith(VALIDATION)
    own = summaries(scored, judged, is_once=is_once)
    if own is None:
        return None
    sign = -1 if lower_is_better else 1
    target_round = None
    if target is not None and not is_once:
        target_round = next((number for number, score in scored.items() if sign * score >= sign * target), None)
    until = [row for row in table if target_round is not None and row[0] <= target_round]
    return RunScores(
        scored=scored,
        judge=judge,
        judged=judged,
        is_once=is_once,
        own=own,
        target_round=target_round,
        bytes_down=sum(row[1] for row in until) if until else None,
        bytes_up=sum(row[2] for row in until) if until else None,
    )


def summaries(scored: Mapping[int, float], judged: Mapping[int, float], *, is_once: bool) -> Summaries | None:
    """The summaries of scores by round; None where there are none, or one of the last is not finite.

    Args:
        scored: The scores.
        judged: Numbers of which the largest has the best round, among those that have both.
        is_once: Whether there is no score but the final one.
    """
    last = list(scored.items())[-NUM_LAST:]
    if not last or not all(math.isfinite(score) for _, score in last):
        return None
    values: dict[str, float | None] = dict.fromkeys(SUMMARIES)
    rounds: dict[str, tuple[int, ...]] = dict.fromkeys(SUMMARIES, ())
    values["final"], rounds["final"] = last[-1][1], (last[-1][0],)
    if not is_once:
        values["last5"] = math.fsum(score for _, score in last) / len(last)
        rounds["last5"] = tuple(number for number, _ in last)
        candidates = [
            number
            for number, score in scored.items()
            if math.isfinite(score) and math.isfinite(judged.get(number, math.nan))
        ]
        if candidates:
            best = max(candidates, key=judged.__getitem__)
            values["best"], rounds["best"] = scored[best], (best,)
    return Summaries(values, rounds)


def client_scores(
    run: Run, metric: str, modality_set: str, rounds: tuple[int, ...]
) -> dict[int, tuple[float, float]] | None:
    """Score and samples by client, over some rounds; None where the clients' table does not have this metric.

    Samples are those of the test split, or, for a metric of validation, of the validation split.

    Args:
        run: The run.
        metric: The metric's name, without a modality set.
        modality_set: Clients with these modalities, or `ALL`.
        rounds: A client's score is the mean over those of them in which it was scored.
    """
    import polars as pl

    clients = run.clients
    column = metric.removesuffix("_trained")
    if column != metric:
        metric, clients = column, clients.filter(pl.col("rounds_trained") > 0)
    samples = "num_validation_examples" if metric.startswith(VALIDATION) else "num_test_examples"
    if metric in ROUND_COLUMNS or metric not in clients.columns or samples not in clients.columns:
        return None
    chosen = clients.filter(pl.col("round").is_in(rounds) & pl.col(metric).is_not_null())
    if modality_set != ALL:
        chosen = chosen.filter(pl.col("modalities") == modality_set)
    weight = pl.col(samples).cast(pl.Float64)
    grouped = chosen.group_by("client").agg((pl.col(metric) * weight).sum() / weight.sum(), weight=weight.mean())
    return {client: (score, weight) for client, score, weight in grouped.sort("client").rows() if weight > 0}


def paired_arrays(*sides: Mapping[int, tuple[float, float]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scores and weights, (sides, clients), of the clients that all sides have."""
    common = sorted(set[int].intersection(*(set(side) for side in sides)))
    values = np.array([[side[client][0] for client in common] for side in sides])
    weights = np.array([[side[client][1] for client in common] for side in sides])
    return values, weights
