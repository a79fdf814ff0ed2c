"""The tasks: what a model is trained for and scored by. `scores.py` has the names of the scores."""

from __future__ import annotations

from blossom_ray.scores import Task
from blossom_ray.tasks.base import Tally, TaskRules
from blossom_ray.tasks.classification import Classification
from blossom_ray.tasks.multilabel import Multilabel
from blossom_ray.tasks.regression import Regression

__all__ = ["Classification", "Multilabel", "Regression", "Tally", "TaskRules", "task_rules"]


def task_rules(task: Task) -> TaskRules:
    """The rules of the task that a scenario names."""
    match task:
        case "classification":
            return Classification()
        case "multilabel":
            return Multilabel()
        case "regression":
            return Regression()
