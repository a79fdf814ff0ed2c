"""CSV files: all cells are looked at before a column has a type, and none is kept."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from blossom_ray.data.table.columns import Batches, check_distinct, damage_told
from blossom_ray.data.table.tensor_columns import present_rows
from blossom_ray.errors import DataError

_DELIMITERS = (",", ";", "\t")
_BYTES_AT_ONCE = 2**23
_EXPECTED = "a CSV file in UTF-8 whose first line names its columns"
_LONGEST_HEADER = 2**22
_UNNAMED = re.compile(r"Unnamed: \d+")
"""What pandas calls a column without a name, which its own index is."""

_Kind = Literal["empty", "truth", "whole", "number", "decimal comma", "text"]
_COMMA: Literal["decimal comma"] = "decimal comma"
_TYPES: dict[_Kind, Any] = {
    "empty": pa.null(),
    "truth": pa.bool_(),
    "whole": pa.int64(),
    "number": pa.float64(),
    _COMMA: pa.float64(),
    "text": pa.string(),
}
_WHOLE = "(0|[1-9][0-9]{0,17})"
"""Longer ones would be rounded in a float, and are text; so are those that begin with a needless 0, as codes do."""
_NUMBER = rf"^[+-]?({_WHOLE}|(0|[1-9][0-9]*)[.][0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$|^[+-]?([nN]a[nN]|[iI]nf)$"
_PATTERNS: dict[_Kind, str] = {
    "truth": "^(true|false|True|False|TRUE|FALSE)$",
    "whole": f"^[+-]?{_WHOLE}$",
    "number": _NUMBER,
    _COMMA: _NUMBER.replace("[.]", ","),
}


class CsvFile:
    """As `ColumnFile`: a file with `,`, `;` or tabs between values, which is read anew for each reading.

    A column has truth values (`true`, `False`), whole numbers, numbers or text, whatever all its cells are. Empty cells
    are null. A comma may be a decimal one where `;` or tabs stand between values.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        DataError: It is not UTF-8 or no such file, or a row has more or fewer values than the first line, or none.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name, self.folder, self.num_rows = path, name, path.parent, 0
        with self._damage_told():
            self._num_skipped, self._delimiter, self._header = _header(path, name)
        check_distinct(self.name, self._header)
        kinds: dict[str, _Kind] = dict.fromkeys(self._header, "empty")
        has_breaks = False
        for first_row, cells in self._cells(self._header):
            is_empty = np.logical_and.reduce([~present_rows(column) for column in cells.columns])
            if is_empty.any():
                row = first_row + int(is_empty.argmax())
                raise DataError(f"{self.name}, row {row} has no value in any column; expected rows without empty lines")
            for name in kinds:
                kinds[name] = self._joined(kinds[name], cells.column(name))
            self.num_rows += cells.num_rows
            has_breaks |= any(pc.any(pc.match_substring(column, "\n")).as_py() for column in cells.columns)
        if has_breaks:
            self._check_quotes()
        # Spreadsheets write columns at the end that have neither name nor value.
        self._kinds = {name: kind for name, kind in kinds.items() if kind != "empty" or not _UNNAMED.fullmatch(name)}
        self.types: Mapping[str, Any] = {name: _TYPES[kind] for name, kind in self._kinds.items()}
        self.index_columns: frozenset[str] = frozenset()
        self.metadata: Mapping[bytes, bytes] = {}

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`."""
        return column in self.types

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`."""
        for first_row, cells in self._cells(columns):
            yield first_row, {name: _typed(cells.column(name), self._kinds[name]) for name in columns}

    def _cells(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """The text of cells, null where they are empty, some rows at a time."""
        first_row = 0
        with (
            self._damage_told(),
            pa.csv.open_csv(
                self._path,
                pa.csv.ReadOptions(
                    use_threads=False,  # without which no error names its row
                    block_size=_BYTES_AT_ONCE,
                    skip_rows=self._num_skipped,
                    skip_rows_after_names=1,
                    column_names=self._header,
                ),
                pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(self._header, pa.string()),
                    include_columns=list(columns),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            ) as reader,
        ):
            for cells in reader:
                yield first_row, cells
                first_row += cells.num_rows

    def _check_quotes(self) -> None:
        """Refuse a cell that a quotation mark begins and none ends: Arrow takes the rows behind it for a part of it."""
        limit = csv.field_size_limit(2 * _BYTES_AT_ONCE)
        try:
            with self._damage_told(), self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=self._delimiter, strict=True)
                try:
                    deque(reader, maxlen=0)
                except csv.Error as error:
                    found = f"{self.name}, line {reader.line_num} has a quotation mark out of place ({error})"
                    raise DataError(f"{found}; expected them around a cell, and doubled within it") from error
        finally:
            csv.field_size_limit(limit)

    def _joined(self, kind: _Kind, cells: Any) -> _Kind:
        """What a column is of which some cells are of a kind, and these are the next."""
        cells = pc.utf8_trim_whitespace(cells.drop_null())
        if kind == "text" or not len(cells):
            return kind
        patterns = ((own, pattern) for own, pattern in _PATTERNS.items() if self._delimiter != "," or own != _COMMA)
        is_own = (own for own, pattern in patterns if pc.all(pc.match_substring_regex(cells, pattern)).as_py())
        found: _Kind = next(is_own, "text")
        if kind == "empty" or found == kind or (kind in ("number", _COMMA) and found == "whole"):
            return found if kind == "empty" else kind
        return found if kind == "whole" and found in ("number", _COMMA) else "text"

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        with damage_told(self.name, _EXPECTED):
            try:
                yield
            except pa.ArrowInvalid as error:
                if "straddl" not in str(error):  # blocks of bytes, as Arrow says
                    raise
                found = f"has a row of more than {_BYTES_AT_ONCE:,} bytes, or a quotation mark that no other one closes"
                raise DataError(f"{self.name} {found}; expected {_EXPECTED}") from error


def _header(path: Path, name: str) -> tuple[int, str, list[str]]:
    """How many lines stand before that of names, what separates values, and the names."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    start.partition(b"\n")[0].decode()  # what is wrong in later lines is told with its row
    text = start.decode("utf-8-sig", errors="replace")
    delimiters: Sequence[str] = _DELIMITERS
    num_skipped = 0
    if text[:4].lower() == "sep=" and len(text) > 4:  # for spreadsheets
        delimiters, num_skipped = (text[4],), 1
        text = text[5:].lstrip("\r\n")
    headers = {each: next(csv.reader(io.StringIO(text, newline=""), delimiter=each), []) for each in delimiters}
    delimiter = max(headers, key=lambda each: len(headers[each]))
    if not headers[delimiter]:
        raise DataError(f"{name} is empty; expected {_EXPECTED}")
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(headers[delimiter])]
    return num_skipped, delimiter, names


def _typed(cells: Any, kind: _Kind) -> Any:
    if kind == "text":
        return cells
    if kind == "empty":
        return pa.nulls(len(cells))
    cells = pc.utf8_trim_whitespace(cells)
    if kind == "truth":
        return pc.equal(pc.utf8_lower(cells), "true")
    if kind == _COMMA:
        cells = pc.replace_substring(cells, ",", ".")
    return pc.utf8_ltrim(cells, "+").cast(_TYPES[kind])
