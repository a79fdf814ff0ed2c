"""What the columns of a table can be: modalities as they are, or by first values pictures, sounds, texts, series."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.modalities.suggestions import NUM_VALUES, Suggestion, suggestion
from blossom_ray.data.table.rows import TableRows
from blossom_ray.errors import DataError
from blossom_ray.text import brief

_MOST_STEPS = 1024
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".wav", ".flac", ".ogg", ".mp3")
"""Of texts that are meant for paths, though no file is there."""


class Columns(NamedTuple):
    """What the columns of a table can be.

    Attributes:
        shapes: Shape of a sample by column, of those that can be a modality; () of plain numbers.
        suggestions: Of these, the kinds of those that are no numbers of one shape.
        reasons: Of the others, why they cannot.
    """

    shapes: dict[str, tuple[int, ...]]
    suggestions: dict[str, Suggestion]
    reasons: dict[str, str]


def column_kinds(rows: TableRows, others: Collection[str]) -> Columns:
    """What each column can be. All numbers are read; of files and texts, the first.

    Args:
        rows: The table.
        others: Columns that are no modality, whatever they have.

    Raises:
        DataError: A file cannot be read.
    """
    found = Columns({}, {}, {})
    for column in rows.names:
        if column in others:
            continue
        try:
            found.shapes[column] = rows.shape(column)
        except DataError as error:
            found.reasons[column] = str(error).partition("; expected ")[0]
    for column in [column for column in found.reasons if not rows.is_index(column)]:
        try:
            values = rows.first_values(column, NUM_VALUES)
            paths = [value for value in values if isinstance(value, str) and value.lower().endswith(_SUFFIXES)]
            if 2 * len(paths) > len(values):
                where = f"{rows.files[0].name}, column {column!r}"
                what = f"paths of files that are not below the table's folder, such as {brief(paths[0])!r}"
                found.reasons[column] = f"{where} has {what}"
                continue
            other = suggestion(values) or _series(rows, column)
        except DataError as error:
            found.reasons[column] = f"column {column!r}: {error}"
            continue
        if other is not None:
            del found.reasons[column]
            found.shapes[column], found.suggestions[column] = other.shape, other
    return found


def _series(rows: TableRows, column: str) -> Suggestion | None:
    """Lists of numbers whose lengths differ, and nothing else does: as long as nine of ten are."""
    with suppress(DataError):
        rows.check_series((column,))
        all_lengths = rows.series_lengths((column,))
        lengths = all_lengths[all_lengths > 0]
        length = min(_MOST_STEPS, max(1, math.ceil(float(np.quantile(lengths, 0.9))))) if len(lengths) else 1
        section = {"kind": "series", "length": length, "scale": "standard", "over": "all"}
        kept = rows.series((column,), SeriesModality(kind="series", length=length), np.ones_like(all_lengths))
        seen = f"series of numbers, {lengths.min():,} to {lengths.max():,} long"
        return Suggestion(section, kept.shape[1:], seen)
    return None
