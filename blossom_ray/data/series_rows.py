"""The samples of series of irregular length, row by row: one or several of each row, in the memory of its series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.stored import StoredRows
from blossom_ray.errors import DataError

_FloatArray = npt.NDArray[np.float32]
_IntArray = npt.NDArray[np.int64]
Series = tuple[BoolArray, Sequence[_FloatArray]]
"""Whether each of some rows (n,) has a series, and the series (time, channels) of those that have one."""


def stored_series(batches: Iterable[Series], series: SeriesModality, numbers: _IntArray) -> StoredRows | None:
    """The samples of all rows, one after the other; None where no row has a series.

    Args:
        batches: The rows in order, some at a time.
        series: How long samples are, and how many a series makes.
        numbers: (N,): samples of each row; those of a row without a series are lacking. A series that is not cut is
            the same in all samples that another one of its row makes.
    """
    parts: list[_FloatArray] = []
    starts: list[_IntArray] = []
    end = row = 0
    for present, values in batches:
        kept = [series.cut(each) for each in values]
        offsets = iter(np.cumsum([0, *(len(each) for each, _ in kept)]).tolist())
        own = iter(begins for _, begins in kept)
        for is_there, number in zip(present.tolist(), numbers[row : row + len(present)].tolist(), strict=True):
            begins = end + next(offsets) + next(own) if is_there else np.full(1, -1)
            starts.append(np.broadcast_to(begins, number))
        row += len(present)
        if kept:
            flat = np.concatenate([each for each, _ in kept])
            windows = np.lib.stride_tricks.sliding_window_view(flat, series.num_steps, axis=0)
            parts.append(np.moveaxis(windows, -1, 1))
            end += len(parts[-1])
    return StoredRows(parts, np.concatenate(starts)) if parts else None


def samples_by_row(
    lengths: Mapping[str, _IntArray],
    series: Mapping[str, SeriesModality],
    number: int,
    place: Callable[[str, int], str],
) -> _IntArray:
    """How many samples each row (N,) makes: as many as its series have windows, and one where it has no series.

    Args:
        lengths: By modality, values in time of each row, -1 where it has none.
        series: By modality, how they are cut.
        number: N.
        place: Words for the place of a modality's row.

    Raises:
        DataError: Two series of a row have not as many windows.
    """
    counts, first = np.zeros(number, np.int64), ""
    for name, modality in series.items():
        if modality.windows is None:
            continue
        own = np.where(lengths[name] < 0, 0, modality.num_samples(lengths[name]))
        wrong = (own > 0) & (counts > 0) & (own != counts)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{place(name, row)} makes {own[row]} windows; expected {counts[row]}, as {first} does")
        counts, first = np.maximum(counts, own), first or name
    return np.maximum(counts, 1)
