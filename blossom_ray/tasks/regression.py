"""One or more numbers per sample: squared error, RMSE, MAE and R2."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from blossom_ray.tasks.base import (
    BoolArray,
    ClassCounts,
    DoubleArray,
    Reduction,
    Tally,
    TaskRules,
    check_shapes,
    reduced,
    undefined_scores,
    undefined_tally,
    where_known,
)


class Regression(TaskRules):
    """Labels (N, T) float32, finite, in whatever unit they have.

    The tally has a row per client, and in it per target, over the samples of which it is known: `samples`, how many
    these are, `absolute` and `squared` (sums of errors), `mean` of the labels and `spread`, the sum of their squared
    distances from that mean.
    """

    def loss(self, outputs: Tensor, targets: Tensor, *, reduction: Reduction, known: Tensor | None = None) -> Tensor:
        """Squared error, mean over targets."""
        terms = F.mse_loss(outputs, targets, reduction="none")
        return reduced(where_known(terms, known).mean(dim=1), reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        """The outputs themselves."""
        return outputs

    def tally(
        self,
        labels: npt.NDArray[np.generic],
        predictions: npt.NDArray[np.generic],
        num_outputs: int,
        known: BoolArray | None = None,
    ) -> Tally:
        """Add up errors, in float64."""
        check_shapes(labels, predictions, num_outputs)
        if (undefined := undefined_tally(predictions)) is not None:
            return undefined
        is_known: BoolArray | Literal[True] = True if known is None else known
        truth = np.asarray(labels, np.float64)
        error = np.where(is_known, np.asarray(predictions, np.float64) - truth, 0.0)
        samples = np.broadcast_to(is_known, labels.shape).sum(axis=0, dtype=np.float64)
        mean = truth.sum(axis=0, where=is_known) / np.maximum(samples, 1.0)
        moments = {
            "samples": samples,
            "absolute": np.abs(error).sum(axis=0),
            "squared": np.square(error).sum(axis=0),
            "mean": mean,
            "spread": np.square(truth - mean).sum(axis=0, where=is_known),
        }
        return Tally(len(labels), moments={name: values[np.newaxis] for name, values in moments.items()})

    def scores(self, tally: Tally) -> dict[str, float | None]:
        """`rmse`, `mae` (over all samples and targets) and `r2`.

        R2 is 1 - (sum of squared errors) / (sum of squared distances from the mean), mean over the targets that vary;
        None where none does.
        """
        if tally.num_undefined:
            return undefined_scores("regression")
        moments = tally.moments
        absolute, squared, spread = (_total(moments[name]) for name in ("absolute", "squared", "spread"))
        # The spread about the common mean: within clients, and of the clients' means (Chan et al. 1979).
        samples = moments["samples"]
        num_known = _total(samples)
        mean = _total(samples * moments["mean"]) / np.maximum(num_known, 1.0)
        spread = spread + _total(samples * np.square(moments["mean"] - mean))
        # Distances that are rounding alone are no spread: float32 labels that differ lie further apart.
        varies = spread > num_known * np.square(1e-14 * mean)
        r2 = 1 - squared[varies] / spread[varies]
        num_values = math.fsum(num_known)
        return {
            "rmse": math.sqrt(math.fsum(squared) / num_values),
            "mae": math.fsum(absolute) / num_values,
            "r2": math.fsum(r2) / len(r2) if len(r2) else None,
        }

    def classes(self, tally: Tally) -> ClassCounts | None:  # noqa: ARG002  # as every task has it
        """None: there are no classes."""
        return None


def _total(rows: DoubleArray) -> DoubleArray:
    """Column sums (T,) of (clients, T), each rounded once."""
    return np.array([math.fsum(column) for column in rows.T])
