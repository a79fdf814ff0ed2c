"""The labels of a table, for each task, from the types of column that people keep them in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from blossom_ray.data.column_files import ColumnFile
from blossom_ray.data.dataset import FloatArray, Labels
from blossom_ray.data.labels import check_binary, checked_names, encode_classes, encode_sets
from blossom_ray.data.tensor_columns import Place, check_numeric, tensor_rows
from blossom_ray.errors import DataError
from blossom_ray.scores import Task


def read_labels(
    files: Sequence[ColumnFile], columns: Sequence[str], task: Task, class_names: Sequence[str] | None
) -> tuple[Labels, tuple[str, ...]]:
    """The labels of all rows, and the names of classes or targets.

    Args:
        files: The files in order, at least one row among them.
        columns: Columns of labels, which all files have.
        task: What they are for.
        class_names: Names of classes or targets, or None.

    Returns:
        As in `Dataset`: (N,) int64, or (N, C) float32.

    Raises:
        DataError: A column is of a type that the task does not have, or a row is null, of another length, or out of
            range.
    """
    place = _places(files, columns[0])
    if task == "classification":
        if len(columns) > 1:
            raise DataError(f"data.label_column names {len(columns)} columns; expected one for task: {task}")
        return encode_classes(_class_values(files, columns[0]), place, class_names)
    if task == "multilabel" and len(columns) == 1 and all(_is_text_list(file.types[columns[0]]) for file in files):
        return encode_sets(_name_lists(files, columns[0]), place, class_names)
    values = np.concatenate([_numbers(files, column) for column in columns], axis=1)
    if task == "multilabel":
        check_binary(values, place)
    return values, checked_names(class_names, _default_names(task, columns, values.shape[1]), place)


def _places(files: Sequence[ColumnFile], column: str) -> Callable[[int], str]:
    """Words for the place of a row of all files together."""
    ends = list(accumulate(file.num_rows for file in files))

    def place(row: int) -> str:
        number = bisect_right(ends, row)
        first_row = ends[number - 1] if number else 0
        return f"{files[number].name}, column {column!r}, row {row - first_row}"

    return place


def _class_values(files: Sequence[ColumnFile], column: str) -> np.ndarray:
    parts = []
    for file in files:
        kind = _value_type(file.types[column])
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise DataError(
                f"{file.name}, column {column!r} has type {file.types[column]}; "
                f"expected whole numbers or text for task: classification"
            )
        for first_row, batch in file.batches([column]):
            values = _decoded(batch[column], Place(file.name, column, first_row))
            parts.append(np.array(values.to_pylist(), object if is_text else np.int64))
    if len({part.dtype for part in parts}) > 1:
        raise DataError(f"column {column!r} has text in some files and numbers in others; expected one of them in all")
    return np.concatenate(parts)


def _name_lists(files: Sequence[ColumnFile], column: str) -> list[list[str]]:
    found: list[list[str]] = []
    for file in files:
        for first_row, batch in file.batches([column]):
            place = Place(file.name, column, first_row)
            values = _decoded(batch[column], place).to_pylist()
            for row, names in enumerate(values):
                if None in names:
                    raise place.error(row, "holds a null", "names of classes")
            found += values
    return found


def _numbers(files: Sequence[ColumnFile], column: str) -> FloatArray:
    """(N, width) float32."""
    parts: list[FloatArray] = []
    for file in files:
        check_numeric(file.types[column], file.name, column)
        for first_row, batch in file.batches([column]):
            place = Place(file.name, column, first_row)
            rows = tensor_rows(batch[column], place, parts[0].shape[1:] if parts else None)
            if rows.ndim > 2:
                raise place.error(0, f"has shape {list(rows.shape[1:])}", "a number or a list of numbers")
            parts.append(rows)
    values = np.concatenate(parts)
    return values[:, np.newaxis] if values.ndim == 1 else values


def _decoded(array: Any, place: Place) -> Any:
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise place.error(row, "is null", "a label in every row")
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _value_type(type_: Any) -> Any:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_text_list(type_: Any) -> bool:
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return False
    element = _value_type(type_.value_type)
    return bool(pa.types.is_string(element) or pa.types.is_large_string(element))


def _default_names(task: Task, columns: Sequence[str], width: int) -> list[str]:
    if len(columns) == width:
        return list(columns)
    what = "class" if task == "multilabel" else "target"
    return [f"{what} {position}" for position in range(width)]
