"""A column of Arrow tensors or lists as one array: each row a sample, all of one shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from blossom_ray.data.clients import Place
from blossom_ray.data.targets import FloatArray
from blossom_ray.errors import DataError


def place_of(file: str, column: str, first_row: int = 0, rows: npt.NDArray[np.int64] | None = None) -> Place:
    """Words for the places of rows of a batch.

    Args:
        file: Name of the file.
        column: Name of the column.
        first_row: Number in the file of row 0.
        rows: The numbers of the rows behind `first_row`, where some are left out.
    """
    return lambda row: f"{file}, column {column!r}, row {first_row + (row if rows is None else int(rows[row]))}"


def check_numeric(type_: Any, file: str, column: str, otherwise: str = "") -> None:
    """Refuse a type that holds no numbers of a fixed or a regular shape; `otherwise` is what else may be expected.

    Raises:
        DataError: It is of another type, or of a tensor whose order of dimensions is not certain.
    """
    element = type_
    while is_list(element):
        element = element.value_type
    if isinstance(element, pa.FixedShapeTensorType):
        order = element.permutation or []
        # The format says that it leads from the logical dimension to the stored one; `from_numpy_ndarray` of pyarrow
        # writes the inverse. Where they differ, nobody can tell what was meant.
        if any(order[place] != position for position, place in enumerate(order)):
            raise DataError(
                f"{file}, column {column!r} has tensors stored in the order of dimensions {order}, which programs "
                f"read in different ways; expected them as they are (np.ascontiguousarray), or dimensions swapped"
            )
        element = element.value_type
    if not (is_number(element) or pa.types.is_boolean(element)):
        raise DataError(
            f"{file}, column {column!r} has type {type_}; "
            f"expected numbers, (nested) lists of numbers, or a fixed-shape tensor{otherwise}"
        )


def tensor_rows(column: Any, place: Place, shape: tuple[int, ...] | None, *, has_nan: bool = False) -> FloatArray:
    """The rows of a column of a type that `check_numeric` accepts.

    Args:
        column: An Arrow array of N rows, N > 0.
        place: Where they stand.
        shape: The shape that every row has; None: that of the first row. A column of plain numbers has shape ().
        has_nan: Whether values may be NaN, or null, which becomes NaN.

    Returns:
        (N, *shape) float32, finite or, with `has_nan`, NaN.

    Raises:
        DataError: A row is null, of another shape, or holds a value that is null or not finite in float32.
    """
    num_rows = len(column)
    _check_valid(column, place, 1, "is null")
    found, values = _list_rows(column, place, 1, has_nan=has_nan)
    if shape is not None and found != shape:
        raise DataError(f"{place(0)} has shape {list(found)}; expected {list(shape)}, as in the rows before")
    # What does not fit into float32 becomes infinite, and is refused as not finite.
    with np.errstate(over="ignore"):
        rows: FloatArray = values.reshape(num_rows, *found).astype(np.float32)
    flat = rows.reshape(num_rows, -1)
    is_wrong = (np.isinf(flat) if has_nan else ~np.isfinite(flat)).any(axis=1)
    if is_wrong.any():
        found_value = "an infinite value" if has_nan else "a value that is not finite"
        raise DataError(f"{place(int(is_wrong.argmax()))} holds {found_value}; expected finite numbers")
    return rows


def label_numbers(column: Any, place: Place, shape: tuple[int, ...] | None) -> FloatArray:
    """The rows of a column of labels, none of them null, as `tensor_rows`; NaN where a value in a list is null.

    Raises:
        DataError: As `tensor_rows`; or a value is NaN.
    """
    rows = tensor_rows(column, place, shape, has_nan=True)
    is_nan = np.isnan(rows).reshape(len(rows), -1)
    leaves = column.storage if isinstance(column, pa.ExtensionArray) else column
    while is_list(leaves.type):
        leaves = leaves.flatten()
    if is_nan.sum() != leaves.null_count:
        row = int(is_nan.any(axis=1).argmax())
        raise DataError(f"{place(row)} holds a value that is not finite; expected finite numbers")
    return rows


def present_rows(column: Any) -> npt.NDArray[np.bool_]:
    """Whether each row of an Arrow array is there, and not null (N,)."""
    present: npt.NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return present


def chosen_rows(column: Any, is_chosen: npt.NDArray[np.bool_]) -> Any:
    """An Arrow array with these rows alone."""
    if isinstance(column, pa.ExtensionArray):  # which Arrow cannot filter in all of its versions
        return pa.ExtensionArray.from_storage(column.type, column.storage.filter(pa.array(is_chosen)))
    return column.filter(pa.array(is_chosen))


def is_number(type_: Any) -> bool:
    """Whether values of an Arrow type are numbers: integers, floats or decimals."""
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def is_list(type_: Any) -> bool:
    """Whether values of an Arrow type are lists, of any or of a fixed length."""
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _list_rows(column: Any, place: Place, per_row: int, *, has_nan: bool) -> tuple[tuple[int, ...], Any]:
    """Shape below this level, and all values one after the other; `per_row` entries of `column` make up a row."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return _tensors(column, place, per_row, has_nan=has_nan)
    if not is_list(column.type):
        return (), _plain(column)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    length = int(lengths[0])
    if (lengths != length).any():
        entry = int((lengths != length).argmax())
        found = f"has {lengths[entry]} values" + (" in a list" if per_row > 1 else "")
        raise DataError(f"{place(entry // per_row)} {found}; expected {length}, as in the rows before")
    if length == 0:
        raise DataError(f"{place(0)} has no values; expected at least one")
    below = column.flatten()
    if is_list(below.type) or not has_nan:
        _check_valid(below, place, per_row * length, "holds a null")
    shape, values = _list_rows(below, place, per_row * length, has_nan=has_nan)
    return (length, *shape), values


def _tensors(column: Any, place: Place, per_row: int, *, has_nan: bool) -> tuple[tuple[int, ...], Any]:
    """As `_list_rows`. Tensors are stored by other dimensions than those they have where the type permutes them."""
    stored = tuple(column.type.shape)
    order = column.type.permutation or range(len(stored))
    if 0 in stored:
        raise DataError(f"{place(0)} has shape {list(stored)}; expected at least one value")
    below = column.storage.flatten()
    if not has_nan:
        _check_valid(below, place, per_row * math.prod(stored), "holds a null")
    values = _plain(below).reshape(-1, *stored).transpose(0, *(1 + dimension for dimension in order))
    return tuple(values.shape[1:]), values


def _plain(column: Any) -> Any:
    values = column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
    return values.to_numpy(zero_copy_only=False)


def _check_valid(column: Any, place: Place, per_row: int, found: str) -> None:
    if column.null_count:
        entry = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{place(entry // per_row)} {found}; expected a value in every row")
