from __future__ import annotations

import os
from pathlib import Path

import pytest
from downloads import DOWNLOADS

from blossom_ray.data.options import SECTIONS
from blossom_ray.data.options import find_downloads as find
from blossom_ray.data.sets.base import Download

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_every_data_set_that_is_downloaded_can_be_found() -> None:
    downloads = {name for name, section in SECTIONS.items() if issubclass(section, Download)}
    assert downloads == {name for name, section in SECTIONS.items() if section.facts.page}
    assert all(SECTIONS[name].landmarks for name in downloads)


@pytest.mark.parametrize("name", DOWNLOADS)
@pytest.mark.parametrize(("below", "is_found"), [("", True), ("a", True), ("a/b", True), ("a/b/c/d", False)])
def test_data_sets_are_found_up_to_two_folders_deep(name: str, below: str, is_found: bool, tmp_path: Path) -> None:
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    path = DOWNLOADS[name](folder)
    assert find(path)[name] == path
    assert set(find(tmp_path)) == ({name} if is_found else set())


def test_a_file_that_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.zip").write_text("no zip")
    assert find(tmp_path) == {}
    assert find(tmp_path / "notes.zip") == {}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("folder", ["/proc/1", "/dev"])
def test_folders_of_the_system_hold_nothing(folder: str) -> None:
    assert find(Path(folder)) == {}


def test_what_is_no_file_holds_nothing(tmp_path: Path) -> None:
    """Pipes, devices, circles of links and folders that may not be entered lie beside a data set, which is found."""
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "denied").symlink_to("/proc/1/cwd/x")
    path = DOWNLOADS["ku-har"](tmp_path)
    assert find(tmp_path) == {"ku-har": path}


@pytest.mark.data
def test_the_real_data_sets_are_found() -> None:
    if not SHARED.exists():
        pytest.skip(f"the real data are not at {SHARED}")
    found = find(SHARED)
    assert found["uci-har"] == SHARED / "UCI-HAR" / "UCI HAR Dataset.zip"
    assert found["ptb-xl"] == SHARED / "PTB-XL-subset" / "ptbxl_subset_100hz.npz"
