"""One run in a few numbers: its last score, its best one, the mean of the last five, and what they took to compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import polars as pl

from blossom_ray.core.phrases import did_you_mean, shortened
from blossom_ray.core.scores import SCORES, Score, Task, default_score, find_score, split_scoring, task_prefix
from blossom_ray.errors import InputError
from blossom_ray.runs.folder import Run
from blossom_ray.runs.tables import ROUND_COLUMNS

ALL = "all clients"
"""The row over all clients, beside those of modality sets, none of which can have this name."""
Summary = Literal["final", "last5", "best"]
SUMMARIES: tuple[Summary, ...] = ("final", "last5", "best")
NUM_LAST = 5
# In an error message: runs may have hundreds of columns.
_MOST_NAMED = 8
VALIDATION = "validation/"
"""What a column's name begins with that is about the clients' validation splits."""
TUNED = "fine_tuned/"
"""What a column's name begins with that is about scores after local fine-tuning."""
UNSEEN = "unseen/"
"""What a column's name begins with that is about clients that never train."""
COMPUTE = ("num_examples", "num_steps", "bytes_down", "bytes_up")
NO_CLIENTS = pl.DataFrame(schema={"client": pl.Int64, "score": pl.Float64, "weight": pl.Float64})
"""What `client_scores` gives where there are none."""
TO_TARGET = ("rounds_to_target", "bytes_down_to_target", "bytes_up_to_target")


@dataclass(frozen=True)
class Summaries:
    """A run's scores in a few numbers, None where there is none, and the rounds that each of them is from.

    They are by `final` (last scored round), `last5` (mean of the last five scored rounds, or of as many as there are)
    and `best`.
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
        to_target: By name in `TO_TARGET`, the first round that reaches the target, and the bytes that the clients of
            the whole federation were sent and sent back up to it, round 0 included. Empty where no round does or no
            target is asked for.
    """

    scored: Mapping[int, float]
    judge: str
    judged: Mapping[int, float]
    is_once: bool
    own: Summaries
    to_target: Mapping[str, int]

    def over(self, rounds: Iterable[int]) -> Summaries | None:
        """The summaries over some of the scored rounds, as `summaries`."""
        return summaries({number: self.scored[number] for number in rounds}, self.judged, is_once=self.is_once)


UNSCORED = RunScores({}, "", {}, False, Summaries(dict.fromkeys(SUMMARIES), dict.fromkeys(SUMMARIES, ())), {})
"""Of a run that is not used, or has no finite score."""


def score_of(metric: str, own: Iterable[Score] = ()) -> Score:
    """What a column of the table `rounds` is about; `own` are the metrics that the runs' scenarios bring.

    Bytes, seconds and counts are better when lower. What nobody knows counts as a share of 1, higher better.
    """
    if metric in ROUND_COLUMNS or metric.partition("@")[0].endswith("num_examples"):
        return Score(metric, "", lower_is_better=True, is_share=False)
    return find_score(metric, own) or Score(metric, "")


def usual_score(runs: Iterable[Run], kind: Task, task: str = "") -> str:
    """The metric by which runs are compared where nobody says: the first score of a kind of task that a run has.

    Where test samples have no positive of any class, for example, there is no AUROC.

    Args:
        runs: Finished runs.
        kind: What is learned.
        task: The task's name, "" in runs without `tasks`; the metric begins with it.
    """
    columns = {column for run in runs for column in run.rounds.columns}
    names = [f"{task_prefix(task)}{score.name}" for score in SCORES[kind]]
    return next((name for name in names if name in columns), names[0])


def metric_columns(run: Run, metric: str) -> dict[str, str]:
    """Columns of a metric by modality set, `ALL` first; empty where the run does not have it."""
    sets = {name.removeprefix(f"{metric}/"): name for name in run.rounds.columns if name.startswith(f"{metric}/")}
    return ({ALL: metric} if metric in run.rounds.columns else {}) | sets


def find_metric(asked: str, runs: Sequence[Run]) -> tuple[str, str]:
    """The metric that is asked for, and the one modality set, "" for all, where a column of such a set is.

    Raises:
        InputError: No run has such a column.
    """
    columns = dict.fromkeys(column for run in runs for column in run.rounds.columns if column != "round")
    names = dict.fromkeys(name for column in columns if (name := split_column(column)[0]) not in ROUND_COLUMNS)
    if asked in names or not runs:
        return asked, ""
    if asked in columns:
        return split_column(asked)
    first = [*names][:_MOST_NAMED]
    more = f" or another of the {len(columns)} columns of the table rounds" if len(columns) > len(first) else ""
    near = did_you_mean(asked, [*names, *columns])
    raise InputError(f"the metric is {shortened(asked)!r}; expected one of {', '.join(first)}{more}{near}")


def split_column(column: str) -> tuple[str, str]:
    """A column's metric, and the modality set that it is about; "" where it is about all clients."""
    prefix, rest = split_scoring(column)
    name, _, modalities = rest.partition("/")
    return prefix + name, modalities


def validation_columns(run: Run) -> list[str]:
    """The columns of a run's rounds that are about validation splits."""
    return [name for name in run.rounds.columns if name.startswith(VALIDATION)]


def _judge(run: Run, column: str) -> str:
    """The column that says which round is the best one: one for all modality sets, since one model is kept."""
    names = []
    if (stop := run.scenario.stop) is not None:
        names.append((stop.metric or default_score(run.scenario.task).name).removeprefix(VALIDATION))
    metric = split_column(column)[0].removeprefix(VALIDATION)
    plain = split_scoring(metric)[1]
    names += [metric, plain, plain.removesuffix("_trained")]
    return next((VALIDATION + name for name in names if VALIDATION + name in run.rounds.columns), column)


def run_scores(
    run: Run, column: str, *, lower_is_better: bool, target: float | None, up_to: int | None = None
) -> RunScores:
    """The scores in one column of a run's rounds; none without any after round 0, or if one of the last is not finite.

    The best round is the one with the best score on validation, where the run has such of this metric, and with `stop`
    the one by which it has stopped; what counts is the score in `column` in that round. `up_to` is the last round to
    look at, as if the run had ended with it; None: the run's last.
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
        return UNSCORED
    sign = -1 if lower_is_better else 1
    to_target: dict[str, int] = {}
    if target is not None and not is_once:
        reached = next((number for number, score in scored.items() if sign * score >= sign * target), None)
        if reached is not None:
            until = [(down, up) for number, down, up, *_ in table if number <= reached]
            to_target = dict(zip(TO_TARGET, (reached, *map(sum, zip(*until, strict=True))), strict=True))
    return RunScores(scored, judge, judged, is_once, own, to_target)


def summaries(scored: Mapping[int, float], judged: Mapping[int, float], *, is_once: bool) -> Summaries | None:
    """The summaries of scores by round; None where there are none, or one of the last is not finite.

    Of the rounds that are judged, too, the largest number there has the best one. With `is_once`, there is no score but
    the final one.
    """
    last = list(scored.items())[-NUM_LAST:]
    if not last or not all(math.isfinite(score) for _, score in last):
        return None
    values: dict[str, float | None] = dict.fromkeys(SUMMARIES)
    rounds: dict[str, tuple[int, ...]] = dict.fromkeys(SUMMARIES, ())
    values["final"], rounds["final"] = last[-1][1], (last[-1][0],)
    if not is_once:
        values["last5"], rounds["last5"] = fmean(score for _, score in last), tuple(number for number, _ in last)
        both = ((number, (score, judged.get(number, math.nan))) for number, score in scored.items())
        if candidates := [number for number, found in both if all(map(math.isfinite, found))]:
            best = max(candidates, key=judged.__getitem__)
            values["best"], rounds["best"] = scored[best], (best,)
    return Summaries(values, rounds)


def client_scores(run: Run, metric: str, modality_set: str, rounds: tuple[int, ...]) -> pl.DataFrame:
    """The scores of the clients of a modality set, or of `ALL`: `client`, ascending, `score` and `weight`.

    A score is the mean over those of some rounds in which the client has one. A weight is its number of samples in the
    test split, or, for a metric of validation, in the validation split. Empty where the clients' table does not have
    this metric.
    """
    clients = run.clients
    column = metric.removesuffix("_trained")
    if column != metric:
        metric, clients = column, clients.filter(pl.col("rounds_trained") > 0)
    counts = {VALIDATION: "num_validation_examples", UNSEEN: "num_unseen_examples"}
    samples = next((count for start, count in counts.items() if metric.startswith(start)), "num_test_examples")
    if metric in ROUND_COLUMNS or metric not in clients.columns or samples not in clients.columns:
        return NO_CLIENTS
    chosen = clients.filter(pl.col("round").is_in(rounds) & pl.col(metric).is_not_null())
    if modality_set != ALL:
        chosen = chosen.filter(pl.col("modalities") == modality_set)
    weight = pl.col(samples).cast(pl.Float64)
    grouped = chosen.group_by("client").agg(score=(pl.col(metric) * weight).sum() / weight.sum(), weight=weight.mean())
    return grouped.filter(pl.col("weight") > 0).sort("client")


@dataclass(frozen=True)
class Compute:
    """The training behind a run's scores, evaluation left out of samples and steps.

    Attributes:
        num_examples: Training samples seen, over all clients and rounds.
        num_steps: Optimizer steps that a model goes through, one after the other: the mean over a round's clients,
            summed over rounds. None where the tables do not say.
        bytes_down: Bytes sent to clients, round 0 and evaluation included.
        bytes_up: Bytes that they sent back.
    """

    num_examples: float | None = None
    num_steps: float | None = None
    bytes_down: float | None = None
    bytes_up: float | None = None


def run_compute(run: Run, *, is_tuned: bool = False, up_to: int | None = None) -> Compute:
    """What a run took up to a round; None: its last.

    Scores after local fine-tuning (`is_tuned`) also took the epochs of the last one, whose copies of the models are
    those that were scored.
    """
    rounds, clients = (
        table if up_to is None else table.filter(table["round"] <= up_to) for table in (run.rounds, run.clients)
    )
    per_round = clients.drop_nulls("num_steps").group_by("round").agg(pl.col("num_steps").mean())
    # Nobody trained, or, as in older runs of a central model, steps were not counted.
    steps = math.fsum(per_round["num_steps"]) or None
    tuning = _tuning(run, clients) if is_tuned else (0.0, 0.0)
    return Compute(
        num_examples=None if tuning is None else sum(rounds["num_examples"]) + tuning[0],
        num_steps=None if tuning is None or steps is None else steps + tuning[1],
        bytes_down=sum(rounds["bytes_down"]),
        bytes_up=sum(rounds["bytes_up"]),
    )


def _tuning(run: Run, clients: pl.DataFrame) -> tuple[float, float] | None:
    """Samples of the last fine-tuning, and its steps in the mean over clients; None where the tables do not say.

    A client that was tuned before it has ever trained has no row that says how many training samples it has.
    """
    training, section = run.scenario.training, run.scenario.evaluation.fine_tune
    if section is None or f"{TUNED}loss" not in clients.columns:
        return None
    tuned = clients.drop_nulls(f"{TUNED}loss")
    if tuned.is_empty():
        return None
    last = tuned.filter(tuned["round"] == tuned["round"].max())["client"].to_list()
    alternate = training.alternate
    epochs = training.local_epochs if alternate is None else alternate.private_epochs + alternate.shared_epochs
    trained = clients.drop_nulls("num_train_examples").group_by("client").agg(pl.col("num_train_examples").first())
    seen = {client: number / epochs for client, number in trained.rows()}
    if not set(last) <= seen.keys():
        return None
    steps = [math.ceil(seen[client] / training.batch_size) for client in last]
    return section.epochs * math.fsum(seen[client] for client in last), section.epochs * sum(steps) / len(steps)
