"""Files with columns, Parquet or Arrow (Feather): told apart by their content, read some rows at a time.

Of a folder every file is read, or known to hold no rows, or refused by its name: a part of the data is no data set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from blossom_ray.errors import DataError

_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
_WITHOUT_ROWS = re.compile(
    r"_success|_(common_)?metadata|_(committed|started)_\d+|(readme|license|notice|citation)(\..*)?|thumbs\.db|desktop\.ini"
    r"|(sha\d+|md5)sums?|.*\.(md|txt|rst|pdf|html|json|ya?ml|toml|log|crc|sha\d+|md5|py|ipynb)",
    re.IGNORECASE,
)
"""Names of what lies beside tables: marks of Spark, descriptions of Hugging Face, checksums, notes, code."""
_FOLDERS_WITHOUT_ROWS = ("__MACOSX", "__pycache__", "lost+found")
_COPY = re.compile(r"\..*|.*(~|\.(bak|backup|old|orig|tmp|temp|part|partial|swp|crdownload))", re.IGNORECASE)
"""Names of files that are hidden, kept beside another one, or not finished."""
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_BYTES_AT_ONCE = 2**24
_BUFFER_BYTES = 2**20
_FORMATS = "a Parquet, Arrow or Feather (version 2) file"


class ColumnFile:
    """One file, which is opened for each reading and not kept open.

    Args:
        path: The file.

    Attributes:
        name: The file's name, for messages.
        folder: Where relative paths in its columns count from.
        types: Column to Arrow type.
        num_rows: Number of rows.
        index_columns: Columns that pandas made of a frame's index.
        metadata: What the file says of itself, by key.

    Raises:
        DataError: It cannot be read, is of another format or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.name, self.folder = path, path.name, path.parent
        with self._damage_told():
            kind = _kind(path)
            if kind is None:
                raise DataError(f"{path.name} {_beginning(path)}; expected {_FORMATS}")
            self._kind = kind
            if kind == "parquet":
                with pq.ParquetFile(path) as file:
                    schema, metadata = file.schema_arrow, file.metadata
                    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
                    self.num_rows, found = metadata.num_rows, sum(group.num_rows for group in groups)
                    if self.num_rows != found or any(group.num_rows < 0 for group in groups):
                        raise DataError(
                            f"{path.name} has {found} rows and announces {self.num_rows}; expected a whole file"
                        )
                    num_bytes = sum(group.total_byte_size for group in groups)
            else:
                with pa.memory_map(str(path)) as source, self._opened(source) as file:
                    schema, num_bytes = file.schema, source.size()
                    self.num_rows = sum(batch.num_rows for batch in _record_batches(file))
                    if kind == "stream":
                        _check_whole(source, path.name)
            names = schema.names
            self.types: Mapping[str, Any] = dict(zip(names, schema.types, strict=True))
            self.index_columns = _index_columns(schema)
            self.metadata: Mapping[bytes, bytes] = schema.metadata or {}
        if len(self.types) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.name} has several columns {double!r}; expected columns of different names")
        self._rows_at_once = max(1, _BYTES_AT_ONCE * max(self.num_rows, 1) // max(num_bytes, 1))

    def may_have_nulls(self, column: str) -> bool:
        """Whether a row of a column may be null, by what the file says of itself; its rows are not read.

        What an Arrow file says would have to be counted in memory that may be damaged.
        """
        if self._kind != "parquet":
            return True
        with self._damage_told(), pq.ParquetFile(self._path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            chunks = (group.column(number) for group in groups for number in range(group.num_columns))
            own = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")]
        # A list that is null counts as a value that is.
        found = [chunk.statistics for chunk in own]
        return any(one is None or not one.has_null_count or one.null_count for one in found)

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The first row of each batch of rows, and the batch's Arrow array of each of these columns.

        A batch is about 16 MiB of the file, so that reading takes little memory beside what is kept.

        Raises:
            DataError: The file is damaged.
        """
        first_row = 0
        with self._damage_told():
            for batch in self._batches(columns):
                chosen = batch.select(list(columns))
                chosen.validate(full=True)  # damaged offsets would be followed out of the file's memory
                yield first_row, {name: chosen.column(name) for name in columns}
                first_row += batch.num_rows
        if first_row != self.num_rows:
            raise DataError(f"{self.name} has {first_row} rows and announces {self.num_rows}; expected a whole file")

    def _batches(self, columns: Sequence[str]) -> Iterator[Any]:
        if self._kind == "parquet":
            # Without these options a whole row group, which may be the whole file, is read before its first rows.
            options = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES, "page_checksum_verification": True}
            # Text as it is stored, each value once: a long one that many rows share would fill the memory.
            texts = [column for column in columns if is_text(self.types[column])]
            with pq.ParquetFile(self._path, read_dictionary=texts, **options) as file:
                for number in range(file.num_row_groups):  # Arrow cannot join dictionaries within lists
                    yield from file.iter_batches(self._rows_at_once, [number], list(columns))
            return
        # All columns: those of a mapped file cost nothing, while Arrow copies a choice of them.
        with pa.memory_map(str(self._path)) as source, self._opened(source) as file:
            for batch in _record_batches(file):
                for start in range(0, batch.num_rows, self._rows_at_once):
                    yield batch.slice(start, self._rows_at_once)

    def _opened(self, source: Any) -> Any:
        return pa.ipc.open_file(source) if self._kind == "file" else pa.ipc.open_stream(source)

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{self.name} cannot be read ({error}); expected {_FORMATS}, whole") from error


def open_column_files(path: str | Path) -> list[ColumnFile]:
    """The file at a path, or the files in a folder, in the order of their names.

    Args:
        path: A file of any name, or a folder of files, told by their content or their suffix.

    Raises:
        DataError: There is nothing of the kind; a file cannot be read, or a folder has more than can be read: other
            files, a link to nothing, files in folders below, one file twice. What is hidden is left out, and what is
            known to hold no rows.
    """
    try:
        place = Path(path).expanduser()
        if place.is_file():
            return [ColumnFile(place)]
        paths = [entry for entry in sorted(place.iterdir()) if _is_table(entry)]
        identities = [(entry.stat().st_dev, entry.stat().st_ino) for entry in paths]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected {_FORMATS}, or a folder of them") from error
    if not paths:
        raise DataError(f"{path} holds no file with rows; expected {_FORMATS}, at least one")
    known: dict[tuple[int, int], Path] = {}
    for file, identity in zip(paths, identities, strict=True):
        if known.setdefault(identity, file) != file:
            raise DataError(f"{path} has one file as {known[identity].name} and as {file.name}; expected it once")
    return [ColumnFile(file) for file in paths]


def is_text(type_: Any) -> bool:
    """Whether values of an Arrow type are text, however it is laid out."""
    types = pa.types
    return bool(types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_))


def _is_table(entry: Path) -> bool:
    """Whether an entry of a folder is to be read; a `DataError` where it may hold rows, but cannot be."""
    is_hidden = entry.name.startswith(".")
    if entry.is_dir():
        if not (is_hidden or entry.name in _FOLDERS_WITHOUT_ROWS):
            _check_nothing_below(entry)
        return False
    if _WITHOUT_ROWS.fullmatch(entry.name) or (is_hidden and not entry.is_file()):
        return False
    if not entry.is_file():
        target = os.readlink(entry) if entry.is_symlink() else ""
        found = f"is a link to {target!r}, where no file is" if target else "is no regular file"
        hint = " (git annex get fetches it)" if "annex" in target else ""
        raise DataError(f"{entry.name} {found}{hint}; expected {_FORMATS}")
    kind = _kind(entry)
    if is_hidden and kind is None:
        return False
    if _COPY.fullmatch(entry.name) and kind is not None:
        found = f"{entry.name} has rows, and the name of a hidden file, a copy or a part"
        raise DataError(f"{found}; expected it elsewhere, or under another name")
    if kind is None and entry.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{entry.name} {_beginning(entry)}; expected a folder of Parquet, Arrow or Feather files and notes alone, "
            f"since rows of other files would be left out"
        )
    return True


def _check_nothing_below(folder: Path) -> None:
    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in _FOLDERS_WITHOUT_ROWS))
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*files, *links]):
            if not (name.startswith(".") or _WITHOUT_ROWS.fullmatch(name)):
                file = Path(place, name).relative_to(folder.parent)
                found = f"{folder.parent.name} has the file {file} in a folder below"
                raise DataError(f"{found}; expected all files in the folder itself, or the path of the one to read")


def _kind(path: Path) -> Literal["parquet", "file", "stream"] | None:
    """What a file is by its first bytes; the two formats of Arrow are a file and a stream."""
    with path.open("rb") as file:
        start = file.read(6)
    if start[:4] == b"PAR1":
        return "parquet"
    if start == b"ARROW1":
        return "file"
    return "stream" if start[:4] == _END_OF_STREAM[:4] else None


def _beginning(path: Path) -> str:
    """Words for a file that is no table."""
    with path.open("rb") as file:
        start = file.read(100)
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in the place of its content (git lfs pull fetches it)"
    if b"/annex/objects/" in start:
        return "is a pointer of git-annex in the place of its content (git annex get fetches it)"
    return f"begins with {start[:6]!r}" if start else "is empty"


def _record_batches(file: Any) -> Iterator[Any]:
    if isinstance(file, pa.RecordBatchStreamReader):
        yield from file
    else:
        yield from (file.get_batch(number) for number in range(file.num_record_batches))


def _check_whole(source: Any, name: str) -> None:
    """A stream that was cut between two batches looks whole but for its last bytes, and another may follow it."""
    end = source.tell()
    source.seek(max(0, source.size() - len(_END_OF_STREAM)))
    if end != source.size() or source.read() != _END_OF_STREAM:
        raise DataError(
            f"{name} is an Arrow stream without its end, or with more behind it; expected {_FORMATS}, whole"
        )


def _index_columns(schema: Any) -> frozenset[str]:
    try:
        names = (schema.pandas_metadata or {}).get("index_columns", ())
    except (ValueError, AttributeError):  # what stands there is no concern of the data
        names = ()
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()
