"""What a model can be asked to learn, and the scores that each task has: their names, order and direction.

Names only: how a score is computed stands in `tasks/`, what it means in `docs/semantics.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field

from blossom_ray.core.section import Rate, Section

Task = Literal["classification", "multilabel", "regression"]
"""`classification`: one class per sample. `multilabel`: any number of classes. `regression`: one or more numbers."""

TASKS: tuple[Task, ...] = get_args(Task)

Value = TypeVar("Value")
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]


DatasetName = TaskName


class LearnedTask(Section):
    """One of several tasks of a federation: what its clients learn, and from which labels."""

    data: str | None = None
    """Which of the scenario's `datasets` its clients have; null: the only data set."""
    kind: Task = "classification"
    """What is learned: one class per sample, any number of classes (`multilabel`), or numbers (`regression`)."""
    labels: str | None = None
    """The labels, by their name in the data set: of `uci-har` `activity` or `subject`, of a table any column. null:
    those that a scenario without `tasks` has."""
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Names of the classes in order, of a table's column; null: the labels that occur, sorted."""
    lr: Rate | None = None
    """Learning rate of clients with this task alone, on the schedule of all; null: that of `training.optimizer`, which
    clients with several tasks have."""
    loss_weight: Rate = 1.0
    """What its loss counts in the sum over a client's tasks, also of a client with this task alone."""


@dataclass(frozen=True)
class Score:
    """One score of a task.

    Attributes:
        name: Its column in the tables.
        label: Its heading on the console; "" where it is not shown there.
        lower_is_better: Whether smaller values are better, as for an error.
        is_share: Whether it runs from 0 to 1 and is shown in percent.
        chance: What guessing scores: a number, `classes` for one over the number of classes, None where it varies.
        is_signed: Whether it can be below 0, so that percent of it mean nothing.
    """

    name: str
    label: str
    lower_is_better: bool = False
    is_share: bool = True
    chance: float | Literal["classes"] | None = None
    is_signed: bool = False


_LOSS = Score("loss", "loss", lower_is_better=True, is_share=False)
_F1 = (Score("macro_f1_present", "F1 present", chance="classes"), Score("macro_f1_all", "F1 all", chance="classes"))

SCORES: dict[Task, tuple[Score, ...]] = {
    "classification": (
        Score("accuracy", "accuracy", chance="classes"),
        Score("balanced_accuracy", "", chance="classes"),
        *_F1,
    ),
    "multilabel": (Score("macro_auroc", "AUROC", chance=0.5), *_F1, Score("subset_accuracy", "")),
    "regression": (
        Score("rmse", "RMSE", lower_is_better=True, is_share=False),
        Score("mae", "MAE", lower_is_better=True, is_share=False),
        Score("r2", "R2", is_share=False, is_signed=True),
    ),
}
"""The scores of each task besides `loss`, in the order of the tables. The first one is what a run is judged by where
nobody says otherwise: curves, best rounds, comparisons."""


SUFFIXES = ("_pooled", "_p10", "_p50", "_p90", "_trained")
"""What a score's name ends with in the columns of its summary over clients."""

OTHER_COLUMNS = frozenset({
    "round", "learning_rate", "num_clients", "num_evaluated", "num_examples", "seconds", "seconds_train",
    "seconds_evaluate", "bytes_down", "bytes_up", "client", "modalities", "group", "num_train_examples", "weight",
    "num_steps", "train_loss", "train_seconds", "num_test_examples", "loss", "evaluate_bytes_down", "evaluate_seconds",
    "num_validation_examples", "rounds_trained", "role", "num_unseen_examples", "task",
})  # fmt: skip
"""Columns of the tables `rounds` and `clients` that are no scores of a task, so that no metric takes their names."""


PREFIXES = ("unseen/", "validation/", "held_out/", "fine_tuned/", "plain/")
"""What the names of scores begin with that are not of clients' test splits; the task's name stands behind them."""


def is_of_training(column: str) -> bool:
    """Whether a column of the table `rounds` beside its own ones is about training, and not about scores."""
    return column.rpartition("/")[2] in ("train_loss", "learning_rate")


def default_score(task: Task) -> Score:
    """The score that a run of this task is judged by where nobody says otherwise."""
    return SCORES[task][0]


def task_prefix(task: str) -> str:
    """What the names of a task's scores begin with, behind those of the scoring; "" in a scenario without `tasks`."""
    return f"{task}/" if task else ""


def of_task(metrics: Mapping[str, Value], task: str) -> dict[str, Value]:
    """What a round's summary says of one task, by the names that a scenario without `tasks` has."""
    if not task:
        return dict(metrics)
    parts = {name: split_scoring(name) for name in metrics}
    start = task_prefix(task)
    return {
        prefix + name.removeprefix(start): metrics[column]
        for column, (prefix, name) in parts.items()
        if name.startswith(start)
    }


def split_scoring(column: str) -> tuple[str, str]:
    """What a column begins with that says on what, and in which state, models were scored; and the rest of it."""
    prefix = ""
    while more := next((each for each in PREFIXES if column.startswith(prefix + each)), ""):
        prefix += more
    return prefix, column.removeprefix(prefix)


def find_score(metric: str, own: Iterable[Score] = ()) -> Score | None:
    """The score that a summary column is about: `rmse` for `rmse`, `rmse_pooled@acc`, `held_out/rmse/acc` and so on.

    With `tasks`, also for `stress/rmse`: no task has the name of a score.

    Args:
        metric: A column of the table `rounds` or `clients`.
        own: Scores besides those of the tasks: the user's own metrics.

    Returns:
        The score, `loss` included; None for a column that is about none.
    """
    known = {score.name: score for task in TASKS for score in (*SCORES[task], _LOSS)} | {"train_loss": _LOSS}
    known |= {score.name: score for score in own}
    for part in split_scoring(metric)[1].split("/")[:2]:
        name = part.split("@")[0]
        for suffix in ("", *SUFFIXES):
            if name.endswith(suffix) and name.removesuffix(suffix) in known:
                return known[name.removesuffix(suffix)]
    return None
