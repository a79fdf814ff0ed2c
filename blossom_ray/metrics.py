"""Scores: confusion matrices per client, their summary over clients, and the personalization gain.

Confusion matrices are the sums that cross processes; every score is a function of one. All scores are 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blossom_ray.errors import DataError
from blossom_ray.records import ClientEvaluation

IntArray = npt.NDArray[np.int64]

PERCENTILES = (10, 50, 90)


def confusion_matrix(
    labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer], num_classes: int
) -> IntArray:
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
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if classes.size and (classes.min() < 0 or classes.max() >= num_classes):
            raise DataError(f"{name} run from {classes.min()} to {classes.max()}; expected 0 to {num_classes - 1}")
    cells = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


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


def summarize(
    evaluations: Sequence[ClientEvaluation], modality_sets: Sequence[str], pooled: IntArray
) -> dict[str, float]:
    """Summarize the clients' scores of one round.

    Args:
        evaluations: One entry per scored client, in order of id.
        modality_sets: The modality set of each of them, such as `acc+gyro`.
        pooled: (C, C), the sum of their confusion matrices.

    Returns:
        For `loss` and each score: under its own name the mean over clients weighted by test samples;
        `<name>_p10`, `<name>_p50`, `<name>_p90`, the spread over clients (unweighted, linear interpolation;
        NaN beside an infinite loss);
        `<name>_pooled`, from the pooled matrix (not for `loss`, whose weighted mean is the pooled one);
        `<name>/<modality set>`, the weighted mean within each set, sets in sorted order. Empty without
        evaluations.

    Raises:
        DataError: The clients of a modality set have no test samples at all.
    """
    if not evaluations:
        return {}
    pooled_scores = classification_scores(pooled)
    members = {
        modality_set: np.array([other == modality_set for other in modality_sets])
        for modality_set in sorted(set(modality_sets))
    }
    weights = np.array([evaluation.num_examples for evaluation in evaluations], dtype=np.float64)
    summary: dict[str, float] = {}
    for name in ("loss", *pooled_scores):
        values = np.array([_value(evaluation, name) for evaluation in evaluations], dtype=np.float64)
        summary[name] = _weighted_mean(values, weights)
        if name in pooled_scores:
            summary[f"{name}_pooled"] = pooled_scores[name]
        # A diverged client's loss is infinite, and NaN is NumPy's answer between it and its neighbour.
        with np.errstate(invalid="ignore"):
            percentiles = np.percentile(values, PERCENTILES)
        for percent, value in zip(PERCENTILES, percentiles, strict=True):
            summary[f"{name}_p{percent}"] = float(value)
        for modality_set, is_member in members.items():
            summary[f"{name}/{modality_set}"] = _weighted_mean(values[is_member], weights[is_member])
    return summary


def personalization_gain(score: float, full_model_score: float) -> float:
    """100 (s - s_FM) / s_FM: by how many percent private blocks beat full-model aggregation.

    Args:
        score: The scheme's score s.
        full_model_score: The score of `full-model` on the same federation (same seed).

    Returns:
        Percent; NaN where the full model scores 0 and the ratio means nothing.
    """
    if full_model_score == 0:
        return math.nan
    return 100 * (score - full_model_score) / full_model_score


def _value(evaluation: ClientEvaluation, name: str) -> float:
    return evaluation.loss if name == "loss" else evaluation.scores[name]


def _weighted_mean(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    # fsum rounds once, so the sum does not depend on how a Python or NumPy version adds floats.
    total = math.fsum(weights)
    if total == 0:
        raise DataError("the scored clients have no test samples; expected at least one")
    return math.fsum(values * weights) / total
