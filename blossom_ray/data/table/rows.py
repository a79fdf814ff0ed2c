"""The rows of all files of a table one after the other, by column: as samples, as labels, or a value per row."""

from __future__ import annotations

import copy
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from blossom_ray.core.phrases import shown
from blossom_ray.core.scores import Task
from blossom_ray.data.clients import Place
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.labels import (
    Encoded,
    RowValues,
    encode_classes,
    encode_named_classes,
    encode_numbers,
    encode_sets,
)
from blossom_ray.data.media_rows import MediaRows, decoded_rows
from blossom_ray.data.modalities.base import Media, MediaValue
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.stored import StoredRows
from blossom_ray.data.table.columns import ColumnFile, RowsOfFile, is_text
from blossom_ray.data.table.hugging_face import class_labels, features_of
from blossom_ray.data.table.media_columns import check_media, first_values, media_gaps, media_values, with_path
from blossom_ray.data.table.opening import open_column_files
from blossom_ray.data.table.series_columns import check_series, series_lengths, series_rows
from blossom_ray.data.table.tensor_columns import (
    check_numeric,
    chosen_rows,
    is_list,
    is_number,
    label_numbers,
    place_of,
    present_rows,
    tensor_rows,
)
from blossom_ray.data.table.writer import NOTES, NOTES_KEY, Notes
from blossom_ray.data.targets import FloatArray, IntArray
from blossom_ray.errors import DataError
from blossom_ray.text import brief

_OR_DECODED = ", or a kind in data.modalities that decodes it, such as image"
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+(\.\d+)*")
"""What pandas calls an index without a name, in Parquet and in CSV."""


class Samples(NamedTuple):
    """Some rows of a modality one after the other: whether each is there, and the values (n, *shape) of those."""

    present: BoolArray
    values: FloatArray


class TableRows:
    """A table of one file or several, whose rows are numbered through.

    Args:
        path: The file, or the folder of files.

    Attributes:
        files: The files, in order.
        unread: Words for what lies beside them and is not read.

    Raises:
        DataError: A file cannot be read, or there are no rows.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.files, self.unread = open_column_files(path)
        self._numbers: IntArray | None = None
        if not self.num_rows:
            raise DataError(f"{path} has no rows; expected a row per sample")

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.num_rows for file in self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(self.files[0].types)

    @cached_property
    def notes(self) -> Notes:
        """What `write_table` has noted in its file; a folder of several has none."""
        if len(self.files) > 1 or NOTES_KEY not in self.files[0].metadata:
            return Notes()
        try:
            return NOTES.validate_json(self.files[0].metadata[NOTES_KEY])
        except ValidationError as error:
            name = self.files[0].name
            raise DataError(f"{name} has damaged notes; expected a file as write_table has written it") from error

    def without(self, left_out: BoolArray) -> TableRows:
        """All rows but some (N,), with the numbers that they have in the files."""
        others, ends = copy.copy(self), np.cumsum([file.num_rows for file in self.files])[:-1]
        others._numbers = np.flatnonzero(~left_out)
        kept = zip(self.files, np.split(~left_out, ends), strict=True)
        others.files = [RowsOfFile(file, rows) for file, rows in kept]
        return others

    def optional_column(self, named: str | None, default: str) -> str | None:
        """A column that need not be there, unless it is named or another file has it."""
        if named is None and not any(default in file.types for file in self.files):
            return None
        self.check_column(named or default)
        return named or default

    def check_column(self, column: str) -> None:
        """Refuse a column that some file lacks."""
        for file in self.files:
            if column not in file.types:
                found = brief(", ".join(map(repr, file.types)), 1000) or "none"
                raise DataError(
                    f"{file.name} has no column {column!r} (its columns: {found}); expected it in every file"
                )

    def check_numeric(self, column: str) -> None:
        """Refuse a column without samples by its type; a file in which it is null throughout may have none for it."""
        for file in self.files:
            if is_text(file.types[column]):
                self._check_words(file, column)
            if not pa.types.is_null(file.types[column]):
                check_numeric(file.types[column], file.name, column, _OR_DECODED)

    def _check_words(self, file: ColumnFile, column: str) -> None:
        """Refuse the word that makes a column that begins with numbers one of text, as in CSV."""
        is_number_first = False
        for first_row, batch in file.batches([column]):
            for row, value in enumerate(batch[column].to_pylist(), start=first_row):
                if value is None:
                    continue
                try:
                    float(value)
                except ValueError:
                    if is_number_first:
                        place = place_of(file.name, column)(row)
                        raise DataError(f"{place} {shown(value)}; expected numbers, or nothing, in all rows") from None
                    return
                is_number_first = True

    def check_media(self, column: str, media: Media) -> None:
        """Refuse a column by its type that has no values for a modality to be decoded."""
        check_media(self.files, column, media)

    def is_whole(self, column: str) -> bool:
        """Whether a column has plain whole numbers by its type, as ids and counts do."""
        return all(pa.types.is_integer(file.types[column]) for file in self.files)

    def is_index(self, column: str) -> bool:
        """Whether a column is the index of a frame of pandas."""
        return bool(_INDEX.fullmatch(column)) or any(column in file.index_columns for file in self.files)

    def shape(self, column: str) -> tuple[int, ...]:
        """Shape of a sample in a column, () for plain numbers; all values are read.

        Raises:
            DataError: It cannot be a modality as it is.
        """
        self.check_column(column)
        if self.is_index(column):
            raise DataError(f"{self.files[0].name}, column {column!r} is the index of a frame of pandas")
        self.check_numeric(column)
        shape: tuple[int, ...] | None = None
        for rows in self.samples((column,), None):
            shape = rows.values.shape[1:] if len(rows.values) else shape
        if shape is None:
            raise DataError(f"{self.path}, column {column!r} is null in all rows; expected values in some")
        return () if is_number(self.files[0].types[column]) else shape

    def place(self, column: str) -> Place:
        """Words for the place of a row: its file, and its number there."""
        ends, numbers = list(accumulate(file.num_rows for file in self.files)), self._numbers

        def place(row: int) -> str:
            number = bisect_right(ends, row)
            first_row = ends[number - 1] if number else 0
            return place_of(self.files[number].name, column)(row - first_row if numbers is None else int(numbers[row]))

        return place

    def values(self, column: str) -> RowValues:
        """The texts, numbers or truth values of a column.

        Raises:
            DataError: It is of another type.
        """
        numbers: dict[Any, int] = {}
        parts = []
        for file in self.files:
            type_ = file.types[column]
            value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
            is_plain = is_text(value_type) or is_number(value_type) or pa.types.is_boolean(value_type)
            if not (is_plain or pa.types.is_null(value_type)):
                raise DataError(f"{file.name}, column {column!r} has type {type_}; expected whole numbers or text")
            for _, batch in file.batches([column]):
                array = batch[column]
                is_coded = pa.types.is_dictionary(array.type)
                values = (array.dictionary if is_coded else array).to_pylist()
                own = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
                if is_coded:
                    indices = array.indices.cast(pa.int64()).fill_null(len(own)).to_numpy(zero_copy_only=False)
                    parts.append(np.array([*own, -1], np.int64)[indices])
                else:
                    parts.append(np.array(own, np.int64))
        return RowValues(tuple(numbers), np.concatenate(parts), self.place(column)).of()

    def labels(self, columns: Sequence[str], task: Task, class_names: Sequence[str] | None) -> Encoded:
        """The labels of all rows, as in `Dataset`, and the names of classes or targets; null is not known.

        Args:
            columns: Columns of labels, which all files have.
            task: What they are for.
            class_names: Names of classes or targets, or None.

        Raises:
            DataError: A column is of a type that the task does not have, or null in all rows, or a row is of another
                length, or out of range.
        """
        place, first = self.place(columns[0]), columns[0]
        if task == "classification":
            if len(columns) > 1:
                raise DataError(f"data.label_column names {len(columns)} columns; expected one for task: {task}")
            values = self.values(first)
            # A table's truth values are the classes 0 and 1.
            distinct = [int(value) if isinstance(value, bool) else value for value in values.distinct]
            values = replace(values, distinct=distinct)
            if class_names is None and (own := self._class_labels(first)):
                return encode_named_classes(values, own)
            return encode_classes(values, class_names)
        if task == "multilabel" and len(columns) == 1:
            own = self._class_labels(first)
            if own or all(_is_text_list(file.types[first]) for file in self.files):
                return encode_sets(_name_lists(self.files, first, own), place, class_names or own)
        found = [_numbers(self.files, column) for column in columns]
        numbers, known = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return encode_numbers(numbers, place, task, class_names, columns, known)

    def _class_labels(self, column: str) -> tuple[str, ...] | None:
        """The names of the classes that numbers in a column stand for, where all files say the same ones."""
        found = {class_labels(features_of(file.metadata).get(column)) for file in self.files}
        if len(found) > 1:
            raise DataError(
                f"{self.path}, column {column!r} has other names of classes (ClassLabel) in some files than in others; "
                f"expected the same ones, or data.class_names"
            )
        return found.pop()

    def whole_numbers(self, column: str) -> IntArray:
        """The numbers of a column that `write_table` has written, -1 for null."""
        self.check_column(column)
        file = self.files[0]
        if not pa.types.is_int64(file.types[column]):
            raise DataError(f"{file.name}, column {column!r} is of type {file.types[column]}; expected int64")
        return np.concatenate([batch[column].fill_null(-1).to_numpy() for _, batch in file.batches([column])])

    def gaps(self, columns: Sequence[str], *, nan_is_gap: bool) -> tuple[BoolArray, int]:
        """Whether each row lacks a modality, as in `samples`; and how many of these rows are not null throughout."""
        if not nan_is_gap and not any(file.may_have_nulls(column) for file in self.files for column in columns):
            return np.zeros(self.num_rows, np.bool_), 0
        null = np.concatenate(
            [
                ~np.stack([present_rows(batch[column]) for column in columns])
                for file in self.files
                for _, batch in file.batches(columns)
            ],
            axis=1,
        )
        missing: BoolArray = np.logical_or.reduce(null)
        if nan_is_gap:
            missing = ~np.concatenate([rows.present for rows in self.samples(columns, None, nan_is_gap=True)])
        return missing, int((missing & ~np.logical_and.reduce(null)).sum())

    def check_series(self, columns: Sequence[str]) -> None:
        """Refuse columns without series by their types."""
        check_series(self.files, columns)

    def series_lengths(self, columns: Sequence[str]) -> IntArray:
        """Values in time of each row, -1 for null."""
        return series_lengths(self.files, columns)

    def series(self, columns: Sequence[str], series: SeriesModality, numbers: IntArray) -> StoredRows:
        """The samples of all rows, of which each makes so many."""
        return series_rows(self.files, columns, series, numbers)

    def media_gaps(self, column: str) -> BoolArray:
        """Whether each row has no value of a modality to be decoded."""
        return media_gaps(self.files, column)

    def first_values(self, column: str, number: int) -> list[MediaValue]:
        """The first of a column's contents of files, or texts; none where it has neither."""
        return first_values(self.files, column, number)

    def decoded(self, column: str, media: Media, name: str) -> MediaRows:
        """A modality to be decoded, in all rows; `name` is for the progress.

        Raises:
            DataError: A value is refused, with its place; or all rows are null.
        """
        place = self.place(column)
        found = decoded_rows(
            media_values(self.files, column, media),
            media,
            name,
            f"data.modalities.{name}",
            self.num_rows,
            lambda row, error: with_path(place(row), self.files, column, row, error),
        )
        if not found.is_wrong.any() and found.samples.lacking.all():
            raise DataError(f"{self.path}, column {column!r} is null in all rows; expected values in some")
        return found

    def samples(
        self, columns: Sequence[str], shape: tuple[int, ...] | None, *, nan_is_gap: bool = False
    ) -> Iterator[Samples]:
        """The samples of a modality, some rows at a time, in order. A row lacks it where one of its columns is null.

        Args:
            columns: Of the modality; several have plain numbers.
            shape: That of a sample, where the column has flat lists; None: as the column says.
            nan_is_gap: Whether a row lacks it, too, where a value is NaN, or a value in a list is null.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            for first_row, batch in file.batches(columns):
                known = [present_rows(batch[column]) for column in columns]
                present = np.logical_and.reduce(known)
                if not present.any():
                    yield Samples(present, np.empty((0,), np.float32))
                    continue
                numbers = None if present.all() else np.flatnonzero(present)
                arrays = {}
                for column in columns:
                    place = place_of(file.name, column, first_row, numbers)
                    values = batch[column] if numbers is None else chosen_rows(batch[column], present)
                    arrays[column] = tensor_rows(values, place, shapes.get(column), has_nan=nan_is_gap)
                    shapes[column] = arrays[column].shape[1:]
                    if len(columns) > 1 and shapes[column]:
                        found = f"has shape {list(shapes[column])}"
                        raise DataError(f"{place(0)} {found}; expected a plain number, as one of several columns")
                place = place_of(file.name, columns[0], first_row, numbers)
                found_values = _samples(list(arrays.values()), shape, place)
                if nan_is_gap:
                    is_whole = ~np.isnan(found_values).reshape(len(found_values), -1).any(axis=1)
                    present[present], found_values = is_whole, found_values[is_whole]
                yield Samples(present, found_values)

    def divided(
        self,
        columns: Sequence[str],
        shape: tuple[int, ...] | None,
        is_held_out: BoolArray,
        gap: float,
        *,
        nan_is_gap: bool,
    ) -> tuple[FloatArray, FloatArray]:
        """The samples of a modality in memory: of the rows (N,) that are not held out, and of those that are.

        Args:
            columns: As in `samples`.
            shape: As in `samples`.
            is_held_out: Whether each row is held out.
            gap: The values of a row that is not held out and lacks the modality; of one that is held out they are 0.
            nan_is_gap: As in `samples`.

        Raises:
            DataError: As `samples`; or no row has the modality.
        """
        num_held_out = int(is_held_out.sum())
        sizes = (len(is_held_out) - num_held_out, num_held_out)
        parts: list[FloatArray] = []
        filled, first = [0, 0], 0
        for rows in self.samples(columns, shape, nan_is_gap=nan_is_gap):
            if not parts and len(rows.values):
                below = rows.values.shape[1:]
                fills = (np.float32(gap), np.float32(0))
                parts = [np.full((size, *below), fill, np.float32) for size, fill in zip(sizes, fills, strict=True)]
            own = is_held_out[first : first + len(rows.present)]
            first += len(rows.present)
            for number, chosen in enumerate((~own, own)):
                end = filled[number] + int(chosen.sum())
                if len(rows.values):
                    parts[number][filled[number] : end][rows.present[chosen]] = rows.values[chosen[rows.present]]
                filled[number] = end
        if not parts:
            raise DataError(f"{self.path}, column {columns[0]!r} is null in all rows; expected values in some")
        return parts[0], parts[1]


def _samples(columns: list[FloatArray], shape: tuple[int, ...] | None, place: Place) -> FloatArray:
    """Samples (n, *shape) from the rows of a modality's columns; plain numbers make a vector."""
    values = np.stack(columns, axis=1) if columns[0].ndim == 1 else columns[0]
    if shape is None or values.shape[1:] == shape:
        return values
    if values[0].size != math.prod(shape):
        found = f"has shape {list(values.shape[1:])}, {values[0].size} values"
        raise DataError(f"{place(0)} {found}; expected {math.prod(shape)} values, for the shape {list(shape)}")
    return values.reshape(len(values), *shape)


def _name_lists(files: Sequence[ColumnFile], column: str, names: Sequence[str] | None) -> list[list[str] | None]:
    """The names of classes that lists hold, or whose numbers they hold where numbers count names."""
    found: list[list[str] | None] = []
    known: dict[str, str] = {}
    for file in files:
        for first_row, batch in file.batches([column]):
            place = place_of(file.name, column, first_row)
            for row, own in enumerate(batch[column].to_pylist()):
                if own is not None and None in own:
                    raise DataError(f"{place(row)} holds a null; expected names of classes")
                if own is not None and names is not None:
                    if wrong := [
                        number for number in own if not (isinstance(number, int) and 0 <= number < len(names))
                    ]:
                        raise DataError(f"{place(row)} has {wrong[0]!r}; expected 0 to {len(names) - 1}, a ClassLabel")
                    own = [names[number] for number in own]
                found.append(None if own is None else [known.setdefault(name, name) for name in own])
    return found


def _numbers(files: Sequence[ColumnFile], column: str) -> tuple[FloatArray, BoolArray]:
    """(N, width) float32, 0 where a row or a value in its list is null; and where there is a value."""
    parts: list[tuple[BoolArray, FloatArray]] = []
    shape: tuple[int, ...] | None = None
    for file in files:
        check_numeric(file.types[column], file.name, column)
        for first_row, batch in file.batches([column]):
            present = present_rows(batch[column])
            place = place_of(file.name, column, first_row, np.flatnonzero(present))
            rows = np.zeros((0, 0), np.float32)
            if present.any():
                rows = label_numbers(chosen_rows(batch[column], present), place, shape)
                shape = rows.shape[1:]
            if rows.ndim > 2:
                found = f"has shape {list(rows.shape[1:])}"
                raise DataError(f"{place(0)} {found}; expected a number or a list of numbers")
            parts.append((present, rows))
    width = 1 if not shape else shape[0]
    num_rows = sum(len(present) for present, _ in parts)
    values = np.full((num_rows, width), np.nan, np.float32)
    is_there = np.concatenate([present for present, _ in parts])
    filled = (rows.reshape(-1, width) for present, rows in parts if present.any())
    values[is_there] = np.concatenate([values[:0], *filled])
    known = ~np.isnan(values)
    return np.nan_to_num(values, copy=False, nan=0.0), known


def _is_text_list(type_: Any) -> bool:
    if not is_list(type_):
        return False
    element = type_.value_type
    return is_text(element.value_type if pa.types.is_dictionary(element) else element)
