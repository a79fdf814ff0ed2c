"""Which part of a table each row belongs to, and to which subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.data.column_files import ColumnFile
from blossom_ray.data.dataset import IntArray
from blossom_ray.data.labels import encode_subjects
from blossom_ray.data.tensor_columns import Place

_TRAIN, _HELD_OUT = "train", ("test", "held-out")


def held_out_rows(files: Sequence[ColumnFile], column: str | None) -> npt.NDArray[np.bool_]:
    """Whether each row is one of the held-out global test set (N,); none is without a column that says so.

    Raises:
        DataError: A row says something else than `train`, `test` or `held-out`.
    """
    if column is None:
        return np.zeros(sum(file.num_rows for file in files), np.bool_)
    found = []
    for place, row, value in _values(files, column):
        if value != _TRAIN and value not in _HELD_OUT:
            raise place.error(row, f"is {value!r}", " or ".join(map(repr, (_TRAIN, *_HELD_OUT))))
        found.append(value != _TRAIN)
    return np.array(found, np.bool_)


def subject_numbers(files: Sequence[ColumnFile], column: str, is_held_out: npt.NDArray[np.bool_]) -> IntArray:
    """The subject of each row (N,): whole numbers as they are, text as numbers from 0; -1 for none.

    Raises:
        DataError: A row is neither a number from 0 nor text, or null, which only a held-out row may be.
    """
    found: list[Any] = []
    for place, row, value in _values(files, column):
        is_number = isinstance(value, int) and value >= 0
        if not (is_number or isinstance(value, str) or (value is None and is_held_out[len(found)])):
            raise place.error(row, f"is {value!r}", "a whole number from 0, or text")
        found.append(value)
    has_subject = np.array([value is not None for value in found], np.bool_)
    numbers = np.full(len(found), -1, np.int64)
    if has_subject.any():
        numbers[has_subject] = encode_subjects(np.array([value for value in found if value is not None]))
    return numbers


def _values(files: Sequence[ColumnFile], column: str) -> Iterator[tuple[Place, int, Any]]:
    for file in files:
        for first_row, batch in file.batches([column]):
            place = Place(file.name, column, first_row)
            for row, value in enumerate(batch[column].to_pylist()):
                yield place, row, value
