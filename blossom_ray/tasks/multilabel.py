"""Any number of classes per sample: binary cross-entropy per class, macro-F1 and macro-AUROC."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from blossom_ray.errors import DataError
from blossom_ray.tasks.base import (
    BoolArray,
    ClassCounts,
    DoubleArray,
    Reduction,
    Tally,
    TaskRules,
    check_shapes,
    ratios,
    reduced,
    undefined_scores,
    undefined_tally,
    where_known,
)


class Multilabel(TaskRules):
    """Labels (N, C) float32 of 0 and 1. A class is predicted where its probability is above 0.5, its logit above 0.

    The tally has, per class: `hits` (predicted and true), `predicted`, `true`, `pairs` (of a sample with the class
    and one without, both scored by the same model) and `doubled_wins` (2 for each pair in which the sample with the
    class has the larger logit, 1 for a tie), of the samples of which it is known; `exact`, the samples with all classes
    right, of the `whole` ones of which all are known.
    """

    def loss(self, outputs: Tensor, targets: Tensor, *, reduction: Reduction, known: Tensor | None = None) -> Tensor:
        """Binary cross-entropy, in nats, mean over classes."""
        terms = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return reduced(where_known(terms, known).mean(dim=1), reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        """The logits themselves: the AUROC needs their order."""
        return outputs

    def tally(
        self,
        labels: npt.NDArray[np.generic],
        predictions: npt.NDArray[np.generic],
        num_outputs: int,
        known: BoolArray | None = None,
    ) -> Tally:
        """Count what is right, and compare the samples of each class with the others."""
        check_shapes(labels, predictions, num_outputs)
        if (undefined := undefined_tally(predictions)) is not None:
            return undefined
        is_known = np.ones(labels.shape, bool) if known is None else known
        truth, predicted = (labels == 1) & is_known, (np.asarray(predictions, np.float32) > 0) & is_known
        if not ((labels == 0) | (labels == 1)).all():
            raise DataError("a label is neither 0 nor 1; expected labels of 0 and 1 for task: multilabel")
        false, whole = ~truth & is_known, is_known.all(axis=1)
        pairs = truth.sum(axis=0) * false.sum(axis=0)
        return Tally(
            len(labels),
            {
                "hits": (truth & predicted).sum(axis=0),
                "predicted": predicted.sum(axis=0),
                "true": truth.sum(axis=0),
                "pairs": pairs,
                "doubled_wins": np.array([
                    _doubled_wins(predictions[truth[:, k], k], predictions[false[:, k], k]) if pairs[k] else 0
                    for k in range(num_outputs)
                ], np.int64),
                "exact": np.array(((truth == predicted).all(axis=1) & whole).sum()),
                "whole": np.array(whole.sum()),
            },
        )  # fmt: skip

    def scores(self, tally: Tally) -> dict[str, float | None]:
        """`macro_auroc`, `macro_f1_present`, `macro_f1_all`, `subset_accuracy`.

        The AUROC of a class is the share of pairs in which the sample with the class has the larger logit, a tie
        counting one half: for one model exactly the area under the ROC curve (Mann and Whitney 1947). The tally of
        several clients has the pairs within each client alone, since logits of different models have no common
        scale.
        """
        if tally.num_undefined:
            return undefined_scores("multilabel")
        counts = tally.counts
        auroc = _auroc(tally)
        auroc = auroc[~np.isnan(auroc)]
        present = counts["true"] > 0
        f1 = 2 * counts["hits"][present] / (counts["true"] + counts["predicted"])[present]
        return {
            "macro_auroc": math.fsum(auroc) / len(auroc) if len(auroc) else None,
            "macro_f1_present": math.fsum(f1) / len(f1) if len(f1) else None,
            "macro_f1_all": math.fsum(f1) / len(present),
            "subset_accuracy": int(counts["exact"]) / num_whole if (num_whole := int(counts["whole"])) else None,
        }

    def classes(self, tally: Tally) -> ClassCounts | None:
        """The counts of each class, and its AUROC."""
        if tally.num_undefined:
            return None
        counts = tally.counts
        return ClassCounts(counts["true"], counts["predicted"], counts["hits"], auroc=_auroc(tally))


def _auroc(tally: Tally) -> DoubleArray:
    """The AUROC of each class, (C,); NaN where there is no pair."""
    return ratios(tally.counts["doubled_wins"], 2 * tally.counts["pairs"])


def _doubled_wins(positives: npt.NDArray[np.generic], negatives: npt.NDArray[np.generic]) -> int:
    """2 U of Mann and Whitney: pairs won by a positive, doubled, plus ties."""
    ordered = np.sort(negatives)
    return int(np.searchsorted(ordered, positives, "left").sum() + np.searchsorted(ordered, positives, "right").sum())
