"""Temporary folders: gone afterwards, and where their owner was killed, with the next one."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blossom_ray.storage import temporary_folder

OWN = """\
import sys, time
from blossom_ray.storage import temporary_folder

with temporary_folder("data") as folder:
    (folder / "shard").write_text("mine")
    (folder / "shards").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_afterwards(place: Path) -> None:
    with temporary_folder("job") as folder:
        assert list(folder.iterdir()) == []
        assert [path.name.startswith("blossom-ray-job-") for path in place.iterdir()] == [True]
        with temporary_folder() as other:
            assert other != folder
    assert list(place.iterdir()) == []
    with pytest.raises(KeyError), temporary_folder():
        raise KeyError
    assert list(place.iterdir()) == []


def test_the_folder_of_a_killed_process_goes_with_the_next_one(place: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWN], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        with temporary_folder():
            assert (left / "shard").read_text() == "mine"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert left.is_dir()
    with temporary_folder():
        assert len(list(place.iterdir())) == 1
    assert list(place.iterdir()) == []


def abandoned(place: Path, name: str = "blossom-ray-1", owner: str | None = None) -> Path:
    folder = place / name
    (folder / "files").mkdir(parents=True)
    (folder / ".owner").write_text(socket.gethostname() if owner is None else owner)
    return folder


def linked(place: Path) -> Path:
    target = abandoned(place, "elsewhere")
    (place / "blossom-ray-1").symlink_to(target, target_is_directory=True)
    return target


def with_pipe(place: Path) -> Path:
    folder = abandoned(place)
    (folder / ".owner").unlink()
    os.mkfifo(folder / ".owner")
    return folder


def with_linked_owner(place: Path) -> Path:
    folder = abandoned(place)
    (folder / ".owner").rename(place / "owner")
    (folder / ".owner").symlink_to(place / "owner")
    return folder


def of_another_user(place: Path) -> Path:
    folder = abandoned(place)
    if os.geteuid() != 0:
        pytest.skip("gives a folder away, which root alone may do")
    os.chown(folder, 12345, 12345)
    return folder


def of_earlier_versions(place: Path) -> Path:
    folder = abandoned(place)
    (folder / ".owner").unlink()
    return folder


@pytest.mark.parametrize(
    "make",
    [
        lambda place: abandoned(place, "blossom-rays"),
        lambda place: abandoned(place, owner="another-host"),
        lambda place: abandoned(place, owner=""),
        linked,
        with_pipe,
        with_linked_owner,
        of_another_user,
        of_earlier_versions,
    ],
)
def test_what_is_not_certainly_ours_stays(place: Path, make: Callable[[Path], Path]) -> None:
    folder = make(place)
    with temporary_folder():
        pass
    assert (folder / "files").is_dir()


def test_a_link_inside_leads_nowhere(place: Path) -> None:
    (place / "kept").mkdir()
    (place / "kept" / "file").write_text("kept")
    folder = abandoned(place)
    (folder / "files" / "link").symlink_to(place / "kept", target_is_directory=True)
    with temporary_folder():
        assert not folder.exists()
    assert (place / "kept" / "file").read_text() == "kept"


def test_a_folder_that_somebody_holds_stays(place: Path) -> None:
    folder = abandoned(place)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with temporary_folder():
        assert folder.is_dir()
    os.close(descriptor)
    with temporary_folder():
        assert not folder.exists()


def test_many_at_once(place: Path) -> None:
    for number in range(20):
        abandoned(place, f"blossom-ray-{number}")

    def use(number: int) -> str:
        with temporary_folder() as folder:
            (folder / "file").write_text(str(number))
            return (folder / "file").read_text()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(100))) == [str(number) for number in range(100)]
    assert list(place.iterdir()) == []
