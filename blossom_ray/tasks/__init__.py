"""The tasks: what a model is trained for and scored by. `core/scores.py` has the names of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blossom_ray.core.scores import Task

if TYPE_CHECKING:  # the options of a task are read without torch
    from blossom_ray.tasks.base import Metric, TaskRules


def task_rules(task: Task, metrics: Mapping[str, Metric] | None = None) -> TaskRules:
    """The rules of the task that a scenario names.

    Args:
        task: The scenario's task.
        metrics: Its `evaluation.metrics` section; None or empty: no metrics of the user's own.

    Raises:
        InputError: A metric's function cannot be found.
    """
    if metrics:
        from blossom_ray.tasks.own_metrics import WithMetrics

        return WithMetrics(task_rules(task), metrics)
    # torch comes with these; whoever only adds tallies does without it.
    match task:
        case "classification":
            from blossom_ray.tasks.classification import Classification

            return Classification()
        case "multilabel":
            from blossom_ray.tasks.multilabel import Multilabel

            return Multilabel()
        case "regression":
            from blossom_ray.tasks.regression import Regression

            return Regression()
