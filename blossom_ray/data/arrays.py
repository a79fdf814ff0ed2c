"""A data set from arrays that a program has at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels
from blossom_ray.data.labels import (
    check_binary,
    check_finite,
    checked_names,
    encode_classes,
    encode_sets,
    encode_subjects,
)
from blossom_ray.errors import DataError
from blossom_ray.scores import Task

Arrays = Mapping[str, Any]


def from_arrays(
    inputs: Arrays,
    labels: Any,
    *,
    task: Task = "classification",
    class_names: Sequence[str] | None = None,
    subjects: Any = None,
    held_out: tuple[Arrays, Any] | None = None,
) -> Dataset:
    """A data set from NumPy arrays, PyTorch tensors, or whatever `np.asarray` takes.

    Values become float32. The arrays are not modified; those that are float32 already are not copied.

    Args:
        inputs: Modality to array (N, *shape), numbers or truth values; (N,) counts as (N, 1).
        labels: Classification: (N,) whole numbers or text. Multilabel: (N, C) of 0 and 1, or for each sample a list of
            class names. Regression: (N,) or (N, T) numbers.
        task: What the labels are for; the scenario's `task` must be the same.
        class_names: Names of the classes in order; text labels must be among them, whole numbers count them from 0.
            Left out: the labels that occur, sorted. In a regression the names of the targets.
        subjects: (N,) numbers or text, whose sample it is; None where samples belong to nobody.
        held_out: Inputs and labels of a global test set that no client trains on.

    Raises:
        DataError: Something is no array of numbers, has another length, or is not finite; a label is none of the
            classes.

    Examples:
        >>> dataset = from_arrays({"acc": np.zeros((4, 64, 3)), "gyro": np.ones((4, 64, 3))}, ["sit", "run"] * 2)
        >>> dataset.class_names
        ('run', 'sit')
    """
    if held_out is not None and (not isinstance(held_out, tuple) or len(held_out) != 2):
        raise DataError(f"held_out is {type(held_out).__name__}; expected a pair of inputs and labels")
    parts = [_array("labels", labels, task)]
    if held_out is not None:
        parts.append(_array("held-out labels", held_out[1], task))
    encoded, names = _encoded(parts, task, class_names)
    test_set = None
    if held_out is not None:
        test_set = Dataset(_inputs(held_out[0], "held-out modality"), encoded[1], names)
    return Dataset(_inputs(inputs, "modality"), encoded[0], names, _subjects(subjects), test_set)


def _inputs(inputs: Arrays, what: str) -> dict[str, FloatArray]:
    if not isinstance(inputs, Mapping):
        raise DataError(f"inputs are of type {type(inputs).__name__}; expected a mapping from modality to array")
    arrays = {}
    for modality, values in inputs.items():
        array = _numbers(f"{what} {modality!r}", values)
        arrays[modality] = array[:, np.newaxis] if array.ndim == 1 else array
    return arrays


def _subjects(subjects: Any) -> IntArray | None:
    if subjects is None:
        return None
    values = _plain("subjects", subjects)
    if values.ndim != 1 or values.dtype.kind not in "biuOU":
        raise DataError(f"subjects have type {values.dtype} and shape {values.shape}; expected (N,) numbers or text")
    return encode_subjects(values)


def _array(name: str, labels: Any, task: Task) -> Any:
    """Labels as an array; names of several classes per sample as lists."""
    if task == "multilabel" and _holds_names(labels):
        return [list(map(str, own)) for own in labels]
    values = _plain(name, labels)
    if task == "classification":
        if values.ndim != 1:
            raise DataError(f"{name} have shape {values.shape}; expected (N,), one class per sample")
        if _is_whole(values):
            return values.astype(np.int64)
        if values.dtype.kind not in "biuU" and not all(isinstance(value, str) for value in values.tolist()):
            raise DataError(f"{name} have type {values.dtype}; expected whole numbers or text for task: {task}")
        return values
    numbers = _numbers(name, values)
    numbers = numbers[:, np.newaxis] if numbers.ndim == 1 else numbers
    if numbers.ndim != 2:
        raise DataError(f"{name} have shape {numbers.shape}; expected (N, classes or targets)")
    return numbers


def _encoded(
    parts: Sequence[Any], task: Task, class_names: Sequence[str] | None
) -> tuple[list[Labels], tuple[str, ...]]:
    """The labels of both parts, with the classes of both together, and the classes' names."""
    ends = [len(part) for part in parts]

    def place(row: int) -> str:
        return f"labels, row {row}" if row < ends[0] else f"held-out labels, row {row - ends[0]}"

    if task == "multilabel" and all(isinstance(part, list) for part in parts):
        sets, names = encode_sets([own for part in parts for own in part], place, class_names)
        return [sets[: ends[0]], sets[ends[0] :]], names
    if any(isinstance(part, list) or part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise DataError("labels and held-out labels are of different kinds or widths; expected the same for both")
    joined = np.concatenate(list(parts))
    if task == "classification":
        codes, names = encode_classes(joined, place, class_names)
        return [codes[: ends[0]], codes[ends[0] :]], names
    names = checked_names(class_names, _default_names(task, joined.shape[1]), place)
    (check_binary if task == "multilabel" else check_finite)(joined, place)
    return [joined[: ends[0]], joined[ends[0] :]], names


def _default_names(task: Task, number: int) -> list[str]:
    what = "class" if task == "multilabel" else "target"
    return [f"{what} {position}" for position in range(number)]


def _numbers(name: str, values: Any) -> FloatArray:
    array = _plain(name, values)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        found = f"shape {array.shape}" if array.ndim == 0 else f"type {array.dtype}"
        raise DataError(f"{name} has {found}; expected an array of numbers, one row per sample")
    # What does not fit into float32 becomes infinite, and is refused as not finite with its row.
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _plain(name: str, values: Any) -> npt.NDArray[Any]:
    try:
        # A tensor that has a gradient, lies on a GPU or is bfloat16 is no NumPy array yet.
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} cannot be made an array ({error}); expected rows of equal shape") from error


def _holds_names(labels: Any) -> bool:
    """Whether labels are a list of lists of text, empty ones included."""
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, str)
        and all(isinstance(own, list | tuple | set | frozenset) for own in labels)
        and all(isinstance(name, str) for own in labels for name in own)
    )


def _is_whole(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind == "f" and bool((values == np.floor(values)).all()) and bool(np.isfinite(values).all())
