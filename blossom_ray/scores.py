"""What a model can be asked to learn, and the scores that each task has: their names, order and direction.

Names only: how a score is computed stands in `tasks/`, what it means in `docs/semantics.md`.
"""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal["classification", "multilabel", "regression"]
"""`classification`: one class per sample. `multilabel`: any number of classes. `regression`: one or more numbers."""

TASKS: tuple[Task, ...] = get_args(Task)
