from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blossom_ray.core.scores import TASKS, Task
from blossom_ray.data.dataset import Dataset
from blossom_ray.errors import DataError

GOOD: dict[str, Any] = {
    "inputs": {"acc": np.ones((3, 4), np.float32)},
    "labels": np.array([0, 1, 1]),
    "class_names": ("low", "high"),
}


def test_what_a_data_set_tells() -> None:
    dataset = Dataset(**GOOD)
    assert (dataset.num_samples, dataset.num_classes, dataset.input_shapes) == (3, 2, {"acc": (4,)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": [np.ones((3, 4), np.float32)]}, "inputs are of type list; expected a mapping"),
        ({"inputs": {}}, "has no modality"),
        ({"inputs": {7: np.ones((3, 4), np.float32)}}, "a modality is called 7; expected text"),
        (
            {"inputs": {"acc": np.ones((3, 0), np.float32)}},
            r"'acc' has shape \(3, 0\); expected \(samples, \.\.\.\), none",
        ),
        ({"inputs": {"acc": np.float32(1)}}, "'acc' have type float32; expected a NumPy array of float32"),
        ({"inputs": {"acc": np.array(1, np.float32)}}, r"'acc' have shape \(\); expected 3 rows"),
        ({"inputs": {"acc": np.array([[1], [1, 2], [3]], object)}}, "'acc' have type object; expected"),
        ({"labels": None}, r"labels have type NoneType; expected a NumPy array of int64 \(classification\) or float32"),
        ({"labels": np.zeros(3)}, "labels have type float64; expected a NumPy array of int64"),
        (
            {"labels": np.zeros(3, np.float32)},
            r"labels have shape \(3,\); expected \(samples, 2\), one column per class",
        ),
        ({"labels": np.zeros((3, 1), np.float32)}, r"labels have shape \(3, 1\); expected \(samples, 2\), one column"),
        ({"labels": np.zeros((3, 0), np.float32), "class_names": ()}, "no class names; expected one per class or tar"),
        ({"labels": np.array([[0, 1], [2, np.nan], [0, 0]], np.float32)}, "labels, row 1: a value is not finite"),
        ({"labels": np.array(1)}, r"labels have shape \(\); expected one label per sample"),
        ({"labels": np.zeros(0, np.int64)}, "has no samples"),
        ({"labels": np.array([0, 1, 2])}, "labels run from 0 to 2; expected 0 to 1"),
        ({"class_names": None}, "class_names are not a tuple of text"),
        ({"class_names": (0, 1)}, "class_names are not a tuple of text"),
        ({"class_names": "ab"}, "class_names are not a tuple of text"),
        ({"subjects": np.zeros((3, 2), np.int64)}, r"subjects have shape \(3, 2\); expected one subject per sample"),
        ({"subjects": np.array(1)}, r"subjects have shape \(\); expected 3 rows"),
        ({"held_out": "later"}, "the held-out set is of type str; expected a Dataset"),
        ({"recordings": np.zeros(2, np.int64)}, r"recordings have shape \(2,\); expected 3 rows"),
        ({"recordings": np.zeros((3, 1), np.int64)}, r"recordings have shape \(3, 1\); expected one recording per"),
        ({"recordings": np.array([0, -1, 0])}, "recordings begin at -1; expected numbers from 0"),
    ],
)
def test_what_is_no_data_set(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(**{**GOOD, **change})


MULTILABEL = np.array([[0, 1], [1, 1], [0, 0]], np.float32)
REGRESSION = np.array([[0.5, 1], [1, 1], [0, -3]], np.float32)


@pytest.mark.parametrize(
    ("labels", "task", "accepted"),
    [
        (GOOD["labels"], "classification", ["classification"]),
        (MULTILABEL, "multilabel", ["multilabel", "regression"]),
        (REGRESSION, "regression", ["regression"]),
    ],
)
def test_the_labels_tell_the_task(labels: Any, task: Task, accepted: list[Task]) -> None:
    dataset = Dataset(**{**GOOD, "labels": labels})
    assert dataset.task == task
    for asked in TASKS:
        if asked in accepted:
            dataset.check_task(asked)
        else:
            with pytest.raises(DataError, match=f"labels are for {task} .*; expected task: {asked}"):
                dataset.check_task(asked)


def test_the_held_out_labels_tell_the_task_too() -> None:
    held_out = Dataset(**{**GOOD, "labels": REGRESSION})
    assert Dataset(**{**GOOD, "labels": MULTILABEL, "held_out": held_out}).task == "regression"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": MULTILABEL}, "labels of float32, 2 per sample; expected int64, one per sample"),
        ({"inputs": {"acc": np.ones((3, 5), np.float32)}}, r"shapes \{'acc': \(5,\)\}; expected \{'acc': \(4,\)\}"),
    ],
)
def test_a_held_out_set_of_another_kind(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(**GOOD, held_out=Dataset(**{**GOOD, **change}))


def test_recordings_reach_the_split_and_the_fingerprint() -> None:
    recordings = np.array([0, 1, 0])
    dataset = Dataset(**GOOD, recordings=recordings)
    assert dataset.targets.recordings is recordings
    assert Dataset(**GOOD).targets.recordings is None
    assert dataset.fingerprint() != Dataset(**GOOD).fingerprint()


@pytest.mark.parametrize("name", ["labels", "subjects"])
def test_a_modality_may_be_called_as_something_else_that_is_known(name: str) -> None:
    """Its values count all the same."""
    known = {**GOOD, "subjects": np.array([0, 0, 1])}
    one, other = (Dataset(**{**known, "inputs": {name: np.full((3, 4), v, np.float32)}}) for v in (1, 2))
    assert one.fingerprint() != other.fingerprint()
