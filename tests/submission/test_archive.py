"""A run folder as lines of text, and back."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from blossom_ray.submission import archive


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


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "none") == ["MARK missing"]


def test_a_folder_too_large_for_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    monkeypatch.setattr(archive, "MOST_BYTES", 999)
    archive.main("MARK", str(tmp_path), [])
    assert capsys.readouterr().out == "MARK large 1000\n"
