"""Modalities of own data brought to one scale by what clients train on: each by its own rows, or all by all rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.modalities.base import KnownScale, Scaling
from blossom_ray.data.stored import Rows, Scale, StoredRows, rows_at_once
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import DataError

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Scales:
    """What the modalities that are scaled are scaled by.

    Attributes:
        pooled: Modality to the scale of all clients.
        by_client: Modality to the scale of each client that owns it, by its index.
    """

    pooled: Mapping[str, Scale] = field(default_factory=dict)
    by_client: Mapping[str, Mapping[int, Scale]] = field(default_factory=dict)

    def of(self, modality: str, client: int) -> Scale | None:
        """The scale that a client sees a modality in; None: as it is."""
        return self.by_client.get(modality, {}).get(client, self.pooled.get(modality))

    def described(self, scaling: Callable[[str], Scaling]) -> dict[str, dict[str, Any]]:
        """By modality what a manifest says: values of pooled scales, and a digest alone of those that are clients'."""
        found = {}
        for name in sorted({*self.pooled, *self.by_client}):
            own = [self.pooled[name]] if name in self.pooled else [*self.by_client[name].values()]
            digest = hashlib.sha256()
            for scale in own:
                digest.update(np.concatenate([scale.offset, scale.divisor], axis=None).tobytes())
            section = scaling(name)
            is_known = isinstance(section.scale, KnownScale)
            kind = {"scale": "known"} if is_known else {"scale": section.scale, "over": section.over}
            found[name] = {**kind, "digest": digest.hexdigest()}
            if name in self.pooled:
                found[name] |= as_numbers(section, self.pooled[name])
        return found


def as_numbers(scaling: Scaling, scale: Scale) -> dict[str, Any]:
    """A scale as lists, by what its numbers are called."""
    names = ("low", "range") if scaling.scale == "minmax" else ("mean", "deviation")
    return {name: values.tolist() for name, values in zip(names, scale, strict=True)}


def scales_of(
    dataset: Dataset, federation: Federation, profiles: Sequence[ClientProfile], scaling: Callable[[str], Scaling]
) -> Scales:
    """The scales of the modalities, from the training rows in which their owners observe them.

    Validation, test and held-out rows count for nothing. Neither do rows of clients that never train, but for a scale
    of their own. Channels: each feature of a vector (F,), the last dimension of a sequence (time, channels), the first
    of an image (channels, height, width); of other shapes, all values are one.

    Args:
        dataset: As it was loaded.
        federation: Which rows clients train on.
        profiles: The clients in the order of their ids.
        scaling: How a modality is to be scaled.

    Raises:
        DataError: A known scale is of another number of channels.
    """
    pooled, by_client = dict[str, Scale](), dict[str, dict[int, Scale]]()
    for modality, values in dataset.inputs.items():
        section = scaling(modality)
        if section.scale == "none":
            continue
        if isinstance(section.scale, KnownScale):
            pooled[modality] = _known(section.scale, values, modality)
            continue
        measured = _deviating if section.scale == "standard" else _ranging
        rows = dict[int, tuple[Dataset, IntArray]]()
        for profile in profiles:
            if modality in profile.modalities and not (profile.is_unseen and section.over == "all"):
                train = federation.train.of(profile.index)
                part, places = federation.located(dataset, profile.index)
                has = federation.observed[modality][train] if modality in federation.observed else slice(None)
                rows[profile.index] = part, places[: len(train)][has]
        if section.is_apart:
            by_client[modality] = {
                client: measured(part.inputs[modality], places) for client, (part, places) in rows.items()
            }
        elif rows:
            pooled[modality] = measured(values, np.concatenate([places for _, places in rows.values()]))
    return Scales(pooled, by_client)


def scaled(dataset: Dataset, scales: Mapping[str, Scale]) -> Dataset:
    """The data set and its held-out set with modalities in these scales, scaled where rows are read.

    Zeros stay in rows that have no value.
    """
    if not scales:
        return dataset
    inputs = dict(dataset.inputs)
    for name, scale in scales.items():
        missing, values = dataset.lacking(name), StoredRows.of(inputs[name])
        if missing.any():
            values = values.without(missing, 0 if name in dataset.observed else math.nan)
        inputs[name] = replace(values, scale=scale)
    held_out = None if dataset.held_out is None else scaled(dataset.held_out, scales)
    return replace(dataset, inputs=inputs, held_out=held_out)


def _known(scale: KnownScale, values: Rows, modality: str) -> Scale:
    shape = [1 if axis in _axes(values) else length for axis, length in enumerate(values.shape)][1:]
    num_channels = math.prod(shape)
    for name, numbers in scale:
        if len(numbers) not in (1, num_channels):
            expected = f"{num_channels}, one for each channel of {values.shape[1:]}, or 1"
            raise DataError(f"modality {modality!r} has a scale of {len(numbers)} in {name}; expected {expected}")
    # Of float32, so that samples are scaled in it, as torchvision's `Normalize` does, to the last bit.
    return Scale(*(np.full(num_channels, numbers, np.float32).reshape(shape) for _, numbers in scale))


def _deviating(values: Rows, train: IntArray) -> Scale:
    """Mean and deviation by channel; of a constant channel the deviation is 1."""
    axes, pieces = _axes(values), _pieces(values, train)
    number = len(train) * math.prod(values.shape[axis] for axis in axes[1:])
    first = values[train[:1]].min(axis=axes, keepdims=True)[0]
    sums, are_constant = 0.0, []
    for piece in pieces:
        own = values[piece]
        sums = sums + own.sum(axis=axes, dtype=np.float64, keepdims=True)[0]
        # Rounding may leave a constant channel with a tiny deviation, and dividing by that would blow it up.
        are_constant.append((own == first).all(axis=axes, keepdims=True)[0])
    mean = np.asarray(sums / number)
    squares = sum(np.square(values[piece] - mean).sum(axis=axes, keepdims=True)[0] for piece in pieces)
    return Scale(mean, np.where(np.logical_and.reduce(are_constant), 1.0, np.sqrt(squares / number)))


def _ranging(values: Rows, train: IntArray) -> Scale:
    """The lowest value by channel, and from there to the highest; of a constant channel 1."""
    axes, lows, highs = _axes(values), [], []
    for piece in _pieces(values, train):
        own = values[piece].astype(np.float64)
        lows.append(own.min(axis=axes, keepdims=True)[0])
        highs.append(own.max(axis=axes, keepdims=True)[0])
    low, high = np.minimum.reduce(lows), np.maximum.reduce(highs)
    return Scale(low, np.where(high == low, 1.0, high - low))


def _axes(values: Rows) -> tuple[int, ...]:
    """All dimensions but that of channels."""
    return {2: (0,), 3: (0, 1), 4: (0, 2, 3)}.get(values.ndim, tuple(range(values.ndim)))


def _pieces(values: Rows, rows: IntArray) -> list[IntArray]:
    # Of an array as many at once as ever: how many can be seen in the last bits of sums.
    step = _ROWS_AT_ONCE if isinstance(values, np.ndarray) else min(_ROWS_AT_ONCE, rows_at_once(values))
    return [rows[start : start + step] for start in range(0, len(rows), step)]
