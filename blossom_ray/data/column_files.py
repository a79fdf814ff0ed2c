"""Files with columns, Parquet or Arrow (Feather): told apart by their content, read some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blossom_ray.errors import DataError

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
_BYTES_AT_ONCE = 2**24
_BUFFER_BYTES = 2**20
_FORMATS = "a Parquet, Arrow or Feather (version 2) file"


class ColumnFile:
    """One file, which is opened for each reading and not kept open.

    Args:
        path: The file.

    Attributes:
        name: The file's name, for messages.
        types: Column to Arrow type.
        num_rows: Number of rows.

    Raises:
        DataError: It cannot be read, is of another format or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, path.name
        with self._damage_told():
            self._is_parquet = _is_parquet(path)
            if self._is_parquet:
                with pq.ParquetFile(path) as file:
                    schema, metadata = file.schema_arrow, file.metadata
                    self.num_rows = metadata.num_rows
                    num_bytes = sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
            else:
                with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
                    schema = file.schema
                    self.num_rows = sum(file.get_batch(k).num_rows for k in range(file.num_record_batches))
                    num_bytes = source.size()
            names = schema.names
            self.types: Mapping[str, Any] = dict(zip(names, schema.types, strict=True))
        if len(self.types) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.name} has several columns {double!r}; expected columns of different names")
        self._rows_at_once = max(1, _BYTES_AT_ONCE * max(self.num_rows, 1) // max(num_bytes, 1))

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The first row of each batch of rows, and the batch's Arrow array of each of these columns.

        A batch is about 16 MiB of the file, so that reading takes little memory beside what is kept.

        Raises:
            DataError: The file is damaged.
        """
        first_row = 0
        with self._damage_told():
            for batch in self._parquet_batches(columns) if self._is_parquet else self._arrow_batches():
                chosen = batch.select(list(columns))
                chosen.validate(full=True)  # damaged offsets would be followed out of the file's memory
                yield first_row, {name: chosen.column(name) for name in columns}
                first_row += batch.num_rows
        if first_row != self.num_rows:
            raise DataError(f"{self.name} has {first_row} rows and announces {self.num_rows}; expected a whole file")

    def _parquet_batches(self, columns: Sequence[str]) -> Iterator[Any]:
        # Without these options a whole row group, which may be the whole file, is read before its first rows.
        options = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES, "page_checksum_verification": True}
        with pq.ParquetFile(self._path, **options) as file:
            yield from file.iter_batches(self._rows_at_once, columns=list(columns))

    def _arrow_batches(self) -> Iterator[Any]:
        # All columns: those of a mapped file cost nothing, while Arrow copies a choice of them.
        with pa.memory_map(str(self._path)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                for start in range(0, batch.num_rows, self._rows_at_once):
                    yield batch.slice(start, self._rows_at_once)

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{self.name} cannot be read ({error}); expected {_FORMATS}, whole") from error


def open_column_files(path: str | Path) -> list[ColumnFile]:
    """The file at a path, or the files in a folder, in the order of their names.

    Args:
        path: A file of any name, or a folder: its files that end in `.parquet`, `.arrow`, `.feather` or `.ipc`, not
            those in folders below.

    Raises:
        DataError: There is nothing of the kind, or a file cannot be read.
    """
    try:
        place = Path(path).expanduser()
        if place.is_file():
            return [ColumnFile(place)]
        names = (file for file in place.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        paths = sorted(file for file in names if file.is_file())  # no pipes and devices
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected {_FORMATS}, or a folder of them") from error
    if not paths:
        raise DataError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}; expected at least one")
    return [ColumnFile(file) for file in paths]


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(6)
    if start[:4] == b"PAR1":
        return True
    if start == b"ARROW1":
        return False
    found = "is empty" if not start else f"begins with {start!r}"
    raise DataError(f"{path.name} {found}; expected {_FORMATS}")
