from __future__ import annotations

from pathlib import Path

import pytest
from downloads import DOWNLOADS

from blossom_ray.data.detection import LANDMARKS, find
from blossom_ray.scenario.datasets import DATASETS

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_every_data_set_that_is_downloaded_can_be_found() -> None:
    assert set(LANDMARKS) == {name for name, facts in DATASETS.items() if facts.page}


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


@pytest.mark.data
def test_the_real_data_sets_are_found() -> None:
    if not SHARED.exists():
        pytest.skip(f"the real data are not at {SHARED}")
    found = find(SHARED)
    assert found["uci-har"] == SHARED / "UCI-HAR" / "UCI HAR Dataset.zip"
    assert found["ptb-xl"] == SHARED / "PTB-XL-subset" / "ptbxl_subset_100hz.npz"
