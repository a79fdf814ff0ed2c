"""Labels as people have them, and the labels of a `Dataset`: names to numbers, one column per class or target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from blossom_ray.core.phrases import shortened, shown
from blossom_ray.core.scores import Task
from blossom_ray.data.clients import HELD_OUT, SPLITS, Place
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.targets import FloatArray, IntArray, Labels
from blossom_ray.errors import DataError

_MOST_BITS = 256  # more than any type of Arrow has

_CLASSES = "text or a whole number (of floats up to 2^53) for task: classification"


@dataclass(frozen=True)
class RowValues:
    """A value for each of N rows, such as a label; NumPy would cut text, widen it, or round large numbers.

    Attributes:
        distinct: The values that occur, in no certain order.
        codes: (N,) int64: the place of each row's value in `distinct`, or -1 where it is null.
        place: Where a row stands.
    """

    distinct: Sequence[Any]
    codes: IntArray
    place: Place

    @classmethod
    def listed(cls, values: Iterable[Any], place: Place) -> Self:
        """Values of rows, each hashable, or None."""
        numbers: dict[Any, int] = {}
        codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
        return cls(tuple(numbers), np.array(codes, np.int64), place)

    def of(self, rows: IntArray | None = None) -> RowValues:
        """The values of these rows, or of all, without those that none of them has."""
        codes = self.codes if rows is None else self.codes[rows]
        used = np.unique(codes[codes >= 0])
        numbers = np.full(len(self.distinct) + 1, -1, np.int64)
        numbers[used] = np.arange(len(used))
        place = self.place if rows is None else lambda row: self.place(int(rows[row]))
        return RowValues([self.distinct[number] for number in used.tolist()], numbers[codes], place)

    def check_given(self, expected: str, is_needed: npt.NDArray[np.bool_] | None = None) -> None:
        """Refuse a null in a row that needs a value; None: all do."""
        is_missing = self.codes < 0 if is_needed is None else is_needed & (self.codes < 0)
        if is_missing.any():
            raise DataError(f"{self.place(int(is_missing.argmax()))} is null; expected {expected}")

    def check_each(self, is_right: Sequence[bool], expected: str) -> None:
        """Refuse the first row whose value is not right, by what is told of each distinct value."""
        if not all(is_right):
            row = int((~np.array([*is_right, True])[self.codes]).argmax())
            value = self.distinct[self.codes[row]]
            found = shown(value) if isinstance(value, str | int) else f"is {value}"
            raise DataError(f"{self.place(row)} {found}; expected {expected}")

    def text_or_whole(self, expected: str) -> list[Any]:
        """The distinct values: text, or truth values alone, or `int`."""
        found: list[Any] = [value if isinstance(value, str) else _whole(value) for value in self.distinct]
        self.check_each([value is not None for value in found], expected)
        is_text = [isinstance(value, str) for value in found]
        if len(set(is_text)) > 1:
            first = is_text[self.codes[self.codes >= 0][0]]
            self.check_each([text == first for text in is_text], "text, or numbers, in all rows")
        if any(is_text) or all(isinstance(value, bool) for value in found):
            return found
        return [int(value) for value in found]


Encoded = tuple[Labels, tuple[str, ...], BoolArray | None]
"""Labels of samples, the names of classes or targets, and which labels are known, of their shape; None: all."""
_SOME = "a label in some row"


def encode_classes(values: RowValues, class_names: Sequence[str] | None = None) -> Encoded:
    """One class per sample, as numbers from 0; a null is a label that is not known.

    Args:
        values: Of N rows, at least one: text, truth values, or whole numbers of any type.
        class_names: All classes in order. Text must be one of them; numbers count them from 0. None: the values that
            occur, sorted.

    Returns:
        Labels (N,) int64, the names of the classes, and which labels are known.

    Raises:
        DataError: All values are null, or one is neither text nor whole, or none of the classes.
    """
    is_known = values.codes >= 0
    if not is_known.any():
        values.check_given(_SOME)
    classes = values.text_or_whole(_CLASSES)
    if class_names is None:
        labels, names = _counted(classes, values.codes)
        return _with_unknown(labels, names, is_known)
    is_text = bool(classes) and isinstance(classes[0], str)
    known: Sequence[Any] = class_names if is_text else range(len(class_names))
    numbers = {value: number for number, value in enumerate(known)}
    expected = f"one of {', '.join(class_names)}" if is_text else f"0 to {len(class_names) - 1}, one of the class names"
    values.check_each([value in numbers for value in classes], expected)
    labels = np.array([numbers[value] for value in classes], np.int64)[values.codes]
    return _with_unknown(labels, tuple(class_names), is_known)


def encode_named_classes(values: RowValues, names: Sequence[str]) -> Encoded:
    """As `encode_classes`, of numbers that count names from 0, -1 for none, as Hugging Face's `ClassLabel` has it.

    Classes are those that occur, as without names.

    Raises:
        DataError: A value is neither such a number nor text, or all are null or -1.
    """
    classes = values.text_or_whole(_CLASSES)
    if any(isinstance(value, str) for value in classes):
        return encode_classes(values)
    values.check_each([-1 <= value < len(names) for value in classes], f"-1, or 0 to {len(names) - 1}, a ClassLabel")
    is_none = np.array([*(value == -1 for value in classes), False])[values.codes]
    known = replace(values, codes=np.where(is_none, -1, values.codes)).of()
    labels, found, is_known = encode_classes(known)
    return labels, tuple(names[int(number)] for number in found), is_known


def encode_sets(
    sets: Sequence[Sequence[str] | None], place: Place, class_names: Sequence[str] | None = None
) -> Encoded:
    """Any number of classes per sample, each given by its name, as a column of 0 and 1 per class.

    Args:
        sets: Names of the classes of each of N samples; None: no label of it is known.
        place: Where a row stands.
        class_names: All classes in order; None: those that occur, sorted.

    Returns:
        Labels (N, C) float32, the names of the classes, and which labels are known.

    Raises:
        DataError: A name is none of the classes, or no sample has any.
    """
    known = np.array([own is not None for own in sets])
    names = tuple(sorted({name for own in sets for name in own or ()}) if class_names is None else class_names)
    if not names:
        raise DataError(f"{place(0)} and all others are empty; expected the names of classes")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.zeros((len(sets), len(names)), np.float32)
    for row, own in enumerate(sets):
        for name in own or ():
            if name not in numbers:
                raise DataError(f"{place(row)} has {shortened(name)!r}; expected some of {', '.join(names)}")
            labels[row, numbers[name]] = 1
    return _with_unknown(labels, names, np.repeat(known[:, np.newaxis], len(names), axis=1))


def encode_numbers(
    values: FloatArray,
    place: Place,
    task: Task,
    class_names: Sequence[str] | None,
    columns: Sequence[str] = (),
    known: BoolArray | None = None,
) -> Encoded:
    """Labels that are numbers already: of each class 0 or 1 (multilabel), or the values of targets (regression).

    Args:
        values: (N, C) float32.
        place: Where a row stands.
        task: What they are for.
        class_names: Names of classes or targets, in order; None: those of the columns.
        columns: What the columns are called, where they are as many; else they are numbered.
        known: (N, C), which of them are known, the others being 0; None: all.

    Raises:
        DataError: A value is not 0 or 1, or not finite, or none is known; or there are more or fewer names than
            columns.
    """
    if known is not None and not known.any():
        raise DataError(f"{place(0)} and all others are null; expected {_SOME}")
    is_multilabel = task == "multilabel"
    wrong = ~(((values == 0) | (values == 1)) if is_multilabel else np.isfinite(values)).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        expected = "0 or 1 for each class" if is_multilabel else "finite numbers in the range of float32"
        raise DataError(f"{place(row)} is {values[row].tolist()}; expected {expected}")
    width = values.shape[1]
    if class_names is None and len(columns) != width:
        class_names = [f"{'class' if is_multilabel else 'target'} {position}" for position in range(width)]
    names = tuple(columns if class_names is None else class_names)
    if len(names) != width:
        raise DataError(f"{place(0)} has {width} values; expected {len(names)}, one per class name")
    return values, names, None if known is None or known.all() else known


def _with_unknown(labels: Labels, names: tuple[str, ...], known: BoolArray) -> Encoded:
    """Labels, 0 where they are not known."""
    if known.all():
        return labels, names, None
    labels[~known] = 0
    return labels, names, known


def encode_ids(
    values: RowValues, is_needed: npt.NDArray[np.bool_] | None = None, *, are_subjects: bool = False
) -> tuple[IntArray, tuple[str, ...]]:
    """Clients, recordings or subjects (N,) int64, counted from 0 in sorted order, -1 for none; and their names.

    Subjects that are whole numbers stay as they are, and have no names, unless one is too large for that.

    Args:
        values: Of N rows.
        is_needed: (N,): whether a row must have one. None: all must.
        are_subjects: Whether they are subjects.

    Raises:
        DataError: A value is neither text nor a whole number, or one of a subject is below 0; or null where one is
            needed.
    """
    expected = "a whole number from 0, or text" if are_subjects else "a whole number, or text"
    values.check_given(expected, is_needed)
    ids = values.text_or_whole(expected)
    if are_subjects:
        values.check_each([isinstance(value, str) or value >= 0 for value in ids], expected)
        if not any(isinstance(value, str) or value > np.iinfo(np.int64).max for value in ids):
            return np.array([*ids, -1], np.int64)[values.codes], ()
    return _counted(ids, values.codes)


def encode_splits(values: RowValues, *, has_clients: bool) -> IntArray:
    """The part of each row (N,) int64: its place in `SPLITS`, or -1 for the held-out global test set.

    Args:
        values: Of N rows: `train` and `held-out`; with clients also `validation` and `test`, their own. Without
            clients `test` means `held-out`.
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
        hint += "; data.split_names says what other names mean" if isinstance(value, str) else ""
        raise DataError(f"{values.place(row)} {shown(value)}; expected {' or '.join(map(repr, numbers))}{hint}")
    return np.array([numbers[value] for value in values.distinct], np.int64)[values.codes]


def _counted(values: Sequence[Any], codes: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Rows' values by their places in sorted order, -1 for none; and the values as text."""
    found = sorted(set(values))
    numbers = {value: number for number, value in enumerate(found)}
    return np.array([*(numbers[value] for value in values), -1], np.int64)[codes], tuple(map(str, found))


def _whole(value: Any) -> int | None:
    """A whole number exactly, or None. Above 2^53 a float has no neighbour that differs by 1, so it may be rounded."""
    if isinstance(value, int):
        return value if value.bit_length() <= _MOST_BITS else None
    largest = 2**53 if isinstance(value, float) else 2**_MOST_BITS
    if not (isinstance(value, float | Decimal) and Decimal(value).is_finite() and -largest <= value <= largest):
        return None
    return int(value) if int(value) == value else None
