"""A column of files or texts: contents, Hugging Face's struct of `bytes` and `path`, or relative paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from blossom_ray.data.clients import Place
from blossom_ray.data.dataset import MOST_EXAMPLES
from blossom_ray.data.files.decoded import FilePath, Value, decoded
from blossom_ray.data.files.extracted import extracted
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.stored import StoredRows
from blossom_ray.data.table.columns import ColumnFile, is_text
from blossom_ray.data.table.tensor_columns import present_rows
from blossom_ray.errors import DataError
from blossom_ray.text import brief


class MediaRows(NamedTuple):
    """A modality of all rows of a table.

    Attributes:
        samples: A row whose value is null, or cannot be decoded, has none.
        is_wrong: (N,): whether its value cannot be decoded.
        errors: Of the first of these rows: by its place in words what is wrong.
    """

    samples: StoredRows
    is_wrong: BoolArray
    errors: Mapping[str, str]


def check_media(files: Sequence[ColumnFile], column: str, media: Media) -> None:
    """Refuse a column without files, or texts, by its type; a file in which it is null throughout may have none.

    Raises:
        DataError: It is of another type.
    """
    expected = "text or bytes" if media.is_text else "contents of files, a struct of bytes and path, or paths as text"
    for file in files:
        type_ = file.types[column]
        plain = type_.value_type if pa.types.is_dictionary(type_) else type_
        is_right = is_text(plain) or _is_binary(plain) or pa.types.is_null(plain)
        if not is_right and (media.is_text or not _struct_parts(plain)):
            raise DataError(f"{file.name}, column {column!r} has type {type_}; expected {expected}")


def media_gaps(files: Sequence[ColumnFile], column: str) -> BoolArray:
    """Whether each row has no value: null, or a struct without bytes and without a path."""
    parts: list[BoolArray] = []
    for file in files:
        # Of the two parts of a struct that `datasets` writes, one is null in no row, the other often in all.
        names = [f"{column}.{part}" for part in _struct_parts(file.types[column])] or [column]
        if not all(map(file.may_have_nulls, names)):
            parts.append(np.zeros(file.num_rows, np.bool_))
            continue
        for _, batch in file.batches([column]):
            parts.append(~np.logical_or.reduce([present_rows(array) for array in _fields(batch[column]).values()]))
    return np.concatenate(parts)


def decoded_rows(files: Sequence[ColumnFile], column: str, media: Media, name: str, place: Place) -> MediaRows:
    """The samples of a column that `check_media` accepts; decoded now, if they are not in the cache.

    Args:
        files: Of the table, one after the other.
        column: Of values.
        media: What decodes them, and says whether a value that cannot be decoded is refused.
        name: Of the modality, for the progress.
        place: Words for the place of a row.

    Raises:
        DataError: A value is refused, with its place; or as `decoded`.
    """
    numbers: list[int] = []
    num_rows = sum(file.num_rows for file in files)

    def values() -> Iterator[Value]:
        row = 0
        for file in files:
            for _, batch in file.batches([column]):
                fields = _fields(batch[column])
                paths = [None] * len(batch[column])
                contents = fields["bytes"].to_pylist() if "bytes" in fields else paths
                paths = fields["path"].to_pylist() if "path" in fields else paths
                for content, path in zip(contents, paths, strict=True):
                    if content is not None or path is not None:
                        numbers.append(row)
                        is_value = content is not None or media.is_text
                        yield (path if content is None else content) if is_value else FilePath(path, file.folder)
                    row += 1

    def refuse(number: int, error: str) -> None:
        if media.on_error == "refuse":
            row = numbers[number]
            raise DataError(f"{_named(place(row), files, column, row, error)} {error}")

    found = decoded(media, values(), name, num_rows, refuse=refuse)
    stored, is_wrong = np.full(num_rows, -1, np.int64), np.zeros(num_rows, np.bool_)
    is_right = np.ones(len(numbers), np.bool_)
    if media.features is not None:
        is_right[list(found.errors)] = False
        found = extracted(found, media, name, lambda number: place(numbers[number]))
    stored[numbers] = np.cumsum(is_right) - 1
    wrong = [numbers[number] for number in found.errors]
    first = zip(wrong[:MOST_EXAMPLES], found.errors.values(), strict=False)
    errors = {_named(place(row), files, column, row, error): error for row, error in first}
    is_wrong[wrong] = True
    stored[wrong] = -1
    return MediaRows(StoredRows(found.parts, stored, found.factor), is_wrong, errors)


def _named(place: str, files: Sequence[ColumnFile], column: str, row: int, error: str) -> str:
    """The place of a value, with its path, unless it has none or the error names it."""
    end = 0
    for file in files:
        first, end = end, end + file.num_rows
        for start, batch in file.batches([column]) if row < end else ():
            if row - first < start + len(batch[column]):
                paths = _fields(batch[column]).get("path")
                path = None if paths is None else paths[row - first - start].as_py()
                return place if path is None or f"'{brief(path)}'" in error else f"{place} ({brief(path)})"
    raise AssertionError(f"row {row} of {end}")


def _fields(array: Any) -> dict[str, Any]:
    """The contents of files in an Arrow array, as `bytes`, and paths or texts, as `path`."""
    names = _struct_parts(array.type)
    if pa.types.is_dictionary(array.type) and _is_binary(array.type.value_type):
        array = array.dictionary_decode()
    if names:
        fields = {array.type.field(number).name: field for number, field in enumerate(array.flatten())}
        return {name: fields[name] for name in names}
    return {"bytes" if _is_binary(array.type) else "path": array}


def _struct_parts(type_: Any) -> list[str]:
    """Which of bytes and path a struct has, as Hugging Face's `datasets` has pictures and sounds."""
    if not pa.types.is_struct(type_):
        return []
    types = {field.name: field.type for field in type_}
    return [name for name, is_own in (("bytes", _is_binary), ("path", is_text)) if is_own(types.get(name, pa.null()))]


def _is_binary(type_: Any) -> bool:
    types = pa.types
    return bool(
        types.is_binary(type_)
        or types.is_large_binary(type_)
        or types.is_binary_view(type_)
        or types.is_fixed_size_binary(type_)
    )
