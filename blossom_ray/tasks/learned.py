"""What a client learns: one task, or several, whose outputs and labels stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from blossom_ray.core.label_rows import LabelPlace, label_places
from blossom_ray.core.scores import Task
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.base import BoolArray, Tally, TaskRules

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskPart:
    """One task of a client.

    Attributes:
        name: What the scenario calls it, "" in one without `tasks`.
        kind: Which kind of task it is.
        rules: Its loss and its scores.
        num_outputs: Number of classes, or of targets.
        weight: What its loss counts in the sum over tasks.
        outputs: Where its outputs stand among the model's.
        place: Where its labels stand in a row of labels; None: labels are the data set's own, of this task alone.
    """

    name: str
    kind: Task
    rules: TaskRules
    num_outputs: int
    weight: float
    outputs: slice
    place: LabelPlace | None

    def outputs_of(self, outputs: Tensor) -> Tensor:
        """Its outputs (B, O), of the model's."""
        return outputs if self.place is None else outputs[:, self.outputs]

    def targets_of(self, targets: Tensor) -> Tensor:
        """Its labels, (B,) int64 or (B, O) float32; a label that is not known is 0."""
        if self.place is None:
            return targets
        own = targets[:, self.place.labels]
        return own.squeeze(1).long() if self.kind == "classification" else own

    def known_of(self, targets: Tensor) -> Tensor | None:
        """Which of its labels are known, 0 or 1, of their shape; None: all, and labels are no rows."""
        if self.place is None:
            return None
        own = targets[:, self.place.known]
        return own.squeeze(1) if self.kind == "classification" else own

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The task's own loss of each sample, (B,), from outputs and labels of all tasks; 0 where none is known."""
        own = self.outputs_of(outputs), self.targets_of(targets)
        return self.rules.loss(*own, reduction="none", known=self.known_of(targets))

    def known_rows(self, labels: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.generic], BoolArray | None]:
        """Its labels and which of them are known, as `targets_of` and `known_of` have them, of labels in NumPy."""
        if self.place is None:
            return labels, None
        own, known = labels[:, self.place.labels], labels[:, self.place.known].astype(np.float32) > 0
        return (own[:, 0].astype(np.int64), known[:, 0]) if self.kind == "classification" else (own, known)

    def tally(
        self, labels: npt.NDArray[np.generic], predictions: npt.NDArray[np.generic]
    ) -> tuple[Tally, float] | None:
        """The tally of those of some samples that have a label of the task; None where none has.

        Args:
            labels: Those of all tasks.
            predictions: What `rules.predict` gave for these samples.

        Returns:
            The tally, and how many samples it is about: of several classes or targets the labels over their number.
        """
        own, known = self.known_rows(labels)
        if known is None:
            return (self.rules.tally(own, predictions, self.num_outputs), float(len(own))) if len(own) else None
        rows = known.reshape(len(known), -1).any(axis=1)
        if not rows.any():
            return None
        each = known[rows] if known.ndim > 1 else None
        return self.rules.tally(own[rows], predictions[rows], self.num_outputs, each), float(known.sum()) / known[
            0
        ].size


def one_task(kind: Task, num_outputs: int) -> Learned:
    """One task without a name, all of whose labels are known."""
    return Learned({"": (kind, task_rules(kind), num_outputs, 1.0)}, has_rows=False)


class Learned:
    """The tasks of a client.

    Args:
        tasks: By name, in the order of their outputs: the kind, the rules, the number of outputs and the weight.
        has_rows: Whether labels are rows as `core/label_rows.py` has them.

    Attributes:
        parts: The tasks.
        num_outputs: Outputs of the model, of all tasks.
        has_rows: As given.
    """

    def __init__(self, tasks: Mapping[str, tuple[Task, TaskRules, int, float]], *, has_rows: bool) -> None:
        places: Sequence[LabelPlace | None] = [None] * len(tasks)
        if has_rows:
            places = label_places((kind, num_outputs) for kind, _, num_outputs, _ in tasks.values())
        parts, start = list[TaskPart](), 0
        for (name, (kind, rules, num_outputs, weight)), place in zip(tasks.items(), places, strict=True):
            outputs = slice(start, start + num_outputs)
            parts.append(TaskPart(name, kind, rules, num_outputs, weight, outputs, place))
            start += num_outputs
        self.parts, self.num_outputs, self.has_rows = tuple(parts), start, has_rows

    @property
    def outputs(self) -> dict[str, int]:
        """Number of outputs by task."""
        return {part.name: part.num_outputs for part in self.parts}

    @property
    def has_several(self) -> bool:
        """Whether there are several tasks."""
        return len(self.parts) > 1

    @property
    def is_plain(self) -> bool:
        """Whether the only task's loss is what is made small, as it is."""
        return not self.has_several and self.parts[0].weight == 1

    def known_samples(self, targets: Tensor) -> Tensor:
        """Of which samples some label of each task is known, (B, T) of 0 and 1; labels are rows."""
        import torch

        found = [part.known_of(targets) for part in self.parts]
        rows = [known if known.ndim == 1 else known.amax(dim=1) for known in found if known is not None]
        return torch.stack(rows, dim=1)
