from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blossom_ray.core.scores import Task
from blossom_ray.data.arrays import from_arrays
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.data.table.writer import write_table
from blossom_ray.errors import DataError, RunFolderError

ACC = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
GOOD: dict[str, Any] = {"acc": ACC.tolist(), "label": ["run", "sit", "run", "lie"]}


def spec_of(path: Path, **values: Any) -> TableData:
    return TableData.model_validate({"dataset": "table", "path": str(path), **values})


def load(path: Path, owned: tuple[str, ...] = ("acc",), task: Task = "classification", **values: Any) -> Dataset:
    dataset = Table(spec_of(path, **values), owned, task).load()
    targets = Table(spec_of(path, **values), owned, task).targets()
    assert targets.labels.tolist() == dataset.targets.labels.tolist()
    return dataset


def write(folder: Path, columns: dict[str, Any] | pa.Table, name: str = "rows.parquet") -> Path:
    path = folder / name
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


def tensors(values: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def write_as(kind: str, table: pa.Table, path: Path, rows: int = 3) -> None:
    match kind:
        case "parquet":
            pq.write_table(table, path, row_group_size=rows)
        case "arrow" | "stream":
            open_writer = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
            with pa.OSFile(str(path), "wb") as sink, open_writer(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=rows)
        case _:
            compression = "zstd" if kind.startswith("compressed") else "uncompressed"
            pa.feather.write_feather(table, str(path), compression=compression)


@pytest.mark.parametrize(
    "column",
    [
        tensors(ACC),
        pa.array(ACC.tolist()),
        pa.array(ACC.astype(np.int64).tolist(), pa.large_list(pa.list_(pa.int16()))),
        pa.array(ACC.tolist(), pa.list_(pa.list_(pa.float64(), 2), 3)),
    ],
    ids=["fixed-shape tensors", "lists of lists", "large lists of lists of integers", "fixed-size lists"],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "feather", "compressed feather"])
def test_a_modality_of_several_types_in_several_files(column: pa.Array, kind: str, tmp_path: Path) -> None:
    table = pa.table({"acc": column, "label": GOOD["label"]})
    path = tmp_path / "rows"  # told apart by content, not by name
    write_as(kind, table, path)
    dataset = load(path)
    np.testing.assert_array_equal(dataset.inputs["acc"], ACC)
    assert dataset.inputs["acc"].dtype == np.float32
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 2, 1, 0], ("lie", "run", "sit"))
    assert (dataset.subjects, dataset.held_out) == (None, None)


def stored_in_order(values: np.ndarray, order: list[int]) -> pa.Array:
    """The tensors of `values` (n, *shape), whose dimension `order[k]` is stored as dimension k."""
    stored = values.transpose(0, *(1 + dimension for dimension in order))
    names = [f"dimension {dimension}" for dimension in order]
    kind = pa.fixed_shape_tensor(
        pa.from_numpy_dtype(values.dtype), stored.shape[1:], dim_names=names, permutation=np.argsort(order).tolist()
    )
    flat = pa.array(np.ascontiguousarray(stored).reshape(-1))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, kind.storage_type.list_size))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "stream"])
@pytest.mark.parametrize(
    ("shape", "order"),
    [((2, 3), [1, 0]), ((2, 3), [0, 1]), ((2, 3, 4), [2, 1, 0]), ((2, 3, 4, 5), [1, 0, 3, 2]), ((1, 3), [1, 0])],
)
@given(data=st.data())
@settings(deadline=None, max_examples=5)
def test_tensors_are_read_in_their_order_whatever_order_they_are_stored_in(
    data: st.DataObject, shape: tuple[int, ...], order: list[int], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtype = data.draw(st.sampled_from(["f4", "f8", "f2", "i8", "u1"]))
    logical = (np.arange(12 * np.prod(shape)) % 251).reshape(12, *shape).astype(dtype)
    column = stored_in_order(logical, order)
    cut, end = data.draw(st.integers(0, 5)), data.draw(st.integers(6, 12))
    lists = pa.ListArray.from_arrays(pa.array(range(0, 13, 2), pa.int32()), column)
    table = pa.table(
        {
            "acc": pa.chunked_array([column[cut:5], column[5:end]]),
            "label": np.arange(end - cut) % 2,
        }
    )
    path = tmp_path_factory.mktemp("tensors") / "rows"
    write_as(kind, table, path)
    np.testing.assert_array_equal(load(path).inputs["acc"], logical[cut:end])
    write_as(kind, pa.table({"acc": lists[1:], "label": np.arange(5) % 2}), path)
    np.testing.assert_array_equal(load(path).inputs["acc"], logical.reshape(6, 2, *shape)[1:])


def test_an_order_that_writers_and_readers_of_tensors_see_differently_is_refused(tmp_path: Path) -> None:
    values = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    path = write(tmp_path, {"acc": stored_in_order(values, [1, 2, 0]), "label": [0, 1]})
    for task in (lambda: load(path), lambda: Table(spec_of(path), ("acc",), "classification").targets()):
        with pytest.raises(DataError, match=r"column 'acc' has tensors stored in the order of dimensions \[2, 0, 1\]"):
            task()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.fixed_shape_tensor(pa.float32(), (2, 0)), r"row 0 has shape \[2, 0\]; expected at least one value"),
        (pa.fixed_shape_tensor(pa.float32(), (2,)), "row 1 holds a null"),
    ],
)
def test_tensors_without_values(column: Any, message: str, tmp_path: Path) -> None:
    size = column.storage_type.list_size
    storage = pa.array([[1.0] * size, [None] * size], pa.list_(pa.float32(), size))
    path = tmp_path / "rows.arrow"
    write_as("arrow", pa.table({"acc": pa.ExtensionArray.from_storage(column, storage), "label": [0, 1]}), path)
    with pytest.raises(DataError, match=message):
        load(path)


def test_what_polars_writes_is_read(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "acc": pl.Series(ACC, dtype=pl.Array(pl.Float32, (3, 2))),
            "label": pl.Series(GOOD["label"], dtype=pl.Categorical),
            "subject": ["b", "a", "b", "b"],
        }
    )
    frame.write_parquet(tmp_path / "rows.parquet")
    frame.write_ipc(tmp_path / "rows.arrow", compat_level=pl.CompatLevel.oldest())
    for name in ("rows.parquet", "rows.arrow"):
        dataset = load(tmp_path / name)
        np.testing.assert_array_equal(dataset.inputs["acc"], ACC)
        assert dataset.class_names == ("lie", "run", "sit")
        assert dataset.subjects is not None
        assert dataset.subjects.tolist() == [1, 0, 1, 1]


def test_a_folder_is_read_in_the_order_of_its_files_names(tmp_path: Path) -> None:
    write(tmp_path, {"acc": ACC[2:].tolist(), "label": [3, 1]}, "b.parquet")
    pa.feather.write_feather(pa.table({"label": [1, 7], "acc": ACC[:2].tolist()}), str(tmp_path / "a.feather"))
    (tmp_path / "README.md").write_text("not data")
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.inputs["acc"], ACC)
    assert (dataset.labels.tolist(), dataset.class_names) == ([0, 2, 1, 0], ("1", "3", "7"))


def test_columns_of_other_names_shapes_and_plain_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "window": ACC.reshape(4, 6).tolist(),
            "age": [20, 30, 40, 50],
            "bmi": [1.5, 2.5, 3.5, 4.5],
            "is_wet": [True, False, True, False],
            "truth": [1, 0, 1, 0],
        },
    )
    modalities = {"acc": {"column": "window", "shape": [3, 2]}, "person": {"column": ["age", "bmi"]}}
    dataset = load(path, ("acc", "person", "is_wet"), modalities=modalities, label_column="truth")
    np.testing.assert_array_equal(dataset.inputs["acc"], ACC)
    assert dataset.inputs["person"].tolist() == [[20, 1.5], [30, 2.5], [40, 3.5], [50, 4.5]]
    assert dataset.inputs["is_wet"].tolist() == [[1], [0], [1], [0]]


def test_held_out_rows_and_subjects(tmp_path: Path) -> None:
    columns = {"acc": ACC.tolist(), "label": [0, 1, 1, 0], "split": ["train", "test", "held-out", "train"]}
    path = write(tmp_path, {**columns, "subject": [7, None, None, 5]})
    dataset = load(path, class_names=["low", "high"])
    assert dataset.held_out is not None
    np.testing.assert_array_equal(dataset.inputs["acc"], ACC[[0, 3]])
    np.testing.assert_array_equal(dataset.held_out.inputs["acc"], ACC[[1, 2]])
    assert (dataset.labels.tolist(), dataset.held_out.labels.tolist()) == ([0, 0], [1, 1])
    assert dataset.class_names == dataset.held_out.class_names == ("low", "high")
    assert dataset.subjects is not None
    assert (dataset.subjects.tolist(), dataset.held_out.subjects) == ([7, 5], None)


@pytest.mark.parametrize(
    ("columns", "values", "expected", "names"),
    [
        ({"label": [["b"], [], ["a", "b"], ["a"]]}, {}, [[0, 1], [0, 0], [1, 1], [1, 0]], ("a", "b")),
        ({"label": [["b"], [], ["a"], []]}, {"class_names": ["b", "a"]}, [[1, 0], [0, 0], [0, 1], [0, 0]], ("b", "a")),
        ({"label": [[0, 1], [0, 0], [1, 1], [1, 0]]}, {}, [[0, 1], [0, 0], [1, 1], [1, 0]], ("class 0", "class 1")),
        (
            {"mi": [True, False, True, True], "cd": [0.0, 1.0, 0.0, 0.0]},
            {"label_column": ["mi", "cd"]},
            [[1, 0], [0, 1], [1, 0], [1, 0]],
            ("mi", "cd"),
        ),
    ],
)
def test_labels_of_a_multilabel_table(
    columns: dict[str, Any], values: dict[str, Any], expected: list[list[int]], names: tuple[str, ...], tmp_path: Path
) -> None:
    dataset = load(write(tmp_path, {"acc": GOOD["acc"], **columns}), task="multilabel", **values)
    assert (dataset.labels.tolist(), dataset.class_names, dataset.task) == (expected, names, "multilabel")


@pytest.mark.parametrize(
    ("columns", "values", "expected", "names"),
    [
        ({"label": [1, 2, 3, 4]}, {}, [[1], [2], [3], [4]], ("label",)),
        ({"label": [[1.5, 0]] * 4}, {"class_names": ["x", "y"]}, [[1.5, 0]] * 4, ("x", "y")),
        ({"label": [[1.5, 0]] * 4}, {}, [[1.5, 0]] * 4, ("target 0", "target 1")),
        ({"x": [1.5] * 4, "y": [2] * 4}, {"label_column": ["x", "y"]}, [[1.5, 2]] * 4, ("x", "y")),
    ],
)
def test_labels_of_a_regression_table(
    columns: dict[str, Any], values: dict[str, Any], expected: list[list[float]], names: tuple[str, ...], tmp_path: Path
) -> None:
    dataset = load(write(tmp_path, {"acc": GOOD["acc"], **columns}), task="regression", **values)
    assert (dataset.labels.tolist(), dataset.class_names, dataset.labels.dtype) == (expected, names, np.float32)


NESTED = [[[1, 2], [3, 4]], [[1, 2], [3]], [[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        ({"acc": None}, {}, r"rows.parquet has no column 'acc' \(its columns: 'label'\); expected it in every file"),
        ({"label": None}, {}, "has no column 'label'"),
        ({}, {"label_column": "truth"}, "has no column 'truth'"),
        ({}, {"subject_column": "who"}, "has no column 'who'"),
        ({}, {"split_column": "part"}, "has no column 'part'"),
        ({}, {"modalities": {"acc": {"column": "accel"}}}, "has no column 'accel'"),
        ({"acc": ["a", "b", "c"]}, {}, "column 'acc' has type string; expected numbers, .nested. lists of numbers"),
        ({"acc": [["a"]] * 3}, {}, r"column 'acc' has type list<.*string>; expected numbers"),
        ({"acc": [[1, 2], [3, 4], [5]]}, {}, "column 'acc', row 2 has 1 values; expected 2, as in the rows before"),
        ({"acc": NESTED}, {}, "column 'acc', row 1 has 1 values in a list; expected 2"),
        (
            {"acc": pa.array([[], [], []], pa.list_(pa.float32()))},
            {},
            "column 'acc', row 0 has no values; expected at least one",
        ),
        ({"acc": [[1.0], [2.0], [None]]}, {}, "column 'acc', row 2 holds a null"),
        (
            {"acc": [[1.0], [2.0], [np.nan]]},
            {},
            "column 'acc', row 2 holds a value that is not finite; expected finite",
        ),
        ({"acc": [[1.0], [-np.inf], [0.0]]}, {}, "column 'acc', row 1 holds a value that is not finite"),
        ({"acc": [[1.0], [1e300], [0.0]]}, {}, "column 'acc', row 1 holds a value that is not finite"),
        (
            {},
            {"modalities": {"acc": {"shape": [2, 2]}}},
            r"row 0 has shape \[2\], 2 values; expected 4 values, for the",
        ),
        (
            {},
            {"modalities": {"acc": {"column": ["acc", "label"]}}},
            r"has shape \[2\]; expected a plain number, as one",
        ),
        ({"label": [0.5, 1.0, 2.0]}, {}, "column 'label', row 0 is 0.5; expected text or a whole number"),
        ({"label": pa.nulls(3, pa.int64())}, {}, "column 'label', row 0 is null; expected a label in some row"),
        ({"label": [0, 1, 2]}, {"class_names": ["a", "b"]}, "column 'label', row 2 is 2; expected 0 to 1"),
        ({"label": [0, -1, 1]}, {"class_names": ["a", "b"]}, "column 'label', row 1 is -1; expected 0 to 1"),
        ({"label": ["a", "b", "c"]}, {"class_names": ["a", "b"]}, "column 'label', row 2 is 'c'; expected one of a, b"),
        ({}, {"label_column": ["label", "acc"]}, "names 2 columns; expected one for task: classification"),
        (
            {"split": ["train", "val", "test"]},
            {},
            "column 'split', row 1 is 'val'; expected 'train' or 'test' or 'held-",
        ),
        ({"split": ["test"] * 3}, {}, "column 'split' says 'train' in no row"),
        ({"subject": [1.5, 2.0, 2.0]}, {}, "column 'subject', row 0 is 1.5; expected a whole number from 0, or text"),
        ({"label": [0.0, 1.0, np.nan]}, {}, "column 'label', row 2 is nan; expected text or a whole number"),
        (
            {"label": [0.0, 1e300, 1.0]},
            {},
            r"row 1 is 1e\+300; expected text or a whole number \(of floats up to 2\^53\)",
        ),
        ({"label": [0.0, 2.0**53 + 2, 1.0]}, {}, "row 1 is 9007199254740994.0; expected text or a whole number"),
        ({"label": [Decimal("1.00"), Decimal("0.25"), Decimal("2.00")]}, {}, "row 1 is 0.25; expected text or a whole"),
        (
            {"label": pa.array([1, 2**63, 0], pa.uint64())},
            {"class_names": ["a", "b"]},
            f"row 1 is {2**63}; expected 0 to",
        ),
        ({"subject": [[1], [2], [1]]}, {}, "column 'subject' has type list<"),
        ({"label": [b"a", b"b", b"a"]}, {}, "column 'label' has type binary; expected whole numbers or text"),
        ({"split": ["train", None, "test"]}, {}, "column 'split', row 1 is null; expected 'train' or"),
        ({"split": [1, 0, 1]}, {}, "column 'split', row 0 is 1; expected 'train' or"),
        ({"subject": [3, -1, 3]}, {}, "column 'subject', row 1 is -1; expected a whole number from 0, or text"),
        ({"subject": ["a", None, "b"]}, {}, "column 'subject', row 1 is null; expected a whole number from 0"),
    ],
)
def test_a_table_that_is_refused(columns: dict[str, Any], values: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"acc": [[1.0, 2.0]] * 3, "label": [0, 1, 0], **columns}
    path = write(tmp_path, {name: column for name, column in given.items() if column is not None})
    with pytest.raises(DataError, match=message):
        load(path, **values)


@pytest.mark.parametrize(
    ("label", "task", "values", "message"),
    [
        ([[0, 1], [2, 0]], "multilabel", {}, r"column 'label', row 1 is \[2.0, 0.0\]; expected 0 or 1 for each class"),
        ([[0, 1], [0]], "multilabel", {}, "column 'label', row 1 has 1 values; expected 2"),
        ([["a"], ["c"]], "multilabel", {"class_names": ["a"]}, "column 'label', row 1 has 'c'; expected some of a"),
        ([["a"], [None]], "multilabel", {}, "column 'label', row 1 holds a null; expected names of classes"),
        ([[], []], "multilabel", {}, "column 'label'"),
        ([1.0, np.nan], "regression", {}, "column 'label', row 1 holds a value that is not finite"),
        (["a", "b"], "regression", {}, "column 'label' has type string; expected numbers"),
        ([[[1]], [[2]]], "regression", {}, r"column 'label', row 0 has shape \[1, 1\]; expected a number or a list"),
        ([1.0, 2.0], "regression", {"class_names": ["x", "y"]}, "row 0 has 1 values; expected 2, one per class name"),
    ],
)
def test_labels_that_are_refused(
    label: list[Any], task: Task, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, {"acc": [[1.0], [2.0]], "label": label}), task=task, **values)


def with_null(values: pa.Array, codes: list[int]) -> pa.Array:
    """A dictionary in which a value is null, as Arrow files may have."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.uint8()), values)


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("subject", "column 'subject', row 2 is null; expected a whole number from 0, or text"),
        ("split", "column 'split', row 2 is null; expected 'train' or 'test' or 'held-out'"),
    ],
)
def test_a_null_among_the_values_of_a_dictionary(column: str, message: str, text: Any, tmp_path: Path) -> None:
    values = with_null(pa.array(["train", None, "test", None], text), [0, 0, 1, 0])
    good = {"acc": [[1.0]] * 4, "label": [0, 1, 0, 1]}
    path = tmp_path / "rows.arrow"
    write_as("arrow", pa.table({**good, column: values}), path)
    with pytest.raises(DataError, match=message):
        load(path)
    # What no row has is no class, whether it is null or not.
    values = with_null(pa.array(["train", None, "test", "unused"], text), [0, 2, 0, 2])
    write_as("arrow", pa.table({**good, column: values}), path)
    assert load(path).num_samples == (2 if column == "split" else 4)


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_null_among_the_values_of_a_dictionary_is_no_class(text: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    for codes, known in (([0, 0, 1, 0], [True, True, False, True]), ([0, 2, 0, 2], None)):
        values = with_null(pa.array(["train", None, "test", "unused"], text), codes)
        write_as("arrow", pa.table({"acc": [[1.0]] * 4, "label": values}), path)
        found = load(path)
        assert found.class_names == (("train",) if known else ("test", "train"))
        assert found.labels.tolist() == ([0] * 4 if known else [1, 0, 1, 0])
        assert found.known is None if known is None else found.known.tolist() == known


def test_labels_that_are_null_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = {
        "acc": [[1.0]] * 4,
        "label": ["b", None, "a", None],
        "mi": pa.array([1, None, 0, 0], pa.int8()),
        "cd": pa.array([None, None, 1.0, 0.0], pa.float32()),
        "both": pa.array([[1, 0], None, [None, 1], [0, 0]], pa.list_(pa.int8())),
        "names": [["x"], None, [], ["y"]],
    }
    write_as("parquet", pa.table(columns), path)
    whole = load(path)
    assert whole.known is not None
    assert (whole.labels.tolist(), whole.known.tolist()) == ([1, 0, 0, 0], [True, False, True, False])
    expected = {("mi", "cd"): ([[1, 0], [0, 0], [0, 1], [0, 0]], [[1, 0], [0, 0], [1, 1], [1, 1]])}
    expected["both",] = [[1, 0], [0, 0], [0, 1], [0, 0]], [[1, 1], [0, 0], [0, 1], [1, 1]]
    expected["names",] = [[1, 0], [0, 0], [0, 0], [0, 1]], [[1, 1], [0, 0], [1, 1], [1, 1]]
    for label, (labels, known) in expected.items():
        found = load(path, label_column=list(label), task="multilabel")
        assert (found.labels.tolist(), np.asarray(found.known, int).tolist()) == (labels, known), label
    again = tmp_path / "again.arrow"
    write_table(found, again)
    assert load(again, class_names=["x", "y"], task="multilabel").fingerprint() == found.fingerprint()
    write_as("parquet", pa.table({"acc": [[1.0]] * 2, "label": [1.0, np.nan]}), path)
    with pytest.raises(DataError, match="row 1 holds a value that is not finite"):
        load(path, task="regression")


def test_a_null_among_the_names_of_classes(tmp_path: Path) -> None:
    names = pa.ListArray.from_arrays([0, 1, 3], with_null(pa.array(["a", None, "b"]), [0, 2, 1]))
    path = tmp_path / "rows.arrow"
    write_as("arrow", pa.table({"acc": [[1.0]] * 2, "label": names}), path)
    with pytest.raises(DataError, match="column 'label', row 1 holds a null; expected names of classes"):
        load(path, task="multilabel")


TEXTS = ["a", "a\0", "a\0\0", "", "\0", "ä", "a b", "x" * 500]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.string_view()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_text_of_every_kind_is_told_apart(column: pa.Array, kind: str, tmp_path: Path) -> None:
    split = pa.array(["train"] * 4 + ["test"] * 4, pa.string_view())
    if kind != "parquet":  # which has no dictionaries of views
        split = split.dictionary_encode()
    elif column.type == pa.dictionary(pa.int32(), pa.string_view()):
        column = pa.array(TEXTS, pa.string_view())
    columns = {"acc": [[float(row)] for row in range(8)], "label": column, "subject": column}
    path = tmp_path / "rows"
    write_as(kind, pa.table({**columns, "split": split}), path)
    dataset = load(path)
    order = sorted(TEXTS)
    assert dataset.class_names == tuple(order)
    assert dataset.held_out is not None
    assert dataset.subjects is not None
    codes = [*dataset.labels.tolist(), *dataset.held_out.labels.tolist()]
    assert [order[code] for code in codes] == TEXTS
    assert dataset.subjects.tolist() == dataset.labels.tolist()
    lists = pa.table({"acc": columns["acc"], "label": [[text] for text in TEXTS]})
    lists = lists.set_column(1, "label", pa.ListArray.from_arrays(list(range(9)), columns["label"]))
    write_as(kind, lists, path)
    dataset = load(path, task="multilabel")
    assert (dataset.class_names, dataset.labels.argmax(axis=1).tolist()) == (tuple(order), codes)


HASHES = [2**63 + 5, 3, 2**62 + 1, 2**63 + 4]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array(HASHES, pa.uint64()), ("3", str(2**62 + 1), str(2**63 + 4), str(2**63 + 5))),
        (pa.array(HASHES, pa.uint64()).dictionary_encode(), ("3", str(2**62 + 1), str(2**63 + 4), str(2**63 + 5))),
        (
            pa.array(list(map(Decimal, HASHES)), pa.decimal128(38)),
            ("3", str(2**62 + 1), str(2**63 + 4), str(2**63 + 5)),
        ),
        (
            pa.array([Decimal(2**70), Decimal(-5), Decimal(2**70 + 1), Decimal(7)], pa.decimal256(50)),
            ("-5", "7", str(2**70), str(2**70 + 1)),
        ),
        (pa.array([1.0, -0.0, 2.0**53, 0.0]), ("0", "1", str(2**53))),
        (pa.array([2, 0, 1, 2], pa.float16()), ("0", "1", "2")),
        (pa.array([Decimal("1.00"), Decimal("-2.00"), Decimal("10.00"), Decimal("0.00")]), ("-2", "0", "1", "10")),
        (pa.array([True, False, True, True]), ("0", "1")),
        (pa.array([-3, 2, 10, 10], pa.int8()), ("-3", "2", "10")),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_whole_numbers_of_every_type_are_classes(
    column: pa.Array, names: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    write_as(kind, pa.table({"acc": [[1.0]] * 4, "label": column}), path)
    dataset = load(path)
    assert dataset.class_names == names
    assert [int(names[code]) for code in dataset.labels] == [int(value) for value in column.to_pylist()]
    dataset = from_arrays({"acc": [[1.0]] * 4}, column)
    assert [int({"True": 1, "False": 0}.get(dataset.class_names[code], dataset.class_names[code]))
            for code in dataset.labels] == [int(value) for value in column.to_pylist()]  # fmt: skip


def test_whole_numbers_of_several_types_in_several_files_are_the_same_classes(tmp_path: Path) -> None:
    write(tmp_path, {"acc": [[1.0], [2.0]], "label": [3, 1], "subject": [7, 2]}, "a.parquet")
    write(tmp_path, {"acc": [[1.0], [2.0]], "label": [1.0, 3.0], "subject": [2.0, 7.0]}, "b.parquet")
    dataset = load(tmp_path)
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 0, 0, 1], ("1", "3"))
    assert dataset.subjects is not None
    assert dataset.subjects.tolist() == [7, 2, 2, 7]
    for column in ("label", "subject"):
        other = {"label": [1, 3], "subject": [2, 7]} | {column: ["1", "3"]}
        write(tmp_path, {"acc": [[1.0], [2.0]], **other}, "b.parquet")
        with pytest.raises(
            DataError, match=f"b.parquet, column '{column}', row 0 is '1'; expected text, or numbers, in"
        ):
            load(tmp_path)


def test_subjects_that_are_too_large_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    write_as(
        "arrow", pa.table({"acc": [[1.0]] * 4, "label": [0, 1] * 2, "subject": pa.array(HASHES, pa.uint64())}), path
    )
    subjects = load(path).subjects
    assert subjects is not None
    assert subjects.tolist() == [3, 0, 1, 2]


def test_decimals_are_numbers(tmp_path: Path) -> None:
    halves = [[Decimal(row) / 2, Decimal(-row)] for row in range(4)]
    labels = [Decimal(row) / 4 for row in range(4)]
    table = pa.table(
        {"acc": pa.array(halves), "age": pa.array(labels, pa.decimal128(12, 4)), "label": pa.array(labels)}
    )
    dataset = load(write(tmp_path, table), ("acc", "age"), "regression")
    assert dataset.inputs["acc"].tolist() == [[row / 2, -row] for row in range(4)]
    assert dataset.inputs["age"].tolist() == dataset.labels.tolist() == [[row / 4] for row in range(4)]


def test_rows_are_counted_in_their_own_file(tmp_path: Path) -> None:
    write(tmp_path, {"acc": [[1.0, 2.0]] * 3, "label": [0, 1, 0]}, "a.parquet")
    path = write(tmp_path, {"acc": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 5]}, "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet, column 'label', row 1 is 5"):
        load(tmp_path, class_names=["low", "high"])
    pq.write_table(pa.table({"acc": [[1.0], [3.0]], "label": [0, 1]}), path)
    with pytest.raises(
        DataError, match=r"b.parquet, column 'acc', row 0 has shape \[1\]; expected \[2\], as in the rows"
    ):
        load(tmp_path)


def test_far_down_in_a_large_file_a_row_has_its_number(tmp_path: Path) -> None:
    values = np.zeros((100_000, 64), np.float32)
    values[98_765, 3] = np.nan
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 64)
    path = write(tmp_path, {"acc": rows, "label": np.arange(100_000) % 2})
    with pytest.raises(DataError, match="row 98765 holds a value that is not finite"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.parquet is empty; expected a Parquet, Arrow or Feather"),
        (b"a,b\n1,2\n", "rows.parquet begins with b'a,b"),
        (b"PAR1 and nothing else", r"rows.parquet cannot be read \(.*\); expected a Parquet"),
        (b"ARROW1\0\0 and nothing else at all, which is no file", "rows.parquet cannot be read"),
    ],
)
def test_files_of_other_kinds(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(path)


def test_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["label", "label"])
    with pytest.raises(
        DataError, match=r"rows.parquet has several columns 'label'; expected columns of different names"
    ):
        load(write(tmp_path, table))


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet is no regular file; expected a Parquet"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"rows.parquet cannot be read"):
        load(tmp_path / "rows.parquet")


def test_a_folder_is_read_whatever_its_files_are_called(tmp_path: Path) -> None:
    names = ["a.parquet", "b.pq", "C.PARQUET", "d.Arrow", "part-0000", "part-0001.snappy", "_x.parquet", "f.data"]
    for row, name in enumerate(sorted(names)):
        table = pa.table({"acc": [[float(row)]], "label": [row % 2]})
        write_as(["parquet", "arrow", "stream"][row % 3], table, tmp_path / name)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "z.parquet").symlink_to(write(tmp_path / ".cache", {"acc": [[8.0]], "label": [1]}))
    harmless = ["_SUCCESS", "._SUCCESS.crc", ".part-0000.crc", "_committed_123", "README.md", "LICENSE", "state.json"]
    for name in (*harmless, "dataset_info.json", "SHA256SUMS", ".gitattributes", "._a.parquet", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\26\7 no rows")
    for name in ("_metadata", "_common_metadata"):
        pq.write_metadata(table.schema, tmp_path / name)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a.parquet").write_bytes(b"no rows")
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "README").write_text("")
    os.mkfifo(tmp_path / ".pipe")
    assert load(tmp_path).inputs["acc"].tolist() == [[float(row)] for row in range(9)]


def leave_csv(folder: Path) -> None:
    (folder / "b.csv").write_text("acc,label")


def leave_empty(folder: Path) -> None:
    (folder / "part-0001").write_bytes(b"")


def leave_gzip(folder: Path) -> None:
    (folder / "b.parquet.gz").write_bytes(b"\x1f\x8b\x08")


def leave_lfs_pointer(folder: Path) -> None:
    (folder / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def leave_annex_pointer(folder: Path) -> None:
    (folder / "part-0001").write_text("/annex/objects/SHA256E-s9--0.parquet\n")


def leave_annex_link(folder: Path) -> None:
    (folder / "b.parquet").symlink_to(".git/annex/objects/xX/SHA256E-s9--0.parquet")


def leave_dangling_link(folder: Path) -> None:
    (folder / "b").symlink_to("nowhere")


def leave_link_to_itself(folder: Path) -> None:
    (folder / "b.arrow").symlink_to("b.arrow")


def leave_folder(folder: Path) -> None:
    (folder / "label=1" / "part=2").mkdir(parents=True)
    write(folder / "label=1" / "part=2", GOOD)


def leave_link_to_folder(folder: Path) -> None:
    leave_folder(folder)
    (folder / "label=1").rename(folder / ".other")
    (folder / "b").mkdir()
    (folder / "b" / "more").symlink_to(folder / ".other")


def leave_delta_log(folder: Path) -> None:
    (folder / "_delta_log").mkdir()
    (folder / "_delta_log" / "0.checkpoint.parquet").write_bytes(b"PAR1")


def leave_hidden(folder: Path) -> None:
    write(folder, GOOD, ".b.parquet")


def leave_copy(folder: Path) -> None:
    write(folder, GOOD, "a.parquet~")


def leave_part(folder: Path) -> None:
    write(folder, GOOD, "b.parquet.TMP")


def leave_twice(folder: Path) -> None:
    (folder / "b.parquet").symlink_to("a.parquet")


@pytest.mark.parametrize(
    ("leave", "message"),
    [
        (leave_csv, "b.csv begins with b'acc,la'; expected a folder of Parquet, .* and notes alone, since rows of"),
        (leave_empty, "part-0001 is empty; expected a folder of Parquet"),
        (leave_gzip, "b.parquet.gz begins with b'"),
        (leave_lfs_pointer, r"b.parquet is a pointer of Git LFS in the place of its content \(git lfs pull fetches it"),
        (leave_annex_pointer, r"part-0001 is a pointer of git-annex in the place of its content \(git annex get fetch"),
        (leave_annex_link, r"b.parquet is a link to '.git/annex/.*', where no file is \(git annex get fetches it\)"),
        (leave_dangling_link, "b is a link to 'nowhere', where no file is; expected a Parquet"),
        (leave_link_to_itself, "b.arrow"),
        (leave_folder, "has the file label=1/part=2/rows.parquet in a folder below; expected all files in the folder"),
        (leave_link_to_folder, "b/more is a link to a folder; expected the folder itself"),
        (leave_delta_log, "has the file _delta_log/0.checkpoint.parquet in a folder below"),
        (leave_hidden, ".b.parquet has rows, and the name of a hidden file, a copy or a part; expected it elsewhere"),
        (leave_copy, "a.parquet~ has rows, and the name of a hidden file, a copy or a part"),
        (leave_part, "b.parquet.TMP has rows, and the name of a hidden file, a copy or a part"),
        (leave_twice, "has one file as a.parquet and as b.parquet; expected it once"),
    ],
)
def test_a_folder_is_read_whole_or_refused(leave: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a.parquet")
    leave(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("cut", ["end", "batch", "half a batch", "more"])
def test_a_stream_is_read_whole_or_refused(cut: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    write_as("stream", pa.table({"acc": [[1.0]] * 4, "label": [0, 1, 0, 1]}), path, rows=2)
    content = path.read_bytes()
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_stream(source)
        reader.read_next_batch()
        first_end = source.tell()
    path.write_bytes(
        {"end": content[:-8], "batch": content[:first_end], "half a batch": content[:-40], "more": 2 * content}[cut]
    )
    with pytest.raises(DataError, match=r"rows.arrow (is an Arrow stream without its end|cannot be read)"):
        load(path)


def test_paths_that_lead_to_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.parquet cannot be read"):
        load(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"holds no file with rows; expected a Parquet, Arrow"):
        load(tmp_path)
    with pytest.raises(DataError, match="has no rows; expected a row per sample"):
        load(write(tmp_path, {"acc": pa.array([], pa.list_(pa.float32())), "label": pa.array([], pa.int64())}))


@given(place=st.floats(0, 1), flips=st.integers(1, 255), kind=st.sampled_from(["parquet", "arrow"]))
@example(place=0.25257931476575674, flips=1, kind="parquet")  # a number of rows below 0, as some versions write it
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_is_refused_or_reads_as_a_data_set(
    place: float, flips: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"rows.{kind}"
    table = pa.table({"acc": tensors(np.ones((50, 3), np.float32)), "label": [f"class {k % 3}" for k in range(50)]})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= flips
    path.write_bytes(content)
    message = ""
    try:
        num_samples = load(path).num_samples
    except DataError as error:
        num_samples, message = 0, str(error)
    assert num_samples > 0 or "; expected" in message


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("has_more", [True, False])
def test_what_is_written_reads_back_with_the_same_fingerprint(task: Task, has_more: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels = {
        "classification": draw.integers(0, 2, 20),
        "multilabel": (draw.random((20, 2)) < 0.5).astype(np.float32),
        "regression": draw.standard_normal((20, 2)).astype(np.float32),
    }[task]
    names = ("x", "y")
    inputs = {"a": draw.standard_normal((20, 3, 2)).astype(np.float32), "b": np.ones((20, 1), np.float32)}
    held_out = Dataset({name: values[:4] for name, values in inputs.items()}, labels[:4], names) if has_more else None
    subjects = np.arange(20) // 3 + 5 if has_more else None
    dataset = Dataset(inputs, labels, names, subjects, held_out)
    path = write_table(dataset, tmp_path / "below" / "rows.arrow")
    again = load(path, ("a", "b"), task, class_names=names)
    assert again.fingerprint() == dataset.fingerprint()
    assert list(path.parent.iterdir()) == [path]


def test_one_sample_is_written_whatever_its_strides(tmp_path: Path) -> None:
    sample = np.arange(6, dtype=np.float32).reshape(2, 3, 1).transpose(2, 0, 1)
    dataset = Dataset({"a": sample}, np.array([0]), ("x",))
    again = load(write_table(dataset, tmp_path / "rows.arrow"), ("a",))
    np.testing.assert_array_equal(again.inputs["a"], sample)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    dataset = Dataset({"split": np.ones((2, 1), np.float32)}, np.array([0, 1]), ("a", "b"))
    with pytest.raises(RunFolderError, match="a modality is called 'split', as a column is; expected another name"):
        write_table(dataset, tmp_path / "rows.arrow")
    dataset = Dataset({"a": np.ones((2, 1), np.float32)}, np.array([0, 1]), ("a", "b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_table(dataset, tmp_path / "file" / "rows.arrow")


# The highest resident set so far, mapped pages of the file included, after a small file: what is imported on the way
# does not count. `resource` would begin with the parent's.
MEASURE = """
import re, sys
from pathlib import Path
from blossom_ray.data.files import remote
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.table import rows
def highest_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def read(path):
    source = TableData(dataset="table", path=path).open(("acc",), 0, "classification")
    getattr(source, sys.argv[3])()
read(sys.argv[2])
before = highest_kib()
read(sys.argv[1])
print(1024 * (highest_kib() - before))
"""


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_reading_takes_little_memory_beside_the_data(kind: str, tmp_path: Path) -> None:
    num_bytes = 200 * 2**20
    values = np.random.default_rng(0).random((num_bytes // 4000, 1000), np.float32)
    table = pa.table({"acc": tensors(values), "label": np.arange(len(values)) % 3})
    path, small = tmp_path / f"rows.{kind}", tmp_path / f"small.{kind}"
    for each, rows in ((path, table), (small, table.slice(0, 10))):
        if kind == "parquet":
            pq.write_table(rows, each)
        else:
            with pa.OSFile(str(each), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
                writer.write_table(rows)
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(small), "load"], capture_output=True, text=True, check=True
    )
    # Once the data, and of an Arrow file the mapped pages, which the system can take back at any time.
    assert num_bytes < int(found.stdout) < 2.4 * num_bytes


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("num_long", [1, 50_000])
def test_a_long_text_takes_its_own_memory_alone(num_long: int, kind: str, tmp_path: Path) -> None:
    is_long = np.arange(100_000) < num_long
    texts = pa.DictionaryArray.from_arrays(pa.array(is_long.astype(np.int32)), pa.array(["sit", "x" * 20_000]))
    path, small = tmp_path / f"rows.{kind}", tmp_path / f"small.{kind}"
    table = pa.table({"acc": np.ones(100_000), "label": texts, "subject": texts})
    write_as(kind, table, path, rows=100_000)
    write_as(kind, table.slice(len(table) - 10).combine_chunks(), small, rows=10)
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(small), "targets"], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 100 * 2**20
