"""The scores of one run in a few numbers: the last one, the best one, the mean of the last five, what a score cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.results.run import Run
from blossom_ray.results.tables import ROUND_COLUMNS
from blossom_ray.scores import Score, find_score

ALL = "all clients"
"""The row over all clients, beside those of modality sets, none of which can have this name."""
SUMMARIES = ("final", "last5", "best")
NUM_LAST = 5
_PREFIXES = ("held_out/", "fine_tuned/")


@dataclass(frozen=True)
class Summaries:
    """A run's scores in a few numbers.

    Attributes:
        values: Score by `final` (last scored round), `last5` (mean of the last five scored rounds, or of as many as
            there are) and `best`.
        rounds: The rounds that each of them is from.
    """

    values: Mapping[str, float]
    rounds: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RunScores:
    """One metric of one run, over all clients or those of one modality set, without round 0, which trains nothing.

    Attributes:
        scored: Score by scored round, in order.
        own: The summaries of all of them.
        target_round: The first round that reaches the target, None where none does or none is asked for.
        bytes_down: Bytes sent to clients of the whole federation up to that round, round 0 included; None as it is.
        bytes_up: Bytes that they sent back, as `bytes_down`.
    """

    scored: Mapping[int, float]
    own: Summaries
    target_round: int | None
    bytes_down: int | None
    bytes_up: int | None


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
    prefix = next((prefix for prefix in _PREFIXES if column.startswith(prefix)), "")
    name, _, modalities = column.removeprefix(prefix).partition("/")
    return prefix + name, modalities


def run_scores(
    run: Run, column: str, *, lower_is_better: bool, target: float | None, up_to: int | None = None
) -> RunScores | None:
    """The scores in one column of a run's rounds; None without any after round 0, or if one of the last is not finite.

    Args:
        run: The run.
        column: From `metric_columns`.
        lower_is_better: Whether the best score is the smallest.
        target: The score to reach.
        up_to: The last round to look at, as if the run had ended with it; None: the run's last.
    """
    rounds = run.rounds if up_to is None else run.rounds.filter(run.rounds["round"] <= up_to)
    table = rounds.select("round", "bytes_down", "bytes_up", score=column).rows()
    scored = {number: score for number, _, _, score in table if number > 0 and score is not None}
    own = summaries(scored, lower_is_better=lower_is_better)
    if own is None:
        return None
    sign = -1 if lower_is_better else 1
    target_round = None
    if target is not None:
        target_round = next((number for number, score in scored.items() if sign * score >= sign * target), None)
    until = [row for row in table if target_round is not None and row[0] <= target_round]
    return RunScores(
        scored=scored,
        own=own,
        target_round=target_round,
        bytes_down=sum(row[1] for row in until) if until else None,
        bytes_up=sum(row[2] for row in until) if until else None,
    )


def summaries(scored: Mapping[int, float], *, lower_is_better: bool) -> Summaries | None:
    """The summaries of scores by round; None where there are none, or one of the last is not finite."""
    last = list(scored.items())[-NUM_LAST:]
    if not last or not all(math.isfinite(score) for _, score in last):
        return None
    sign = -1 if lower_is_better else 1
    best = max((pair for pair in scored.items() if math.isfinite(pair[1])), key=lambda pair: sign * pair[1])
    return Summaries(
        values={"final": last[-1][1], "last5": math.fsum(score for _, score in last) / len(last), "best": best[1]},
        rounds={"final": (last[-1][0],), "last5": tuple(number for number, _ in last), "best": (best[0],)},
    )


def client_scores(
    run: Run, metric: str, modality_set: str, rounds: tuple[int, ...]
) -> dict[int, tuple[float, float]] | None:
    """Score and test samples by client, over some rounds; None where the clients' table does not have this metric.

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
    if metric in ROUND_COLUMNS or metric not in clients.columns or "num_test_examples" not in clients.columns:
        return None
    chosen = clients.filter(pl.col("round").is_in(rounds) & pl.col(metric).is_not_null())
    if modality_set != ALL:
        chosen = chosen.filter(pl.col("modalities") == modality_set)
    weight = pl.col("num_test_examples").cast(pl.Float64)
    grouped = chosen.group_by("client").agg((pl.col(metric) * weight).sum() / weight.sum(), weight=weight.mean())
    return {client: (score, samples) for client, score, samples in grouped.sort("client").rows() if samples > 0}


def paired_arrays(*sides: Mapping[int, tuple[float, float]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scores and weights, (sides, clients), of the clients that all sides have."""
    common = sorted(set[int].intersection(*(set(side) for side in sides)))
    values = np.array([[side[client][0] for client in common] for side in sides])
    weights = np.array([[side[client][1] for client in common] for side in sides])
    return values, weights
