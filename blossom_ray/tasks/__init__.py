"""The tasks: what a model is trained for and scored by. `core/scores.py` has the names of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blossom_ray.core.scores import Task

if TYPE_CHECKING:  # the options of a task are read without torch
    from blossom_ray.tasks.base import TaskRules
    from blossom_ray.tasks.options import Metric


def task_rules(task: Task, metrics: Mapping[str, Metric] | None = None) -> TaskRules:
    """The rules of the task that a scenario names.

    Args:
        task: The scenario's task.
        metrics: Its `evaluation.metrics` section; None or empty: no metrics of the user's own.

    Raises:
        InputError: A metric's function cannot be found.
    """
    from blossom_ray.tasks.own_metrics import WithMetrics

    rules = _rules(task)
    return WithMetrics(rules, metrics) if metrics else rules


def _rules(task: Task) -> TaskRules:
    from blossom_ray.tasks.classification import Classification
    from blossom_ray.tasks.multilabel import Multilabel
    from blossom_ray.tasks.regression import Regression

    match task:
        case "classification":
            return Classification()
        case "multilabel":
            return Multilabel()
        case "regression":
            return Regression()
