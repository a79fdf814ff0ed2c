"""Files are whole or absent, and a run whose disk is full ends so that it can go on."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from blossom_ray import Run, Scenario, simulate
from blossom_ray.errors import RunFolderError, StorageError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.storage import replacing, save_synced, writing

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_at_its_end_is_no_fault_of_the_path(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError, match=os.strerror(number)) as caught, writing(tmp_path):
        raise OSError(number, "whatever a library says")
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "blossom-ray resume" in caught.value.hint
    assert caught.value.exit_code == 1


def test_a_path_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    expected = "No such file or directory; expected a folder that can be"
    with pytest.raises(RunFolderError, match=expected), writing(tmp_path):
        save_synced(tmp_path / "no" / "where", {"a": np.zeros(1, np.float32)})


def test_what_has_no_number_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="something else; expected"), writing(tmp_path):
        raise SafetensorError("something else")


def test_a_file_that_is_replaced_stays_whole_when_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")

    def half() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


class Disk:
    """A file system of its own, of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        with suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        assert shutil.disk_usage(self.folder).free == 0

    def make_space(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of its own takes root and mount")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def assert_same(run: Run, scenario: Scenario) -> None:
    whole = simulate(scenario)
    assert run.status == "finished"
    assert run.manifest["digest"] == whole.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        frame, expected = getattr(run, name), getattr(whole, name)
        timed = [column for column in expected.columns if "seconds" in column]
        assert frame.drop(timed).equals(expected.drop(timed)), name


@pytest.mark.parametrize(("every", "first"), [(0, 1), (0, 4), (2, 1), (2, 3)])
def test_a_full_disk_stops_the_run_and_loses_nothing(
    small_scenario: Scenario, disk: Disk, every: int, first: int
) -> None:
    """Whatever is the first that does not fit: rows of a table, a column that comes late, a checkpoint."""
    scenario = small_scenario.override({"rounds": 60, "checkpoint.every": every, "sharing": "private-head"})
    records = record_run(scenario, disk.folder / "run")
    done = [next(records).round_index for _ in range(first)]
    disk.fill()
    with pytest.raises(StorageError, match="No space left on device") as caught:
        done += [record.round_index for record in records]
    assert caught.value.hint.startswith("make space")
    kept = Run.open(disk.folder / "run")
    assert kept.rounds["round"].to_list() == done
    assert set(kept.clients["round"]) == set(done)
    disk.make_space()
    for _ in resume_run(scenario, disk.folder / "run"):
        pass
    assert_same(Run.open(disk.folder / "run"), scenario)
    assert not list(disk.folder.glob("run/**/.*"))


def test_the_command_says_one_cause_and_one_hint_and_resumes(
    small_scenario: Scenario, disk: Disk, warm_processes: None
) -> None:
    """Two checkpoints of 1.1 MB fit, a third one beside them does not."""
    scenario = small_scenario.override(
        {"rounds": 6, "checkpoint.every": 1, "model.encoders.acc.hidden": [6000], "model.encoders.gyro.hidden": [6000]}
    )
    (disk.folder / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")

    def blossom(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "blossom_ray", *arguments]
        return subprocess.run(command, cwd=disk.folder, capture_output=True, text=True, timeout=240)

    done = blossom("simulate", "scenario.yaml")
    assert done.returncode == 1, done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert first.endswith("No space left on device")
    assert second.startswith("hint: make space")
    subprocess.run(["mount", "-o", "remount,size=30m", disk.folder], check=True)
    (folder,) = (disk.folder / "runs" / "small").iterdir()
    assert Run.open(folder).status == "failed"
    done = blossom("resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert_same(Run.open(folder), scenario)
