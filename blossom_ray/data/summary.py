"""A data set in numbers, and how a federation divides it: what `blossom-ray data inspect` shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset, LeftOut
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.stored import Rows, slices
from blossom_ray.data.targets import FloatArray, IntArray

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ValueRange:
    """One modality's samples, those that have it. Numbers are NaN where none has.

    Attributes:
        shape: Of one sample.
        low: Smallest value.
        high: Largest value.
        mean: Mean over all values.
        deviation: Standard deviation over all values.
        num_observed: Samples in which it is observed; None: all of them.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    deviation: float
    num_observed: int | None = None


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

    @property
    def has_gaps(self) -> bool:
        """Whether a modality is not observed in all samples."""
        return any(values.num_observed is not None for values in self.modalities.values())


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


@dataclass(frozen=True)
class ObservedRows:
    """In how many rows of one split a modality is observed.

    Attributes:
        rows: Rows of all clients that own it.
        observed: Those of them in which it is.
        by_client: The same for each client, 0 where it does not own it.
    """

    rows: int
    observed: int
    by_client: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[int], observed: Sequence[int]) -> Self:
        """Of the rows of each client, 0 where it does not own the modality, and those in which it is observed."""
        return cls(sum(rows), sum(observed), tuple(observed))

    def __str__(self) -> str:
        return f"{100 * self.observed / max(self.rows, 1):.1f} % of {self.rows:,}"


def summarise(dataset: Dataset) -> DatasetSummary:
    """Count and measure a data set."""
    subjects = [] if dataset.subjects is None else [dataset.subjects]
    arrays: list[Rows | IntArray] = [*dataset.inputs.values(), dataset.labels, *subjects]
    return DatasetSummary(
        task=dataset.task,
        num_samples=dataset.num_samples,
        labels=label_numbers(dataset, np.arange(dataset.num_samples)),
        num_subjects=_num_subjects(dataset, np.arange(dataset.num_samples)),
        modalities={modality: _value_range(dataset, modality) for modality in dataset.inputs},
        memory_bytes=sum(values.nbytes for values in arrays),
        held_out=None if dataset.held_out is None else summarise(dataset.held_out),
        left_out=dataset.left_out,
    )


def shares(dataset: Dataset, federation: Federation) -> Sequence[ClientShare]:
    """What each client of a federation has, in the order of their ids."""
    places = (federation.located(dataset, client) for client in range(federation.num_clients))
    return [
        ClientShare(
            client=client,
            num_train=len(federation.train.of(client)),
            num_validation=len(federation.validation.of(client)),
            num_test=len(federation.test.of(client)),
            labels=label_numbers(part, rows),
            num_subjects=_num_subjects(part, rows),
            name=federation.names[client] if federation.names else "",
        )
        for client, (part, rows) in enumerate(places)
    ]


def deviations(dataset: Dataset, modalities: Iterable[str]) -> dict[str, float]:
    """The standard deviation over all values of some modalities."""
    return {modality: _value_range(dataset, modality).deviation for modality in modalities}


def unit_notes(by_data_set: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What to say of modalities of one name whose values are of another scale in another data set.

    Args:
        by_data_set: By the name of a data set the deviation of its modalities.
    """
    notes = []
    for modality in sorted({name for own in by_data_set.values() for name in own}):
        found = {name: own[modality] for name, own in by_data_set.items() if modality in own}
        low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        if found[high] > _OTHER_SCALE * found[low]:
            notes.append(
                f"{modality}: values deviate by {found[low]:.4g} in {low} and by {found[high]:.4g} in {high}, as in "
                "other units; an encoder of both sees them as they are"
            )
    return notes


_OTHER_SCALE = 3.0
"""Deviations of one modality that differ by more times are told."""


def observed_rows(
    federation: Federation,
    profiles: Sequence[ClientProfile],
    held_out: Sequence[Dataset] = (),
    views: Sequence[int] = (),
) -> dict[str, dict[str, ObservedRows]]:
    """By modality and split, in how many rows it is observed; of the modalities that some owner lacks in some row.

    Args:
        federation: Which client has which rows.
        profiles: The clients in the order of their ids: all, or the first ones.
        held_out: The held-out set in each way in which clients see it; its rows count for each client.
        views: Which of these is each client's.
    """
    found: dict[str, dict[str, ObservedRows]] = {}
    for modality in sorted({*federation.observed, *(name for view in held_out for name in view.observed)}):
        owns = np.array([modality in profile.modalities for profile in profiles])
        found[modality] = {}
        for split, rows in federation.splits.items():
            if len(rows.flat):
                counts = observed = rows.counts[: len(owns)] * owns
                if modality in federation.observed:
                    is_observed = federation.observed[modality][rows.flat]
                    observed = np.diff(np.concatenate([[0], np.cumsum(is_observed)])[rows.ends])[: len(owns)]
                found[modality][split] = ObservedRows.of(counts.tolist(), observed.tolist())
        if held_out:
            sizes = np.array([held_out[view].num_samples for view in views]) * owns
            gaps = [int((~view.observed.get(modality, np.True_)).sum()) for view in held_out]
            observed = sizes - np.array([gaps[view] for view in views]) * owns
            found[modality]["held_out"] = ObservedRows.of(sizes.tolist(), observed.tolist())
    return found


def observed_lines(observed: Mapping[str, Mapping[str, ObservedRows]]) -> list[str]:
    """What to say of each modality that is not observed in all rows: in which part of each split it is."""
    parts = {
        name: [f"{rows} {split.replace('_', '-')} rows" for split, rows in own.items()]
        for name, own in observed.items()
    }
    return [f"{name} is observed in {', '.join(own)}" for name, own in parts.items()]


def label_numbers(dataset: Dataset, rows: IntArray) -> dict[str, float]:
    """By class the number of these rows that have it; by target of a regression its mean over them."""
    labels = dataset.labels[rows]
    known = np.ones(labels.shape, np.bool_) if dataset.known is None else dataset.known[rows]
    if dataset.task == "classification":
        labels = labels[known]
        numbers: list[float] = np.bincount(labels.astype(np.int64), minlength=dataset.num_classes).tolist()
    elif dataset.task == "multilabel":
        numbers = labels.sum(axis=0, dtype=np.int64).tolist()
    else:
        counts = np.maximum(known.sum(axis=0), 1)
        numbers = (labels.sum(axis=0, dtype=np.float64) / counts).tolist()
    return dict(zip(dataset.class_names, numbers, strict=True))


def _num_subjects(dataset: Dataset, rows: IntArray) -> int | None:
    return None if dataset.subjects is None else len(np.unique(dataset.subjects[rows]))


def _value_range(dataset: Dataset, modality: str) -> ValueRange:
    """Piece by piece. Rows that lack the modality do not count."""
    values, has = dataset.inputs[modality], np.flatnonzero(~dataset.lacking(modality))
    shape = tuple(values.shape[1:])
    if not len(has):
        return ValueRange(shape, math.nan, math.nan, math.nan, math.nan, num_observed=0)

    def pieces() -> Iterator[FloatArray]:
        yield from (values[has[rows]] for rows in slices(values, len(has), _ROWS_AT_ONCE))

    number = len(has) * math.prod(shape)
    found = [(float(piece.sum(dtype=np.float64)), float(piece.min()), float(piece.max())) for piece in pieces()]
    sums, lows, highs = zip(*found, strict=True)
    mean = sum(sums) / number
    squares = sum(float(np.square(piece - mean, dtype=np.float64).sum()) for piece in pieces())
    return ValueRange(
        shape=shape,
        low=min(lows),
        high=max(highs),
        mean=mean,
        deviation=float(np.sqrt(squares / number)),
        num_observed=len(has) if len(has) < dataset.num_samples else None,
    )
