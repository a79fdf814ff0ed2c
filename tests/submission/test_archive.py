"""A run folder as lines of text, and back."""

import base64
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from blossom_ray.errors import RunError
from blossom_ray.studies.jobs import archive
from blossom_ray.studies.jobs.runs import _unpack


def lines_of(folder: Path, *names: str) -> list[str]:
    """As on a node: the file's text alone, by a bare interpreter."""
    script = Path(archive.__file__).read_text(encoding="utf-8")
    command = [sys.executable, "-I", "-c", script, "MARK", str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def content_of(lines: list[str]) -> bytes:
    mark, digest, size = lines[0].split()
    content = base64.b64decode("".join(lines[1:-1]))
    assert (mark, int(size), lines[-1]) == ("MARK", len(content), "MARK end")
    assert hashlib.sha256(content).hexdigest() == digest
    return content


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "000001").mkdir(parents=True)
    (tmp_path / "run" / "rounds.arrows").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "run" / "clients.arrows").write_bytes(b"")
    (tmp_path / "run" / "checkpoints" / "000001" / "server").write_bytes(b"1")
    with tarfile.open(fileobj=io.BytesIO(content_of(lines_of(tmp_path))), mode="r:gz") as tar:
        assert tar.getnames() == ["run/rounds.arrows", "run/checkpoints/000001/server", "run/clients.arrows"]
        member = tar.extractfile("run/rounds.arrows")
        assert member is not None
        assert member.read() == bytes(range(256)) * 100
    with tarfile.open(fileobj=io.BytesIO(content_of(lines_of(tmp_path, "checkpoints"))), mode="r:gz") as tar:
        assert tar.getnames() == ["run/rounds.arrows", "run/clients.arrows"]


def test_what_others_put_into_a_folder_stays_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "hush").write_bytes(b"hush")
    (tmp_path / "run" / "a").write_bytes(b"a")
    (tmp_path / "run" / "link").symlink_to("../hush")
    (tmp_path / "run" / "nowhere").symlink_to("none")
    (tmp_path / "run" / "folder").symlink_to("..")
    os.mkfifo(tmp_path / "run" / "pipe")
    with tarfile.open(fileobj=io.BytesIO(content_of(lines_of(tmp_path / "run"))), mode="r:gz") as tar:
        assert [(member.name, member.mode) for member in tar] == [("a", 0o600)]


def test_the_log_that_a_folder_is_printed_into_is_for_its_owner(tmp_path: Path) -> None:
    script = Path(archive.__file__).read_text(encoding="utf-8")
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.flush()
        subprocess.run([sys.executable, "-I", "-c", script, "MARK", str(tmp_path)], stdout=file, check=True)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    """A gzipped tar of names, types and contents, each readable by everybody."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, 0o777, len(content), "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_what_comes_home_is_for_its_owner(tmp_path: Path) -> None:
    _unpack(tar_of(("small/run/checkpoints/a", tarfile.REGTYPE, b"1")), tmp_path, "job")
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.rglob("*")}
    assert modes == {(True, 0o700), (False, 0o600)}


@pytest.mark.parametrize(
    "content",
    [
        tar_of(("../a", tarfile.REGTYPE, b"1")), tar_of(("a", tarfile.SYMTYPE, b"")),
        tar_of(("a", tarfile.LNKTYPE, b"")), tar_of(("a", tarfile.FIFOTYPE, b"")), b"", b"nonsense",
        tar_of(("a", tarfile.REGTYPE, bytes(5000)))[:-20], tar_of(("a", tarfile.REGTYPE, bytes(10_000))),
    ],
    ids=("above", "link", "hard link", "pipe", "empty", "nonsense", "cut", "large"),
)  # fmt: skip
def test_what_is_no_run_folder_does_not_come_home(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 9_999)
    with pytest.raises(RunError, match=r"^the run folder of job J came damaged"):
        _unpack(content, tmp_path / "out", "J")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "none") == ["MARK missing"]


def test_a_folder_too_large_for_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    monkeypatch.setattr(archive, "MOST_BYTES", 999)
    archive.main("MARK", str(tmp_path), [])
    assert capsys.readouterr().out == "MARK large 1000\n"
