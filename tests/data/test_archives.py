"""What loaders ask of an archive beyond reading one member; `test_uci_har.py` and the fuzz tests have the rest."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blossom_ray.data.archives import open_archive
from blossom_ray.errors import DataError

MEMBERS = {"0.Stand/1_a.csv": b"1,2\n3,4\n", "0.Stand/2_a.csv": b"5,6\n", "notes.txt": b"read me"}


def as_zip(folder: Path, top: str = "") -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in MEMBERS.items():
            bundle.writestr(top + name, content)
        bundle.writestr("elsewhere.txt", b"")
    return path


def as_zip_with_a_top(folder: Path) -> Path:
    return as_zip(folder, "top/")


def as_folder(folder: Path, top: str = "data") -> Path:
    for name, content in MEMBERS.items():
        path = folder / top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "data"


def as_folder_with_a_top(folder: Path) -> Path:
    return as_folder(folder, "data/top")


Layout = Callable[[Path], Path]
LAYOUTS = [as_zip, as_zip_with_a_top, as_folder, as_folder_with_a_top]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("landmark", ["0.Stand/", "notes.txt"])
def test_members_are_named_from_the_top_on(layout: Layout, landmark: str, tmp_path: Path) -> None:
    with open_archive(layout(tmp_path), landmark=landmark) as archive:
        assert set(archive.members()) - {"elsewhere.txt"} == set(MEMBERS)
        assert {member: archive.read(member) for member in MEMBERS} == MEMBERS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_landmark_that_is_nowhere(layout: Layout, tmp_path: Path) -> None:
    path = layout(tmp_path)
    for landmark in ("1.Sit/", "0.Stand", "Stand/", "notes.txt/"):
        with pytest.raises(DataError, match=f"holds no {landmark}"), open_archive(path, landmark=landmark):
            pass


@pytest.mark.parametrize("layout", [as_zip, as_folder])
def test_the_state_of_a_member_follows_its_content(layout: Layout, tmp_path: Path) -> None:
    states, fingerprints = [], []
    for content in (b"read me", b"read me", b"reread?"):
        members = {**MEMBERS, "notes.txt": content}
        folder = tmp_path / str(len(states))
        folder.mkdir()
        path = layout(folder)
        if path.is_dir():
            (path / "notes.txt").write_bytes(content)
            os.utime(path / "notes.txt", ns=(0, sum(content)))
        else:
            with zipfile.ZipFile(path, "w") as bundle:
                for name, text in members.items():
                    bundle.writestr(name, text)
        with open_archive(path, landmark="notes.txt") as archive:
            states.append(archive.states(["notes.txt"]))
            fingerprints.append(archive.fingerprint(["notes.txt"]))
            with pytest.raises(DataError, match=r"nothing.txt is missing"):
                archive.states(["notes.txt", "nothing.txt"])
    assert states[0] == states[1]
    assert states[0] != states[2]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]
    assert states[0][0][:2] == ("notes.txt", 7)


@pytest.mark.parametrize("layout", [as_zip, as_folder])
def test_members_above_the_limit_are_refused(layout: Layout, tmp_path: Path) -> None:
    with open_archive(layout(tmp_path), landmark="notes.txt", largest_bytes=6) as archive:
        assert archive.read("0.Stand/2_a.csv") == b"5,6\n"
        with pytest.raises(DataError, match=r"notes.txt .*; expected at most 6"):
            archive.read("notes.txt")


def test_tables_with_a_delimiter(tmp_path: Path) -> None:
    path = as_folder(tmp_path)
    (path / "bad.csv").write_text("1,2\n3,\n")
    with open_archive(path, landmark="notes.txt") as archive:
        assert archive.table("0.Stand/1_a.csv", 2, np.float32, delimiter=",").tolist() == [[1, 2], [3, 4]]
        with pytest.raises(DataError, match=r"1_a.csv, line 1 has 2 values; expected 3"):
            archive.table("0.Stand/1_a.csv", 3, np.float32, delimiter=",")
        with pytest.raises(DataError, match=r"bad.csv, line 2, value 2 is ''; expected a finite number"):
            archive.table("bad.csv", 2, np.float32, delimiter=",")
