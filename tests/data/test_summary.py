"""Numbers of data sets by hand."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from blossom_ray.cli.console.data import summary_view
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.split import Split
from blossom_ray.data.summary import shares, summarise

INPUTS = {"m": np.array([[[0.0], [2.0]], [[4.0], [6.0]], [[-2.0], [2.0]]], np.float32)}
NONE = np.zeros(0, np.int64)
FEDERATION = Federation.of(
    [Split(np.array([0]), NONE, np.array([1])), Split(np.array([2]), NONE, NONE)],
)


def dataset(labels: np.ndarray, **others: object) -> Dataset:
    return Dataset(INPUTS, labels, ("a", "b"), **others)


def test_classes_subjects_and_values() -> None:
    held_out = dataset(np.array([1, 1, 1]))
    summary = summarise(dataset(np.array([1, 0, 1]), subjects=np.array([7, 7, 9]), held_out=held_out))
    assert (summary.task, summary.num_samples, summary.num_subjects) == ("classification", 3, 2)
    assert summary.labels == {"a": 1, "b": 2}
    values = summary.modalities["m"]
    assert (values.shape, values.low, values.high, values.mean) == ((2, 1), -2, 6, 2)
    assert values.deviation == pytest.approx((40 / 6) ** 0.5)
    assert summary.memory_bytes == 6 * 4 + 3 * 8 + 3 * 8
    assert summary.held_out is not None
    assert summary.held_out.labels == {"a": 0, "b": 3}
    assert summary.held_out.num_subjects is None


def test_many_labels_and_targets() -> None:
    many = summarise(dataset(np.array([[1, 0], [1, 1], [0, 0]], np.float32)))
    assert (many.task, many.labels) == ("multilabel", {"a": 2, "b": 1})
    targets = summarise(dataset(np.array([[1, 0], [2, 1], [3, 2.5]], np.float32)))
    assert targets.task == "regression"
    assert targets.labels == {"a": 2, "b": pytest.approx(3.5 / 3)}


def test_values_are_those_of_numpy_whatever_the_number_of_rows() -> None:
    values = np.random.default_rng(0).normal(50, 0.1, (2500, 3)).astype(np.float32)
    found = summarise(Dataset({"m": values}, np.zeros(2500, np.int64), ("a",))).modalities["m"]
    assert found.mean == pytest.approx(values.mean(dtype=np.float64))
    assert found.deviation == pytest.approx(values.std(dtype=np.float64))


def test_a_modality_that_the_held_out_set_lacks_has_no_values() -> None:
    other = replace(dataset(np.array([0, 1, 1])), inputs={"m": 0 * INPUTS["m"]}, observed={"m": np.zeros(3, np.bool_)})
    summary = summarise(dataset(np.array([0, 1, 1]), held_out=other))
    assert summary.held_out is not None
    values = summary.held_out.modalities["m"]
    assert (values.num_observed, values.shape, math.isnan(values.mean)) == (0, (2, 1), True)
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_view("own", summary, ""))
    assert re.search(r"m +\(2, 1\) .* 0 *\n", console.file.getvalue())  # type: ignore[attr-defined]  # of a StringIO


def test_shares_of_clients() -> None:
    first, second = shares(dataset(np.array([1, 0, 1]), subjects=np.array([7, 8, 9])), FEDERATION)
    assert (first.num_train, first.num_test, first.labels, first.num_subjects) == (1, 1, {"a": 1, "b": 1}, 2)
    assert (second.num_train, second.num_test, second.labels, second.num_subjects) == (1, 0, {"a": 0, "b": 1}, 1)
