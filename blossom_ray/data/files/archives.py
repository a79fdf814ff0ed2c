"""The members of a downloaded data set, read by name from its zip or folder, never unpacked to disk."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt

from blossom_ray.errors import DataError

_LARGEST_INNER_ZIP_BYTES = 200_000_000
LARGEST_TABLE_BYTES = 20_000_000
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# zipfile raises more than BadZipFile for directories and headers that are damaged.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError)
# What file managers and spreadsheets leave beside a data set, next to names that begin with a dot.
_LEFT_BEHIND = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0"  # of Latin-1

Number = TypeVar("Number", np.float32, np.int64)


@dataclass(frozen=True)
class Archive:
    """A data set's files, whatever holds them.

    Attributes:
        name: What messages call the archive.
        read: The content of a member by its path from the data set's top, such as `train/y_train.txt`.
        members: The paths of all members, sorted, without what `is_left_behind` says is none of the data set's.
        state: What tells a member's content from another one without reading it: bytes, and the CRC-32 in a zip or
            the time of the last change (ns) in a folder. For the key of `cache.cached`.
    """

    name: str
    read: Callable[[str], bytes]
    members: Callable[[], tuple[str, ...]]
    state: Callable[[str], tuple[int, int]]

    def states(self, members: Iterable[str]) -> list[tuple[str, int, int]]:
        """Name and state of each of these members.

        Raises:
            DataError: One is missing.
        """
        return [(member, *self.state(member)) for member in members]

    def fingerprint(self, members: Iterable[str]) -> str:
        """SHA-256 (hex) of `states`, for a key where they are many.

        Raises:
            DataError: One is missing.
        """
        return hashlib.sha256(json.dumps(self.states(members)).encode()).hexdigest()

    def table(
        self, member: str, num_columns: int, dtype: type[Number], *, delimiter: str | None = None
    ) -> npt.NDArray[Number]:
        """A member that holds a table of numbers, one row per line.

        Args:
            member: Path of the member from the data set's top.
            num_columns: Numbers in each line.
            dtype: `np.float32` or `np.int64`.
            delimiter: What separates numbers; white space by default. For `,` a table that a spreadsheet saved with
                `;` and decimal commas is read, too.

        Returns:
            (lines, num_columns). Empty lines are skipped.

        Raises:
            DataError: The member is missing, damaged or empty, a line has another number of values, or a value
                is not a finite number.
        """
        text = self.read(member).removeprefix(_BYTE_ORDER_MARK)
        place = f"{self.name}: {member}"
        if not text.strip(_WHITE_SPACE):
            raise DataError(f"{place} is empty; expected lines of {num_columns} numbers")
        if delimiter == "," and b";" in text.partition(b"\n")[0]:
            text, delimiter = text.replace(b",", b"."), ";"
        try:
            lines = io.BytesIO(text)
            table = np.loadtxt(lines, dtype=dtype, comments=None, delimiter=delimiter, encoding="latin1", ndmin=2)
        except (ValueError, OverflowError):
            raise DataError(f"{place}, {_first_fault(text, num_columns, dtype, delimiter)}") from None
        if table.shape[1] != num_columns or not np.isfinite(table).all():
            raise DataError(f"{place}, {_first_fault(text, num_columns, dtype, delimiter)}")
        return np.asarray(table)


@contextmanager
def open_archive(
    path: Path, *, landmark: str, largest_bytes: int = LARGEST_TABLE_BYTES, depth: int = 2
) -> Iterator[Archive]:
    """Open a data set as it was downloaded: a zip, a zip inside a zip, or a folder.

    The data set's top may be the archive's own or a folder inside it, whatever its name: it is where `landmark`
    lies, nearest to the archive's own top.

    Args:
        path: File or folder.
        landmark: A member that every copy of the data set has, by its path from the data set's top. With `/` at its
            end, a folder.
        largest_bytes: Members above this size are refused.
        depth: How far below a folder `landmark` is looked for; in a zip it may lie anywhere.

    Raises:
        DataError: Nothing is there, it is neither a zip nor a folder, or `landmark` is nowhere in it, or in two
            folders that are equally near. Reading a member raises it where the member is missing, damaged, encrypted
            or above `largest_bytes`.
    """
    kind = _kind_of(path)
    if kind == stat.S_IFDIR:
        yield _folder_archive(path, landmark, largest_bytes, depth)
    elif kind == stat.S_IFREG:
        with _open_zip(path, path.name) as bundle:
            names = [name for name in bundle.namelist() if not is_left_behind(name)]
            inner = [name for name in names if name.lower().endswith(".zip")]
            if len(inner) != 1 or _top_of(names, landmark):
                yield _zip_archive(bundle, path.name, landmark, largest_bytes)
            else:  # how the UCI repository hands out its older sets
                content = io.BytesIO(_read_member(bundle, path.name, inner[0], _LARGEST_INNER_ZIP_BYTES))
                with _open_zip(content, name := f"{path.name}: {inner[0]}") as nested:
                    yield _zip_archive(nested, name, landmark, largest_bytes)
    else:
        found = "does not exist" if kind is None else "is neither"
        raise DataError(f"{path} {found}; expected a zip file or a folder")


def holds(path: Path, landmark: str) -> bool:
    """Whether a data set with this landmark is an archive, or a folder or directly below it; damage counts as no."""
    try:
        with open_archive(path, landmark=landmark, depth=1):
            return True
    except (DataError, OSError):
        return False


def is_left_behind(member: str) -> bool:
    """Whether a file is none of the data set's: hidden, or left by macOS, by Windows or by an open spreadsheet."""
    path = PurePosixPath(member)
    hidden = any(part.startswith(".") or part.lower() in _LEFT_BEHIND for part in path.parts)
    return hidden or path.name.startswith("~$")


def _kind_of(path: Path) -> int | None:
    """The kind of file, as in `stat`, or None where there is none; a pipe or a device is never opened."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _folder_archive(path: Path, landmark: str, largest_bytes: int, depth: int) -> Archive:
    is_landmark = Path.is_dir if landmark.endswith("/") else Path.is_file
    folders, tops = [path], list[Path]()
    try:
        for level in range(depth + 1):
            tops = [folder for folder in folders if is_landmark(folder / landmark)]
            if tops or level == depth:
                break
            below = (child for folder in folders for child in sorted(folder.iterdir()))
            folders = [child for child in below if not is_left_behind(child.name) and child.is_dir()]
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    if not tops:
        raise DataError(f"{path} holds no {landmark}; expected it there or up to {depth} folders below")
    top = path / _only_top([folder.relative_to(path).as_posix() for folder in tops], path.name, landmark)
    name = top.name

    def state(member: str) -> tuple[int, int]:
        kind = _kind_of(top / member)
        if kind is None:
            raise DataError(f"{name}: {member} is missing")
        if kind != stat.S_IFREG:
            raise DataError(f"{name}: {member} is not a file")
        facts = (top / member).stat()
        return facts.st_size, facts.st_mtime_ns

    def read(member: str) -> bytes:
        state(member)
        try:
            with (top / member).open("rb") as file:
                content = file.read(largest_bytes + 1)
        except OSError as error:
            raise DataError(f"{name}: {member} cannot be read: {error.strerror}") from error
        if len(content) > largest_bytes:
            raise DataError(f"{name}: {member} is larger; expected at most {largest_bytes:,} bytes")
        return content

    @cache
    def members() -> tuple[str, ...]:
        found = ((Path(folder, file) for file in files) for folder, _, files in os.walk(top))
        names = (file.relative_to(top).as_posix() for files in found for file in files)
        return tuple(sorted(name for name in names if not is_left_behind(name)))

    return Archive(name, read, members, state)


def _only_top(tops: list[str], name: str, landmark: str) -> str:
    if len(tops) > 1:
        raise DataError(f"{name} holds {landmark} in {tops[0]!r} and in {tops[1]!r}; expected one copy of the data set")
    return tops[0]


def _open_zip(file: Path | IO[bytes], name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (*_DAMAGED, NotImplementedError):
        raise DataError(f"{name} is not a zip file, or not all of one; expected a zip file or a folder") from None


def _top_of(names: list[str], landmark: str) -> list[str]:
    if landmark.endswith("/"):  # a zip need not list its folders
        heads = {name[: f"/{name}".index(f"/{landmark}")] for name in names if f"/{landmark}" in f"/{name}"}
        return sorted(heads)
    return [name.removesuffix(landmark) for name in names if name == landmark or name.endswith(f"/{landmark}")]


def _zip_archive(bundle: zipfile.ZipFile, name: str, landmark: str, largest_bytes: int) -> Archive:
    tops = _top_of([entry for entry in bundle.namelist() if not is_left_behind(entry)], landmark)
    if not tops:
        raise DataError(f"{name} holds no {landmark}; expected it at the top or in a folder")
    nearest = min(top.count("/") for top in tops)
    top = _only_top(sorted({top for top in tops if top.count("/") == nearest}), name, landmark)

    def state(member: str) -> tuple[int, int]:
        info = _member_info(bundle, name, top + member)
        return info.file_size, info.CRC

    @cache
    def members() -> tuple[str, ...]:
        files = (entry for entry in bundle.namelist() if entry.startswith(top) and not entry.endswith("/"))
        names = {entry.removeprefix(top) for entry in files}
        return tuple(sorted(name for name in names if not is_left_behind(name)))

    return Archive(name, lambda member: _read_member(bundle, name, top + member, largest_bytes), members, state)


def _member_info(bundle: zipfile.ZipFile, name: str, member: str) -> zipfile.ZipInfo:
    try:
        return bundle.getinfo(member)
    except KeyError:
        raise DataError(f"{name}: {member} is missing") from None


def _read_member(bundle: zipfile.ZipFile, name: str, member: str, largest_bytes: int) -> bytes:
    info = _member_info(bundle, name, member)
    if info.flag_bits & 0x1:
        raise DataError(f"{name}: {member} is encrypted; expected a zip file without a password")
    if info.file_size > largest_bytes:
        raise DataError(f"{name}: {member} announces {info.file_size:,} bytes; expected at most {largest_bytes:,}")
    if info.compress_type not in _UNPACKED:
        raise DataError(f"{name}: {member} is compressed by method {info.compress_type}; expected deflate or none")
    try:
        with bundle.open(info) as file:
            # Without a number of bytes, zipfile unpacks up to 2 GiB at once before it cuts at the announced size.
            content = file.read(info.file_size)
    except _DAMAGED as error:
        raise DataError(f"{name}: {member} is damaged ({error}); download it again") from error
    except NotImplementedError as error:
        raise DataError(f"{name}: {member} cannot be unpacked: {error}") from error
    if len(content) != info.file_size:
        raise DataError(f"{name}: {member} is damaged (not all of it is there); download it again")
    return content


def _first_fault(text: bytes, num_columns: int, dtype: type[np.generic], delimiter: str | None) -> str:
    """Where a table is not what it should be: slow, so only for one that is known to be faulty."""
    integral = np.issubdtype(dtype, np.integer)
    for number, line in enumerate(text.decode("latin1").splitlines(), start=1):
        words = line.split(delimiter) if line.strip() else []
        if words and len(words) != num_columns:
            return f"line {number} has {len(words)} values; expected {num_columns}"
        for column, word in enumerate(words, start=1):
            if not _is_number(word, integral=integral):
                kind = "an integer" if integral else "a finite number"
                return f"line {number}, value {column} is {word[:40]!r}; expected {kind}"
    return "a value is too large for its type; expected lines of numbers"


def _is_number(word: str, *, integral: bool) -> bool:
    try:
        return math.isfinite(int(word) if integral else float(word))
    except ValueError:
        return False
