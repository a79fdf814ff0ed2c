"""What a partition and a split need of a data set: strata, subjects, recordings, without the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from blossom_ray.data.clients import GivenClients
from blossom_ray.data.gaps import BoolArray

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Labels = IntArray | FloatArray


@dataclass(frozen=True)
class Pieces:
    """Samples as pieces of recordings: windows of a signal, utterances of a dialogue.

    Unlike `Targets.recordings` they may stand in a training and in a test split: `split: sample` does not mind them,
    `split: recording` does.

    Attributes:
        recordings: (N,) int64, 0..R-1: the recording of each sample; its samples are in their order in time.
        overlap: Part of itself that a sample has in common with the next one of its recording, 0 to less than 1.
    """

    recordings: IntArray
    overlap: float = 0.0


@dataclass(frozen=True)
class Targets:
    """What a partition needs of a data set: a stratum per sample and subjects, without the inputs.

    Attributes:
        labels: (N,) int64, 0..num_classes-1: the classes of `classification`, else those of `strata`.
        num_classes: Number of classes or strata.
        subjects: (N,) int64, or None where samples belong to no subject.
        recordings: (N,) int64, 0..R-1: samples with the same number share material that must not stand in a training
            and in a test split. None where no two samples do.
        pieces: The recordings that samples are pieces of, or None where the data set does not tell.
        clients: The clients of the data, or None where the data do not say whose their samples are.
        subject_names: What the subjects are called, by number; empty where their numbers are their names.
        observed: As in `Dataset`.
        held_out: The same of the held-out part, or None; known once the data set has been loaded.
    """

    labels: IntArray
    num_classes: int
    subjects: IntArray | None = None
    recordings: IntArray | None = None
    pieces: Pieces | None = None
    clients: GivenClients | None = None
    subject_names: tuple[str, ...] = ()
    observed: Mapping[str, BoolArray] = field(default_factory=dict)
    held_out: Targets | None = None


def targets_of(labels: Labels, num_classes: int, subjects: IntArray | None, known: BoolArray | None = None) -> Targets:
    """The targets of labels of any task, as `strata` describes them.

    Samples of which the label is not known have a stratum of their own, the last one; of several classes those count
    that are known.

    Args:
        labels: As in `Dataset`.
        num_classes: Number of classes; of no account for float labels, which have strata of their own.
        subjects: (N,) int64, or None.
        known: As in `Dataset`.
    """
    if labels.ndim == 1:
        found, num_strata = np.asarray(labels, np.int64), num_classes
    else:
        found, num_strata = strata(np.asarray(labels, np.float32), known)
        if known is not None and num_strata == labels.shape[1] + 1:
            return Targets(found, num_strata, subjects)
    if known is not None:
        found = np.where(known if known.ndim == 1 else known[:, 0], found, num_strata)
        num_strata += 1
    return Targets(found, num_strata, subjects)


NUM_QUANTILE_BINS = 10


def strata(labels: FloatArray, known: BoolArray | None = None) -> tuple[IntArray, int]:
    """The stratum of each sample, and how many strata there are.

    Labels of 0 and 1 alone (multilabel): the rarest class that the sample has, ties to the first; a sample without
    any is in the last stratum, C. Combinations of classes would make thousands of strata of one sample each where
    classes are many; the rarest class is what a skew has to be seen in.

    Other labels (regression): the tenth of the data set that the value of the first target lies in. Equal values
    share a stratum, so strata of a target with few values are uneven, and some may be empty.

    Args:
        labels: (N, C) or (N, T) float32, finite.
        known: Of the same shape, which of them are known; None: all. The others are 0, which is no class, and count in
            no tenth.

    Returns:
        Strata (N,) int64, 0..S-1, and S: C + 1 or 10.

    Source: the rarest label first as in iterative stratification, Sechidis et al. 2011
    (doi:10.1007/978-3-642-23808-6_10).
    """
    if ((labels == 0) | (labels == 1)).all():
        has_class = labels == 1
        from_rare = np.argsort(has_class.sum(axis=0), kind="stable")
        rarest: IntArray = from_rare[has_class[:, from_rare].argmax(axis=1)].astype(np.int64)
        rarest[~has_class.any(axis=1)] = labels.shape[1]
        return rarest, labels.shape[1] + 1
    values = labels[:, 0].astype(np.float64)
    counted = values if known is None else values[known[:, 0]]
    edges = np.quantile(counted, np.arange(1, NUM_QUANTILE_BINS) / NUM_QUANTILE_BINS)
    return np.searchsorted(edges, values, side="left").astype(np.int64), NUM_QUANTILE_BINS
