"""Samples that are decoded once: from the contents of files, or texts, to Arrow files in the cache, part by part.

A part is some values one after the other. Its file is named after the SHA-256 of these values, in a folder named after
what decodes them, so that what was decoded once is found again whatever brings the values: another file, another path,
a table that has grown. It is written whole or not at all; what was killed goes on with the next part.

Beside it lies a note for values that are files: while their sizes and times are the same, they are not read again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from blossom_ray.core.progress import tell
from blossom_ray.data.files.below import file_below
from blossom_ray.data.files.cache import cache_folder, writable
from blossom_ray.data.files.parts import Part, lock_folder, open_part, write_part
from blossom_ray.data.modalities.base import Decoder, Media, MediaValue, UndecodableError
from blossom_ray.errors import DataError
from blossom_ray.storage import RefusedFileError, read_file, replacing
from blossom_ray.text import brief

MOST_BYTES = 2**27
"""Of a file that is one value, or of its content in a table."""
_PART_BYTES = 2**25
"""Of the samples of a part, and half of those of its values; a part has at least one value."""
_CHUNK_BYTES = 2**20
_CHUNK_VALUES = 64
"""What a thread is given at once: values of so many bytes, or so many of them; at least one."""
_SETTLED_NS = 2 * 10**9
"""A file that was changed less long ago may change again, and keep the time that its file system tells."""
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


class _State(NamedTuple):
    path: str
    num_bytes: int
    time_ns: int
    number: int


class FilePath(NamedTuple):
    """A value that is the content of a file.

    Attributes:
        path: As it was given.
        folder: From where it counts, and which it must not leave; None: a program's own path, which may lead anywhere.
    """

    path: str
    folder: Path | None = None

    @property
    def state(self) -> _State | None:
        """What tells the file's content from another one without reading it; None where there is none."""
        place = self.path if self.folder is None else os.path.join(self.folder, self.path)
        try:
            facts = os.stat(place)
        except (OSError, ValueError):
            return None
        return _State(os.path.abspath(place), facts.st_size, facts.st_mtime_ns, facts.st_ino)

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


class Kept(NamedTuple):
    """Samples of a modality in the cache.

    Attributes:
        folder: Where they are.
        num_samples: How many.
        num_new: How many of these were made just now.
        num_bytes: Of the files.
    """

    folder: Path
    num_samples: int
    num_new: int
    num_bytes: int


@dataclass(frozen=True)
class Decoded:
    """The samples of some values, in their order.

    Attributes:
        parts: (n, *shape), of the decoder's type, mapped from files, for `StoredRows`.
        errors: By the number of a value that is no sample, what is wrong with it; its sample is 0.
        files: Of each part.
        factor: A number of a sample times this is the float32 number that a model gets.
        kept: What of them is in the cache.
    """

    parts: tuple[_Samples, ...]
    errors: Mapping[int, str]
    files: tuple[Path, ...]
    factor: float
    kept: tuple[Kept, ...]


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
        num_bytes = num_new = first = 0
        for part in _behind(map(work.begin, read), 1):
            kept, file = work.finish(part)
            for number, error in kept.errors.items():
                if refuse is not None:
                    refuse(first + number, error)
                errors[first + number] = error
            parts.append(kept.samples)
            files.append(file)
            first, num_bytes = first + len(kept.samples), num_bytes + kept.num_bytes
            num_new += len(kept.samples) * bool(part.made)
            tell(f"decoding {what}", first, num_values)
        decoder = work.decoder
        no_parts = (np.empty((0, *decoder.shape), decoder.dtype),)
        in_cache = Kept(work.folder, first, num_new, num_bytes)
        return Decoded(tuple(parts) or no_parts, errors, tuple(files), decoder.factor, (in_cache,))


_Made = tuple[_Samples, list[Future[list[str | None]]]]


class _Cut(NamedTuple):
    """The values of a part, by chunks, and the hash of the states of their files; None where they are no files."""

    chunks: list[list[Value]]
    states: str | None


class _PartAtWork(NamedTuple):
    """A part on its way.

    Attributes:
        cut: Its values.
        read: Their contents by chunks, and the hash of each; None where it is known which file has the samples.
        file: With the samples.
        opened: Its content, where it is there.
        made: The samples, and by chunks the errors, where it is not; all is there when these are.
    """

    cut: _Cut
    read: list[Future[tuple[_Contents, bytes]]] | None
    file: Path | None = None
    opened: Future[Part | None] | None = None
    made: _Made | None = None


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

    def cut(self, values: Iterable[Value]) -> Iterator[_Cut]:
        """The values by parts, which depend on what they are and not on where they come from."""
        most_values = max(1, _PART_BYTES // (math.prod(self.decoder.shape) * self.decoder.dtype.itemsize))
        chunks: list[list[Value]] = [[]]
        states: list[_State | None] = []
        part_bytes = chunk_bytes = 0
        for value in values:
            state = value.state if isinstance(value, FilePath) else None
            size = len(value) if isinstance(value, bytes | str) else 0 if state is None else state.num_bytes
            if states and (len(states) == most_values or part_bytes + size > 2 * _PART_BYTES):
                yield _Cut(chunks, _hashed_states(states))
                chunks, states, part_bytes, chunk_bytes = [[]], [], 0, 0
            if len(chunks[-1]) == _CHUNK_VALUES or (chunks[-1] and chunk_bytes + size > _CHUNK_BYTES):
                chunks.append([])
                chunk_bytes = 0
            chunks[-1].append(value)
            states.append(state)
            part_bytes, chunk_bytes = part_bytes + size, chunk_bytes + size
        if states:
            yield _Cut(chunks, _hashed_states(states))

    def read(self, part: _Cut) -> _PartAtWork:
        """Begin to open the file that a note names, or to read and to hash the values of a part."""
        with suppress(OSError, ValueError):
            file = self.folder / f"{self._note(part).read_text(encoding='ascii')}.arrow"
            if file.exists():
                return _PartAtWork(part, None, file, self.pool.submit(open_part, file))
        return self._reading(part)

    def begin(self, part: _PartAtWork) -> _PartAtWork:
        """Begin to decode a part that has been read, or to open its file."""
        if part.read is None:
            return part
        chunks = [each.result() for each in part.read]
        digest = hashlib.sha256(b"".join(own for _, own in chunks)).hexdigest()
        file = self.folder / f"{digest[:32]}.arrow"
        if not file.exists():
            self._lock()  # under which another process may have made it
        if file.exists():
            return part._replace(file=file, opened=self.pool.submit(open_part, file))
        return part._replace(file=file, made=self._decoding(part.read))

    def finish(self, part: _PartAtWork) -> tuple[Part, Path]:
        """A part and its file, which is written now if it was not there, or was damaged."""
        assert part.file is not None, "finished before it was begun"
        found = None if part.opened is None else part.opened.result()
        if found is None:
            if part.read is None:
                return self.finish(self.begin(self._reading(part.cut)))
            self._lock()
            samples, chunks = part.made or self._decoding(part.read)
            errors = [error for chunk in chunks for error in chunk.result()]
            found = write_part(part.file, samples, errors)
        if part.read is not None and part.cut.states is not None:
            with writable(self.folder.parent), replacing(self._note(part.cut), shared=True) as note:
                note.write_text(part.file.stem, encoding="ascii")
        return found, part.file

    def _note(self, part: _Cut) -> Path:
        return self.folder / f"{part.states}.files"

    def _reading(self, part: _Cut) -> _PartAtWork:
        return _PartAtWork(part, [self.pool.submit(_read, chunk) for chunk in part.chunks])

    def _decoding(self, chunks: Sequence[Future[tuple[_Contents, bytes]]]) -> _Made:
        contents = [each.result()[0] for each in chunks]
        samples = np.zeros((sum(map(len, contents)), *self.decoder.shape), self.decoder.dtype)
        pieces = np.split(samples, np.cumsum([len(own) for own in contents])[:-1])  # which are views of it
        made = zip(contents, pieces, strict=True)
        return samples, [self.pool.submit(_decode, self.decoder, own, piece) for own, piece in made]

    def _lock(self) -> None:
        """Be the only process that decodes, from the first part that is not there."""
        if self.is_locked:
            return
        lock_folder(self.folder, self.stack)
        self.is_locked = True


def _hashed_states(states: Sequence[_State | None]) -> str | None:
    """One hash for the states of all files; None where one is missing, or so new that it may change unseen."""
    newest_ns = time.time_ns() - _SETTLED_NS
    if any(state is None or state.time_ns > newest_ns for state in states):
        return None
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]


def _read(values: list[Value]) -> tuple[_Contents, bytes]:
    """The contents of some values, and their hash; what cannot be read is an error in the place of its content."""
    digest = hashlib.sha256()
    contents: _Contents = []
    for value in values:
        content: MediaValue | UndecodableError
        try:
            content = value.content() if isinstance(value, FilePath) else value
            if isinstance(content, bytes) and len(content) > MOST_BYTES:
                raise UndecodableError(f"has {len(content):,} bytes; expected at most {MOST_BYTES:,}")
        except UndecodableError as error:
            content = error
        plain = content if isinstance(content, bytes) else str(content).encode(errors="surrogatepass")
        digest.update(f"{type(content).__name__} {len(plain)} ".encode())
        digest.update(plain)
        contents.append(content)
    return contents, digest.digest()


def _decode(decoder: Decoder, contents: _Contents, samples: _Samples) -> list[str | None]:
    """Write the samples of some contents into an array; what is wrong with each, if anything is."""
    errors: list[str | None] = [None] * len(contents)
    for number, content in enumerate(contents):
        try:
            if isinstance(content, UndecodableError):
                raise content
            samples[number] = decoder(content)
        except UndecodableError as error:
            errors[number] = str(error)
    return errors


def _behind(items: Iterable[Item], number: int) -> Iterator[Item]:
    """The items, each when so many after it have been taken."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > number:
            yield waiting.popleft()
    yield from waiting
