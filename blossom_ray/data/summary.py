"""A data set in numbers, and how a federation divides it: what `blossom-ray data inspect` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, LeftOut, is_missing
from blossom_ray.data.division.federation import Federation

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ValueRange:
    """One modality's samples.

    Attributes:
        shape: Of one sample.
        low: Smallest value.
        high: Largest value.
        mean: Mean over all values.
        deviation: Standard deviation over all values.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class DatasetSummary:
    """A data set in numbers.

    Attributes:
        task: What its labels are for.
        num_samples: Number of samples.
        labels: By class, the number of samples that have it; by target of a regression, its mean.
        num_subjects: Number of subjects, or None where samples belong to none.
        modalities: By modality, its samples.
        memory_bytes: Bytes of its arrays.
        held_out: The same of the held-out set, or None.
        left_out: As in `Dataset`.
    """

    task: str
    num_samples: int
    labels: Mapping[str, float]
    num_subjects: int | None
    modalities: Mapping[str, ValueRange]
    memory_bytes: int
    held_out: DatasetSummary | None
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class ClientShare:
    """What one client has.

    Attributes:
        client: Its id.
        num_train: Samples to train on.
        num_validation: Samples of its validation split.
        num_test: Samples of its test split.
        labels: As in `DatasetSummary`, of all together.
        num_subjects: Number of subjects among them, or None.
        name: What the user's data call the client, or its subjects; "" where samples are dealt.
    """

    client: int
    num_train: int
    num_validation: int
    num_test: int
    labels: Mapping[str, float]
    num_subjects: int | None
    name: str = ""


def summarise(dataset: Dataset) -> DatasetSummary:
    """Count and measure a data set."""
    subjects = [] if dataset.subjects is None else [dataset.subjects]
    arrays: list[np.ndarray] = [*dataset.inputs.values(), dataset.labels, *subjects]
    return DatasetSummary(
        task=dataset.task,
        num_samples=dataset.num_samples,
        labels=_labels(dataset, np.arange(dataset.num_samples)),
        num_subjects=_num_subjects(dataset, np.arange(dataset.num_samples)),
        modalities={modality: _value_range(values) for modality, values in dataset.inputs.items()},
        memory_bytes=sum(values.nbytes for values in arrays),
        held_out=None if dataset.held_out is None else summarise(dataset.held_out),
        left_out=dataset.left_out,
    )


def shares(dataset: Dataset, federation: Federation) -> Sequence[ClientShare]:
    """What each client of a federation has, in the order of their ids."""
    return [
        ClientShare(
            client=client,
            num_train=len(federation.train.of(client)),
            num_validation=len(federation.validation.of(client)),
            num_test=len(federation.test.of(client)),
            labels=_labels(dataset, federation.rows(client)),
            num_subjects=_num_subjects(dataset, federation.rows(client)),
            name=federation.names[client] if federation.names else "",
        )
        for client in range(federation.num_clients)
    ]


def _labels(dataset: Dataset, rows: IntArray) -> dict[str, float]:
    labels = dataset.labels[rows]
    if dataset.task == "classification":
        numbers: list[float] = np.bincount(labels.astype(np.int64), minlength=dataset.num_classes).tolist()
    elif dataset.task == "multilabel":
        numbers = labels.sum(axis=0, dtype=np.int64).tolist()
    else:
        numbers = labels.mean(axis=0, dtype=np.float64).tolist()
    return dict(zip(dataset.class_names, numbers, strict=True))


def _num_subjects(dataset: Dataset, rows: IntArray) -> int | None:
    return None if dataset.subjects is None else len(np.unique(dataset.subjects[rows]))


def _value_range(values: FloatArray) -> ValueRange:
    """Piece by piece, since a float64 copy of everything would take twice the data set's size.

    Rows of clients that lack the modality do not count.
    """
    missing = is_missing(values)
    values = values[~missing] if missing.any() else values
    pieces = [values[start : start + _ROWS_AT_ONCE] for start in range(0, len(values), _ROWS_AT_ONCE)]
    mean = sum(float(piece.sum(dtype=np.float64)) for piece in pieces) / values.size
    squares = sum(float(np.square(piece - mean, dtype=np.float64).sum()) for piece in pieces)
    return ValueRange(
        shape=tuple(values.shape[1:]),
        low=float(values.min()),
        high=float(values.max()),
        mean=mean,
        deviation=float(np.sqrt(squares / values.size)),
    )
