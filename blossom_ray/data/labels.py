"""Labels as people have them, and the labels of a `Dataset`: names to numbers, one column per class or target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.core.phrases import shortened, shown
from blossom_ray.core.scores import Task
from blossom_ray.data.clients import HELD_OUT, SPLITS, Place
from blossom_ray.data.dataset import FloatArray, IntArray
from blossom_ray.errors import DataError

_MOST_BITS = 256  # more than any type of Arrow has

_CLASSES = "text or a whole number (of floats up to 2^53) for task: classification"


@dataclass(frozen=True)
class RowValues:
    """A value for each of N rows, such as a label; NumPy would cut text, widen it, or round large numbers.

    Attributes:
        distinct: The values that occur, in no certain order.
        codes: (N,) int64: the place of each row's value in `distinct`, or -1 where it is null.
    """

    distinct: Sequence[Any]
    codes: IntArray


def row_values(values: Iterable[Any]) -> RowValues:
    """Values of rows, each hashable, or None."""
    numbers: dict[Any, int] = {}
    codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
    return RowValues(tuple(numbers), np.array(codes, np.int64))


def used_values(distinct: Sequence[Any], codes: IntArray) -> RowValues:
    """Values of rows without those that no row has."""
    used = np.unique(codes[codes >= 0])
    numbers = np.full(len(distinct) + 1, -1, np.int64)
    numbers[used] = np.arange(len(used))
    return RowValues([distinct[number] for number in used.tolist()], numbers[codes])


def encode_classes(
    values: RowValues, place: Place, class_names: Sequence[str] | None = None
) -> tuple[IntArray, tuple[str, ...]]:
    """One class per sample, as numbers from 0.

    Args:
        values: Of N rows, at least one: text, truth values, or whole numbers of any type.
        place: Where a row stands.
        class_names: All classes in order. Text must be one of them; numbers count them from 0. None: the values that
            occur, sorted.

    Returns:
        Labels (N,) int64, and the names of the classes.

    Raises:
        DataError: A value is null, neither text nor whole, or none of the classes.
    """
    _check_given(values, place, "a label in every row", np.ones(len(values.codes), np.bool_))
    classes = _text_or_whole(values, place, _CLASSES)
    if class_names is None:
        found = sorted(set(classes))
        numbers = {value: number for number, value in enumerate(found)}
        return np.array([numbers[value] for value in classes], np.int64)[values.codes], tuple(map(str, found))
    if classes and isinstance(classes[0], str):
        numbers = {name: number for number, name in enumerate(class_names)}
        expected = f"one of {', '.join(class_names)}"
    else:
        numbers = {number: number for number in range(len(class_names))}
        expected = f"0 to {len(class_names) - 1}, one of the class names"
    _check_each([value in numbers for value in classes], values, place, expected)
    return np.array([numbers[value] for value in classes], np.int64)[values.codes], tuple(class_names)


def encode_sets(
    sets: Sequence[Sequence[str]], place: Place, class_names: Sequence[str] | None = None
) -> tuple[FloatArray, tuple[str, ...]]:
    """Any number of classes per sample, each given by its name, as a column of 0 and 1 per class.

    Args:
        sets: Names of the classes of each of N samples.
        place: Where a row stands.
        class_names: All classes in order; None: those that occur, sorted.

    Returns:
        Labels (N, C) float32, and the names of the classes.

    Raises:
        DataError: A name is none of the classes, or no sample has any.
    """
    names = tuple(sorted({name for own in sets for name in own}) if class_names is None else class_names)
    if not names:
        raise DataError(f"{place(0)} and all others are empty; expected the names of classes")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.zeros((len(sets), len(names)), np.float32)
    for row, own in enumerate(sets):
        for name in own:
            if name not in numbers:
                raise DataError(f"{place(row)} has {shortened(name)!r}; expected some of {', '.join(names)}")
            labels[row, numbers[name]] = 1
    return labels, names


def check_binary(values: FloatArray, place: Place) -> None:
    """Refuse labels (N, C) that are not all 0 or 1.

    Raises:
        DataError: One is not.
    """
    wrong = ((values != 0) & (values != 1)).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{place(row)} is {values[row].tolist()}; expected 0 or 1 for each class")


def check_finite(values: FloatArray, place: Place) -> None:
    """Refuse values (N, T) that are not all finite.

    Raises:
        DataError: One is not.
    """
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{place(row)} is {values[row].tolist()}; expected finite numbers in the range of float32")


def default_names(task: Task, number: int) -> list[str]:
    """The names of so many classes or targets that have none."""
    what = "class" if task == "multilabel" else "target"
    return [f"{what} {position}" for position in range(number)]


def checked_names(class_names: Sequence[str] | None, defaults: Sequence[str], place: Place) -> tuple[str, ...]:
    """The names of columns of labels: those given, else the defaults.

    Raises:
        DataError: As many names as columns are not given.
    """
    if class_names is None:
        return tuple(defaults)
    if len(class_names) != len(defaults):
        raise DataError(f"{place(0)} has {len(defaults)} values; expected {len(class_names)}, one per class name")
    return tuple(class_names)


def encode_ids(
    values: RowValues, place: Place, is_needed: npt.NDArray[np.bool_] | None = None
) -> tuple[IntArray, tuple[str, ...]]:
    """Clients or recordings (N,) int64, counted from 0 in sorted order, -1 for none; and what they are called.

    Args:
        values: Of N rows.
        place: Where a row stands.
        is_needed: (N,): whether a row must have one. None: all must.

    Raises:
        DataError: A value is neither text nor a whole number; or null where one is needed.
    """
    expected = "a whole number, or text"
    _check_given(values, place, expected, np.ones(len(values.codes), np.bool_) if is_needed is None else is_needed)
    ids = _text_or_whole(values, place, expected)
    found = sorted(set(ids))
    numbers = {value: number for number, value in enumerate(found)}
    return np.array([*(numbers[value] for value in ids), -1], np.int64)[values.codes], tuple(map(str, found))


def encode_splits(values: RowValues, place: Place, *, has_clients: bool) -> IntArray:
    """The part of each row (N,) int64: its place in `SPLITS`, or -1 for the held-out global test set.

    Args:
        values: Of N rows: `train` and `held-out`; with clients also `validation` and `test`, their own. Without
            clients `test` means `held-out`.
        place: Where a row stands.
        has_clients: Whether the data say whose each row is.

    Raises:
        DataError: A row says something else.
    """
    numbers = {name: number for number, name in enumerate(SPLITS)} if has_clients else {"train": 0, "test": -1}
    numbers[HELD_OUT] = -1
    wrong = ~np.array([*(value in numbers for value in values.distinct), False])[values.codes]
    if wrong.any():
        row = int(wrong.argmax())
        value = values.distinct[values.codes[row]] if values.codes[row] >= 0 else None
        hint = " (and 'validation' with data.partition: {kind: given})" if value == "validation" else ""
        raise DataError(f"{place(row)} {shown(value)}; expected {' or '.join(map(repr, numbers))}{hint}")
    return np.array([numbers[value] for value in values.distinct], np.int64)[values.codes]


def encode_subjects(
    values: RowValues, place: Place, is_needed: npt.NDArray[np.bool_] | None = None
) -> tuple[IntArray, tuple[str, ...]]:
    """Subjects (N,) int64 as numbers from 0, -1 for none; and what they are called, where these are not their numbers.

    Whole numbers stay as they are, unless one is too large for that; those and text are counted in sorted order.

    Args:
        values: Of N rows.
        place: Where a row stands.
        is_needed: (N,): whether a row must have a subject. None: all must.

    Raises:
        DataError: A value is neither text nor a whole number from 0; or null where one is needed.
    """
    expected = "a whole number from 0, or text"
    _check_given(values, place, expected, np.ones(len(values.codes), np.bool_) if is_needed is None else is_needed)
    subjects = _text_or_whole(values, place, expected)
    _check_each([isinstance(value, str) or value >= 0 for value in subjects], values, place, expected)
    names: list[Any] = []
    if any(isinstance(value, str) or value > np.iinfo(np.int64).max for value in subjects):
        names = sorted(set(subjects))
        numbers = {value: number for number, value in enumerate(names)}
        subjects = [numbers[value] for value in subjects]
    return np.array([*subjects, -1], np.int64)[values.codes], tuple(map(str, names))


def _check_given(values: RowValues, place: Place, expected: str, is_needed: npt.NDArray[np.bool_]) -> None:
    is_missing = is_needed & (values.codes < 0)
    if is_missing.any():
        raise DataError(f"{place(int(is_missing.argmax()))} is null; expected {expected}")


def _text_or_whole(values: RowValues, place: Place, expected: str) -> list[Any]:
    """The distinct values: text, or truth values alone, or `int`."""
    found: list[Any] = [value if isinstance(value, str) else _whole(value) for value in values.distinct]
    _check_each([value is not None for value in found], values, place, expected)
    is_text = [isinstance(value, str) for value in found]
    if len(set(is_text)) > 1:
        first = is_text[values.codes[values.codes >= 0][0]]
        _check_each([text == first for text in is_text], values, place, "text, or numbers, in all rows")
    if any(is_text) or all(isinstance(value, bool) for value in found):
        return found
    return [int(value) for value in found]


def _whole(value: Any) -> int | None:
    """A whole number exactly, or None. Above 2^53 a float has no neighbour that differs by 1, so it may be rounded."""
    if isinstance(value, int):
        return value if value.bit_length() <= _MOST_BITS else None
    largest = 2**53 if isinstance(value, float) else 2**_MOST_BITS
    if not (isinstance(value, float | Decimal) and Decimal(value).is_finite() and -largest <= value <= largest):
        return None
    return int(value) if int(value) == value else None


def _check_each(is_right: Sequence[bool], values: RowValues, place: Place, expected: str) -> None:
    """Refuse the first row whose value is not right, by what is told of each distinct value."""
    if not all(is_right):
        row = int((~np.array([*is_right, True])[values.codes]).argmax())
        value = values.distinct[values.codes[row]]
        found = shown(value) if isinstance(value, str | int) else f"is {value}"
        raise DataError(f"{place(row)} {found}; expected {expected}")
