"""The cache: built once, found again, never half there."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blossom_ray.data.files.cache import FOLDER_VARIABLE, Arrays, cache_folder, cached
from blossom_ray.errors import DataError

KEY = {"source": [["a.csv", 12]], "rate": 100, "zscore": True}
VALUES = {"signal": np.arange(6, dtype=np.int16).reshape(2, 3), "names": np.array(["I", "II"])}


class Builder:
    """Counts its calls."""

    def __init__(self, arrays: Arrays = VALUES) -> None:
        self.arrays = arrays
        self.num_calls = 0

    def __call__(self) -> Arrays:
        self.num_calls += 1
        return self.arrays


def the_entry(folder: Path) -> Path:
    (entry,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return entry


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert np.array_equal(found[name], values)


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    build = Builder()
    for _ in range(3):
        found = cached("ecg", KEY, build, folder=tmp_path)
        assert_equal(found, VALUES)
        assert isinstance(found["signal"], np.memmap)
        assert not found["signal"].flags.writeable
    assert build.num_calls == 1
    assert the_entry(tmp_path).name.startswith("ecg-")
    assert sorted(path.name for path in the_entry(tmp_path).iterdir()) == ["index.json", "names.npy", "signal.npy"]


def test_the_order_of_the_key_does_not_matter_and_its_values_do(tmp_path: Path) -> None:
    build = Builder()
    cached("ecg", KEY, build, folder=tmp_path)
    cached("ecg", dict(reversed(KEY.items())) | {"source": [("a.csv", 12)]}, build, folder=tmp_path)
    assert build.num_calls == 1
    for number, other in enumerate(({"rate": 500}, {"rate": "100"}, {"zscore": False}, {"more": None}), start=2):
        cached("ecg", KEY | other, build, folder=tmp_path)
        assert build.num_calls == number
    cached("har", KEY, build, folder=tmp_path)
    assert build.num_calls == 6


def test_arrays_without_values(tmp_path: Path) -> None:
    values = {"none": np.empty((0, 3), np.float32), "one": np.array(2.5)}
    for _ in range(2):
        found = cached("empty", {}, Builder(values), folder=tmp_path)
        assert_equal(found, values)
        assert not found["none"].flags.writeable


def flip_a_byte(entry: Path) -> None:
    content = bytearray((entry / "signal.npy").read_bytes())
    content[-1] ^= 1
    (entry / "signal.npy").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip_a_byte,
    "a cut file": lambda entry: (entry / "signal.npy").write_bytes((entry / "signal.npy").read_bytes()[:-3]),
    "a missing file": lambda entry: (entry / "names.npy").unlink(),
    "no index": lambda entry: (entry / "index.json").unlink(),
    "an index that is no JSON": lambda entry: (entry / "index.json").write_text("{"),
    "an index of another shape": lambda entry: (entry / "index.json").write_text("[1]"),
    "an index of another key": lambda entry: (entry / "index.json").write_text('{"key": {}, "sha256": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_built_anew(damage: str, tmp_path: Path) -> None:
    build = Builder()
    cached("ecg", KEY, build, folder=tmp_path)
    DAMAGES[damage](the_entry(tmp_path))
    for _ in range(2):
        assert_equal(cached("ecg", KEY, build, folder=tmp_path), VALUES)
    assert build.num_calls == 2
    assert sorted(path.name for path in the_entry(tmp_path).iterdir()) == ["index.json", "names.npy", "signal.npy"]


def test_what_build_raises_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Arrays:
        raise PermissionError("no entry")

    with pytest.raises(PermissionError, match="no entry"):
        cached("ecg", KEY, fails, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    assert_equal(cached("ecg", KEY, Builder(), folder=tmp_path), VALUES)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    cached("ecg", KEY, Builder(), folder=tmp_path)
    entry = the_entry(tmp_path)
    entry.rename(tmp_path / f".{entry.name}.unfinished")
    build = Builder()
    cached("ecg", KEY, build, folder=tmp_path)
    assert build.num_calls == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("unfinished")] == []


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved when allow_pickle=False"):
        cached("ecg", KEY, Builder({"things": np.array([{}, None])}), folder=tmp_path)
    with pytest.raises(ValueError, match=r"an array is called '\.\./x'; expected letters"):
        cached("ecg", KEY, Builder({"../x": np.zeros(1)}), folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    build = Builder()
    with pytest.raises(DataError, match=r"the cache folder .*file/below cannot be written .*BLOSSOM_RAY_CACHE"):
        cached("ecg", KEY, build, folder=tmp_path / "file" / "below")
    assert build.num_calls == 0


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "blossom-ray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "blossom-ray"
    monkeypatch.setenv(FOLDER_VARIABLE, "~/mine")
    assert cache_folder() == tmp_path / "mine"
    cached("ecg", KEY, Builder())
    assert the_entry(tmp_path / "mine").name.startswith("ecg-")
    monkeypatch.setenv(FOLDER_VARIABLE, "~nobody-of-that-name/cache")
    with pytest.raises(DataError, match="the cache folder is unknown"):
        cache_folder()


def test_threads_that_ask_at_once_share_one_build(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    calls, results = [], []

    def build() -> Arrays:
        calls.append(1)
        started.set()
        assert go_on.wait(30)
        return VALUES

    threads = [
        threading.Thread(target=lambda: results.append(cached("ecg", KEY, build, folder=tmp_path))) for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(calls) == 1
    assert len(results) == 2


PROCESS = """
import sys, time
from pathlib import Path
import numpy as np
from blossom_ray.data.files.cache import cached

def build():
    time.sleep(0.3)
    print("built", flush=True)
    return {"values": np.full(1000, 7)}

print(int(cached("two", {}, build, folder=Path(sys.argv[1]))["values"].sum()))
"""


def test_processes_that_ask_at_once_share_one_build(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in processes for line in process.communicate(timeout=300)[0].splitlines()]
    assert sorted(lines) == ["7000", "7000", "built"]


def test_the_index_says_what_the_entry_is_for(tmp_path: Path) -> None:
    cached("ecg", KEY, Builder(), folder=tmp_path)
    index = json.loads((the_entry(tmp_path) / "index.json").read_text())
    assert index["key"] == KEY
