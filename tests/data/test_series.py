from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.data.arrays import from_arrays
from blossom_ray.data.division.federation import build_federation
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.series_rows import samples_by_row
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.data.table.opening import open_column_files
from blossom_ray.data.table.series_columns import check_series, series_lengths, series_rows
from blossom_ray.errors import DataError
from blossom_ray.models.predict import read_samples
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.session import simulate


def series(**options: Any) -> SeriesModality:
    modality = SeriesModality.model_validate({"kind": "series", **options})
    assert list(modality.conflicts()) == []
    return modality


def samples(folder: Path, options: dict[str, Any], *columns: list[Any], type_: Any = None) -> np.ndarray:
    """All samples of a table with these columns, in four files of which each has some rows."""
    folder.mkdir(exist_ok=True)
    names = [f"c{number}" for number in range(len(columns))]
    step = -(-len(columns[0]) // 4)
    for number in range(0, len(columns[0]), step):
        arrays = [pa.array(column[number : number + step], type_ or pa.list_(pa.float64())) for column in columns]
        pq.write_table(pa.table(arrays, names), folder / f"{number:03}.parquet")
    modality, files = series(**options), open_column_files(folder).files
    check_series(files, names)
    numbers = samples_by_row({"c": series_lengths(files, names)}, {"c": modality}, len(columns[0]), "{}{}".format)
    rows = series_rows(files, names, modality, numbers)
    assert len(rows) == numbers.sum()
    return rows[:]


def test_cut_and_filled_up_by_hand(tmp_path: Path) -> None:
    column = [[1.0, 2, 3, 4], [5.0], None]
    expected = {"start": [[1, 2, 3], [5, 9, 9]], "middle": [[1, 2, 3], [9, 5, 9]], "end": [[2, 3, 4], [9, 9, 5]]}
    for keep, rows in expected.items():
        found = samples(tmp_path, {"length": 3, "keep": keep, "pad": 9}, column)
        assert found.shape == (3, 3, 1)
        assert found[:, :, 0].tolist() == [*rows, [0, 0, 0]]


def test_windows_by_hand(tmp_path: Path) -> None:
    """Of ten values four that overlap by half; one of three values is filled up; what is left is left out."""
    column = [list(map(float, range(10))), [1.0, 2, 3], None, list(map(float, range(20, 25)))]
    found = samples(tmp_path, {"windows": {"length": 4, "overlap": 0.5}, "pad": -1}, column)[:, :, 0]
    expected = [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9], [1, 2, 3, -1], [0, 0, 0, 0], [20, 21, 22, 23]]
    assert found.tolist() == expected


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(1, 30)), min_size=1, max_size=8).filter(any),
    st.integers(1, 12),
    st.sampled_from([None, 0.0, 0.25, 0.5, 0.9]),
    st.integers(1, 3),
    st.booleans(),
)
def test_samples_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int | None],
    length: int,
    overlap: float | None,
    channels: int,
    has_columns: bool,
) -> None:
    draw = np.random.default_rng(0)
    rows = [None if each is None else draw.normal(size=(each, channels)).astype(np.float32) for each in lengths]
    expected = []
    for row in rows:
        if row is None:
            expected.append(np.zeros((length, channels), np.float32))
            continue
        filled = np.concatenate([row, np.full((max(0, length - len(row)), channels), 2, np.float32)])
        begin = 0
        while begin + length <= len(filled):
            expected.append(filled[begin : begin + length])
            if overlap is None:
                break
            begin += max(1, round(length * (1 - overlap)))
    cut = {"length": length} if overlap is None else {"windows": {"length": length, "overlap": overlap}}
    folder = tmp_path_factory.mktemp("series")
    if has_columns:
        columns = [[None if row is None else row[:, n].tolist() for row in rows] for n in range(channels)]
        found = samples(folder, {**cut, "pad": 2}, *columns)
    else:
        column = [None if row is None else row.tolist() for row in rows]
        found = samples(folder, {**cut, "pad": 2}, column, type_=pa.list_(pa.list_(pa.float32())))
    assert (found == np.stack(expected)).all()


def test_tensors_and_lists_of_one_length_are_series_too(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
    pq.write_table(pa.table({"c": pa.FixedShapeTensorArray.from_numpy_ndarray(values)}), tmp_path / "a.parquet")
    files, modality = open_column_files(tmp_path).files, series(windows={"length": 3})
    check_series(files, ["c"])
    assert series_lengths(files, ["c"]).tolist() == [6, 6]
    found = series_rows(files, ["c"], modality, np.array([2, 2]))
    assert (found[:] == values.reshape(4, 3, 2)).all()


def test_windows_that_overlap_share_their_memory(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": [np.arange(1000.0).tolist()]}), tmp_path / "a.parquet")
    files, modality = open_column_files(tmp_path).files, series(windows={"length": 100, "overlap": 0.99})
    found = series_rows(files, ["c"], modality, np.array([901]))
    assert found.shape == (901, 100, 1)
    assert found.parts[0].base is not None
    assert np.shares_memory(found.parts[0][0], found.parts[0][99])
    assert (found[:][:, :, 0] == np.arange(901)[:, None] + np.arange(100)).all()


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ([[[1.0], []]], r"a.parquet, column 'c0', row 1 has 0 values; expected at least one"),
        (
            [[[1.0], [2.0]], [[1.0], [2.0, 3.0]]],
            r"column 'c1', row 1 has 2 values; expected 1, as column 'c0' has there",
        ),
        ([[[1.0], [2.0, None]]], r"row 1 holds a null; expected numbers, or null in the place of the whole series"),
        ([[[1.0], [2.0, float("nan")]]], r"row 1 holds a value that is not finite; expected finite numbers"),
        ([[[[1.0]], [[2.0], [2.0, 3.0]]]], r"row 1 has 2 values; expected 1, as in the rows before"),
        ([[1.0, 2.0]], r"column 'c0' has type double; expected lists of numbers, or of lists of numbers \(time, chan"),
        ([["a", "b"]], r"column 'c0' has type string; expected numbers"),
        ([[[[[1.0]]]]], r"column 'c0' has type list.*; expected lists of numbers, or of lists"),
        ([[[[1.0]]], [[[1.0]]]], r"column 'c0' has type list.*; expected lists of numbers, as one of several columns"),
        ([[None, None]], r"column 'c0' is null in all rows; expected values in some"),
    ],
)
def test_what_is_no_series_is_refused(tmp_path: Path, columns: list[Any], found: str) -> None:
    names = [f"c{number}" for number in range(len(columns))]
    pq.write_table(pa.table(columns, names), tmp_path / "a.parquet")
    files, modality = open_column_files(tmp_path).files, series(length=2)

    def read() -> None:
        check_series(files, names)
        series_rows(files, names, modality, np.ones(2, np.int64))

    with pytest.raises(DataError, match=found):
        read()


@pytest.mark.parametrize("options", [{}, {"length": 3, "windows": {"length": 3}}])
def test_a_series_has_a_length_or_windows(options: dict[str, Any]) -> None:
    (finding,) = SeriesModality.model_validate({"kind": "series", **options}).conflicts()
    assert (finding.path, finding.expected) == ("length", "one of length and windows")


LENGTHS = [9, 6, 3, 12, 7, 6, 8, 10, 6, 9, 11, 6]
CUT: dict[str, Any] = {"kind": "series", "windows": {"length": 6, "overlap": 0.5}}


def tables(folder: Path, **columns: list[Any]) -> tuple[Path, Path, list[int]]:
    """A table of recordings, the same with a row for each of their windows, and from which row each of these is."""
    draw = np.random.default_rng(0)
    acc = [draw.normal(size=(length, 2)).astype(np.float32) for length in LENGTHS]
    wide: dict[str, list[Any]] = {
        "acc": [None if row == 4 else values.tolist() for row, values in enumerate(acc)],
        "age": [None if row == 7 else float(row) for row in range(12)],
        "said": [None if row == 2 else f"text {row}" for row in range(12)],
        "gyro": [draw.normal(size=length % 4 + 1).tolist() for length in LENGTHS],
        "label": ["ab"[row % 2] for row in range(12)],
        "mood": [row / 3 for row in range(12)],
        **columns,
    }
    pq.write_table(pa.table(wide), folder / "rows.parquet")
    rows, windows = [], []
    for row, values in enumerate(acc):
        filled = np.concatenate([values, np.zeros((max(0, 6 - len(values)), 2), np.float32)])
        for begin in range(0, 1 if row == 4 else len(filled) - 5, 3):
            rows.append(row)
            windows.append(None if row == 4 else filled[begin : begin + 6].tolist())
    expanded = {name: [column[row] for row in rows] for name, column in wide.items()}
    expanded["acc"] = windows
    expanded["gyro"] = [[[each] for each in [*column, 0, 0, 0][:3]] for column in expanded["gyro"]]
    pq.write_table(pa.table(expanded), folder / "windows.parquet")
    return folder / "rows.parquet", folder / "windows.parquet", rows


def table_of(path: Path, modalities: dict[str, Any], **values: Any) -> Table:
    words = {"kind": "text", "max_length": 3, "buckets": 20}
    tree = {"dataset": "table", "path": str(path), "modalities": {"said": words, **modalities}, **values}
    return Table(TableData.model_validate(tree), ("acc", "age", "gyro", "said"), "classification")


SERIES: dict[str, Any] = {"acc": CUT, "gyro": {"kind": "series", "length": 3}}


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({}, {}),
        ({"subject": [f"s{row % 5}" for row in range(12)]}, {"split": "subject"}),
        ({"split": ["test" if row % 4 == 3 else "train" for row in range(12)]}, {}),
        ({"client": ["pqr"[row % 3] for row in range(12)]}, {"partition": {"kind": "given"}}),
        (
            {
                "client": ["pq"[row % 2] for row in range(12)],
                "split": ["train", "train", "train", "train", "test", "test"] * 2,
                "recording": [row // 2 for row in range(12)],
            },
            {"partition": {"kind": "given"}},
        ),
    ],
    ids=["plain", "subjects", "held out", "clients", "clients with splits"],
)
def test_windows_are_the_rows_of_a_table_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], values: dict[str, Any]
) -> None:
    """With the row's labels, subject, client, split and other modalities."""
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    path, expanded, rows = tables(tmp_path, **columns)
    windowed, plain = table_of(path, SERIES, **values), table_of(expanded, {}, **values)
    found, expected = windowed.load(), plain.load()
    assert found.fingerprint() == expected.fingerprint()
    for targets, other in ((windowed.targets(), plain.targets()), (found.targets, expected.targets)):
        assert targets.labels.tolist() == other.labels.tolist()
        for own, theirs in ((targets.subjects, other.subjects), (targets.recordings, other.recordings)):
            assert (own is None) == (theirs is None)
            assert own is None or theirs is None or own.tolist() == theirs.tolist()
        assert targets.pieces is not None
        assert targets.pieces.overlap == 0.5
        if found.held_out is None:
            assert targets.pieces.recordings.tolist() == rows
    assert f"12 rows make {len(rows)} samples, as acc have windows" in found.notes


def test_of_one_row_all_series_have_as_many_windows(tmp_path: Path) -> None:
    path, _, rows = tables(tmp_path)
    both = {"acc": CUT, "gyro": {**CUT, "windows": {"length": 1}}}
    with pytest.raises(DataError, match=r"column 'gyro', row 1 makes 3 windows; expected 1, as acc does"):
        table_of(path, both).targets()
    twice = {"acc": CUT, "gyro": {**CUT, "column": "acc"}}
    dataset = replace(table_of(path, twice), modalities=("acc", "gyro")).load()
    assert (dataset.inputs["acc"][:] == dataset.inputs["gyro"][:]).all()
    assert dataset.num_samples == len(rows)


def scenario_of(path: Path, modalities: dict[str, Any], **data: Any) -> Scenario:
    tree = {
        "rounds": 2,
        "data": {"dataset": "table", "path": str(path), "modalities": modalities, **data},
        "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 1, "modalities": ["acc", "gyro"]}],
        "sharing": "full-model",
        "model": {"encoders": {name: {"kind": "gru", "dim": 4} for name in ("acc", "gyro")}},
        "execution": {"runtime": "local"},
    }
    return Scenario.model_validate(tree)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_run_on_windows_is_one_on_their_rows(tmp_path: Path, engine: str) -> None:
    path, expanded, _ = tables(tmp_path)
    runs = [
        simulate(scenario_of(own, modalities).override({"training.engine": engine}))
        for own, modalities in ((path, SERIES), (expanded, {}))
    ]
    assert runs[0].final == runs[1].final


def test_windows_of_a_row_stand_on_one_side_where_that_is_asked(tmp_path: Path) -> None:
    path, _, _ = tables(tmp_path)
    for split, shares in (("recording", False), ("sample", True)):
        scenario = scenario_of(path, SERIES, split=split)
        targets = table_of(path, SERIES, split=split).targets()
        federation = build_federation(scenario.data, targets, 3, 0)
        assert (federation.overlap(targets.pieces) is not None) == shares


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"subjects": [f"s{row % 5}" for row in range(12)], "observed": {"age": [row != 1 for row in range(12)]}},
        {"splits": ["held-out" if row % 4 == 3 else "train" for row in range(12)]},
        {"clients": ["pqr"[row % 3] for row in range(12)], "recordings": [row // 3 for row in range(12)]},
    ],
    ids=["plain", "subjects", "held out", "clients"],
)
def test_windows_of_arrays_are_the_rows_of_arrays_that_have_them(more: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    acc = [None if row == 4 else draw.normal(size=(length, 2)) for row, length in enumerate(LENGTHS)]
    age = np.arange(12.0)
    labels = ["ab"[row % 2] for row in range(12)]
    rows, windows = [], []
    for row, values in enumerate(acc):
        filled = (
            np.zeros((6, 2)) if values is None else np.concatenate([values, np.zeros((max(0, 6 - len(values)), 2))])
        )
        for begin in range(0, len(filled) - 5, 3):
            rows.append(row)
            windows.append(None if values is None else filled[begin : begin + 6])
    expanded: dict[str, Any] = {name: [own[row] for row in rows] for name, own in more.items() if name != "observed"}
    if "observed" in more:
        expanded["observed"] = {"age": [more["observed"]["age"][row] for row in rows]}
    tested = {"held_out": ({"acc": acc[5:7], "age": age[5:7]}, labels[5:7])} if not more else {}
    held = [number for number, row in enumerate(rows) if row in (5, 6)]
    if tested:
        inputs = {"acc": [windows[number] for number in held], "age": [age[rows[number]] for number in held]}
        expanded["held_out"] = inputs, [labels[rows[number]] for number in held]
    found = from_arrays({"acc": acc, "age": age}, labels, modalities={"acc": CUT}, **more, **tested)
    plain = from_arrays({"acc": windows, "age": age[rows]}, [labels[row] for row in rows], **expanded)
    assert found.fingerprint() == plain.fingerprint()
    assert found.targets.labels.tolist() == plain.targets.labels.tolist()
    assert found.pieces is not None
    assert found.pieces.overlap == 0.5
    if "splits" not in more:
        assert found.pieces.recordings.tolist() == rows


@pytest.mark.parametrize(
    ("acc", "found"),
    [
        (
            [np.zeros(3), np.zeros((3, 2))],
            r"modality 'acc', row 1 has shape \(3, 2\); expected \(time, 1\)",
        ),
        ([np.zeros(3), np.zeros(0)], r"modality 'acc', row 1 has shape \(0, 1\)"),
        ([np.zeros((1, 1, 1)), None], r"modality 'acc', row 0 has shape \(1, 1, 1\)"),
        ([[1.0, np.nan], None], r"modality 'acc', row 0 holds a value that is not finite"),
        ([None, None], r"modality 'acc' has a series in no row; expected one in some"),
        ([np.zeros(3)], r"modality 'acc' has 1 rows; expected 2, as many as labels"),
    ],
)
def test_arrays_that_are_no_series(acc: list[Any], found: str) -> None:
    with pytest.raises(DataError, match=found):
        from_arrays({"acc": acc}, ["a", "b"], modalities={"acc": {"kind": "series", "length": 2}})


def test_an_export_says_how_series_were_cut(tmp_path: Path) -> None:
    path, _, _ = tables(tmp_path)
    run = simulate(scenario_of(path, SERIES).override({"rounds": 1}), out=tmp_path / "runs")
    told = run.model(2).description
    decoding = told["modalities"]["acc"]["decoding"]
    assert (decoding["kind"], decoding["windows"]) == ("series", {"length": 6, "overlap": 0.5})
    assert told["input_shapes"] == {"acc": [6, 2], "gyro": [3, 1]}
    with pytest.raises(ValueError, match="acc is decoded as series, which this code does not do"):
        read_samples(path, told)
