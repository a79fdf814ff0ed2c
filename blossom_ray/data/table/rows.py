"""The columns of a table that have one text or whole number per row: labels, splits, subjects."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from blossom_ray.data.labels import Place, RowValues, used_values
from blossom_ray.data.table.columns import ColumnFile, is_text
from blossom_ray.data.table.tensor_columns import is_number
from blossom_ray.errors import DataError


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
    return used_values(tuple(numbers), np.concatenate(parts))


def places(files: Sequence[ColumnFile], column: str) -> Place:
    """Words for the place of a row of all files together."""
    ends = list(accumulate(file.num_rows for file in files))

    def place(row: int) -> str:
        number = bisect_right(ends, row)
        first_row = ends[number - 1] if number else 0
        return f"{files[number].name}, column {column!r}, row {row - first_row}"

    return place
