"""What loaders ask of an archive beyond reading one member; `test_uci_har.py` and the fuzz tests have the rest."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blossom_ray.data.files.archives import open_archive
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


LEFT_BEHIND = ["__MACOSX/._notes.txt", "__MACOSX/notes.txt", ".DS_Store", "0.Stand/._1_a.csv", "0.Stand/Thumbs.db",
               "desktop.ini", "0.Stand/~$1_a.csv", ".git/notes.txt"]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("landmark", ["0.Stand/", "notes.txt"])
def test_what_systems_leave_behind_is_not_there(layout: Layout, landmark: str, tmp_path: Path) -> None:
    path = layout(tmp_path)
    if path.is_dir():
        top = path if (path / "notes.txt").exists() else path / "top"
        for file in (path / "__MACOSX" / "notes.txt", *(top / name for name in LEFT_BEHIND)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
    else:
        with zipfile.ZipFile(path, "a") as bundle:
            for name in LEFT_BEHIND:
                bundle.writestr(name, b"x")
                bundle.writestr(f"top/{name}", b"x")
    with open_archive(path, landmark=landmark) as archive:
        assert set(archive.members()) - {"elsewhere.txt"} == set(MEMBERS)


@pytest.mark.parametrize("inner", ["data.zip", "set/DATA.ZIP"])
def test_a_zip_in_a_zip_that_macos_made(inner: str, tmp_path: Path) -> None:
    content = as_zip(tmp_path).read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as bundle:
        for name in (inner, "__MACOSX/._data.zip", "._data.zip", "read me.txt"):
            bundle.writestr(name, content if name == inner else b"x")
    with open_archive(tmp_path / "outer.zip", landmark="notes.txt") as archive:
        assert archive.read("notes.txt") == MEMBERS["notes.txt"]


@pytest.mark.parametrize(("below", "is_found"), [("a", True), ("a/b", True), ("a/b/c", False)])
def test_a_folder_is_looked_into_two_levels_deep(below: str, is_found: bool, tmp_path: Path) -> None:
    as_folder(tmp_path, f"data/{below}")
    if is_found:
        with open_archive(tmp_path / "data", landmark="notes.txt") as archive:
            assert set(archive.members()) == set(MEMBERS)
    else:
        with pytest.raises(DataError, match=r"holds no notes.txt; expected it there or up to 2 folders below"):
            open_archive(tmp_path / "data", landmark="notes.txt").__enter__()


def test_two_copies_are_refused_and_the_nearest_wins(tmp_path: Path) -> None:
    as_folder(tmp_path, "data/one")
    as_folder(tmp_path, "data/one (old)")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as bundle:
        for top in ("one", "one (old)"):
            bundle.writestr(f"{top}/notes.txt", b"x")
    for path in (tmp_path / "data", tmp_path / "two.zip"):
        with pytest.raises(DataError, match=r"holds notes.txt in 'one.*' and in 'one.*'; expected one copy"):
            open_archive(path, landmark="notes.txt").__enter__()
    as_folder(tmp_path, "data")
    with open_archive(tmp_path / "data", landmark="notes.txt") as archive:
        assert "notes.txt" in archive.members()
