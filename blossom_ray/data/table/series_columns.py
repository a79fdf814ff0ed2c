"""Columns of series: lists of numbers, or of lists of numbers, that are as long as each row has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blossom_ray.data.clients import Place
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.series_rows import Series, stored_series
from blossom_ray.data.stored import StoredRows
from blossom_ray.data.table.columns import ColumnFile
from blossom_ray.data.table.tensor_columns import (
    check_numeric,
    chosen_rows,
    is_list,
    place_of,
    present_rows,
    tensor_rows,
)
from blossom_ray.data.targets import FloatArray, IntArray
from blossom_ray.errors import DataError

_EXPECTED = "lists of numbers, or of lists of numbers (time, channels)"


def check_series(files: Sequence[ColumnFile], columns: Sequence[str]) -> None:
    """Refuse columns without series by their types; a file in which one is null throughout may have none for it.

    Raises:
        DataError: One is of another type.
    """
    for file in files:
        for column in columns:
            type_ = file.types[column]
            if pa.types.is_null(type_):
                continue
            check_numeric(type_, file.name, column)
            num_axes = _num_axes(type_)
            if not 1 <= num_axes <= (2 if len(columns) == 1 else 1):
                expected = _EXPECTED if len(columns) == 1 else "lists of numbers, as one of several columns"
                raise DataError(f"{file.name}, column {column!r} has type {type_}; expected {expected}")


def series_lengths(files: Sequence[ColumnFile], columns: Sequence[str]) -> IntArray:
    """Values in time of each row (N,), -1 where one of the columns is null.

    Raises:
        DataError: A series has no values, or its columns are not equally long.
    """
    batches = ((file.name, *batch) for file in files for batch in file.batches(columns))
    return np.concatenate([_lengths(batch, columns, name, first_row) for name, first_row, batch in batches])


def series_rows(
    files: Sequence[ColumnFile], columns: Sequence[str], series: SeriesModality, numbers: IntArray
) -> StoredRows:
    """The samples of all rows, one after the other. Windows that overlap share their memory.

    Args:
        files: Of the table, one after the other.
        columns: Of the series; columns that `check_series` accepts.
        series: How long samples are, and how many a row has.
        numbers: (N,): samples of each row; those of a row without a series are lacking.

    Raises:
        DataError: A series has no values, or its columns are not equally long; or a row has another number of channels
            than those before, or holds a value that is null or not finite.
    """
    found = stored_series(_series(files, columns), series, numbers)
    if found is None:
        raise DataError(f"column {columns[0]!r} is null in all rows; expected values in some")
    return found


def _series(files: Sequence[ColumnFile], columns: Sequence[str]) -> Iterator[Series]:
    """By batch: whether each row is there (n,), and the series (time, channels) of those that are."""
    num_channels: int | None = None
    for file in files:
        for first_row, batch in file.batches(columns):
            lengths = _lengths(batch, columns, file.name, first_row)
            present = lengths >= 0
            if not present.any():
                yield present, []
                continue
            rows, ends = np.flatnonzero(present), np.cumsum(lengths[present])
            shape = None if num_channels is None or len(columns) > 1 else (num_channels,)
            found = []
            for column in columns:
                place = _place_of_entry(place_of(file.name, column, first_row, rows), ends)
                found.append(_entries(chosen_rows(batch[column], present), place, shape))
            values = np.concatenate(found, axis=1)
            num_channels = values.shape[1]
            yield present, np.split(values, ends[:-1])


def _lengths(batch: Mapping[str, Any], columns: Sequence[str], file: str, first_row: int) -> IntArray:
    """Values in time of each row of a batch (n,), -1 where a column is null."""
    found = np.stack([_column_lengths(batch[column]) for column in columns])
    present = (found >= 0).all(axis=0)
    for lengths, column in zip(found, columns, strict=True):
        wrong = present & ((lengths == 0) | (lengths != found[0]))
        if wrong.any():
            row = int(wrong.argmax())
            expected = f"{found[0, row]}, as column {columns[0]!r} has there" if lengths[row] else "at least one"
            place = place_of(file, column, first_row)(row)
            raise DataError(f"{place} has {lengths[row]} values; expected {expected}")
    return np.where(present, found[0], -1)


def _entries(array: Any, place: Place, shape: tuple[int, ...] | None) -> FloatArray:
    """All values in time of an array of series, one after the other (total, channels)."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        values = tensor_rows(array, place, None)
        return values.reshape(-1, *values.shape[2:] or (1,))
    below = array.flatten()
    if below.null_count:
        entry = int(present_rows(below).argmin())
        raise DataError(f"{place(entry)} holds a null; expected numbers, or null in the place of the whole series")
    return tensor_rows(below, place, shape if is_list(below.type) else ()).reshape(len(below), -1)


def _place_of_entry(place: Place, ends: IntArray) -> Place:
    return lambda entry: place(int(np.searchsorted(ends, entry, side="right")))


def _column_lengths(array: Any) -> IntArray:
    """Values in time of each row, -1 for null."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        return np.where(present_rows(array), array.type.shape[0], -1)
    if pa.types.is_null(array.type):
        return np.full(len(array), -1)
    found: IntArray = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _num_axes(type_: Any) -> int:
    if isinstance(type_, pa.FixedShapeTensorType):
        return len(type_.shape)
    return 1 + _num_axes(type_.value_type) if is_list(type_) else 0
