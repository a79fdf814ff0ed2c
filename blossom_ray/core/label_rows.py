"""Labels of several tasks side by side, and such as are known in part: one float32 row per sample.

Behind the labels of each task a row has, for each of them, 1 where it is known and 0 where it is not; those that are
not known are 0. A class stands there as its number, which float32 has exactly. A sample of one task whose labels are
all known has no such row: its label is that of the data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blossom_ray.core.scores import Task


class LabelPlace(NamedTuple):
    """Where the labels of a task stand in a row.

    Attributes:
        labels: The columns of the labels: one for a class, else one for each class or target.
        known: The columns behind them, 1 where the label is known.
    """

    labels: slice
    known: slice


def label_places(kinds: Iterable[tuple[Task, int]]) -> tuple[LabelPlace, ...]:
    """Where the labels of each of some tasks stand, from their kind and number of outputs."""
    widths = [1 if kind == "classification" else num_outputs for kind, num_outputs in kinds]
    ends = [0, *accumulate(2 * width for width in widths)]
    return tuple(
        LabelPlace(slice(start, start + width), slice(start + width, start + 2 * width))
        for start, width in zip(ends, widths, strict=False)
    )


def label_rows(
    labels: Sequence[tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_] | None]],
) -> npt.NDArray[np.float32]:
    """The rows of some samples.

    Args:
        labels: Of each task the labels, (n,) int64 or (n, O) float32, finite, and which of them are known, of the same
            shape; None: all.
    """
    columns = []
    for values, known in labels:
        wide = values.reshape(len(values), -1).astype(np.float32)
        is_known = np.ones_like(wide) if known is None else known.reshape(wide.shape).astype(np.float32)
        columns += [np.where(is_known > 0, wide, np.float32(0)), is_known]
    return np.concatenate(columns, axis=1)
