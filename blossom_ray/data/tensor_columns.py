"""A column of Arrow tensors or lists as one array: each row a sample, all of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blossom_ray.data.dataset import FloatArray
from blossom_ray.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where rows stand, for messages.

    Attributes:
        file: Name of the file.
        column: Name of the column.
        first_row: Number in the file of row 0.
    """

    file: str
    column: str
    first_row: int = 0

    def error(self, row: int, found: str, expected: str) -> DataError:
        """What is wrong with a row."""
        return DataError(
            f"{self.file}, column {self.column!r}, row {self.first_row + row} {found}; expected {expected}"
        )


def check_numeric(type_: Any, file: str, column: str) -> None:
    """Refuse a type that holds no numbers of a fixed or a regular shape.

    Raises:
        DataError: It is of another type.
    """
    element = type_.value_type if isinstance(type_, pa.FixedShapeTensorType) else type_
    while _is_list(element):
        element = element.value_type
    if not (pa.types.is_integer(element) or pa.types.is_floating(element) or pa.types.is_boolean(element)):
        raise DataError(
            f"{file}, column {column!r} has type {type_}; "
            f"expected numbers, (nested) lists of numbers, or a fixed-shape tensor"
        )


def tensor_rows(column: Any, place: Place, shape: tuple[int, ...] | None) -> FloatArray:
    """The rows of a column of a type that `check_numeric` accepts.

    Args:
        column: An Arrow array of N rows, N > 0.
        place: Where they stand.
        shape: The shape that every row has; None: that of the first row. A column of plain numbers has shape ().

    Returns:
        (N, *shape) float32, finite.

    Raises:
        DataError: A row is null, of another shape, or holds a value that is null or not finite in float32.
    """
    num_rows = len(column)
    _check_valid(column, place, 1, "is null")
    if isinstance(column.type, pa.FixedShapeTensorType):
        found, values = tuple(column.type.shape), column.to_numpy_ndarray().reshape(num_rows, -1)
        _check_valid(column.storage.flatten(), place, values.shape[1], "holds a null")
    else:
        found, values = _list_rows(column, place, 1)
    if shape is not None and found != shape:
        raise place.error(0, f"has shape {list(found)}", f"{list(shape)}, as in the rows before")
    # What does not fit into float32 becomes infinite, and is refused as not finite.
    with np.errstate(over="ignore"):
        rows: FloatArray = values.reshape(num_rows, *found).astype(np.float32)
    is_finite = np.isfinite(rows.reshape(num_rows, -1)).all(axis=1)
    if not is_finite.all():
        raise place.error(int((~is_finite).argmax()), "holds a value that is not finite", "finite numbers")
    return rows


def _list_rows(column: Any, place: Place, per_row: int) -> tuple[tuple[int, ...], Any]:
    """Shape below this level, and all values one after the other; `per_row` entries of `column` make up a row."""
    if not _is_list(column.type):
        return (), column.to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    length = int(lengths[0])
    if (lengths != length).any():
        entry = int((lengths != length).argmax())
        found = f"has {lengths[entry]} values" + (" in a list" if per_row > 1 else "")
        raise place.error(entry // per_row, found, f"{length}, as in the rows before")
    if length == 0:
        raise place.error(0, "has no values", "at least one")
    below = column.flatten()
    _check_valid(below, place, per_row * length, "holds a null")
    shape, values = _list_rows(below, place, per_row * length)
    return (length, *shape), values


def _check_valid(column: Any, place: Place, per_row: int, found: str) -> None:
    if column.null_count:
        entry = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise place.error(entry // per_row, found, "a value in every row")


def _is_list(type_: Any) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))
