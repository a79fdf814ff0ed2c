"""Parquet and Arrow (Feather) files: told apart by their content, read some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from blossom_ray.data.table.columns import Batches, check_distinct, damage_told, is_text
from blossom_ray.errors import DataError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_BYTES_AT_ONCE = 2**24
_OPTIONS: Mapping[str, Any] = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}
"""Of Parquet files: without them a whole row group, which may be the whole file, is read before its first rows."""
FORMATS = "a Parquet, Arrow or Feather (version 2) file"


class ArrowFile:
    """As `ColumnFile`: a file that is opened for each reading and not kept open.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        DataError: It cannot be read, or is damaged.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name, self.folder = path, name, path.parent
        with self._damage_told():
            self._kind = kind = arrow_kind(path)
            if kind == "parquet":
                with pq.ParquetFile(path) as file:
                    schema, metadata = file.schema_arrow, file.metadata
                    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
                    self.num_rows, found = metadata.num_rows, sum(group.num_rows for group in groups)
                    if self.num_rows != found or any(group.num_rows < 0 for group in groups):
                        raise DataError(f"{name} has {found} rows and announces {self.num_rows}; expected a whole file")
                    num_bytes = sum(group.total_byte_size for group in groups)
            else:
                with pa.memory_map(str(path)) as source, self._opened(source) as file:
                    schema, num_bytes = file.schema, source.size()
                    self.num_rows = sum(batch.num_rows for batch in _record_batches(file))
                    if kind == "stream":
                        _check_whole(source, name)
            names = schema.names
            self.types: Mapping[str, Any] = dict(zip(names, schema.types, strict=True))
            self.index_columns = _index_columns(schema)
            self.metadata: Mapping[bytes, bytes] = schema.metadata or {}
        check_distinct(self.name, names)
        self._rows_at_once = max(1, _BYTES_AT_ONCE * max(self.num_rows, 1) // max(num_bytes, 1))

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`. What an Arrow file says would have to be counted in memory that may be damaged."""
        if self._kind != "parquet":
            return True
        found: list[Any] = []
        with self._damage_told(), pq.ParquetFile(self._path, **_OPTIONS) as file:
            paths = [file.schema.column(number).path for number in range(len(file.schema))]
            own = [number for number, path in enumerate(paths) if f"{path}.".startswith(f"{column}.")]
            for group in range(file.num_row_groups):
                # A row is read before: what is damaged is then an error, where `column` would end the process. Another
                # type than the schema's is not read, and `statistics` would end it.
                next(file.iter_batches(1, [group], [column]), None)
                chunks = {number: file.metadata.row_group(group).column(number) for number in own}
                for number, chunk in chunks.items():
                    if chunk.physical_type != (expected := file.schema.column(number).physical_type):
                        found_type = f"{self.name}, column {column!r} has values of type {chunk.physical_type}"
                        raise DataError(f"{found_type}; expected {expected}, as its schema says")
                found += [chunk.statistics for chunk in chunks.values()]
        # A list that is null counts as a value that is.
        return any(one is None or not one.has_null_count or one.null_count for one in found)

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`. A batch is about 16 MiB of the file."""
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
            # Text as it is stored, each value once: a long one that many rows share would fill the memory.
            texts = [column for column in columns if is_text(self.types[column])]
            with pq.ParquetFile(self._path, read_dictionary=texts, **_OPTIONS) as file:
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

    def _damage_told(self) -> AbstractContextManager[None]:
        return damage_told(self.name, f"{FORMATS}, whole")


def arrow_kind(path: Path) -> Literal["parquet", "file", "stream"] | None:
    """What a file is by its first bytes; the two formats of Arrow are a file and a stream."""
    with path.open("rb") as file:
        start = file.read(6)
    if start[:4] == b"PAR1":
        return "parquet"
    if start == b"ARROW1":
        return "file"
    return "stream" if start[:4] == _END_OF_STREAM[:4] else None


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
        raise DataError(f"{name} is an Arrow stream without its end, or with more behind it; expected {FORMATS}, whole")


def _index_columns(schema: Any) -> frozenset[str]:
    try:
        names = (schema.pandas_metadata or {}).get("index_columns", ())
    except (ValueError, AttributeError):  # what stands there is no concern of the data
        names = ()
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()
