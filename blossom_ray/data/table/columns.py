"""What a table's files have in common, whatever they are: columns of Arrow types, read some rows at a time."""

from __future__ import annotations

import csv
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.modalities.base import beginning_of
from blossom_ray.errors import DataError
from blossom_ray.text import brief

_ROWS_AT_ONCE = 65_536
_DAMAGE = (
    *(OSError, ValueError, OverflowError, RuntimeError, EOFError),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error, struct.error, csv.Error),
)
Batches = Iterator[tuple[int, Mapping[str, Any]]]
"""The first row of each batch of rows, and the batch's Arrow array of each column."""


class ColumnFile(Protocol):
    """One file of a table.

    Attributes:
        name: What messages call it.
        folder: Where relative paths in its columns count from.
        types: Column to Arrow type.
        num_rows: Number of rows.
        index_columns: Columns that pandas made of a frame's index.
        metadata: What the file says of itself, by key.
    """

    name: str
    folder: Path
    types: Mapping[str, Any]
    num_rows: int
    index_columns: frozenset[str]
    metadata: Mapping[bytes, bytes]

    def may_have_nulls(self, column: str) -> bool:
        """Whether a row of a column may be null, by what is known without reading its rows."""

    def batches(self, columns: Sequence[str]) -> Batches:
        """Rows in order, as many at once as take little memory beside what is kept.

        Raises:
            DataError: The file is damaged.
        """


class TableInMemory:
    """A file that was read as a whole.

    Args:
        name: What messages call it.
        folder: Where relative paths in its columns count from.
        table: Its rows.
    """

    def __init__(self, name: str, folder: Path, table: Any) -> None:
        self.name, self.folder, self.num_rows = name, folder, table.num_rows
        self.types: Mapping[str, Any] = dict(zip(table.schema.names, table.schema.types, strict=True))
        self.index_columns: frozenset[str] = frozenset()
        self.metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        self._table = table

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`."""
        return column not in self.types or bool(self._table.column(column).null_count)

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`."""
        first_row = 0
        for batch in self._table.select(list(columns)).to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield first_row, {name: batch.column(name) for name in columns}
            first_row += batch.num_rows


class PlacedFile:
    """A file whose place says something of all its rows: columns of one value each, beside its own.

    Args:
        file: The file.
        top: The table's folder, from which the paths in its columns count.
        values: The value of each further column, None for null.
        metadata: What is known of the file beside what it says of itself.
    """

    def __init__(
        self,
        file: ColumnFile,
        top: Path,
        values: Mapping[str, str | int | None],
        metadata: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.name, self.folder, self.num_rows = file.name, top, file.num_rows
        self._file, self._values = file, values
        self.types: Mapping[str, Any] = {
            **file.types,
            **{name: _repeated(each, 0).type for name, each in values.items()},
        }
        self.index_columns = file.index_columns
        self.metadata: Mapping[bytes, bytes] = {**(metadata or {}), **file.metadata}

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`."""
        return self._values[column] is None if column in self._values else self._file.may_have_nulls(column)

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`.

        Raises:
            DataError: The file is damaged, or has a column of its own that contradicts its place.
        """
        own = [column for column in columns if column in self._file.types]
        starts = range(0, self.num_rows, _ROWS_AT_ONCE)
        placed = ((start, min(_ROWS_AT_ONCE, self.num_rows - start)) for start in starts)
        batches: Iterator[tuple[int, int, Mapping[str, Any]]] = (
            ((first, len(found[own[0]]), found) for first, found in self._file.batches(own))
            if own
            else ((first, num_rows, {}) for first, num_rows in placed)
        )
        for first_row, num_rows, found in batches:
            arrays = {}
            for column in columns:
                if column in self._values:
                    arrays[column] = _repeated(self._values[column], num_rows)
                    if column in found:
                        self._check_agrees(column, first_row, found[column])
                else:
                    arrays[column] = found[column]
            yield first_row, arrays

    def _check_agrees(self, column: str, first_row: int, found: Any) -> None:
        expected = self._values[column]
        for row, value in enumerate(found.to_pylist()):
            if (None if value is None else str(value)) != (None if expected is None else str(expected)):
                raise DataError(
                    f"{self.name}, column {column!r}, row {first_row + row} is {value!r}; "
                    f"expected {expected!r}, as the file's place says"
                )


class RowsOfFile:
    """Some rows of a file, with the numbers that they have in it.

    Args:
        file: The file.
        rows: (N,): which of its rows.
    """

    def __init__(self, file: ColumnFile, rows: npt.NDArray[np.bool_]) -> None:
        self.name, self.folder, self.types, self.metadata = file.name, file.folder, file.types, file.metadata
        self.num_rows, self.index_columns = int(rows.sum()), file.index_columns
        self._file, self._rows = file, rows

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`."""
        return self._file.may_have_nulls(column)

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`; a batch ends where a row is left out."""
        for first_row, batch in self._file.batches(columns):
            num_rows = len(next(iter(batch.values())))
            steps = np.diff(np.pad(self._rows[first_row : first_row + num_rows].astype(np.int8), 1))
            for start, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
                yield first_row + int(start), {name: column[start:end] for name, column in batch.items()}


def _repeated(value: str | int | None, num_rows: int) -> Any:
    """An Arrow array of one value; of text, which may be long, each row has a number."""
    if value is None:
        return pa.nulls(num_rows)
    if isinstance(value, int):
        return pa.array(np.full(num_rows, value, np.int64))
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([value], pa.string()))


def is_text(type_: Any) -> bool:
    """Whether values of an Arrow type are text, however it is laid out."""
    types = pa.types
    return bool(types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_))


@contextmanager
def damage_told(name: str, expected: str) -> Iterator[None]:
    """What libraries say of a damaged file, as a `DataError` with its name and what is expected of it."""
    try:
        yield
    except _DAMAGE as error:
        found = brief(str(error).partition("; expected ")[0] or type(error).__name__)
        raise DataError(f"{name} cannot be read ({found}); expected {expected}") from error


def check_distinct(name: str, columns: Sequence[str]) -> None:
    """Refuse a file that has two columns of one name."""
    if len(set(columns)) < len(columns):
        double = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"{name} has several columns {double!r}; expected columns of different names")


def words_for(path: Path) -> str:
    """How a file begins that is no table."""
    with path.open("rb") as file:
        return beginning_of(file.read(100))
