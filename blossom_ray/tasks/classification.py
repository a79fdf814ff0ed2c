"""One class per sample: cross-entropy, and scores from a confusion matrix."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from blossom_ray.errors import DataError
from blossom_ray.tasks.base import (
    BoolArray,
    ClassCounts,
    IntArray,
    Reduction,
    ScoreColumns,
    Tally,
    TaskRules,
    reduced,
    undefined_scores,
    where_known,
)

_CONFUSION = "confusion"
_MOST_CELLS = 2**20
"""The most counts (8 MiB) of the confusion matrices that are made at once."""


class Classification(TaskRules):
    """Labels (N,) int64; the tally is the confusion matrix `confusion`, (C, C)."""

    def loss(self, outputs: Tensor, targets: Tensor, *, reduction: Reduction, known: Tensor | None = None) -> Tensor:
        """Cross-entropy, in nats."""
        if known is not None:
            return reduced(where_known(self.loss(outputs, targets, reduction="none"), known), reduction)
        if reduction == "none":
            # Stacks of clients have many rows and few classes. With the classes as the first axis, the kernel computes
            # on vectors of rows; along the last one it goes row by row, with the same result in 2.5 times the time.
            by_class = outputs.t().contiguous().unsqueeze(0)
            return F.cross_entropy(by_class, targets.unsqueeze(0), reduction="none").squeeze(0)
        return F.cross_entropy(outputs, targets, reduction=reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit, (B,) int64; -1 where that is not finite, so that no class is predicted."""
        return torch.where(outputs.amax(dim=1).isfinite(), outputs.argmax(dim=1), -1)

    def tally(
        self,
        labels: npt.NDArray[np.generic],
        predictions: npt.NDArray[np.generic],
        num_outputs: int,
        known: BoolArray | None = None,  # noqa: ARG002  # a sample's one label is known
    ) -> Tally:
        """Count samples by true and predicted class."""
        classes = np.asarray(predictions, np.int64)
        if (num_undefined := int(np.count_nonzero(classes == -1))) > 0:
            return Tally(len(labels), num_undefined=num_undefined)
        confusion = confusion_matrix(np.asarray(labels, np.int64), classes, num_outputs)
        return Tally(len(labels), {_CONFUSION: confusion})

    def scores(self, tally: Tally) -> dict[str, float | None]:
        """`accuracy`, `balanced_accuracy`, `macro_f1_present`, `macro_f1_all`."""
        if tally.num_undefined:
            return undefined_scores("classification")
        return {**classification_scores(tally.counts[_CONFUSION])}

    def tally_all(
        self,
        labels: Sequence[npt.NDArray[np.generic]],
        predictions: Sequence[npt.NDArray[np.generic]],
        num_outputs: int,
    ) -> tuple[Tally, ScoreColumns]:
        """What `tally` and `scores` give for many clients: the sum of their tallies, and their scores."""
        sums, columns = list[Tally](), list[ScoreColumns]()
        at_once = max(1, _MOST_CELLS // num_outputs**2)
        for start in range(0, len(labels), at_once):
            own = slice(start, start + at_once)
            tally, scores = _tally_some(labels[own], predictions[own], num_outputs)
            sums.append(tally)
            columns.append(scores)
        return reduce(operator.add, sums), {
            name: np.concatenate([scores[name] for scores in columns]) for name in columns[0]
        }

    def classes(self, tally: Tally) -> ClassCounts | None:
        """Row sums, column sums and diagonal of the confusion matrix, and the matrix."""
        if tally.num_undefined:
            return None
        confusion = tally.counts[_CONFUSION]
        return ClassCounts(
            true=confusion.sum(axis=1),
            predicted=confusion.sum(axis=0),
            correct=confusion.diagonal().copy(),
            confusion=confusion,
        )


def _tally_some(
    labels: Sequence[npt.NDArray[np.generic]], predictions: Sequence[npt.NDArray[np.generic]], num_classes: int
) -> tuple[Tally, ScoreColumns]:
    sizes = np.array([*map(len, labels)])
    classes = np.concatenate(predictions).astype(np.int64, copy=False)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    num_undefined = np.bincount(owners[classes == -1], minlength=len(sizes))
    is_defined = num_undefined == 0
    whole, cells = np.concatenate(labels).astype(np.int64, copy=False), len(sizes) * num_classes
    if not is_defined.all():
        rows = is_defined[owners]
        whole, classes, owners = whole[rows], classes[rows], owners[rows]
    check_classes(whole, classes, num_classes)
    counts = np.bincount((owners * num_classes + whole) * num_classes + classes, minlength=cells * num_classes)
    confusion = counts.reshape(len(sizes), num_classes, num_classes).astype(np.int64, copy=False)
    total = Tally(
        int(sizes.sum()),
        {_CONFUSION: confusion.sum(axis=0)} if is_defined.all() else {},
        num_undefined=int(num_undefined.sum()),
    )
    correct = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    present = true > 0
    # Of a class without a sample 0: it changes no sum, which `fsum` rounds once.
    recalls = np.divide(correct, true, out=np.zeros_like(correct), where=present)
    f1s = np.divide(2 * correct, true + predicted, out=np.zeros_like(correct), where=present)
    recall, f1 = (np.array([math.fsum(row) for row in rows.tolist()]) for rows in (recalls, f1s))
    num_present = np.where(is_defined, present.sum(axis=1), 1)
    scores = {
        "accuracy": correct.sum(axis=1) / sizes,
        "balanced_accuracy": recall / num_present,
        "macro_f1_present": f1 / num_present,
        "macro_f1_all": f1 / num_classes,
    }
    return total, {name: np.where(is_defined, values, np.nan) for name, values in scores.items()}


def confusion_matrix(labels: IntArray, predictions: IntArray, num_classes: int) -> IntArray:
    """Count samples by true and predicted class.

    Args:
        labels: (N,) true classes, 0..num_classes-1.
        predictions: (N,) predicted classes, 0..num_classes-1.
        num_classes: Number of classes C.

    Returns:
        (C, C) int64; rows are true classes, columns predicted ones. Matrices of parts of a data set add up.

    Raises:
        DataError: The lengths differ, or a class is out of range.
    """
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise DataError(f"labels have shape {labels.shape} and predictions {predictions.shape}; expected (N,) for both")
    check_classes(labels, predictions, num_classes)
    cells = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def check_classes(labels: IntArray, predictions: IntArray, num_classes: int) -> None:
    """Refuse classes that there are not.

    Raises:
        DataError: One is out of range.
    """
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if classes.size and (classes.min() < 0 or classes.max() >= num_classes):
            raise DataError(f"{name} run from {classes.min()} to {classes.max()}; expected 0 to {num_classes - 1}")


def classification_scores(confusion: IntArray) -> dict[str, float]:
    """The scores of a confusion matrix.

    `macro_f1_present` is the mean F1 over the classes that have a true sample: 1 for a perfect classifier,
    however few classes a client has. `macro_f1_all` divides by all classes, so an absent one counts 0, as in
    the paper's code.

    Args:
        confusion: (C, C) counts, rows true and columns predicted, with at least one sample.

    Returns:
        `accuracy`, `balanced_accuracy` (mean recall over the classes that have a true sample),
        `macro_f1_present`, `macro_f1_all`.

    Raises:
        DataError: The matrix is not square or holds no sample.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise DataError(f"the confusion matrix has shape {confusion.shape}; expected (classes, classes)")
    num_samples = int(confusion.sum())
    if num_samples == 0:
        raise DataError("the confusion matrix holds no sample; expected at least one")
    correct = np.diagonal(confusion).astype(np.float64)
    true_counts = confusion.sum(axis=1)
    predicted_counts = confusion.sum(axis=0)
    present = true_counts > 0
    recall = correct[present] / true_counts[present]
    f1 = 2 * correct[present] / (true_counts[present] + predicted_counts[present])
    return {
        "accuracy": float(correct.sum()) / num_samples,
        "balanced_accuracy": math.fsum(recall) / len(recall),
        "macro_f1_present": math.fsum(f1) / len(f1),
        "macro_f1_all": math.fsum(f1) / len(confusion),
    }
