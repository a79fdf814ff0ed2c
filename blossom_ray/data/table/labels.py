"""The labels of a table, for each task, from the types of column that people keep them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import FloatArray, Labels
from blossom_ray.data.labels import encode_classes, encode_numbers, encode_sets
from blossom_ray.data.table.columns import ColumnFile, is_text
from blossom_ray.data.table.rows import TableRows
from blossom_ray.data.table.tensor_columns import BatchPlace, check_numeric, is_list, tensor_rows
from blossom_ray.errors import DataError


def read_labels(
    rows: TableRows, columns: Sequence[str], task: Task, class_names: Sequence[str] | None
) -> tuple[Labels, tuple[str, ...]]:
    """The labels of all rows, and the names of classes or targets.

    Args:
        rows: The table.
        columns: Columns of labels, which all files have.
        task: What they are for.
        class_names: Names of classes or targets, or None.

    Returns:
        As in `Dataset`: (N,) int64, or (N, C) float32.

    Raises:
        DataError: A column is of a type that the task does not have, or a row is null, of another length, or out of
            range.
    """
    files, place = rows.files, rows.place(columns[0])
    if task == "classification":
        if len(columns) > 1:
            raise DataError(f"data.label_column names {len(columns)} columns; expected one for task: {task}")
        values = rows.values(columns[0])
        # A table's truth values are the classes 0 and 1.
        distinct = [int(value) if isinstance(value, bool) else value for value in values.distinct]
        return encode_classes(replace(values, distinct=distinct), class_names)
    if task == "multilabel" and len(columns) == 1 and all(_is_text_list(file.types[columns[0]]) for file in files):
        return encode_sets(_name_lists(files, columns[0]), place, class_names)
    numbers = np.concatenate([_numbers(files, column) for column in columns], axis=1)
    return encode_numbers(numbers, place, task, class_names, columns)


def _name_lists(files: Sequence[ColumnFile], column: str) -> list[list[str]]:
    found: list[list[str]] = []
    known: dict[str, str] = {}
    for file in files:
        for first_row, batch in file.batches([column]):
            place = BatchPlace(file.name, column, first_row)
            for row, names in enumerate(batch[column].to_pylist()):
                if names is None:
                    raise place.error(row, "is null", "a label in every row")
                if None in names:
                    raise place.error(row, "holds a null", "names of classes")
                found.append([known.setdefault(name, name) for name in names])
    return found


def _numbers(files: Sequence[ColumnFile], column: str) -> FloatArray:
    """(N, width) float32."""
    parts: list[FloatArray] = []
    for file in files:
        check_numeric(file.types[column], file.name, column)
        for first_row, batch in file.batches([column]):
            place = BatchPlace(file.name, column, first_row)
            rows = tensor_rows(batch[column], place, parts[0].shape[1:] if parts else None)
            if rows.ndim > 2:
                raise place.error(0, f"has shape {list(rows.shape[1:])}", "a number or a list of numbers")
            parts.append(rows)
    values = np.concatenate(parts)
    return values[:, np.newaxis] if values.ndim == 1 else values


def _is_text_list(type_: Any) -> bool:
    if not is_list(type_):
        return False
    element = type_.value_type
    return is_text(element.value_type if pa.types.is_dictionary(element) else element)
