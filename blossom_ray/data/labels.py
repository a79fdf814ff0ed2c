"""Labels as people have them, and the labels of a `Dataset`: names to numbers, one column per class or target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import FloatArray, IntArray
from blossom_ray.errors import DataError

Place = Callable[[int], str]
"""Words for the place of a row, such as `labels, row 3`."""


def encode_classes(
    values: npt.NDArray[Any], place: Place, class_names: Sequence[str] | None = None
) -> tuple[IntArray, tuple[str, ...]]:
    """One class per sample, as numbers from 0.

    Args:
        values: (N,) whole numbers, truth values or text.
        place: Where a row stands.
        class_names: All classes in order. Text must be one of them; numbers count them from 0. None: the values that
            occur, sorted.

    Returns:
        Labels (N,) int64, and the names of the classes.

    Raises:
        DataError: A value is none of the classes.
    """
    is_text = values.dtype.kind in "OU"
    if class_names is None:
        found, codes = np.unique(values.astype(str) if is_text else values, return_inverse=True)
        return codes.reshape(-1).astype(np.int64), tuple(str(value) for value in found.tolist())
    if is_text:
        return _codes(values, place, class_names), tuple(class_names)
    labels = values.astype(np.int64)
    outside = (labels < 0) | (labels >= len(class_names))
    if outside.any():
        row = int(outside.argmax())
        raise DataError(f"{place(row)} is {labels[row]}; expected 0 to {len(class_names) - 1}, one of the class names")
    return labels, tuple(class_names)


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
                raise DataError(f"{place(row)} has {name!r}; expected some of {', '.join(names)}")
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


def encode_subjects(values: npt.NDArray[Any]) -> IntArray:
    """Subjects (N,) as numbers: whole numbers as they are, text counted from 0 in sorted order."""
    if values.dtype.kind not in "OU":
        return values.astype(np.int64)
    return np.unique(values.astype(str), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _codes(values: npt.NDArray[Any], place: Place, class_names: Sequence[str]) -> IntArray:
    numbers = {name: number for number, name in enumerate(class_names)}
    codes = np.array([numbers.get(str(value), -1) for value in values.tolist()], np.int64)
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError(f"{place(row)} is {str(values[row])!r}; expected one of {', '.join(class_names)}")
    return codes
