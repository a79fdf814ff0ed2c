"""The `training.loss` section: what local training makes small. Scoring keeps the loss of the task.

A kind gives the loss of each sample; a batch has their mean, so that what a sample counts follows from itself and its
client, and not from the batch that it is in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from blossom_ray.core.factories import call_factory, shown_factory
from blossom_ray.core.phrases import one_of, shown
from blossom_ray.core.records import TaskTraining
from blossom_ray.core.scores import Task
from blossom_ray.core.section import Custom, Finding, NonNegative, Probability, Section
from blossom_ray.core.structure import Hint
from blossom_ray.errors import OWN_CODE_RAISES, InputError, shown_error
from blossom_ray.tasks.base import where_known

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from blossom_ray.tasks.base import BoolArray, TaskRules
    from blossom_ray.tasks.learned import Learned

_WHERE = "training.loss"
Weights = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=1)]
ClassWeights = Literal["balanced", "effective-number"] | Weights


class _Loss(Section):
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    """The tasks that have such a loss."""
    if TYPE_CHECKING:
        kind: str

    def misfits(self, task: Task, num_outputs: int | None = None) -> Iterator[Finding]:
        """What does not fit the scenario's task, or the number of its classes where that is known."""
        if task not in self.tasks:
            kinds = [kind for kind, section in Hint.of(Loss).kinds.items() if task in section.tasks]
            yield Finding("kind", f"is {self.kind!r}, while the task is {task!r}", one_of(kinds))
        for key, value in self:
            if isinstance(value, tuple) and num_outputs not in (None, len(value)):
                yield Finding(key, shown(value), f"{num_outputs} numbers, one for each class")

    def class_weights(
        self,
        labels: np.ndarray,  # noqa: ARG002  # some have none
        num_outputs: int,  # noqa: ARG002  # as above
        known: BoolArray | None,  # noqa: ARG002  # as above
    ) -> np.ndarray | None:
        """What the classes count on a client, as the function `class_weights` has it; None where all count 1.

        Args:
            labels: The labels that the client trains with.
            num_outputs: Number of classes.
            known: Which of them are known; None: all.
        """
        return None

    @abstractmethod
    def losses(
        self, rules: TaskRules, outputs: Tensor, targets: Tensor, weights: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """The loss of each of R samples, (R,), which may be of several clients.

        Args:
            rules: The task's.
            outputs: (R, O) float32.
            targets: (R,) int64 or (R, O) float32, as the task has them.
            weights: For each sample its client's `class_weights`.
            known: As in `TaskRules.loss`.
        """


class TaskLoss(_Loss):
    """The task's own: cross-entropy, binary cross-entropy or squared error."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "multilabel", "regression")

    kind: Literal["task"]

    def losses(
        self, rules: TaskRules, outputs: Tensor, targets: Tensor, _: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """The task's."""
        return rules.loss(outputs, targets, reduction="none", known=known)


class _ClassWeighted(_Loss):
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "multilabel")

    beta: Probability = 0.999
    """Of `effective-number` alone: 0 gives all classes of a client one weight, near 1 their weights are as `balanced`
    has them in proportion."""

    def losses(
        self, rules: TaskRules, outputs: Tensor, targets: Tensor, weights: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """The task's, each class with its weight."""
        from torch.nn import functional as F

        if targets.ndim == 1:
            terms = self._modulated(rules.loss(outputs, targets, reduction="none", known=known))
            return terms if weights is None else terms * weights.gather(1, targets.unsqueeze(1)).squeeze(1)
        terms = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        terms = self._modulated(where_known(terms, known))
        if weights is not None:
            terms = terms * weights[:, 0].lerp(weights[:, 1], targets)
        return terms.mean(dim=1)

    def _modulated(self, terms: Tensor) -> Tensor:
        return terms


class WeightedLoss(_ClassWeighted):
    """The task's loss, each class with a weight: from what each client itself trains with, or given."""

    kind: Literal["weighted"]
    weights: ClassWeights = "balanced"
    """`balanced`: n / (C n_c), n samples of the client, n_c of the class, C classes that it has. `effective-number`:
    (1 - beta) / (1 - beta^n_c), scaled to a mean of 1 over these classes (Cui et al. 2019). Or a number for each class.
    In a multilabel task by class, samples with and without it being two classes; given numbers are of those with it."""

    def class_weights(self, labels: np.ndarray, num_outputs: int, known: BoolArray | None) -> np.ndarray:
        """By the rule, or as given."""
        return class_weights(self.weights, labels, num_outputs, self.beta, known)


class FocalLoss(_ClassWeighted):
    """(1 - p)^gamma times the task's loss, p the probability of what is true (Lin et al. 2017)."""

    kind: Literal["focal"]
    gamma: NonNegative = 2.0
    """0: no sample is held down; the larger, the more those that are right already."""
    alpha: ClassWeights | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Weights of the classes, as in `weighted`. In a multilabel task also a number: alpha for samples with a class,
    1 - alpha for those without it. null: 1."""

    def misfits(self, task: Task, num_outputs: int | None = None) -> Iterator[Finding]:
        """As for every loss; and one number does not weigh several classes."""
        yield from super().misfits(task, num_outputs)
        if task == "classification" and isinstance(self.alpha, float):
            found = f"is {self.alpha:g}, one number for all classes"
            yield Finding("alpha", found, "balanced, effective-number, a number for each class, or null")

    def class_weights(self, labels: np.ndarray, num_outputs: int, known: BoolArray | None) -> np.ndarray | None:
        """By the rule, as given, or none."""
        if isinstance(self.alpha, float):
            return np.repeat([[1 - self.alpha], [self.alpha]], num_outputs, axis=1)
        return None if self.alpha is None else class_weights(self.alpha, labels, num_outputs, self.beta, known)

    def _modulated(self, terms: Tensor) -> Tensor:
        # Not 0, where the slope of a power below 1 is infinite.
        return (-terms).expm1().neg().clamp_min(1e-30) ** self.gamma * terms


class LabelSmoothing(_Loss):
    """Cross-entropy with a part of the target spread over all classes (Szegedy et al. 2016)."""

    kind: Literal["label-smoothing"]
    smoothing: Probability = 0.1
    """That part; the true class has its share of it, too."""

    def losses(self, _: TaskRules, outputs: Tensor, targets: Tensor, __: Tensor | None, known: Tensor | None) -> Tensor:
        """Smoothed."""
        from torch.nn import functional as F

        terms = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)
        return where_known(terms, known)


class CustomLoss(Custom):
    """Own loss: `factory(**options)` gives a function from one client's outputs (B, O) and targets to (B,) losses."""

    tasks: ClassVar[tuple[Task, ...]] = TaskLoss.tasks

    def misfits(self, *_: object) -> Iterator[Finding]:
        """None that could be seen from outside."""
        return iter(())

    def class_weights(self, *_: object) -> None:
        """None: own code has what it was given."""

    def function(self, task: Task, num_outputs: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The factory's function, whose results are checked, tried on two samples.

        Raises:
            InputError: The factory cannot be found or raises; the function raises, or does not give a finite loss with
                a gradient for each sample.
        """
        import torch

        from blossom_ray.models.own_code import torch_seeded

        with torch_seeded(0):  # what the factory draws is the same in every process
            own, name = call_factory(self, _WHERE), f"{_WHERE} ({shown_factory(self)})"

        def checked(outputs: Tensor, targets: Tensor) -> Tensor:
            losses = own(outputs, targets)
            expected = f"; expected a float32 tensor of shape ({len(outputs)},), a loss for each sample"
            if not isinstance(losses, torch.Tensor):
                raise InputError(f"{name}: the loss is {type(losses).__name__}{expected}")
            if losses.shape != outputs.shape[:1] or losses.dtype != torch.float32 or losses.device != outputs.device:
                found = f"{losses.dtype} of shape {tuple(losses.shape)} on {losses.device}"
                raise InputError(f"{name}: the loss is {found}{expected} on {outputs.device}")
            if outputs.requires_grad and not losses.requires_grad:
                raise InputError(f"{name}: the loss has no gradient; expected one that is not detached")
            if not losses.isfinite().all():
                raise FloatingPointError(f"{name}: the loss of a sample is not finite")
            return losses

        if not callable(own):
            raise InputError(f"{_WHERE}.factory returned {type(own).__name__}; expected a function of outputs, targets")
        outputs = torch.linspace(-1, 1, 2 * num_outputs).view(2, -1).requires_grad_()
        targets = torch.tensor([0, num_outputs - 1])
        if task != "classification":
            targets = torch.tensor([[0.0], [1.0]]).repeat(1, num_outputs)
        try:
            (gradient,) = torch.autograd.grad(checked(outputs, targets).sum(), outputs, allow_unused=True)
        except InputError:
            raise
        except OWN_CODE_RAISES as error:
            cause = shown_error(error)
            raise InputError(f"{name}: the loss raised on outputs of shape {tuple(outputs.shape)}: {cause}") from error
        if gradient is None or not gradient.isfinite().all():
            found = "no gradient of" if gradient is None else "a gradient that is not finite for"
            raise InputError(f"{name}: the loss has {found} the outputs; expected finite values")
        return checked


Loss = Annotated[
    TaskLoss | WeightedLoss | FocalLoss | LabelSmoothing | CustomLoss,
    Field(discriminator="kind"),
]


def class_weights(
    rule: ClassWeights, labels: np.ndarray, num_outputs: int, beta: float, known: BoolArray | None = None
) -> np.ndarray:
    """What each class counts on a client; 0 for a class that it lacks.

    Args:
        rule: `balanced`, as scikit-learn's `compute_class_weight` over the classes that the client has;
            `effective-number`; or a weight for each class.
        labels: (n,) classes, n > 0; or (n, C) 0 and 1.
        num_outputs: Number of classes C.
        beta: Of `effective-number`.
        known: Of the shape of `labels`, which of them are known and count; None: all.

    Returns:
        (C,) float64; for labels (n, C) it is (2, C), what samples without and with a class count for it.

    Source: Cui et al. 2019 (arXiv:1901.05555), equation 4, for `effective-number`.
    """
    is_multilabel = labels.ndim == 2
    if isinstance(rule, tuple):
        given = np.array(rule)
        return np.stack([np.ones_like(given), given]) if is_multilabel else given
    if is_multilabel:
        num_with = labels.sum(axis=0, dtype=np.float64, where=True if known is None else known)
        num_known = np.full(num_outputs, len(labels)) if known is None else known.sum(axis=0)
        counts = np.stack([num_known - num_with, num_with])
    else:
        counts = np.bincount(labels if known is None else labels[known], minlength=num_outputs).astype(np.float64)
    present, weights = counts > 0, np.zeros_like(counts)
    num_present = present.sum(axis=0)
    if rule == "balanced":
        np.divide(counts.sum(axis=0), num_present * counts, out=weights, where=present)
    else:
        np.divide(1 - beta, 1 - beta**counts, out=weights, where=present)
        total = weights.sum(axis=0)
        weights *= num_present / np.where(total > 0, total, 1.0)
    return weights


class Losses(NamedTuple):
    """The losses of some samples.

    Attributes:
        total: What training makes small: of each sample, or their mean.
        by_task: By task, in the last axis, what each of them adds without its weight; None where that is `total`.
    """

    total: Tensor
    by_task: Tensor | None = None


class TrainingTally:
    """Adds up what is of each task in the losses of a client's batches.

    Args:
        learned: The client's tasks.
    """

    def __init__(self, learned: Learned) -> None:
        self._learned = learned
        self._sums, self._counts = [0.0] * len(learned.parts), [0] * len(learned.parts)

    def add(self, by_task: Tensor | None, targets: Tensor) -> None:
        """A batch: the means over all of its samples, as `Losses.by_task` has them, and its labels."""
        if by_task is None:
            return
        sums = (by_task.detach().double() * len(targets)).tolist()
        counts = [len(targets)]
        if self._learned.has_rows:
            counts = self._learned.known_samples(targets).sum(dim=0).long().tolist()
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]

    def means(self) -> dict[str, TaskTraining]:
        """As `task_means`."""
        return task_means(self._learned, self._sums, self._counts)


def task_means(learned: Learned, sums: Sequence[float], counts: Sequence[int]) -> dict[str, TaskTraining]:
    """By task the samples with a label of it and its mean loss, from its sum; none of tasks without any."""
    found = zip(learned.parts, sums, counts, strict=True)
    return {part.name: TaskTraining(count, total / count) for part, total, count in found if count}


ClientWeights = tuple["Tensor | None", ...]
"""By task what the classes count on some clients, (K, C), a row for each; None where all count 1."""


class Objective:
    """`training.loss` of a client's tasks, ready to be computed: the sum over tasks of weight times loss.

    Args:
        section: The section.
        learned: The tasks.
        device: Where the clients compute.

    Raises:
        InputError: The section does not fit, or own code does not do what it should.
    """

    def __init__(self, section: Loss, learned: Learned, device: torch.device) -> None:
        for part in learned.parts:
            for path, found, expected in section.misfits(part.kind, part.num_outputs):
                raise InputError(f"{_WHERE}.{path} {found}; expected {expected}")
        self._section, self._learned, self._device = section, learned, device
        self._is_plain = learned.is_plain
        self._own: tuple[Callable[[Tensor, Tensor], Tensor], ...] = ()
        if isinstance(section, CustomLoss):
            self._own = tuple(section.function(part.kind, part.num_outputs) for part in learned.parts)

    def weights(self, labels: Sequence[np.ndarray]) -> ClientWeights:
        """What the classes count on some clients, from the labels that they train with."""
        import torch

        found: list[Tensor | None] = []
        for part in self._learned.parts:
            own = [part.known_rows(rows) for rows in labels]
            each = [self._section.class_weights(values, part.num_outputs, known) for values, known in own]
            rows = [row for row in each if row is not None]
            found.append(torch.from_numpy(np.stack(rows)).to(self._device, torch.float32) if rows else None)
        return tuple(found)

    def mean(self, outputs: Tensor, targets: Tensor, weights: ClientWeights) -> Losses:
        """The mean losses over one client's batch; arguments as those of `each`."""
        if self._is_plain and isinstance(self._section, TaskLoss) and not self._learned.has_rows:
            return Losses(self._learned.parts[0].rules.loss(outputs, targets, reduction="mean"))
        total, by_task = self.each(outputs, targets, weights, (len(outputs),))
        return Losses(total.mean(), None if by_task is None else by_task.mean(dim=0))

    def each(self, outputs: Tensor, targets: Tensor, weights: ClientWeights, counts: Sequence[int]) -> Losses:
        """The losses of each sample of K clients' batches, (K * B,).

        Args:
            outputs: (K * B, O).
            targets: (K * B,) or (K * B, O), or rows of labels.
            weights: From `weights`, of these clients and perhaps of others after them.
            counts: Of each client the rows that are no padding. Own code does not see others.
        """
        import torch

        found = [self._of_task(at, outputs, targets, weights[at], counts) for at in range(len(self._learned.parts))]
        if self._is_plain:
            return Losses(found[0])
        weighted = [part.weight * own for part, own in zip(self._learned.parts, found, strict=True)]
        return Losses(sum(weighted[1:], weighted[0]), torch.stack(found, dim=-1))

    def _of_task(
        self, at: int, outputs: Tensor, targets: Tensor, weights: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        """The losses of one task, which has the place `at`."""
        import torch

        part = self._learned.parts[at]
        own_outputs, own_targets, known = part.outputs_of(outputs), part.targets_of(targets), part.known_of(targets)
        num_rows = len(outputs) // len(counts)
        if not self._own:
            rows = None if weights is None else weights[: len(counts)].repeat_interleave(num_rows, dim=0)
            return self._section.losses(part.rules, own_outputs, own_targets, rows, known)  # type: ignore[union-attr]  # not custom
        parts = []
        for start, count in zip(range(0, len(outputs), num_rows), counts, strict=True):
            real = slice(start, start + count)
            parts += [
                self._own_losses(at, own_outputs[real], own_targets[real], None if known is None else known[real])
            ]
            parts += [outputs.new_zeros(num_rows - count)]
        return torch.cat(parts)

    def _own_losses(self, at: int, outputs: Tensor, targets: Tensor, known: Tensor | None) -> Tensor:
        """What own code gives of one client's samples, of which it sees those with labels."""
        if known is None:
            return self._own[at](outputs, targets)
        rows = (known if known.ndim == 1 else known.amin(dim=1)) > 0
        losses = outputs.new_zeros(len(outputs))
        return losses.index_put((rows,), self._own[at](outputs[rows], targets[rows])) if rows.any() else losses
