from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blossom_ray.data.files.below import file_below
from blossom_ray.data.modalities.base import UndecodableError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, beside a file that is none of its own."""
    below = tmp_path / "set"
    (below / "cat").mkdir(parents=True)
    (below / "cat" / "1.png").write_bytes(b"in")
    (tmp_path / "secret").write_bytes(b"out")
    (tmp_path / "set and more").mkdir()
    (tmp_path / "set and more" / "1.png").write_bytes(b"out")
    return below


@pytest.mark.parametrize("text", ["cat/1.png", "./cat/1.png", "cat//1.png", "link.png", "here/1.png"])
def test_a_file_below_is_found(text: str, folder: Path) -> None:
    (folder / "link.png").symlink_to("cat/1.png")
    (folder / "here").symlink_to(folder / "cat")
    assert file_below(folder, text).read_bytes() == b"in"
    assert file_below(folder / "cat" / "..", text).samefile(folder / "cat" / "1.png")


@pytest.mark.parametrize("name", ["a\nb.png", "3:14.png", "~", "ümlaut é.png", "a\\b.png", "..png", "cat/...", "-"])
def test_names_of_any_characters_are_files(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"in")
    assert file_below(folder, name).read_bytes() == b"in"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is '', which is a folder; expected a relative path of a file below the table's folder"),
        ("cat", "is 'cat', which is a folder"),
        ("/etc/passwd", "is '/etc/passwd', which is no relative path"),
        ("C:\\Users\\1.png", "which is no relative path"),
        ("c:/1.png", "which is no relative path"),
        ("\\\\server\\1.png", "which is no relative path"),
        ("https://host/1.png", "which is no relative path"),
        ("file:///etc/passwd", "which is no relative path"),
        ("../secret", "is '../secret', which has '..'"),
        ("cat/../cat/1.png", "which has '..'"),
        ("cat\\1.png", "cannot be found (No such file or directory); expected a .* folder, with / between folders"),
        ("dog/1.png", "is 'dog/1.png', which cannot be found (No such file or directory)"),
        ("cat/1.png/2.png", "which cannot be found (Not a directory)"),
        ("a\0b", r"is 'a\x00b', which cannot be found (embedded null byte)"),
        ("a\nb", r"is 'a\nb', which cannot be found"),
        ("x" * 300, "..', which cannot be found (File name too long)"),
        ("\ud800", r"is '\ud800', which cannot be found"),
    ],
)
def test_other_paths_are_refused_in_one_line(text: str, message: str, folder: Path) -> None:
    with pytest.raises(UndecodableError, match=re.escape(message).replace(r"\.\*", ".*")) as refused:
        file_below(folder, text)
    assert len(str(refused.value).splitlines()) == 1


def link_to_file(folder: Path) -> None:
    (folder / "x").symlink_to("../secret")


def link_to_folder(folder: Path) -> str:
    (folder / "x").symlink_to(folder.parent / "set and more")
    return "x/1.png"


def link_to_itself(folder: Path) -> None:
    (folder / "x").symlink_to("x")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x")


def device(folder: Path) -> None:
    (folder / "x").symlink_to("/dev/zero")


def listener(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("x")
    os.chdir(here)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link_to_file, "a link that leads out of the table's folder; expected the file itself"),
        (link_to_folder, "a link that leads out of the table's folder"),
        (link_to_itself, "which cannot be found"),
        (pipe, "which is no regular file"),
        (device, "a link that leads out of the table's folder"),
        (listener, "which is no regular file"),
    ],
)
def test_what_is_no_file_below_is_not_opened(make: Callable[[Path], str | None], message: str, folder: Path) -> None:
    text = make(folder) or "x"
    with pytest.raises(UndecodableError, match=message):
        file_below(folder, text)
