"""The files of a run's tables: an Arrow IPC stream while the run goes on, one Parquet file afterwards.

Of a stream that is being written, or whose writer was killed, every complete record batch can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from blossom_ray.core.blocks import ClientProfile, Scope
from blossom_ray.core.phrases import one_of, shortened
from blossom_ray.core.records import RoundRecord
from blossom_ray.errors import RunFolderError
from blossom_ray.runs.tables import (
    LATER_COLUMNS,
    LATER_TABLES,
    OBSERVED,
    OF_ONE_TASK,
    OPTIONAL_COLUMNS,
    SOME_COLUMNS,
    TABLES,
    Columns,
    table_rows,
)
from blossom_ray.storage import new_temporary, regular, replacing, sync

if TYPE_CHECKING:
    import pyarrow as pa


def in_memory_tables(records: Iterable[RoundRecord], profiles: Sequence[ClientProfile]) -> dict[str, pa.Table]:
    """The tables of a run that has no folder: the same columns and rows as `TableStream` writes."""
    import pyarrow as pa

    rows = [table_rows(record, profiles) for record in records]
    tables = {}
    for name, columns in TABLES.items():
        schema = table_schema(dict.fromkeys(column for part in rows for column in part[name]), columns)
        batches = [_batch(part[name], schema) for part in rows]
        tables[name] = pa.Table.from_batches(batches, schema)
    return tables


class TableStream:
    """A table that grows by one record batch per round and can be read at any time.

    A column that shows up late (a metric that round 0 lacks) is added to the rounds before it as nulls.
    The caller translates `OSError`.

    Args:
        folder: The run's folder.
        name: Name of the table.
        earlier: Rows that it begins with, of a run that goes on.
    """

    def __init__(self, folder: Path, name: str, earlier: pa.Table | None = None) -> None:
        self._path = _stream_path(folder, name)
        self._parquet_path = _parquet_path(folder, name)
        self._columns = TABLES[name]
        self._schema = table_schema(earlier.schema.names if earlier is not None else (), TABLES[name])
        self._start(earlier)
        self._parquet_path.unlink(missing_ok=True)

    def append(self, rows: Columns) -> pa.RecordBatch:
        """Write the rows of one round; they are in the file when this returns, which gives them as they are there."""
        if any(name not in self._schema.names for name in rows):
            self._grow(rows)
        whole = self._path.stat().st_size
        try:
            # Arrow's file has no buffer of its own: nothing to flush.
            batch = _batch(rows, self._schema)
            self._writer.write_batch(batch)
        except OSError:
            # Half a batch must not look like a whole one once something is written behind it.
            os.truncate(self._path, whole)
            raise
        return batch

    def sync(self) -> None:
        """Wait until the rows are on disk."""
        sync(self._path)

    def close(self) -> None:
        """Turn the stream into one Parquet file; if that does not fit on the disk, the stream stays."""
        import pyarrow.parquet as pq

        self._stop()
        with replacing(self._parquet_path) as temporary:
            pq.write_table(_read_stream(self._path), temporary, compression="zstd", write_page_checksum=True)
        self._path.unlink()

    def _grow(self, rows: Columns) -> None:
        self._stop()
        before = _read_stream(self._path)
        self._schema = table_schema([*self._schema.names, *rows], self._columns)
        self._start(before)

    def _start(self, earlier: pa.Table | None) -> None:
        import pyarrow as pa

        # The file gets its name when its schema is whole, so a reader never meets half of one. Arrow writes the
        # schema with the first batch: an empty one where there are no rows yet.
        temporary = new_temporary(self._path)
        self._file = pa.OSFile(str(temporary), "wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._writer.write_batch(pa.RecordBatch.from_pylist([], self._schema))
        if earlier is not None:
            self._writer.write_table(widen(earlier, self._schema))
        temporary.replace(self._path)

    def _stop(self) -> None:
        try:
            self._writer.close()
        finally:
            self._file.close()


def read_table(folder: Path, name: str) -> pa.Table:
    """Read a table of a run that goes on, has ended or was cut off; empty where its version had no such table.

    Of a stream whose last message is cut off, everything before it is read.

    Raises:
        RunFolderError: The table is missing or damaged.
    """
    import pyarrow as pa

    stream = (_stream_path(folder, name), _read_stream)
    parquet = (_parquet_path(folder, name), _read_parquet)
    # A run that ends between two looks has its stream replaced by Parquet: hence the second look at that.
    for path, read in (parquet, stream, parquet):
        try:
            table = read(path)
            # Damaged offsets and lengths would be followed out of the table's memory.
            table.validate(full=True)
            table = _with_later_columns(table, name)
            _check_columns(table, name, path)
            _check_values(table, name, path)
            return table
        except FileNotFoundError:
            continue
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise RunFolderError(f"{path}: the table cannot be read: {error}") from error
    if name in LATER_TABLES and folder.is_dir():
        return table_schema((), TABLES[name]).empty_table()
    expected = f"{parquet[0].name} or {stream[0].name}"
    raise RunFolderError(f"{folder}: the table {name!r} is missing; expected {expected}")


def record_rows(record: RoundRecord, profiles: Sequence[ClientProfile]) -> dict[str, pa.RecordBatch]:
    """The rows that one round adds to each table."""
    return {name: _batch(rows, table_schema(rows, TABLES[name])) for name, rows in table_rows(record, profiles).items()}


def widen(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with nulls in the columns of a schema that it has not."""
    import pyarrow as pa

    columns = [
        table[field.name] if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def table_schema(names: Iterable[str], columns: Mapping[str, str]) -> pa.Schema:
    """The schema of a table: its own columns, then whatever else it has."""
    import pyarrow as pa

    metrics = {name: SOME_COLUMNS.get(name, "double") for name in names if name not in columns}
    metrics |= {name: "int64" for name in metrics if name.startswith(OBSERVED)}
    return pa.schema(list({**columns, **metrics}.items()))


def _batch(rows: Columns, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    num_rows = len(rows["round"])
    arrays = [pa.array(rows.get(field.name, [None] * num_rows), field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _with_later_columns(table: pa.Table, name: str) -> pa.Table:
    """The table of a run of an earlier version with the columns that came later, all null."""
    import pyarrow as pa

    columns = TABLES[name]
    for column in LATER_COLUMNS.get(name, ()):
        if column not in table.schema.names:
            place = min([*columns].index(column), table.num_columns)
            table = table.add_column(place, column, pa.nulls(table.num_rows, pa.type_for_alias(columns[column])))
    return table


def _check_columns(table: pa.Table, name: str, path: Path) -> None:
    """Refuse a table that is whole and not one of ours, before anything relies on its columns."""
    expected = table_schema(table.schema.names, TABLES[name])
    if table.schema.names != expected.names or table.schema.types != expected.types:
        raise RunFolderError(f"{path}: has the columns {table.schema.names}; expected those of the table {name!r}")
    of_tasks = OF_ONE_TASK if "task" in table.schema.names else ()
    for group in OPTIONAL_COLUMNS[name]:
        is_there = bool(set(group) & SOME_COLUMNS.keys() & set(table.schema.names))
        if is_there and not set(group) - set(of_tasks) <= set(table.schema.names):
            raise RunFolderError(f"{path}: has some of the columns {', '.join(group)}; expected all of them")
    rounds = table["round"].to_pylist()
    if None in rounds or rounds != sorted(rounds) or (rounds and rounds[0] < 0):
        raise RunFolderError(f"{path}: its rounds are not in order; expected them as they were written")


def _check_values(table: pa.Table, name: str, path: Path) -> None:
    """Refuse values that no run has written: nulls where there are none, negative counts, unknown scopes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    groups = [[column for column in group if column in table.schema.names] for group in OPTIONAL_COLUMNS[name]]
    optional = {column for group in groups for column in group}
    known = TABLES[name] | {column: kind for column, kind in SOME_COLUMNS.items() if column in table.schema.names}
    for column, kind in known.items():
        values = table[column]
        if column not in optional and values.null_count:
            raise RunFolderError(f"{path}: its column {column!r} has nulls; expected none")
        if pa.types.is_integer(values.type) and (pc.min(values).as_py() or 0) < 0:
            raise RunFolderError(
                f"{path}: its column {column!r} has {pc.min(values)}; expected {kind} values of at least 0"
            )
    for group in groups:
        for column in group[1:]:
            if column in OF_ONE_TASK and "task" in table.schema.names:
                continue
            if pc.is_null(table[group[0]]) != pc.is_null(table[column]):
                raise RunFolderError(f"{path}: {group[0]!r} and {column!r} are null in other rows; expected the same")
    if name == "blocks":
        for scope in pc.unique(table["scope"]).to_pylist():
            if scope not in list(Scope):
                raise RunFolderError(f"{path}: its column 'scope' has {shortened(scope)!r}; expected {one_of(Scope)}")


def _stream_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.arrows"


def _parquet_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(regular(path), page_checksum_verification=True) as file:
        return file.read()


def _read_stream(path: Path) -> pa.Table:
    import pyarrow as pa

    batches = []
    with pa.memory_map(str(regular(path))) as file:
        reader = pa.ipc.open_stream(file)
        # The end of what a live or killed writer has written may be the middle of a message.
        with suppress(OSError, pa.ArrowInvalid):
            for batch in reader:
                batches.append(batch)  # noqa: PERF402 # a copy at once may lose all with the last
    return pa.Table.from_batches(batches, reader.schema)
