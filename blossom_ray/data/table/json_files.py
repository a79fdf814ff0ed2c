"""JSON lines, or one JSON array: a record per row. Kept in memory, where it is about as large as the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from blossom_ray.core.phrases import shown
from blossom_ray.data.table.columns import TableInMemory, damage_told
from blossom_ray.errors import DataError

_EXPECTED = "JSON lines, or a JSON array of records, in UTF-8"
_LARGEST = {"JSON lines": 2**30, "a JSON array": 2**28}
"""Bytes. The objects of an array, which are there all at once, take many times its own."""
_LONGEST_LINE = 2**24
_MOST_VALUES = 2**28
_ROWS_AT_ONCE = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(path: Path, name: str) -> TableInMemory:
    """A file with an object per line, or an array of objects. What one lacks and another has is null.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        DataError: It is none, or too large, or a column has values of several kinds: numbers, text, truth values,
            objects, lists of these.
    """
    with damage_told(name, _EXPECTED):
        with path.open("rb") as file:
            is_array = file.read(1024).removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"["
        what = "a JSON array" if is_array else "JSON lines"
        if (size := path.stat().st_size) > _LARGEST[what]:
            found = f"{name} has {size:,} bytes of {what}"
            raise DataError(f"{found}; expected at most {_LARGEST[what]:,}, or a Parquet file")
        read = _array if is_array else _lines
        tables: list[Any] = []
        columns: set[str] = set()
        num_rows, records = 0, iter(read(path, name))
        try:
            while rows := list(islice(records, _ROWS_AT_ONCE)):
                own = dict.fromkeys(column for row in rows for column in row)
                columns |= own.keys()
                num_rows += len(rows)
                if num_rows * len(columns) > _MOST_VALUES:
                    found = f"{name} has {num_rows:,} rows of {len(columns):,} columns"
                    raise DataError(f"{found}; expected at most {_MOST_VALUES:,} values, or a Parquet file")
                tables.append(pa.table({column: pa.array([row.get(column) for row in rows]) for column in own}))
            return TableInMemory(
                name, path.parent, pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
            )
        except pa.ArrowException:
            _check_kinds(name, read(path, name))
            raise


def _lines(path: Path, name: str) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        row = 0
        while line := file.readline(_LONGEST_LINE + 1):
            place = f"{name}, row {row}"
            if len(line) > _LONGEST_LINE:
                raise DataError(f"{place} is longer; expected at most {_LONGEST_LINE:,} bytes a line")
            if line.strip():
                yield _record(place, _parsed(place, line))
                row += 1


def _array(path: Path, name: str) -> Iterator[dict[str, Any]]:
    records = _parsed(name, path.read_bytes())
    return (_record(f"{name}, row {row}", record) for row, record in enumerate(records))


def _parsed(place: str, text: bytes) -> Any:
    with damage_told(place, _EXPECTED):
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has two values of one name")
    return found


def _record(place: str, found: Any) -> dict[str, Any]:
    if not (isinstance(found, dict) and found):
        raise DataError(f"{place} {shown(found)}; expected an object with a value per column")
    return found


def _check_kinds(name: str, records: Iterator[dict[str, Any]]) -> None:
    """Refuse the first value that is of another kind than those before it in its column."""
    known: dict[tuple[str, int], tuple[int, str]] = {}
    for row, record in enumerate(records):
        for column, value in record.items():
            for depth, kind in _kinds(value):
                first, expected = known.setdefault((column, depth), (row, kind))
                if kind != expected:
                    found = f"{name}, column {column!r}, row {row} has {kind}{' in a list' if depth else ''}"
                    raise DataError(f"{found}; expected {expected}, as in row {first}")


def _kinds(value: Any, depth: int = 0) -> Iterator[tuple[int, str]]:
    """What a value is, and what stands in lists, each with the number of lists around it."""
    if value is not None:
        yield (
            depth,
            {bool: "a truth value", str: "text", dict: "an object", list: "a list"}.get(type(value), "a number"),
        )
    if isinstance(value, list):
        for each in value:
            yield from _kinds(each, depth + 1)
