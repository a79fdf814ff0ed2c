"""A column of files or texts: contents, Hugging Face's struct of `bytes` and `path`, or relative paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from blossom_ray.data.files.decoded import FilePath, Value
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.modalities.base import Media, MediaValue, UndecodableError
from blossom_ray.data.table.columns import ColumnFile, is_text
from blossom_ray.data.table.tensor_columns import present_rows
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import DataError
from blossom_ray.text import brief

_MOST_BYTES = 2**26


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


def first_values(files: Sequence[ColumnFile], column: str, number: int) -> list[MediaValue]:
    """Contents of files, or texts, that a column begins with: at most so many, and no more after `_MOST_BYTES` of them.

    A text that leads to a file stands for its content. None where the column is of another type.
    """
    found: list[MediaValue] = []
    for file in files:
        type_ = file.types[column]
        plain = type_.value_type if pa.types.is_dictionary(type_) else type_
        if not (is_text(plain) or _is_binary(plain) or _struct_parts(plain)):
            continue
        for _, batch in file.batches([column]):
            for content, path in _contents_and_paths(batch[column]):
                value: MediaValue | None = content
                if content is None and path is not None:
                    try:
                        value = FilePath(path, file.folder).content()
                    except UndecodableError:
                        value = path
                found += [] if value is None else [value]
                if len(found) == number or sum(map(len, found)) > _MOST_BYTES:
                    return found
    return found


def media_values(files: Sequence[ColumnFile], column: str, media: Media) -> Iterator[Value | None]:
    """The value of each row of a column that `check_media` accepts; None where it is null."""
    for file in files:
        for _, batch in file.batches([column]):
            for content, path in _contents_and_paths(batch[column]):
                value: Value | None = path if content is None else content
                is_path = isinstance(value, str) and not media.is_text
                yield FilePath(str(value), file.folder) if is_path else value


def values_of(rows: IntArray, files: Sequence[ColumnFile], column: str, media: Media) -> Iterator[tuple[int, Value]]:
    """The values of some rows (n,), each of which may be there twice, in the order of the table: their places, they."""
    places = dict[int, list[int]]()
    for place, row in enumerate(rows.tolist()):
        places.setdefault(row, []).append(place)
    for row, value in enumerate(islice(media_values(files, column, media), max(places, default=-1) + 1)):
        if value is not None:
            yield from ((place, value) for place in places.get(row, ()))


def with_path(place: str, files: Sequence[ColumnFile], column: str, row: int, error: str) -> str:
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


def _contents_and_paths(array: Any) -> Iterator[tuple[bytes | None, str | None]]:
    fields, nothing = _fields(array), [None] * len(array)
    columns = (fields[name].to_pylist() if name in fields else nothing for name in ("bytes", "path"))
    yield from zip(*columns, strict=True)


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
