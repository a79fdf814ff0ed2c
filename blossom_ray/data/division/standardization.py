"""Modalities of own data brought to mean 0 and deviation 1, by what clients train on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.stored import Rows, StoredRows, every, slices
from blossom_ray.data.targets import FloatArray, IntArray

_ROWS_AT_ONCE = 1024


def standardized(dataset: Dataset, federation: Federation, profiles: Sequence[ClientProfile]) -> Dataset:
    """The data set with each channel at mean 0 and deviation 1 over the training rows of the clients that own it.

    Rows in which a client does not observe it count for nothing; zeros stay in those that have no value. Validation,
    test and held-out rows, and all of clients that never train, are brought to the same scale and count for nothing,
    too. Clients would find mean and deviation together from sums alone. A constant channel becomes 0. Channels: each
    feature of a vector (F,), the last dimension of a sequence (time, channels), the first of an image (channels,
    height, width); of other shapes, all values are one.

    Args:
        dataset: Not modified.
        federation: Which rows clients train on.
        profiles: The clients in the order of their ids.
    """
    scales = channel_scales(dataset, federation, profiles)
    held_out = dataset.held_out
    if held_out is not None:
        held_out = replace(held_out, inputs=_scaled(held_out, scales))
    return replace(dataset, inputs=_scaled(dataset, scales), held_out=held_out)


_Scale = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def channel_scales(dataset: Dataset, federation: Federation, profiles: Sequence[ClientProfile]) -> dict[str, _Scale]:
    """Mean and deviation that `standardized` uses, by modality, float64, shaped to go with a row."""
    scales = {}
    for modality, values in dataset.inputs.items():
        owners = [profile.index for profile in profiles if modality in profile.modalities and not profile.is_unseen]
        rows = np.concatenate([federation.train.of(client) for client in owners])
        if modality in federation.observed:
            rows = rows[federation.observed[modality][rows]]
        scales[modality] = _scale(values, rows)
    return scales


def _scaled(dataset: Dataset, scales: Mapping[str, _Scale]) -> dict[str, FloatArray]:
    found = {}
    for name, values in dataset.inputs.items():
        mean, deviation = scales[name]
        found[name] = np.empty(values.shape, np.float32)
        for rows in slices(values):
            found[name][rows] = (values[rows] - mean) / deviation
        if name in dataset.observed:
            found[name][~dataset.observed[name]] = 0
    return found


def _scale(values: Rows, train: IntArray) -> _Scale:
    """Mean and deviation by channel, shaped to go with a row; of a constant channel the deviation is 1."""
    # All dimensions but that of channels.
    axes = {2: (0,), 3: (0, 1), 4: (0, 2, 3)}.get(values.ndim, tuple(range(values.ndim)))
    # Of an array as many rows at once as ever: their number is seen in the last bit of the sums.
    is_stored = isinstance(values, StoredRows)
    steps = slices(values, len(train), _ROWS_AT_ONCE) if is_stored else every(_ROWS_AT_ONCE, len(train))
    pieces = [train[rows] for rows in steps]
    number = len(train) * math.prod(values.shape[axis] for axis in axes[1:])
    mean = sum(values[piece].sum(axis=axes, dtype=np.float64, keepdims=True)[0] for piece in pieces) / number
    squares = sum(np.square(values[piece] - mean).sum(axis=axes, keepdims=True)[0] for piece in pieces)
    first = values[train[:1]].min(axis=axes, keepdims=True)[0]
    # Rounding may leave a constant channel with a tiny deviation, and dividing by that would blow it up.
    is_constant = np.logical_and.reduce([(values[piece] == first).all(axis=axes, keepdims=True)[0] for piece in pieces])
    return mean, np.where(is_constant, 1.0, np.sqrt(squares / number))
