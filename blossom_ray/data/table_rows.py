"""The columns of a table that have one text or whole number per row: labels, splits, subjects."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.column_files import ColumnFile, is_text
from blossom_ray.data.dataset import IntArray
from blossom_ray.data.labels import Place, RowValues, encode_subjects
from blossom_ray.data.tensor_columns import is_number
from blossom_ray.errors import DataError
from blossom_ray.scenario.phrases import shown

_TRAIN, _HELD_OUT = "train", ("test", "held-out")


def held_out_rows(files: Sequence[ColumnFile], column: str | None) -> npt.NDArray[np.bool_]:
    """Whether each row is one of the held-out global test set (N,); none is without a column that says so.

    Raises:
        DataError: A row says something else than `train`, `test` or `held-out`.
    """
    if column is None:
        return np.zeros(sum(file.num_rows for file in files), np.bool_)
    known = (_TRAIN, *_HELD_OUT)
    values = values_of(files, column)
    wrong = ~np.array([*(value in known for value in values.distinct), False])[values.codes]
    if wrong.any():
        row = int(wrong.argmax())
        value = values.distinct[values.codes[row]] if values.codes[row] >= 0 else None
        expected = " or ".join(map(repr, known))
        raise DataError(f"{places(files, column)(row)} {shown(value)}; expected {expected}")
    return np.array([value != _TRAIN for value in values.distinct], np.bool_)[values.codes]


def subject_numbers(files: Sequence[ColumnFile], column: str, is_held_out: npt.NDArray[np.bool_]) -> IntArray:
    """The subject of each row (N,), as `encode_subjects` numbers them; -1 for none, as held-out rows may have.

    Raises:
        DataError: A row is neither a whole number from 0 nor text, or null although it is not held out.
    """
    return encode_subjects(values_of(files, column), places(files, column), ~is_held_out)


def values_of(files: Sequence[ColumnFile], column: str) -> RowValues:
    """The values of a column in all files.

    Raises:
        DataError: It is of a type other than text, numbers and truth values.
    """
    numbers: dict[Any, int] = {}
    parts = []
    for file in files:
        type_ = file.types[column]
        value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
        is_plain = is_text(value_type) or is_number(value_type) or pa.types.is_boolean(value_type)
        if not (is_plain or pa.types.is_null(value_type)):
            raise DataError(f"{file.name}, column {column!r} has type {type_}; expected whole numbers or text")
        for _, batch in file.batches([column]):
            array = batch[column]
            is_coded = pa.types.is_dictionary(array.type)
            values = (array.dictionary if is_coded else array).to_pylist()
            own = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
            if is_coded:
                indices = array.indices.cast(pa.int64()).fill_null(len(own)).to_numpy(zero_copy_only=False)
                parts.append(np.array([*own, -1], np.int64)[indices])
            else:
                parts.append(np.array(own, np.int64))
    return _used(tuple(numbers), np.concatenate(parts))


def places(files: Sequence[ColumnFile], column: str) -> Place:
    """Words for the place of a row of all files together."""
    ends = list(accumulate(file.num_rows for file in files))

    def place(row: int) -> str:
        number = bisect_right(ends, row)
        first_row = ends[number - 1] if number else 0
        return f"{files[number].name}, column {column!r}, row {row - first_row}"

    return place


def _used(distinct: Sequence[Any], codes: IntArray) -> RowValues:
    """Without the values of dictionaries that no row has."""
    used = np.unique(codes[codes >= 0])
    numbers = np.full(len(distinct) + 1, -1, np.int64)
    numbers[used] = np.arange(len(used))
    return RowValues([distinct[number] for number in used.tolist()], numbers[codes])
