"""Samples of a modality that stay where they are kept, often on disk, and are read some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

_IntArray = npt.NDArray[np.int64]
_BoolArray = npt.NDArray[np.bool_]

BYTES_AT_ONCE = 2**24
"""Of float32 numbers that are in memory at once, where rows are gone through."""


class Scale(NamedTuple):
    """What a value x becomes: (x - offset) / divisor. Both are by channel, shaped to go with a sample.

    They are float64, or float32 where numbers are known before the data.
    """

    offset: npt.NDArray[np.float64 | np.float32]
    divisor: npt.NDArray[np.float64 | np.float32]


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Samples (N, *shape), float32: what a `Dataset` may have in the place of an array. Indexing reads into memory.

    Attributes:
        parts: The samples as they are kept, one after the other: arrays (n, *shape) of uint8, int32 or float32, such as
            maps of files, or other stored rows. At least one; they may have no rows.
        rows: (N,) int64: which kept sample each row is, counted over all parts; -1 for a row that has none.
        factor: A kept number times this is the float32 number.
        fill: All values of a row that has no sample: 0, or NaN where its client does not own the modality.
        scale: What is done to the float32 numbers of samples as they are read; None: nothing.
    """

    parts: Sequence[npt.NDArray[Any] | StoredRows]
    rows: _IntArray
    factor: float = 1.0
    fill: float = 0.0
    scale: Scale | None = None

    dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape)."""
        return (len(self.rows), *self.parts[0].shape[1:])

    @property
    def ndim(self) -> int:
        """Dimensions, that of rows among them."""
        return self.parts[0].ndim

    @property
    def size(self) -> int:
        """Values of all rows."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take in memory."""
        return self.size * self.dtype.itemsize

    @property
    def lacking(self) -> _BoolArray:
        """(N,): whether a row has no sample."""
        return self.rows < 0

    @classmethod
    def of(cls, *values: Rows) -> StoredRows:
        """The same rows, one after the other, which may be read later; nothing is copied."""
        if len(values) == 1 and isinstance(values[0], StoredRows):
            return values[0]
        return cls(values, np.arange(sum(map(len, values))))

    @property
    def is_of_bytes(self) -> bool:
        """Whether samples are kept as bytes, in a quarter of the memory."""
        return all(part.dtype == np.uint8 for part in self.parts)

    def as_kept(self) -> StoredRows:
        """The numbers that are kept; 0 in a row that has no sample."""
        return replace(self, factor=1.0, fill=0.0, scale=None)

    def __getitem__(self, rows: slice | _IntArray | _BoolArray) -> npt.NDArray[np.float32]:
        """Some rows (n, *shape), in memory of their own."""
        numbers = self.rows[rows]
        found = np.full((len(numbers), *self.shape[1:]), self.fill, np.float32)
        part_of = np.where(numbers < 0, -1, np.searchsorted(self._ends, numbers, side="right"))
        for part in np.unique(part_of[part_of >= 0]).tolist():
            places = np.flatnonzero(part_of == part)
            kept = self.parts[part]
            values = kept[numbers[places] - (self._ends[part] - len(kept))].astype(np.float32, copy=False)
            # Divided, a byte with the factor 1/255 becomes the float32 that is nearest to its part of 255.
            values = values if self.factor == 1 else values / np.float32(1 / self.factor)
            found[places] = values if self.scale is None else (values - self.scale.offset) / self.scale.divisor
        return found

    def chosen(self, rows: slice | _IntArray | _BoolArray) -> StoredRows:
        """Some of these rows, with nothing read."""
        return replace(self, rows=self.rows[rows])

    def without(self, missing: _BoolArray, fill: float) -> StoredRows:
        """The same, of which some rows (N,) have no sample; these and those that had none become `fill`."""
        return replace(self, rows=np.where(missing, -1, self.rows), fill=fill)

    def in_one_piece(self, folder: Path | None = None, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """All rows as one array: in memory, or where they are more than `BYTES_AT_ONCE` a map of a file.

        Args:
            folder: Where the file is made; it is gone with the array. None: where temporary files are.
            dtype: Of the array.
        """
        if self.nbytes <= BYTES_AT_ONCE:
            return self[:].astype(dtype, copy=False)
        with TemporaryFile(dir=folder) as file:
            for rows in slices(self):
                file.write(self[rows].astype(dtype, copy=False).data)
            file.flush()
            return np.memmap(file, dtype, mode="r", shape=self.shape)

    @cached_property
    def first_not_finite(self) -> int | None:
        """The first row with a sample that has a value that is not finite, or None. Whole numbers are not read."""
        has = np.flatnonzero(~self.lacking)
        if any(part.dtype.kind == "f" for part in self.parts):
            for rows in slices(self, len(has)):
                is_finite = np.isfinite(self[has[rows]].reshape(rows.stop - rows.start, -1)).all(axis=1)
                if not is_finite.all():
                    return int(has[rows][is_finite.argmin()])
        return None

    @cached_property
    def _ends(self) -> _IntArray:
        return np.cumsum([len(part) for part in self.parts], dtype=np.int64)


Rows: TypeAlias = npt.NDArray[np.float32] | StoredRows
"""The samples of a modality (N, *shape), float32, in memory or not."""


def taken(values: Rows, rows: slice | _IntArray | _BoolArray) -> Rows:
    """Some rows; of stored ones nothing is read."""
    return values.chosen(rows) if isinstance(values, StoredRows) else values[rows]


def slices(values: Rows, number: int | None = None, most: int | None = None) -> Iterator[slice]:
    """Slices that cover rows one after the other, each of at most `BYTES_AT_ONCE` or of a single row.

    Args:
        values: Whose rows.
        number: How many there are; None: all of them.
        most: The most rows in a slice, or None.
    """
    number, step = len(values) if number is None else number, rows_at_once(values)
    step = step if most is None else min(step, most)
    yield from (slice(start, min(start + step, number)) for start in range(0, number, step))


def rows_at_once(values: Rows) -> int:
    """How many rows `BYTES_AT_ONCE` are, one at least."""
    return max(1, BYTES_AT_ONCE // max(1, math.prod(values.shape[1:]) * values.dtype.itemsize))


def as_seen(values: Rows, rows: _IntArray | slice, observed: _BoolArray | None, scale: Scale | None) -> StoredRows:
    """Some rows, zeros where they are not observed (n,); scaled by what a client has of its own, if anything."""
    found = StoredRows.of(values).chosen(rows)
    found = found if observed is None else found.without(~observed, 0)
    return found if scale is None else replace(found, scale=scale)
