"""Samples that are decoded once: from the contents of files, or texts, to Arrow files in the cache, part by part.

A part is some values one after the other. Its file is named after the SHA-256 of these values, in a folder named after
what decodes them, so that what was decoded once is found again whatever brings the values: another file, another path,
a table that has grown. It is written whole or not at all; what was killed goes on with the next part.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from blossom_ray.data.files.below import file_below
from blossom_ray.data.files.cache import cache_folder, tell
from blossom_ray.data.files.parts import Part, lock_folder, open_part, write_part
from blossom_ray.data.modalities.base import Decoder, Media, MediaValue, UndecodableError
from blossom_ray.errors import DataError
from blossom_ray.storage import RefusedFileError, read_file
from blossom_ray.text import brief

MOST_BYTES = 2**27
"""Of a file that is one value."""
_PART_BYTES = 2**25
"""Of the samples of a part, and half of those of its values; a part has at least one value."""
_CHUNK_BYTES = 2**20
_CHUNK_VALUES = 64
"""What a thread is given at once: values of so many bytes, or so many of them; at least one."""
_FORMAT = 1
"""Of the files; raised when they are written in another way."""

_UNREAD: Mapping[type[Exception], str] = {
    FileNotFoundError: "does not exist",
    IsADirectoryError: "is a folder",
    PermissionError: "must not be read",
}
_Contents = list[MediaValue | UndecodableError]
_Samples = npt.NDArray[Any]
Item = TypeVar("Item")


class FilePath(NamedTuple):
    """A value that is the content of a file.

    Attributes:
        path: As it was given.
        folder: From where it counts, and which it must not leave; None: a program's own path, which may lead anywhere.
    """

    path: str
    folder: Path | None = None

    @property
    def num_bytes(self) -> int:
        """Of the file; 0 where there is none."""
        try:
            return os.stat(self.path if self.folder is None else self.folder / self.path).st_size
        except (OSError, ValueError):
            return 0

    def content(self) -> bytes:
        """What is in the file.

        Raises:
            UndecodableError: As `file_below`; or it is no regular file of at most `MOST_BYTES`, or must not be read.
            DataError: The disk fails, or the process has too many files open.
        """
        try:
            return read_file(Path(self.path) if self.folder is None else file_below(self.folder, self.path), MOST_BYTES)
        except (RefusedFileError, FileNotFoundError, IsADirectoryError, PermissionError, ValueError) as error:
            found = f"is '{brief(self.path)}', which {_UNREAD.get(type(error), error)}"
            expected = f"a regular file of at most {MOST_BYTES / 2**20:.0f} MiB"
            raise UndecodableError(f"{found}; expected {expected}") from None
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}; expected a file") from error


Value = MediaValue | FilePath


@dataclass(frozen=True)
class Decoded:
    """The samples of some values, in their order.

    Attributes:
        parts: (n, *shape), of the decoder's type, mapped from files, for `StoredRows`.
        errors: By the number of a value that is no sample, what is wrong with it; its sample is 0.
        num_bytes: Of the files.
        files: Of each part.
        factor: A number of a sample times this is the float32 number that a model gets.
    """

    parts: tuple[_Samples, ...]
    errors: Mapping[int, str]
    num_bytes: int
    files: tuple[Path, ...]
    factor: float


def decoded(
    media: Media,
    values: Iterable[Value],
    what: str,
    num_values: int,
    *,
    refuse: Callable[[int, str], None] | None = None,
    folder: Path | None = None,
) -> Decoded:
    """The samples of some values; those that were decoded before come from the cache.

    Threads on all cores that the process may use read, hash and decode. Memory: values and samples of three parts, and
    what a decoder needs in each thread. A second process that asks for the same waits until it is there.

    Args:
        media: What decodes them.
        values: Gone through once.
        what: What the progress calls them, such as the name of the modality.
        num_values: How many there are.
        refuse: Called with the number of the first value that is no sample and what is wrong with it, as soon as that
            is known, to raise an error.
        folder: Where the cache lies; `cache_folder()` by default.

    Raises:
        DataError: A library is missing, the disk fails, or the cache cannot be written.
    """
    with ExitStack() as stack:
        # What libraries warn of is said by the error of the file that it is about.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        pool = ThreadPoolExecutor(num_cores, "decoding")
        stack.callback(pool.shutdown, cancel_futures=True)
        work = _Work.of(media, cache_folder() if folder is None else folder, pool, stack)
        read = _behind((work.read(part) for part in work.cut(values)), 1)
        parts: list[_Samples] = []
        files: list[Path] = []
        errors: dict[int, str] = {}
        num_bytes = first = 0
        for part in _behind(map(work.begin, read), 1):
            kept = work.finish(part)
            for number, error in kept.errors.items():
                if refuse is not None:
                    refuse(first + number, error)
                errors[first + number] = error
            parts.append(kept.samples)
            files.append(part.file)
            first, num_bytes = first + len(kept.samples), num_bytes + kept.num_bytes
            tell(f"decoding {what}", first, num_values)
        decoder = work.decoder
        no_parts = (np.empty((0, *decoder.shape), decoder.dtype),)
        return Decoded(tuple(parts) or no_parts, errors, num_bytes, tuple(files), decoder.factor)


class _PartAtWork(NamedTuple):
    """A part at work: what its values are, its file, and the file's content or, where there is none, chunks of it."""

    chunks: list[_Contents]
    file: Path
    opened: Future[Part | None] | None
    made: list[Future[tuple[_Samples, list[str | None]]]]


@dataclass
class _Work:
    """The decoding of some values: each part is read, then begun, then finished, while those behind it are read."""

    decoder: Decoder
    folder: Path
    pool: ThreadPoolExecutor
    stack: ExitStack
    is_locked: bool = field(default=False, init=False)

    @classmethod
    def of(cls, media: Media, root: Path, pool: ThreadPoolExecutor, stack: ExitStack) -> _Work:
        decoder = media.decoder()
        facts = {"format": _FORMAT, "shape": decoder.shape, "dtype": str(decoder.dtype), **media.key()}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return cls(decoder, root / f"{media.kind}-{digest[:32]}", pool, stack)

    def cut(self, values: Iterable[Value]) -> Iterator[list[list[Value]]]:
        """The values by parts, and those of a part by chunks."""
        most_values = max(1, _PART_BYTES // (math.prod(self.decoder.shape) * self.decoder.dtype.itemsize))
        part: list[list[Value]] = [[]]
        num_values = part_bytes = chunk_bytes = 0
        for value in values:
            size = value.num_bytes if isinstance(value, FilePath) else len(value)
            if num_values and (num_values == most_values or part_bytes + size > 2 * _PART_BYTES):
                yield part
                part, num_values, part_bytes, chunk_bytes = [[]], 0, 0, 0
            if len(part[-1]) == _CHUNK_VALUES or (part[-1] and chunk_bytes + size > _CHUNK_BYTES):
                part.append([])
                chunk_bytes = 0
            part[-1].append(value)
            num_values, part_bytes, chunk_bytes = num_values + 1, part_bytes + size, chunk_bytes + size
        if num_values:
            yield part

    def read(self, part: list[list[Value]]) -> list[Future[tuple[_Contents, bytes]]]:
        """Begin to read and to hash the values of a part."""
        return [self.pool.submit(_read, chunk) for chunk in part]

    def begin(self, reading: list[Future[tuple[_Contents, bytes]]]) -> _PartAtWork:
        """Begin to decode a part that has been read, or to open its file."""
        chunks = [each.result() for each in reading]
        digest = hashlib.sha256(b"".join(own for _, own in chunks)).hexdigest()
        contents, file = [own for own, _ in chunks], self.folder / f"{digest[:32]}.arrow"
        if not file.exists():
            self._lock()  # under which another process may have made it
        opened = self.pool.submit(open_part, file) if file.exists() else None
        return _PartAtWork(contents, file, opened, [] if opened else self._decoding(contents))

    def finish(self, part: _PartAtWork) -> Part:
        """The part's file, written now if it was not there, or was damaged."""
        found = None if part.opened is None else part.opened.result()
        if found is not None:
            return found
        self._lock()
        made = [each.result() for each in part.made or self._decoding(part.chunks)]
        samples = np.concatenate([own for own, _ in made])
        errors = [error for _, own in made for error in own]
        return write_part(part.file, samples, errors)

    def _decoding(self, chunks: list[_Contents]) -> list[Future[tuple[_Samples, list[str | None]]]]:
        return [self.pool.submit(_decode, self.decoder, contents) for contents in chunks]

    def _lock(self) -> None:
        """Be the only process that decodes, from the first part that is not there."""
        if self.is_locked:
            return
        lock_folder(self.folder, self.stack)
        self.is_locked = True


def _read(values: list[Value]) -> tuple[_Contents, bytes]:
    """The contents of some values, and their hash; what cannot be read is an error in the place of its content."""
    digest = hashlib.sha256()
    contents: _Contents = []
    for value in values:
        content: MediaValue | UndecodableError
        try:
            content = value.content() if isinstance(value, FilePath) else value
        except UndecodableError as error:
            content = error
        plain = content if isinstance(content, bytes) else str(content).encode(errors="surrogatepass")
        digest.update(f"{type(content).__name__} {len(plain)} ".encode())
        digest.update(plain)
        contents.append(content)
    return contents, digest.digest()


def _decode(decoder: Decoder, contents: _Contents) -> tuple[_Samples, list[str | None]]:
    samples = np.zeros((len(contents), *decoder.shape), decoder.dtype)
    errors: list[str | None] = [None] * len(contents)
    for number, content in enumerate(contents):
        try:
            if isinstance(content, UndecodableError):
                raise content
            samples[number] = decoder(content)
        except UndecodableError as error:
            errors[number] = str(error)
    return samples, errors


def _behind(items: Iterable[Item], number: int) -> Iterator[Item]:
    """The items, each when so many after it have been taken."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > number:
            yield waiting.popleft()
    yield from waiting
