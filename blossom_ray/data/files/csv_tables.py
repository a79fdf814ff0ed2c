"""Tables of text that come with a data set, also where a spreadsheet saved them again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from blossom_ray.data.files.archives import Archive
from blossom_ray.errors import DataError

Row = dict[str, str]

_DELIMITERS = (",", ";", "\t")


def read_rows(archive: Archive, member: str, columns: Sequence[str]) -> list[Row]:
    """The rows of a CSV file whose first line names its columns.

    What spreadsheets do to a file is undone: a byte order mark, `;` or tabs between values, a line `sep=;` before all
    others, any line ends, lines and columns at the end without a value.

    Args:
        archive: Where the file is.
        member: Its path from the data set's top.
        columns: Those that it must have; others are read, too.

    Raises:
        DataError: It is missing or no such file, a column is missing or there twice, or a row is longer or shorter.
    """
    place = f"{archive.name}: {member}"
    expected = f"expected a CSV file in UTF-8 with columns {', '.join(map(repr, columns))}"
    try:
        text = archive.read(member).decode("utf-8-sig")
        delimiters = [text[4], *_DELIMITERS] if text[:4].lower() == "sep=" and len(text) > 4 else [*_DELIMITERS]
        if len(delimiters) > len(_DELIMITERS):
            text = text[5:].lstrip("\r\n")
        headers = {each: next(csv.reader(io.StringIO(text, newline=""), delimiter=each), []) for each in delimiters}
        delimiter = max(headers, key=lambda each: len(set(columns) & {name.strip() for name in headers[each]}))
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = _without_end([name.strip() for name in next(table, [])], 0)
        lines = [(row, _without_end(line, len(header))) for row, line in enumerate(table, start=1) if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{place} cannot be read ({error}); {expected}") from error
    for column in columns:
        if header.count(column) != 1:
            fault = "has no column" if column not in header else "has two columns"
            found = ", ".join(map(repr, header))[:200]
            raise DataError(f"{place} {fault} {column!r} among {found or 'none'}; {expected}")
    if not lines:
        raise DataError(f"{place} has no rows; {expected}")
    for number, line in lines:
        if len(line) != len(header):
            raise DataError(f"{place}, row {number} has {len(line)} values; expected {len(header)}, as its first line")
    return [dict(zip(header, line, strict=True)) for _, line in lines]


def check_unique(place: str, what: str, names: Iterable[str]) -> None:
    """Refuse a table that has two rows for the same thing.

    Args:
        place: What messages call the table.
        what: What a row is for, such as `record`.
        names: Of each row, in their order.

    Raises:
        DataError: Two rows have the same name.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(names, start=1):
        if name in rows:
            raise DataError(f"{place} has two rows for {what} {name}, {rows[name]} and {row}; expected one per {what}")
        rows[name] = row


def whole_number(text: str) -> int | None:
    """The number that a cell stands for, which a spreadsheet may write as `3.0` or `3,0`; None where it is none."""
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _without_end(line: list[str], shortest: int) -> list[str]:
    """The line without the empty values at its end, but not shorter than this."""
    while len(line) > shortest and not line[-1]:
        line.pop()
    return line
