"""A job's run folder at a URI: brought there from the node while it grows, and home from there.

`python -m blossom_ray.studies.jobs.storage FOLDER URI ARGUMENT...`, on the node, is `blossom-ray ARGUMENT...`; what it
leaves in FOLDER is copied to URI every minute and at its end. File systems and their credentials are Arrow's to find.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from blossom_ray.core.locations import is_uri
from blossom_ray.errors import InputError, RunError, first_line

SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "abfs", "abfss")
_EVERY_S = 60.0
_ATTEMPTS = 10


def check_out(out: str) -> None:
    """Refuse a URI that a job cannot write its run to, before anything leaves this machine.

    Raises:
        InputError: It is of another kind, or holds a password, which the cluster's dashboard would show.
    """
    if not is_uri(out):
        return
    try:
        parts = urlsplit(out)
        has_password = parts.password is not None
    except ValueError as error:
        raise InputError(f"--out is no URI ({error}); expected one such as s3://bucket/runs") from error
    if has_password:
        raise InputError("--out holds a password; expected a URI without one, and the credentials on the nodes")
    if parts.scheme not in SCHEMES:
        raise InputError(f"--out is a URI of {parts.scheme}; expected a folder, or one of {', '.join(SCHEMES)}")


def below(out: str, name: str) -> str:
    """The path or URI of something in a folder."""
    if not is_uri(out):
        return f"{out}/{name}"
    parts = urlsplit(out)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


class Mirror:
    """A copy at a URI, where nobody else writes, of a folder, which it follows and which may be missing as yet."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._sent: dict[str, tuple[int, int]] = {}

    def update(self) -> None:
        """Copy what is new or has changed, and remove what is gone.

        Raises:
            RunError: The file system cannot be reached, or refuses it.
        """
        with _translate_errors(f"the run cannot be copied to {self._uri}"):
            filesystem, root = fs.FileSystem.from_uri(self._uri)
            for attempt in range(_ATTEMPTS):
                try:
                    self._copy(filesystem, root)
                    return
                except FileNotFoundError:  # the run has replaced a file meanwhile
                    if attempt == _ATTEMPTS - 1:
                        raise

    def _copy(self, filesystem: fs.FileSystem, root: str) -> None:
        found = {name: (size, time) for name, size, time in _local_files(self._folder)}
        for name in _sort_rounds_first(found):
            if self._sent.get(name) != found[name]:
                filesystem.create_dir(str(PurePosixPath(root, name).parent), recursive=True)
                fs.copy_files(str(self._folder / name), f"{root}/{name}", fs.LocalFileSystem(), filesystem)
                self._sent[name] = found[name]
        for name in [name for name in self._sent if name not in found]:
            filesystem.delete_file(f"{root}/{name}")
            del self._sent[name]


def download(uri: str, folder: Path, names: Sequence[str]) -> None:
    """Copy what is at a URI into a folder, for its owner alone; no links, and nothing where nothing is.

    Files and folders of these names are left out.

    Raises:
        RunError: It cannot be read.
    """
    with _translate_errors(f"{uri} cannot be read"):
        filesystem, root = fs.FileSystem.from_uri(uri)
        if isinstance(filesystem, fs.LocalFileSystem):
            found = [name for name, _, _ in _local_files(Path(root))]
        else:
            infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
            found = [info.path.removeprefix(root).lstrip("/") for info in infos if info.type == fs.FileType.File]
        for name in _sort_rounds_first(found):
            parts = name.split("/")
            if {"", ".", "..", *names} & set(parts):
                continue
            target = folder.joinpath(*parts)
            for parent in reversed(target.relative_to(folder).parents[:-1]):
                (folder / parent).mkdir(mode=0o700, exist_ok=True)
            target.touch(mode=0o600)
            fs.copy_files(f"{root}/{name}", str(target), filesystem, fs.LocalFileSystem())


def _local_files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of the files below a folder; not what links lead to, nor what is in the making."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and not name.endswith(".partial"):
                    yield path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns


def _sort_rounds_first(names: Iterator[str] | Sequence[str] | dict[str, tuple[int, int]]) -> list[str]:
    """The table `rounds` first: what it counts, the other tables, which may grow meanwhile, have too."""
    return sorted(names, key=lambda name: (not PurePosixPath(name).name.startswith("rounds."), name))


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(f"{what}: {first_line(error)}", "credentials are found as Arrow finds them") from error


def main(arguments: Sequence[str]) -> int:
    """Run a command beside a mirror of its folder; the command's exit code, or 1 if the last copy failed."""
    folder, uri, *command = arguments
    mirror = Mirror(Path(folder), uri)
    process = subprocess.Popen([sys.executable, "-m", "blossom_ray", *command])
    # Whoever ends a job may tell this process alone.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _frame: process.send_signal(number))
    exit_code, is_copied = None, False
    while exit_code is None:
        with suppress(subprocess.TimeoutExpired):
            exit_code = process.wait(_EVERY_S)
        try:
            mirror.update()
            is_copied = True
        except RunError as error:
            is_copied = False
            sys.stderr.write(f"error: {error}\n")
    return exit_code or (0 if is_copied else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
