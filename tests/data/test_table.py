from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.table import Table
from blossom_ray.data.table_writer import write_table
from blossom_ray.errors import DataError, RunFolderError
from blossom_ray.scenario.sections import TableData
from blossom_ray.scores import Task

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
@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "compressed feather"])
def test_a_modality_of_several_types_in_several_files(column: pa.Array, kind: str, tmp_path: Path) -> None:
    table = pa.table({"acc": column, "label": GOOD["label"]})
    path = tmp_path / "rows"  # told apart by content, not by name
    match kind:
        case "parquet":
            pq.write_table(table, path, row_group_size=3)
        case "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        case _:
            compression = "zstd" if kind.startswith("compressed") else "uncompressed"
            pa.feather.write_feather(table, str(path), compression=compression)
    dataset = load(path)
    np.testing.assert_array_equal(dataset.inputs["acc"], ACC)
    assert dataset.inputs["acc"].dtype == np.float32
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 2, 1, 0], ("lie", "run", "sit"))
    assert (dataset.subjects, dataset.held_out) == (None, None)


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
        ({"acc": pa.array([[], [], []], pa.list_(pa.float32()))}, {}, "column 'acc', row 0 has no values; expected at least one"),
        ({"acc": [[1.0], None, [2.0]]}, {}, "column 'acc', row 1 is null; expected a value in every row"),
        ({"acc": [[1.0], [2.0], [None]]}, {}, "column 'acc', row 2 holds a null"),
        ({"acc": [[1.0], [2.0], [np.nan]]}, {}, "column 'acc', row 2 holds a value that is not finite; expected finite"),
        ({"acc": [[1.0], [-np.inf], [0.0]]}, {}, "column 'acc', row 1 holds a value that is not finite"),
        ({"acc": [[1.0], [1e300], [0.0]]}, {}, "column 'acc', row 1 holds a value that is not finite"),
        ({}, {"modalities": {"acc": {"shape": [2, 2]}}}, r"row 0 has shape \[2\], 2 values; expected 4 values, for the"),
        ({}, {"modalities": {"acc": {"column": ["acc", "label"]}}}, r"has shape \[2\]; expected a plain number, as one"),
        ({"label": [0.5, 1.0, 2.0]}, {}, "column 'label' has type double; expected whole numbers or text for task"),
        ({"label": [0, None, 2]}, {}, "column 'label', row 1 is null; expected a label in every row"),
        ({"label": [0, 1, 2]}, {"class_names": ["a", "b"]}, "column 'label', row 2 is 2; expected 0 to 1"),
        ({"label": [0, -1, 1]}, {"class_names": ["a", "b"]}, "column 'label', row 1 is -1; expected 0 to 1"),
        ({"label": ["a", "b", "c"]}, {"class_names": ["a", "b"]}, "column 'label', row 2 is 'c'; expected one of a, b"),
        ({}, {"label_column": ["label", "acc"]}, "names 2 columns; expected one for task: classification"),
        ({"split": ["train", "val", "test"]}, {}, "column 'split', row 1 is 'val'; expected 'train' or 'test' or 'held-"),
        ({"split": ["test"] * 3}, {}, "column 'split' says 'train' in no row"),
        ({"subject": [1.5, 2.0, 2.0]}, {}, "column 'subject', row 0 is 1.5; expected a whole number from 0, or text"),
        ({"subject": ["a", None, "b"]}, {}, "column 'subject', row 1 is None"),
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


def test_rows_are_counted_in_their_own_file(tmp_path: Path) -> None:
    write(tmp_path, {"acc": [[1.0, 2.0]] * 3, "label": [0, 1, 0]}, "a.parquet")
    path = write(tmp_path, {"acc": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 5]}, "b.parquet")
    with pytest.raises(DataError, match="b.parquet, column 'label', row 1 is 5"):
        load(tmp_path, class_names=["low", "high"])
    pq.write_table(pa.table({"acc": [[1.0], [3.0]], "label": [0, 1]}), path)
    with pytest.raises(DataError, match=r"b.parquet, column 'acc', row 0 has shape \[1\]; expected \[2\], as in the rows"):
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
    with pytest.raises(DataError, match="rows.parquet has several columns 'label'; expected columns of different names"):
        load(write(tmp_path, table))


def test_paths_that_lead_to_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.parquet cannot be read"):
        load(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="holds no file that ends in .parquet, .arrow"):
        load(tmp_path)
    with pytest.raises(DataError, match="has no rows; expected a row per sample"):
        load(write(tmp_path, {"acc": pa.array([], pa.list_(pa.float32())), "label": pa.array([], pa.int64())}))


@given(place=st.floats(0, 1), flips=st.integers(1, 255), kind=st.sampled_from(["parquet", "arrow"]))
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
    try:
        assert load(path).num_samples > 0
    except DataError as error:
        assert "expected" in str(error)


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


def test_what_cannot_be_written(tmp_path: Path) -> None:
    dataset = Dataset({"split": np.ones((2, 1), np.float32)}, np.array([0, 1]), ("a", "b"))
    with pytest.raises(RunFolderError, match="a modality is called 'split', as a column is; expected another name"):
        write_table(dataset, tmp_path / "rows.arrow")
    dataset = Dataset({"a": np.ones((2, 1), np.float32)}, np.array([0, 1]), ("a", "b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_table(dataset, tmp_path / "file" / "rows.arrow")


# The highest resident set so far, mapped pages of the file included. `resource` would begin with the parent's.
MEASURE = """
import re, sys
from pathlib import Path
from blossom_ray.data.table import Table
from blossom_ray.scenario.sections import TableData
def highest_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
section = TableData(dataset="table", path=sys.argv[1])
before = highest_kib()
dataset = Table(section, ("acc",), "classification").load()
print(1024 * (highest_kib() - before))
"""


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_reading_takes_little_memory_beside_the_data(kind: str, tmp_path: Path) -> None:
    num_bytes = 200 * 2**20
    values = np.random.default_rng(0).random((num_bytes // 4000, 1000), np.float32)
    table = pa.table({"acc": tensors(values), "label": np.arange(len(values)) % 3})
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    found = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    # Once the data, and of an Arrow file the mapped pages, which the system can take back at any time.
    assert num_bytes < int(found.stdout) < 2.4 * num_bytes
