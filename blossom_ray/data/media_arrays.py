"""Pictures, sounds and texts that a program has at hand, for `from_arrays`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from blossom_ray.core.section import find_conflicts
from blossom_ray.data.files.decoded import FilePath, Value
from blossom_ray.data.media_rows import MediaRows, decoded_rows
from blossom_ray.data.modalities.base import Media, Modality
from blossom_ray.data.modalities.options import AnyModality
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.errors import DataError

_MODALITY: TypeAdapter[Any] = TypeAdapter(AnyModality)
_OF_SCENARIO = ("column", "scale", "over")


def kind_of(name: str, options: Mapping[str, Any] | Modality) -> Media | SeriesModality:
    """What makes samples of a modality, from its options as a scenario has them in `data.modalities`.

    Raises:
        DataError: They are those of plain numbers, or of no kind, or contradict themselves.
    """
    place = f"modalities[{name!r}]"
    try:
        media = _MODALITY.validate_python(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = f" in {first['loc'][-1]!r}" if len(first["loc"]) > 1 else ""
        raise DataError(f"{place} is not right{key}: {first['msg']}") from error
    if not isinstance(media, Media | SeriesModality):
        raise DataError(f"{place} is of kind {media.kind!r}; expected one that decodes, such as 'image', or 'series'")
    for key in _OF_SCENARIO:
        if key in media.model_fields_set:
            raise DataError(f"{place} has {key!r}; expected it in data.modalities of a scenario alone")
    for finding in find_conflicts(media, place):
        raise DataError(f"{finding.path} {finding.found}; expected {finding.expected}")
    return media


def decoded_values(what: str, given: Any, media: Media) -> MediaRows:
    """The samples of values, one for each row.

    Args:
        what: What messages call the modality.
        given: Bytes, a path, a mapping with `bytes` or `path`, or a text; None for a row that has none. Paths are the
            program's own: they may lead anywhere, and count from the working directory.
        media: What decodes them.

    Raises:
        DataError: A value is of another type, or is refused; or as `decoded`.
    """
    for method in ("to_pylist", "to_list", "tolist"):
        given = getattr(given, method)() if hasattr(given, method) else given
    if not isinstance(given, list | tuple):
        raise DataError(f"{what} is {type(given).__name__}; expected a list with a value for each row")

    def place(row: int, error: str) -> str:
        path = getattr(_value(what, row, given[row], media), "path", None)
        return f"{what}, row {row}" + (f" ({path})" if path is not None and f"'{path}'" not in error else "")

    def values() -> Iterator[Value | None]:
        return (_value(what, row, value, media) for row, value in enumerate(given))

    found = decoded_rows(values(), media, what, what, len(given), place)
    if found.samples.lacking.all():
        why = "".join(f" that can be decoded: {place} {error}" for place, error in [*found.errors.items()][:1])
        raise DataError(f"{what} has no value{why or '; expected one in some row'}")
    return found


def _value(what: str, row: int, value: Any, media: Media) -> Value | None:
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and media.is_text:
        return value
    if isinstance(value, str | os.PathLike) and not media.is_text:
        return FilePath(os.fspath(value))
    expected = "text or bytes" if media.is_text else "bytes, a path, or a mapping with one of them"
    raise DataError(f"{what}, row {row} is of type {type(value).__name__}; expected {expected}, or None")
