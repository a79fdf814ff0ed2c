"""What a task has to say: its loss, what scoring adds up, and the scores that follow from the sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from blossom_ray.core.scores import SCORES, Task
from blossom_ray.core.section import Factory, Section, check_factory
from blossom_ray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
DoubleArray = npt.NDArray[np.float64]
Reduction = Literal["mean", "sum", "none"]
ScoreColumns = dict[str, DoubleArray]
"""By score each client's value; NaN where its model does not define it."""


@dataclass(frozen=True)
class Tally:
    """What scoring a model on a split leaves. Tallies of several clients add up to the one of all their samples.

    Attributes:
        num_examples: Samples scored.
        counts: Sums of whole numbers, exact in any order; int64, by name.
        moments: Sums that are rounded, (clients, T) float64 by name. Those of several clients stand one below the
            other, and `math.fsum` adds them where a score needs them: it rounds once, so that neither the order of
            clients nor the place where they are scored can be seen in a score.
        num_undefined: Samples for which a model gave outputs that are not finite. With any of them the task's own
            counts and moments are absent, and its scores are NaN.
    """

    num_examples: int
    counts: Mapping[str, IntArray] = field(default_factory=dict)
    moments: Mapping[str, DoubleArray] = field(default_factory=dict)
    num_undefined: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.num_examples + other.num_examples,
            {name: counts + other.counts[name] for name, counts in self.counts.items() if name in other.counts},
            {
                name: np.concatenate([rows, other.moments[name]])
                for name, rows in self.moments.items()
                if name in other.moments
            },
            self.num_undefined + other.num_undefined,
        )


@dataclass(frozen=True)
class ClassCounts:
    """How each of C classes fared. Counts are int64, (C,), and add up over clients.

    Attributes:
        true: Samples of the class (its support).
        predicted: Samples that it was predicted for.
        correct: Those of them that are of the class.
        auroc: (C,) float64, as in `macro_auroc`, NaN where the samples do not define it; None in a classification.
        confusion: (C, C) int64, rows true and columns predicted; None where a sample has any number of classes.
    """

    true: IntArray
    predicted: IntArray
    correct: IntArray
    auroc: DoubleArray | None = None
    confusion: IntArray | None = None

    @property
    def recall(self) -> DoubleArray:
        """TP / (TP + FN), (C,); NaN for a class without samples."""
        return ratios(self.correct, self.true)

    @property
    def precision(self) -> DoubleArray:
        """TP / (TP + FP), (C,); NaN for a class that is never predicted."""
        return ratios(self.correct, self.predicted)

    @property
    def f1(self) -> DoubleArray:
        """2 TP / (2 TP + FP + FN), (C,); NaN for a class that is neither there nor predicted."""
        return ratios(2 * self.correct, self.true + self.predicted)


class TaskRules(Protocol):
    """One task. Outputs are those of a model's head, (B, O) float32: logits, or values in a regression."""

    def loss(self, outputs: Tensor, targets: Tensor, *, reduction: Reduction, known: Tensor | None = None) -> Tensor:
        """The loss of each sample (B,), or its mean or sum over samples; differentiable.

        Args:
            outputs: (B, O) float32.
            targets: Labels of the samples, as in `Dataset`: (B,) int64, or (B, O) float32.
            reduction: What is done with the samples' losses.
            known: Of the shape of `targets`, 1 where a label is known; None: everywhere. Others add 0: of several
                classes or targets the sum over those that are known is divided by all.
        """

    def predict(self, outputs: Tensor) -> Tensor:
        """What `tally` needs of the outputs: (B,) or (B, O)."""

    def tally(
        self,
        labels: npt.NDArray[np.generic],
        predictions: npt.NDArray[np.generic],
        num_outputs: int,
        known: BoolArray | None = None,
    ) -> Tally:
        """Count the predictions of one client's model.

        Args:
            labels: (N,) int64 or (N, O) float32, N > 0.
            predictions: What `predict` gave for these samples.
            num_outputs: O, the number of outputs of the head.
            known: Of the shape of `labels`, which of them are known and count, at least one in each row; None: all.

        Raises:
            DataError: Labels and predictions have other shapes or values than announced.
        """

    def scores(self, tally: Tally) -> dict[str, float | None]:
        """The scores of a tally with at least one sample, by name in the order of `SCORES`.

        A score that the samples do not define is None; one that the model does not, having given outputs that are not
        finite, is NaN.
        """

    def tally_all(
        self,
        labels: Sequence[npt.NDArray[np.generic]],  # noqa: ARG002
        predictions: Sequence[npt.NDArray[np.generic]],  # noqa: ARG002
        num_outputs: int,  # noqa: ARG002
    ) -> tuple[Tally, ScoreColumns] | None:
        """The sum of many clients' tallies, all labels known, and their scores; None: to be had one by one alone."""
        return None

    def classes(self, tally: Tally) -> ClassCounts | None:
        """What a tally says of each class; None in a regression, and where a model gave outputs that are not finite."""


def undefined_tally(outputs: npt.NDArray[np.generic]) -> Tally | None:
    """The tally of outputs (N, O) of which some are not finite; None where all are."""
    num_undefined = int(np.count_nonzero(~np.isfinite(np.asarray(outputs, np.float64)).all(axis=1)))
    return Tally(len(outputs), num_undefined=num_undefined) if num_undefined else None


def undefined_scores(task: Task) -> dict[str, float | None]:
    """The scores of a tally with undefined samples."""
    return {score.name: math.nan for score in SCORES[task]}


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Losses per sample (B,) as they are, or their mean or sum."""
    match reduction:
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
        case "none":
            return losses


def where_known(terms: Tensor, known: Tensor | None) -> Tensor:
    """Losses of samples, or of single classes or targets of theirs, made 0 where the label is not known."""
    return terms if known is None else terms.masked_fill(known == 0, 0.0)


def ratios(parts: IntArray, wholes: IntArray) -> DoubleArray:
    """`parts / wholes`, elementwise; NaN where there is no whole."""
    found = np.full(parts.shape, np.nan)
    np.divide(parts, wholes, out=found, where=wholes > 0)
    return found


def check_shapes(labels: npt.NDArray[np.generic], predictions: npt.NDArray[np.generic], num_outputs: int) -> None:
    """Refuse labels or predictions that are not (N, O).

    Raises:
        DataError: They are not.
    """
    if labels.shape != predictions.shape or labels.shape[1:] != (num_outputs,):
        raise DataError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; "
            f"expected (N, {num_outputs}) for both"
        )


MetricName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]


class Metric(Section):
    """A metric of your own: `function(labels, outputs, **options)` of one client's test samples gives a number."""

    function: Factory
    """`module:attribute` of the function, or, from Python, the function itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function."""
    lower_is_better: bool = False
    """Whether smaller values are better, as for an error; comparisons look for the best round by it."""
    is_share: bool = False
    """Whether it runs from 0 to 1 and comparisons show it in percent."""

    _function = field_validator("function")(check_factory)
