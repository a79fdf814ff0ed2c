"""A stratum per sample where labels are no classes: what a partition by label (`dirichlet`) draws over."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NUM_QUANTILE_BINS = 10


def strata(labels: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], int]:
    """The stratum of each sample, and how many strata there are.

    Labels of 0 and 1 alone (multilabel): the rarest class that the sample has, ties to the first; a sample without
    any is in the last stratum, C. Combinations of classes would make thousands of strata of one sample each where
    classes are many; the rarest class is what a skew has to be seen in.

    Other labels (regression): the tenth of the data set that the value of the first target lies in. Equal values
    share a stratum, so strata of a target with few values are uneven, and some may be empty.

    Args:
        labels: (N, C) or (N, T) float32, finite.

    Returns:
        Strata (N,) int64, 0..S-1, and S: C + 1 or 10.

    Source: the rarest label first as in iterative stratification, Sechidis et al. 2011
    (doi:10.1007/978-3-642-23808-6_10).
    """
    if ((labels == 0) | (labels == 1)).all():
        return _rarest_class(labels), labels.shape[1] + 1
    return _quantile_bin(labels[:, 0].astype(np.float64)), NUM_QUANTILE_BINS


def _rarest_class(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    has_class = labels == 1
    from_rare = np.argsort(has_class.sum(axis=0), kind="stable")
    found: npt.NDArray[np.int64] = from_rare[has_class[:, from_rare].argmax(axis=1)].astype(np.int64)
    found[~has_class.any(axis=1)] = labels.shape[1]
    return found


def _quantile_bin(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    edges = np.quantile(values, np.arange(1, NUM_QUANTILE_BINS) / NUM_QUANTILE_BINS)
    return np.searchsorted(edges, values, side="left").astype(np.int64)
