"""Data at a URI: copied into the cache once, and the same data as at a path."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blossom_ray import DataError, Scenario, ScenarioError, simulate
from blossom_ray.core.locations import is_uri
from blossom_ray.data.files.remote import local_path


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, which stands for one across a network; the cache is new."""
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/file", True), ("file:///folder", True), ("abfs+x://a", True), ("memory://", True),
        ("folder/file", False), ("/folder", False), ("C://folder", False), ("~/x", False), ("a b://c", False),
    ],
)  # fmt: skip
def test_what_is_a_uri(path: str, expected: bool) -> None:
    assert is_uri(path) == expected


def test_a_path_and_a_file_on_this_machine_are_read_where_they_are() -> None:
    assert local_path("~/folder/file") == "~/folder/file"
    assert local_path("file:///folder/a%20file") == "/folder/a file"
    with pytest.raises(
        DataError, match=r"^data\.path is 'file://host/x', which names the host 'host'; expected file:///"
    ):
        local_path("file://host/x")


def test_a_file_is_copied_once_and_again_when_it_changes(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/table.parquet", b"one")
    first = Path(local_path("memory://bucket/table.parquet"))
    assert (first.name, first.read_bytes()) == ("table.parquet", b"one")
    written = first.stat().st_mtime_ns
    assert local_path("memory://bucket/table.parquet") == str(first)
    assert first.stat().st_mtime_ns == written
    memory.pipe("/bucket/table.parquet", b"three")
    assert Path(local_path("memory://bucket/table.parquet")).read_bytes() == b"three"
    assert not [path for path in first.parent.parent.iterdir() if path.name.endswith(".unfinished")]


def test_a_folder_is_copied_with_what_is_below(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/bucket/data/a.txt": b"1", "/bucket/data/deep/b.txt": b"2"})
    copy = Path(local_path("memory://bucket/data/"))
    assert copy.name == "data"
    found = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert found == {"a.txt": b"1", "deep/b.txt": b"2"}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "memory://bucket/none",
            r"^data\.path is 'memory://bucket/none', where nothing is; expected a file or a folder$",
        ),
        ("nonsense://x/y", r"^data\.path is 'nonsense://x/y', which cannot be read \(.*\); expected a path, or a URI"),
        ("http://127.0.0.1:1/x", r"^data\.path is 'http://127.0.0.1:1/x'"),
    ],
)
def test_what_cannot_be_had_is_named(uri: str, message: str, memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(DataError, match=message):
        local_path(uri)


def test_a_run_on_a_uri_has_the_numbers_of_a_run_on_a_path(
    small_scenario: Scenario, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    rows = [[float(row % 3), float(row % 5)] for row in range(60)]
    table = pa.table({"acc": rows, "gyro": rows[::-1], "label": [row % 3 for row in range(60)]})
    pq.write_table(table, tmp_path / "table.parquet")
    memory.pipe("/bucket/table.parquet", (tmp_path / "table.parquet").read_bytes())
    at_path = small_scenario.override({"data": {"dataset": "table", "path": str(tmp_path / "table.parquet")}})
    at_uri = at_path.override({"data.path": "memory://bucket/table.parquet"})
    first, second = simulate(at_path), simulate(at_uri)
    assert first.manifest["digest"] == second.manifest["digest"]
    assert first.manifest["data"] == second.manifest["data"]
    with pytest.raises(ScenarioError, match=r"data\.path is 'memory://bucket/none', where nothing is"):
        simulate(at_path.override({"data.path": "memory://bucket/none"}))
