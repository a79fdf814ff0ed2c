from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from blossom_ray import Scenario, simulate
from blossom_ray.data.arrays import from_arrays
from blossom_ray.errors import DataError

ACC = np.arange(12.0).reshape(3, 2, 2)


@pytest.mark.parametrize(
    "values",
    [
        ACC,
        ACC.astype(np.float32),
        ACC.astype(np.int64),
        ACC.astype(np.float16),
        ACC.tolist(),
        torch.from_numpy(ACC),
        torch.from_numpy(ACC).requires_grad_(),
        torch.from_numpy(ACC).bfloat16(),
        torch.from_numpy(ACC).int(),
    ],
    ids=lambda values: f"{type(values).__name__}-{getattr(values, 'dtype', '')}",
)
def test_whatever_is_an_array_of_numbers(values: Any) -> None:
    dataset = from_arrays({"acc": values}, [0, 1, 0])
    assert dataset.inputs["acc"].dtype == np.float32
    np.testing.assert_array_equal(dataset.inputs["acc"], ACC)
    assert (dataset.labels.tolist(), dataset.class_names, dataset.task) == ([0, 1, 0], ("0", "1"), "classification")


def test_float32_is_not_copied_and_plain_numbers_are_vectors_of_one() -> None:
    acc = ACC.astype(np.float32)
    dataset = from_arrays({"acc": acc, "on": [True, False, True]}, [0, 1, 0])
    assert np.shares_memory(dataset.inputs["acc"], acc)
    assert dataset.inputs["on"].tolist() == [[1], [0], [1]]


@pytest.mark.parametrize(
    ("labels", "class_names", "expected", "names"),
    [
        (["run", "sit", "run"], None, [0, 1, 0], ("run", "sit")),
        (np.array(["run", "sit", "run"], object), ["sit", "run"], [1, 0, 1], ("sit", "run")),
        ([5, 2, 5], None, [1, 0, 1], ("2", "5")),
        ([1, 0, 1], ("low", "high", "never"), [1, 0, 1], ("low", "high", "never")),
        (np.array([1.0, 0.0, 1.0]), None, [1, 0, 1], ("0", "1")),
        ([True, False, True], None, [1, 0, 1], ("False", "True")),
        (["a\0", "a", "a\0"], None, [1, 0, 1], ("a", "a\0")),
        (np.array(["a\0", "a", "a\0"], object), None, [1, 0, 1], ("a", "a\0")),
        (np.array(["a\0", "a", "a\0"], np.dtypes.StringDType()), ["a", "a\0"], [1, 0, 1], ("a", "a\0")),
        (pl.Series(["a\0", "a", "a\0"]), None, [1, 0, 1], ("a", "a\0")),
        (pl.Series(["a\0", "a", "a\0"], dtype=pl.Categorical), None, [1, 0, 1], ("a", "a\0")),
        (pa.chunked_array([["a\0"], ["a", "a\0"]]), None, [1, 0, 1], ("a", "a\0")),
        ([2**63, -1, 2**63], None, [1, 0, 1], ("-1", str(2**63))),
        ([2**64, 2**64 - 1, 2**64], None, [1, 0, 1], (str(2**64 - 1), str(2**64))),
        (np.array([2**64 - 1, 2**64 - 2, 2**64 - 1], np.uint64), None, [1, 0, 1], (str(2**64 - 2), str(2**64 - 1))),
        ([Decimal(5), 4, np.float32(5)], None, [1, 0, 1], ("4", "5")),
        ([np.int64(1), False, True], None, [1, 0, 1], ("0", "1")),
        ([1.0, -0.0, 1], ["low", "high"], [1, 0, 1], ("low", "high")),
        ([torch.tensor(1), torch.tensor(0), torch.tensor(1)], None, [1, 0, 1], ("0", "1")),
        (torch.tensor([1, 0, 1], dtype=torch.uint8), None, [1, 0, 1], ("0", "1")),
    ],
)
def test_classes(labels: Any, class_names: Any, expected: list[int], names: tuple[str, ...]) -> None:
    dataset = from_arrays({"acc": ACC}, labels, class_names=class_names)
    assert (dataset.labels.tolist(), dataset.class_names, dataset.labels.dtype) == (expected, names, np.int64)


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        ([[1, 0], [0, 0], [1, 1]], [[1, 0], [0, 0], [1, 1]], ("class 0", "class 1")),
        (torch.tensor([[True, False], [False, False], [True, True]]), [[1, 0], [0, 0], [1, 1]], ("class 0", "class 1")),
        ([["b"], [], ("a", "b")], [[0, 1], [0, 0], [1, 1]], ("a", "b")),
        (pa.array([["a\0"], [], ["a", "a\0"]]), [[0, 1], [0, 0], [1, 1]], ("a", "a\0")),
        (pl.Series([["b"], [], ["a", "b"]]), [[0, 1], [0, 0], [1, 1]], ("a", "b")),
    ],
)
def test_several_classes(labels: Any, expected: list[list[int]], names: tuple[str, ...]) -> None:
    dataset = from_arrays({"acc": ACC}, labels, task="multilabel")
    assert (dataset.labels.tolist(), dataset.class_names, dataset.task) == (expected, names, "multilabel")


def test_targets() -> None:
    dataset = from_arrays({"acc": ACC}, [1, 2, 3], task="regression")
    assert (dataset.labels.tolist(), dataset.class_names) == ([[1], [2], [3]], ("target 0",))
    dataset = from_arrays({"acc": ACC}, np.ones((3, 2)), task="regression", class_names=["x", "y"])
    assert (dataset.labels.shape, dataset.class_names) == ((3, 2), ("x", "y"))


def test_text_of_any_length_takes_its_own_memory_alone() -> None:
    # Of fixed width this would be 80 GB.
    names = ["walk", "sit"] * 500_000 + ["x" * 20_000]
    dataset = from_arrays({"acc": np.ones(len(names))}, names, subjects=names)
    assert [len(name) for name in dataset.class_names] == [3, 4, 20_000]
    assert np.array_equal(dataset.labels, dataset.subjects)  # type: ignore[arg-type]  # subjects are given


@pytest.mark.parametrize("names", [("a\0", "a"), ("null", "~"), ("1", "1.0"), ("\x85", "\u2028")])
def test_a_run_keeps_classes_apart_whatever_they_are_called(names: tuple[str, str], tmp_path: Path) -> None:
    dataset = from_arrays({"acc": np.arange(40.0)}, [names[row % 2] for row in range(40)])
    scenario = Scenario.model_validate(
        {
            "rounds": 1,
            "data": {"dataset": "custom"},
            "clients": [{"count": 2, "modalities": ["acc"]}],
            "model": {"encoders": {"acc": {"kind": "mlp"}}},
            "execution": {"runtime": "local"},
        }
    )
    run = simulate(scenario, data=dataset, out=tmp_path)
    again = Scenario.load(run.path / "scenario.yaml")  # type: ignore[operator]  # it has a folder
    assert again.data.class_names == dataset.class_names == tuple(sorted(names))


def test_subjects_and_a_held_out_set_share_their_classes() -> None:
    held_out = ({"acc": ACC[:2]}, ["lie", "run"])
    dataset = from_arrays({"acc": ACC}, ["run", "sit", "run"], subjects=["b", "a", "b"], held_out=held_out)
    assert dataset.subjects is not None
    assert dataset.held_out is not None
    assert dataset.subjects.tolist() == [1, 0, 1]
    assert dataset.class_names == dataset.held_out.class_names == ("lie", "run", "sit")
    assert (dataset.labels.tolist(), dataset.held_out.labels.tolist()) == ([1, 2, 1], [0, 1])
    for subjects in (["a\0", "a", "a\0"], [2**63, 5, 2**63], [1.0, 0.0, 1.0], np.array([1, 0, 1], np.uint8)):
        assert from_arrays({"acc": ACC}, [0, 1, 0], subjects=subjects).targets.subjects.tolist() == [1, 0, 1]  # type: ignore[union-attr]  # subjects are given
    assert from_arrays({"acc": ACC}, [0, 1, 0], subjects=[7, 5, 7]).targets.subjects.tolist() == [7, 5, 7]  # type: ignore[union-attr]  # subjects are given


def test_a_frame_is_an_array_of_its_columns() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0]})
    assert from_arrays({"acc": frame}, [0, 1, 0]).inputs["acc"].tolist() == [[1, 4], [2, 5], [3, 6]]
    with pytest.raises(DataError, match="modality 'acc', row 1: a value is not finite"):
        from_arrays({"acc": frame.with_columns(x=pl.Series([1.0, None, 3.0]))}, [0, 1, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ACC}, "inputs are of type ndarray; expected a mapping from modality to array"),
        ({"inputs": {}}, "has no modality"),
        ({"inputs": {"acc": ["a", "b", "c"]}}, "modality 'acc' has type <U1; expected an array of numbers"),
        ({"inputs": {"acc": ACC.astype(complex)}}, "modality 'acc' has type complex128; expected an array of numbers"),
        (
            {"inputs": {"acc": [[1], [1, 2], [3]]}},
            r"modality 'acc' cannot be made an array \(.*\); expected rows of eq",
        ),
        ({"inputs": {"acc": 3.0}}, r"modality 'acc' has shape \(\); expected an array of numbers, one row per sample"),
        ({"inputs": {"acc": ACC[:2]}}, "modality 'acc' has 2 rows; expected 3, as many as labels"),
        ({"inputs": {"acc": np.where(ACC == 5, np.nan, ACC)}}, "modality 'acc', row 1: a value is not finite"),
        ({"inputs": {"acc": np.where(ACC == 11, 1e300, ACC)}}, "modality 'acc', row 2: a value is not finite"),
        ({"labels": [0.5, 1, 2]}, "labels, row 0 is 0.5; expected text or a whole number .* for task: classification"),
        ({"labels": [None, None, None]}, "labels, row 0 is null; expected a label in some row"),
        ({"labels": [None] * 3, "task": "regression"}, "labels, row 0 and all others are null; expected a label in"),
        ({"labels": [[1, 0], [0, 1], [1, 0]]}, r"labels have shape \(3, 2\); expected \(N,\), one per sample"),
        ({"labels": [0, 3, 1], "class_names": ["a", "b"]}, "labels, row 1 is 3; expected 0 to 1"),
        ({"labels": ["a", "c", "b"], "class_names": ["a", "b"]}, "labels, row 1 is 'c'; expected one of a, b"),
        ({"labels": [[1, 0], [0, 2], [1, 0]], "task": "multilabel"}, r"labels, row 1 is \[0.0, 2.0\]; expected 0 or 1"),
        ({"labels": [["a"], ["b"], []], "task": "multilabel", "class_names": ["a"]}, "labels, row 1 has 'b'; expected"),
        ({"labels": [1, np.inf, 0], "task": "regression"}, r"labels, row 1 is \[inf\]; expected finite numbers"),
        ({"labels": [1, 2, 3], "task": "regression", "class_names": ["x", "y"]}, "has 1 values; expected 2, one per"),
        ({"labels": np.ones((3, 1, 1)), "task": "regression"}, r"labels have shape \(3, 1, 1\); expected \(N, classes"),
        ({"subjects": [0.5, 1, 2]}, "subjects, row 0 is 0.5; expected a whole number from 0, or text"),
        ({"labels": [0, np.nan, 1]}, "labels, row 1 is nan; expected text or a whole number"),
        ({"labels": [0, 1e300, 1]}, r"labels, row 1 is 1e\+300; expected text or a whole number"),
        ({"labels": [0, -np.inf, 1]}, "labels, row 1 is -inf; expected text or a whole number"),
        ({"labels": [0, Decimal("NaN"), 1]}, "labels, row 1 is NaN; expected text or a whole number"),
        ({"labels": [0, Decimal("1e999999999"), 1]}, r"labels, row 1 is 1E\+999999999; expected text or a whole"),
        ({"labels": [0, 10**5000, 1]}, "labels, row 1 is an integer of 16610 bits; expected text or a whole number"),
        ({"labels": ["a", 1, "b"]}, "labels, row 1 is 1; expected text, or numbers, in all rows"),
        ({"labels": ["a", np.nan, "b"]}, "labels, row 1 is nan; expected text or a whole number"),
        ({"labels": ["a", "\ud800", "b"]}, r"is called '.ud800'; expected text without half surrogates"),
        ({"labels": ["a", b"a", "b"]}, "labels, row 1 is of type bytes; expected a whole number or text"),
        ({"labels": [0, {}, 1]}, "labels, row 1 is of type dict; expected a whole number or text"),
        ({"labels": [0, [1], 1]}, r"labels cannot be made an array \(.*\); expected rows of equal shape"),
        (
            {"labels": np.array(["2020", "2021", "2022"], "M8[ns]")},
            r"labels have type datetime64\[ns\]; expected whole",
        ),
        ({"labels": np.array([0, 1, 1j])}, "labels have type complex128; expected whole numbers or text"),
        ({"held_out": ({"acc": ACC}, ["a", "b", "c"])}, "held-out labels, row 0 is 'a'; expected text, or numbers"),
        ({"subjects": ["a", None, "b"]}, "subjects, row 1 is null; expected a whole number from 0, or text"),
        ({"subjects": [1, -2, 1]}, "subjects, row 1 is -2; expected a whole number from 0, or text"),
        ({"subjects": [[1], [2], [3]]}, r"subjects have shape \(3, 1\); expected \(N,\), one per sample"),
        ({"subjects": [0, 1]}, r"subjects have shape \(2,\); expected 3 rows"),
        ({"held_out": {"acc": ACC}}, "held_out is dict; expected a pair of inputs and labels"),
        ({"held_out": ({"gyro": ACC}, [0, 1, 0])}, "the held-out set has shapes"),
        ({"held_out": ({"acc": ACC}, [0, 9, 0]), "class_names": ["a", "b"]}, "held-out labels, row 1 is 9; expected 0"),
        ({"held_out": ({"acc": ACC}, np.ones((3, 2))), "task": "regression"}, "of different kinds or widths"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"inputs": {"acc": ACC}, "labels": [0, 1, 0], **changes}
    with pytest.raises(DataError, match=message):
        from_arrays(given.pop("inputs"), given.pop("labels"), **given)
