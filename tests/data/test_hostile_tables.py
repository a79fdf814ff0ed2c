"""What is wrong with own data in each container is told in one line, with its place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blossom_ray.data.table import json_files, media_folder, npz_files
from blossom_ray.data.table.rows import TableRows
from blossom_ray.errors import DataError


def read(path: Path, column: str | None) -> None:
    rows = TableRows(str(path))
    if column is not None:
        rows.check_column(column)
        rows.check_numeric(column)
        rows.values(column)


def refused(path: Path, message: str, column: str | None = None) -> None:
    with pytest.raises(DataError, match=re.escape(message).replace(r"\.\.\.", ".*")) as error:
        read(path, column)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.csv is empty; expected a CSV file in UTF-8 whose first line names its columns"),
        (b"\n", "rows.csv is empty"),
        (b"a,label\n", "has no rows; expected a row per sample"),
        (
            b"a,label\n1,2\n1,2,3\n",
            "rows.csv cannot be read (CSV parse error: Row #3: Expected 2 columns, got 3: 1,2,3)",
        ),
        (
            b"a,label\n1\n",
            "rows.csv cannot be read (CSV parse error: Row #2: Expected 2 columns, got 1: 1); expected a CSV",
        ),
        (
            b"a,label\n1,\xff\n",
            "rows.csv cannot be read (In CSV column #1: Row #2: CSV conversion error to string: invalid UTF8",
        ),
        ("a,label\n1,2\n".encode("utf-16"), "rows.csv cannot be read ('utf-8' codec can't decode byte 0xff"),
        (b"a,a\n1,2\n", "rows.csv has several columns 'a'; expected columns of different names"),
        (b"a,label\n1,2\n,\n", "rows.csv, row 1 has no value in any column; expected rows without empty lines"),
        (
            b'a,label\n1,"' + b"x" * 2**24 + b"\n",
            "rows.csv has a row of more than 8,388,608 bytes, or a quotation mark that no other one closes; expected a",
        ),
        (
            b'a,label\n1,"x\n2,y\n',
            "rows.csv, line 3 has a quotation mark out of place (unexpected end of data); expected",
        ),
        (
            b'a,label\n1,"x\n2,y\n3,"z"\n4,z\n',
            "rows.csv, line 4 has a quotation mark out of place (',' expected after '",
        ),
        (
            b"a,label\n1,2\n,2\nn/a,2\n",
            "rows.csv, column 'a', row 2 is 'n/a'; expected numbers, or nothing, in all rows",
        ),
        (b"a,label\nyes,2\nno,2\n", "rows.csv, column 'a' has type string; expected numbers"),
        (b"b,label\n1,2\n", "rows.csv has no column 'a' (its columns: 'b', 'label'); expected it in every file"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_csv_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    refused(tmp_path / "rows.csv", message, "a")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "", "-20", "+3"], [1, None, -20, 3]),
        (["1", "2.5", ".5", "1e3", "", " 7 "], [1.0, 2.5, 0.5, 1000.0, None, 7.0]),
        (["True", "false", "", "TRUE"], [True, False, None, True]),
        (["007", "12"], ["007", "12"]),  # a code
        (["1", "9" * 19], ["1", "9" * 19]),  # no number of 64 bits
        (["1", "true"], ["1", "true"]),
        (["2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        (["NA", "1"], ["NA", "1"]),
        (["0x1F", "1"], ["0x1F", "1"]),
        (["1,5", "2"], ["1,5", "2"]),
        (['he said ""hi""', "two\nlines"], ['he said "hi"', "two\nlines"]),
        (["", ""], [None, None]),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_before", [0, 2**20])
def test_types_of_csv_columns_come_from_all_rows(
    num_before: int, cells: list[str], expected: list[Any], tmp_path: Path
) -> None:
    if num_before and not isinstance(expected[0], float):
        num_before = 0
    lines = ["x,y\n", *(["1,0\n"] * num_before), *(f'"{cell}",0\n' for cell in cells)]
    (tmp_path / "rows.csv").write_text("".join(lines))
    file = TableRows(str(tmp_path / "rows.csv")).files[0]
    found = [value for _, batch in file.batches(["x"]) for value in batch["x"].to_pylist()]
    assert found == [1.0] * num_before + expected
    assert [type(value) for value in found[num_before:]] == [type(value) for value in expected]


def test_the_index_of_pandas_and_the_empty_columns_of_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sep=;\n;x;;\n0;1,5;;\n1;-2,25;;\n")
    rows = TableRows(str(tmp_path / "rows.csv"))
    assert rows.names == ("Unnamed: 0", "x")
    assert [batch["x"].to_pylist() for _, batch in rows.files[0].batches(["x"])] == [[1.5, -2.25]]
    with pytest.raises(DataError, match="is the index of a frame of pandas"):
        rows.shape("Unnamed: 0")


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": 2\n', "rows.jsonl, row 1 cannot be read (Expecting ',' delimiter"),
        ("{}\n", "rows.jsonl, row 0 is an empty mapping; expected an object with a value per column"),
        ('{"a": 1}\n[1]\n', "rows.jsonl, row 1 is [1]; expected an object with a value per column"),
        ('[{"a": 1}, 5]', "rows.jsonl, row 1 is 5; expected an object"),
        ('{"a": 1, "a": 2}', "rows.jsonl, row 0 cannot be read (an object has two values of one name)"),
        ('{"a": 1}\n\n{"a": "x"}', "rows.jsonl, column 'a', row 1 has text; expected a number, as in row 0"),
        (
            '{"a": null}\n{"a": [1, 2]}\n{"a": [1, "x"]}',
            "column 'a', row 2 has text in a list; expected a number, as in row 1",
        ),
        ('{"a": [1]}\n{"a": 1}', "column 'a', row 1 has a number; expected a list, as in row 0"),
        ('{"a": true}\n{"a": 2}', "column 'a', row 1 has a number; expected a truth value, as in row 0"),
        (f'{{"a": {10**30}}}', "rows.jsonl cannot be read (...too large"),
        (DEEP, "rows.jsonl cannot be read (maximum recursion depth exceeded"),
        (f'{{"a": {DEEP}}}', "rows.jsonl, row 0 cannot be read (maximum recursion depth exceeded"),
        (f'{{"a": {"9" * 5000}}}', "rows.jsonl, row 0 cannot be read (Exceeds the limit (4300 digits)"),
        ("", "has no rows"),
        ("null", "rows.jsonl, row 0 is null; expected an object"),
        ('{"a": "\\ud800"}', "rows.jsonl cannot be read ('utf-8' codec can't encode"),
    ],
    ids=lambda value: value[:30],
)
def test_json_files(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    refused(tmp_path / "rows.jsonl", message)


def test_json_takes_no_more_memory_than_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' * 10)
    monkeypatch.setitem(json_files._LARGEST, "JSON lines", 50)
    refused(path, "rows.jsonl has 90 bytes of JSON lines; expected at most 50, or a Parquet file")
    monkeypatch.setitem(json_files._LARGEST, "JSON lines", 500)
    monkeypatch.setattr(json_files, "_LONGEST_LINE", 8)
    refused(path, "rows.jsonl, row 0 is longer; expected at most 8 bytes a line")
    monkeypatch.setattr(json_files, "_MOST_VALUES", 9)
    monkeypatch.setattr(json_files, "_LONGEST_LINE", 9)
    refused(path, "rows.jsonl has 10 rows of 1 columns; expected at most 9 values, or a Parquet file")


def test_json_lines_far_apart_have_one_type(tmp_path: Path) -> None:
    lines = ['{"a": [1]}', *['{"b": null}'] * 3000, '{"a": [2.5], "b": "x"}']
    (tmp_path / "rows.ndjson").write_text("\n".join(lines))
    rows = TableRows(str(tmp_path / "rows.ndjson"))
    assert rows.files[0].types == {"a": pa.list_(pa.float64()), "b": pa.string()}
    assert (rows.num_rows, rows.values("b").codes[-2:].tolist()) == (3002, [-1, 0])
    lines[2000] = '{"a": ["x"]}'
    (tmp_path / "rows.ndjson").write_text("\n".join(lines))
    refused(tmp_path / "rows.ndjson", "column 'a', row 2000 has text in a list; expected a number, as in row 0")


def member(header: str, content: bytes = b"") -> bytes:
    padded = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + content


def with_members(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def header(shape: str, descr: str = "'<f4'", order: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "rows.npz holds no array; expected one per column"),
        ({"a": b"no array"}, "array 'a' has no header of NumPy"),
        ({"a": member(header("(2,)"), b"\0" * 7)}, "array 'a' has 7 bytes for shape [2] of float32; expected 8"),
        ({"a": member(header("(2,)"), b"\0" * 9)}, "array 'a' has 9 bytes for shape [2] of float32; expected 8"),
        ({"a": member(header("(-2,)"))}, "array 'a' has shape [-2]; expected a row per sample, with values"),
        ({"a": member(header("()"), b"\0" * 4)}, "array 'a' has shape []; expected a row per sample, with values"),
        ({"a": member(header("(99999999999999, 0)"))}, "has shape [99999999999999, 0]; expected a row per sample"),
        ({"a": member(header("(99999999999999,)", "'<U0'"))}, "array 'a' is of type <U0; expected numbers, truth"),
        ({"a": member(header("(1,)", "'<c8'"), b"\0" * 8)}, "array 'a' is of type complex64; expected numbers"),
        ({"a": member(header("(1,)", "'|O'"), b"cos\nsystem")}, "array 'a' holds Python objects, which are pickles"),
        ({"a": member(header("(1,)", "[('x', '|O')]"))}, "array 'a' holds Python objects, which are pickles"),
        ({"a": member(header("(1,)", "[('x', '<f4')]"), b"\0" * 4)}, "is of type [('x', '<f4')]; expected numbers"),
        ({"a": member("__import__('os').abort()")}, "array 'a' has no header of NumPy; expected an array as np.savez"),
        (
            {"a": member(header("(2,)"), b"\0" * 8), "b": member(header("(3,)"), b"\0" * 12)},
            "rows.npz has 2 rows in array 'a', 3 in 'b'; expected a row per sample in each array",
        ),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_npz_files(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with_members(tmp_path / "rows.npz", **members)
    refused(tmp_path / "rows.npz", message)


def test_npz_files_that_are_no_archives_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(b"PK\3\4")
    refused(path, "rows.npz cannot be read (File is not a zip file); expected an .npz archive of arrays, whole")
    np.savez(path, a=np.array([{}], object))
    refused(path, "rows.npz, array 'a' holds Python objects, which are pickles; expected numbers, truth values or text")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../a.txt", "x")
    refused(path, "rows.npz holds '../a.txt'; expected arrays alone, as np.savez writes them")
    np.savez(path, a=np.arange(1000))
    content = path.read_bytes()
    path.write_bytes(content.replace(np.arange(1000).tobytes()[400:800], b"\1" * 400))
    refused(path, "rows.npz cannot be read (Bad CRC-32 for file 'a.npy')", "a")
    monkeypatch.setattr(npz_files, "_FEW_BYTES", 1000)
    np.savez_compressed(path, a=np.zeros((1000, 25)))
    refused(
        path, "array 'a' has 200,128 bytes, packed into ...; expected at most 1,000, or 100 times as many as packed"
    )
    np.savez(path, a=np.asfortranarray(np.ones((20, 25))))
    refused(
        path, "in Fortran's order, in which no row stands by itself; expected at most 1,000, or np.ascontiguousarray"
    )
    np.savez(path, a=np.ones((20, 25)))
    assert TableRows(str(path)).num_rows == 20


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array(["b", "ä", "b"]), ["b", "ä", "b"]),
        (np.array(["b", "ä".encode(), b""], object).astype("S3"), ["b", "ä", ""]),
        (np.array([True, False, True]), [True, False, True]),
        (np.array([2**63, 1, 0], np.uint64), [2**63, 1, 0]),
        (np.arange(3, dtype=">i2"), [0, 1, 2]),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_npz_columns_of_every_type(values: np.ndarray, expected: list[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=values)
    found = TableRows(str(tmp_path / "rows.npz")).values("a")
    assert [found.distinct[code] for code in found.codes] == expected


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"what {name} says")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["cat/1.png", "cat/1.jpg", "dog/1.png"],
            "cat/1.jpg and cat/1.png stand for one value; expected one image of a name",
        ),
        (
            ["cat/1.png", "dog/1.xyz"],
            "dog/1.xyz begins with b'what d'; expected pictures, sounds and texts (.png, ...csv",
        ),
        (["cat/1.png", "table.npz"], "table.npz begins with b'what t'; expected pictures"),
        (
            ["cat/1.png", "labels.csv"],
            "labels.csv is a table beside files; expected ...metadata.parquet for what is known of them, or its path",
        ),
        (["cat/1.png", "1.png"], "1.png lies elsewhere; expected all files as name, class/name or split/class/name"),
        (["a/cat/1.png", "a/dog/2.png"], "a/cat/1.png lies elsewhere; expected all files as name"),
        (["cat/1.png", "classes.txt"], "classes.txt lies elsewhere"),
        (["cat/1\n\x1b[31m.xyz", "cat/1.png"], "cat/1\\n\\x1b[31m.xyz begins with"),
        (["/".join("x" * 17) + "/1.png"], "x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x lies deep; expected at most 16 folders"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_folders_of_files(names: list[str], message: str, tmp_path: Path) -> None:
    fill(tmp_path, *names)
    refused(tmp_path, message)


def link_out(folder: Path) -> None:
    (folder / "cat" / "2.png").symlink_to(folder.parent / "secret.png")


def link_to_folder(folder: Path) -> None:
    (folder / "dog").symlink_to(folder.parent)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "2.png")


def pipe_of_another_kind(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "x.xyz")


def pipe_of_metadata(folder: Path) -> None:
    os.mkfifo(folder / "metadata.csv")


def no_unicode(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/cat/\xff.png", "w"):
        pass


def latin_text(folder: Path) -> None:
    (folder / "cat" / "1.txt").write_bytes(b"\xe4")


def long_text(folder: Path) -> None:
    (folder / "cat" / "1.txt").write_bytes(b" " * (media_folder._LARGEST_TEXT + 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            link_out,
            "a name in the folder is 'cat/2.png', a link that leads out of the table's folder; expected the",
        ),
        (link_to_folder, "dog is a link to a folder; expected the folder itself"),
        (pipe, "cat/2.png is no regular file"),
        (pipe_of_another_kind, "cat/x.xyz is no regular file"),
        (pipe_of_metadata, "metadata.csv is no regular file"),
        (no_unicode, "cat/\\udcff.png has a name that is not UTF-8; expected another"),
        (latin_text, "set, column 'text', row 0: cat/1.txt cannot be read ('utf-8' codec can't decode byte 0xe4"),
        (
            long_text,
            "set, column 'text', row 0: cat/1.txt cannot be read (...larger than 4 MiB); expected text in UTF-8",
        ),
    ],
)
def test_files_that_are_not_opened_or_no_text(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    fill(tmp_path, "set/cat/1.png", "secret.png")
    make(tmp_path / "set")
    with pytest.raises(DataError, match=re.escape(message).replace(r"\.\.\.", ".*").replace("\\\\\\\\", "\\\\")):
        TableRows(str(tmp_path / "set")).values("text")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("name,text\n1.png,x\n", "metadata.csv has no column 'file_name' of text (its columns: 'name', 'text')"),
        ("file_name\n1\n", "metadata.csv has no column 'file_name' of text"),
        ("file_name\n2.png\n", "metadata.csv, column 'file_name', row 0 is '2.png', which cannot be found"),
        ("file_name\n1.png\n../secret.png\n", "column 'file_name', row 1 is '../secret.png', which has '..'"),
        ("file_name\n/etc/passwd\n", "row 0 is '/etc/passwd', which is no relative path"),
        ("file_name\nREADME.md\n", "row 0 is 'README.md'; expected a picture, sound or text (.png, "),
        (
            "file_name,image\n1.png,x\n",
            "metadata.csv has a column 'image', which files beside it are, too; expected one",
        ),
        ("file_name,text\n1.png,x\n", "metadata.csv has a column 'text', which files beside it are, too"),
        ("x_file_name\n1.png\n1.wav\n", "metadata.csv, column 'x_file_name' names audio and image; expected one kind"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_that_is_wrong(metadata: str, message: str, tmp_path: Path) -> None:
    fill(
        tmp_path,
        "set/1.png",
        "set/1.wav",
        "set/README.md",
        "secret.png",
        *(["set/1.txt"] if "text" in metadata else []),
    )
    (tmp_path / "set" / "metadata.csv").write_text(metadata)
    refused(tmp_path / "set", message)


def saved(folder: Path, **state: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"a": [1, 2], "label": [0, 1]})
    with pa.OSFile(str(folder / "data-0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}], **state}))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"splits": ["train"]', "dataset_dict.json cannot be read (Expecting ',' delimiter"),
        (
            "[]",
            "dataset_dict.json holds no object; expected a folder as save_to_disk of Hugging Face's datasets writes it",
        ),
        ('{"splits": []}', "dataset_dict.json names no splits"),
        ('{"splits": ["../set/train"]}', "dataset_dict.json names no splits"),
        ('{"splits": ["train", "test"]}', "test/state.json cannot be read ([Errno 2] No such file or directory"),
        ('{"splits": ["more"]}', "train/data-0.arrow is named by no state.json; expected a folder as save_to_disk"),
    ],
)
def test_saved_data_sets_whose_splits_are_wrong(content: str, message: str, tmp_path: Path) -> None:
    saved(tmp_path / "set" / "train")
    saved(tmp_path / "set" / "more" if "more" in content else tmp_path / "set" / "train")
    (tmp_path / "set" / "dataset_dict.json").write_text(content)
    refused(tmp_path / "set", message)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"_indices_files": [{"filename": "indices.arrow"}]},
            "state.json chooses rows by indices; expected flatten_indices",
        ),
        (
            {"_data_files": [{"filename": "data-1.arrow"}]},
            "state.json names the file 'data-1.arrow', which is not beside it",
        ),
        (
            {"_data_files": [{"filename": "../data-0.arrow"}]},
            "state.json names the file '../data-0.arrow', which is not",
        ),
        ({"_data_files": [7]}, "state.json names the file None, which is not beside it"),
        ({"_data_files": []}, "data-0.arrow is named by no state.json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_saved_data_sets_whose_state_is_wrong(state: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path, **state)
    refused(tmp_path, message)


def test_pipes_among_saved_files_are_not_opened(tmp_path: Path) -> None:
    for name, message in {
        "data-0.arrow": "which is not beside it",
        "dataset_info.json": "is a pipe, a device or a socket",
    }.items():
        saved(tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        refused(tmp_path / name, message)


def test_a_saved_data_set_without_rows_and_one_that_was_worked_on(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    (tmp_path / "a" / "cache-1f.arrow").write_bytes((tmp_path / "a" / "data-0.arrow").read_bytes())
    assert TableRows(str(tmp_path / "a")).num_rows == 2
    saved(tmp_path / "b", _data_files=[])
    (tmp_path / "b" / "data-0.arrow").unlink()
    refused(tmp_path / "b", "has no rows; expected a row per sample")


def parquet(folder: Path, *names: str, **columns: Any) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"a": [1, 2], **columns}), folder / name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["k=1/0.parquet", "0.parquet"],
            "has the file k=1/0.parquet in a folder below; expected all files in the folder itself",
        ),
        (
            ["k=1/0.parquet", "j=1/0.parquet"],
            "k=1/0.parquet has other columns in its path; expected j, each once, as in j=1/",
        ),
        (
            ["k=1/0.parquet", "k=1/j=2/0.parquet"],
            "k=1/j=2/0.parquet has other columns in its path; expected k, each once",
        ),
        (["k=1/k=1/0.parquet"], "k=1/k=1/0.parquet has other columns in its path; expected k, each once"),
        (["k=1/0.parquet", "more/0.parquet"], "has the file k=1/0.parquet in a folder below"),
        (["a/train-0.parquet", "b/test-0.parquet"], "has the file a/train-0.parquet in a folder below"),
        (["data/train-0.parquet", "data/more.parquet"], "has the file data/more.parquet in a folder below"),
        (["data/train-of-test.parquet"], "has the file data/train-of-test.parquet in a folder below"),
        (["train/test-0.parquet", "dev/val/0.parquet", "train/test/1.parquet"], "in a folder below"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_folders_below_that_say_nothing(names: list[str], message: str, tmp_path: Path) -> None:
    parquet(tmp_path, *names)
    refused(tmp_path, message)


def test_what_the_place_of_a_file_says_of_its_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "a", "who=J%C3%BCrgen%2F1/n=07/0.parquet", "who=__HIVE_DEFAULT_PARTITION__/n=8/0.parquet")
    rows = TableRows(str(tmp_path / "a"))
    assert [file.name for file in rows.files] == [
        "who=J%C3%BCrgen%2F1/n=07/0.parquet",
        "who=__HIVE_DEFAULT_PARTITION__/n=8/0.parquet",
    ]
    who, number = rows.values("who"), rows.values("n")
    assert (who.distinct, who.codes.tolist()) == (["J\xfcrgen/1"], [0, 0, -1, -1])
    assert [number.distinct[code] for code in number.codes] == ["07", "07", "8", "8"]
    parquet(tmp_path / "b", "n=-7/0.parquet", "n=8/0.parquet")
    assert TableRows(str(tmp_path / "b")).values("n").distinct == [-7, 8]
    assert [batch["n"].to_pylist() for _, batch in TableRows(str(tmp_path / "b")).files[0].batches(["n", "a"])] == [
        [-7, -7]
    ]
    parquet(
        tmp_path / "c", "data/dev-0.parquet", "data/training.parquet", "data/eval/more.parquet", "data/held-out/x.pq"
    )
    assert TableRows(str(tmp_path / "c")).values("split").distinct == ["validation", "test", "held-out", "train"]


def test_a_column_of_splits_of_files_is_the_tables_own_where_it_has_one(tmp_path: Path) -> None:
    parquet(tmp_path / "flat", "train.parquet", "test.parquet", file_split=["x", "y"])
    assert TableRows(str(tmp_path / "flat")).values("file_split").codes.tolist() == [0, 1, 0, 1]
    parquet(tmp_path / "below", "train/0.parquet", "test/0.parquet", file_split=["x", "y"])
    assert TableRows(str(tmp_path / "below")).values("split").distinct == ["test", "train"]


def test_a_column_that_contradicts_the_place_of_its_file(tmp_path: Path) -> None:
    parquet(tmp_path, "k=1/0.parquet", k=["1", "1"])
    parquet(tmp_path, "k=2/0.parquet", k=[2, 2])
    rows = TableRows(str(tmp_path))
    assert rows.values("k").codes.tolist() == [0, 0, 1, 1]
    parquet(tmp_path, "k=2/0.parquet", k=[2, 3])
    refused(tmp_path, "k=2/0.parquet, column 'k', row 1 is 3; expected 2, as the file's place says", "k")


def test_a_folder_has_tables_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "b.tsv").write_text("a\n2\n")
    (tmp_path / "notes.json").write_text("{}")
    assert TableRows(str(tmp_path)).values("a").distinct == [1, 2]
    np.savez(tmp_path / "c.npz", a=np.arange(2))
    refused(
        tmp_path,
        "c.npz begins with b'PK...; expected a folder of Parquet, Arrow or Feather files, or of CSV, JSON lines",
    )


def test_no_damage_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    # Asked about a damaged column of a Parquet file, PyArrow may end the process: here one of its own.
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"acc": [[1.0, 2.0]] * 6, "label": ["a", None, "b"] * 2}), path, row_group_size=3)
    script = """
import sys
from pathlib import Path
from blossom_ray.data.table.arrow_files import ArrowFile
from blossom_ray.errors import DataError
path = Path(sys.argv[1])
content = path.read_bytes()
start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
for place in range(start, len(content)):
    for flips in (1, 16):
        path.write_bytes(content[:place] + bytes([content[place] ^ flips]) + content[place + 1:])
        try:
            file = ArrowFile(path, "rows.parquet")
            for column in file.types:
                file.may_have_nulls(column)
        except DataError as error:
            assert "; expected" in str(error), error
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
