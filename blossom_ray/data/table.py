"""The user's own data as a table: a row per sample, a column per modality, one of labels, maybe subject and split.

Rows count from 0 within their file, as in polars and pandas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from blossom_ray.data.column_files import ColumnFile, open_column_files
from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels, Targets, targets_of
from blossom_ray.data.table_labels import read_labels
from blossom_ray.data.table_rows import held_out_rows, subject_numbers
from blossom_ray.data.table_writer import NOTES, NOTES_KEY, Notes
from blossom_ray.data.tensor_columns import Place, check_numeric, is_number, tensor_rows
from blossom_ray.errors import DataError
from blossom_ray.scenario.sections import TableData, TableModality
from blossom_ray.scores import Task

_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+(\.\d+)*")
"""What pandas calls an index without a name, in Parquet and in CSV."""


class Table:
    """The table as a source. Modalities are read one after the other, some rows at a time.

    Args:
        spec: The scenario's `data` section.
        modalities: Those to read.
        task: What the labels are for.
    """

    def __init__(self, spec: TableData, modalities: Sequence[str], task: Task) -> None:
        self._spec, self._task = spec, task
        self._modalities = tuple(sorted(modalities))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` reads, sorted."""
        return self._modalities

    def targets(self) -> Targets:
        """Strata and subjects of the rows that clients share; of the modalities only the types are looked at.

        Raises:
            DataError: A file cannot be read, a column is missing or of a wrong type, or a label cannot be used.
        """
        for modality in self._modalities:
            for column in self._columns(modality):
                self._check_column(column)
                for file in self._files:
                    check_numeric(file.types[column], file.name, column)
        shared = ~self._is_held_out
        subjects = self._subjects_of(shared)
        labels, names = self._labels
        return replace(targets_of(labels[shared], len(names), subjects), recordings=self._recordings_of(shared))

    def load(self) -> Dataset:
        """All rows: those that clients share, and the held-out set where the table has one.

        Raises:
            DataError: As `targets`; or a row of a modality is null, of another shape, or holds a value that is not
                finite.
        """
        targets = self.targets()
        labels, names = self._labels
        inputs = {modality: self._inputs(modality) for modality in self._modalities}
        shared, others, held_out = ~self._is_held_out, self._is_held_out, None
        if others.any():
            rest = {modality: parts[1] for modality, parts in inputs.items()}
            held_out = Dataset(
                rest, labels[others], names, self._subjects_of(others), recordings=self._recordings_of(others)
            )
        train = {modality: parts[0] for modality, parts in inputs.items()}
        left_out = self._notes.left_out
        return Dataset(train, labels[shared], names, targets.subjects, held_out, targets.recordings, left_out)

    def columns(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Shape of a sample by column, for all columns that can be a modality as they are; of others, why they cannot.

        Plain numbers have the shape (). All values are read. Columns of labels, subjects and splits are in neither.

        Raises:
            DataError: A file cannot be read.
        """
        names = (self._spec.subject_column or "subject", self._spec.split_column or "split")
        others = {*_listed(self._spec.label_column), *names}
        shapes, reasons = {}, {}
        for column in self._files[0].types:
            if column in others:
                continue
            try:
                shapes[column] = self._shape(column)
            except DataError as error:
                reasons[column] = str(error).partition("; expected ")[0]
        return shapes, reasons

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes or targets.

        Raises:
            DataError: As `targets`.
        """
        return self._labels[1]

    def _shape(self, column: str) -> tuple[int, ...]:
        self._check_column(column)
        for file in self._files:
            if column in file.index_columns or _INDEX.fullmatch(column):
                raise DataError(f"{file.name}, column {column!r} is the index of a frame of pandas")
            check_numeric(file.types[column], file.name, column)
        shape: tuple[int, ...] = ()
        for rows in self._rows(column):
            shape = rows.shape[1:]
        return () if is_number(self._files[0].types[column]) else shape

    @cached_property
    def _files(self) -> list[ColumnFile]:
        files = open_column_files(self._spec.path)
        if not any(file.num_rows for file in files):
            raise DataError(f"{self._spec.path} has no rows; expected a row per sample")
        return files

    @cached_property
    def _labels(self) -> tuple[Labels, tuple[str, ...]]:
        columns = _listed(self._spec.label_column)
        for column in columns:
            self._check_column(column)
        return read_labels(self._files, columns, self._task, self._spec.class_names)

    @cached_property
    def _is_held_out(self) -> npt.NDArray[np.bool_]:
        column = self._optional_column(self._spec.split_column, "split")
        is_held_out = held_out_rows(self._files, column)
        if is_held_out.all():
            raise DataError(f"{self._spec.path}, column {column!r} says 'train' in no row; expected it in some")
        return is_held_out

    @cached_property
    def _subjects(self) -> IntArray | None:
        column = self._optional_column(self._spec.subject_column, "subject")
        return None if column is None else subject_numbers(self._files, column, self._is_held_out)

    def _subjects_of(self, rows: npt.NDArray[np.bool_]) -> IntArray | None:
        if self._subjects is None or (self._subjects[rows] < 0).any():
            return None
        return self._subjects[rows]

    @cached_property
    def _notes(self) -> Notes:
        """What `write_table` has noted in its file; a folder of several has none."""
        if len(self._files) > 1 or NOTES_KEY not in self._files[0].metadata:
            return Notes()
        try:
            return NOTES.validate_json(self._files[0].metadata[NOTES_KEY])
        except ValidationError as error:
            name = self._files[0].name
            raise DataError(f"{name} has damaged notes; expected a file as write_table has written it") from error

    @cached_property
    def _recordings(self) -> IntArray:
        """The recording of each row, -1 where it has none."""
        self._check_column("recording")
        file = self._files[0]
        if not pa.types.is_int64(file.types["recording"]):
            raise DataError(f"{file.name}, column 'recording' is of type {file.types['recording']}; expected int64")
        rows = [batch["recording"].fill_null(-1).to_numpy() for _, batch in file.batches(["recording"])]
        return np.concatenate(rows)

    def _recordings_of(self, rows: npt.NDArray[np.bool_]) -> IntArray | None:
        if not self._notes.has_recordings or (self._recordings[rows] < 0).any():
            return None
        return self._recordings[rows]

    def _optional_column(self, named: str | None, default: str) -> str | None:
        """A column that need not be there, unless the scenario names it or another file has it."""
        if named is None and not any(default in file.types for file in self._files):
            return None
        self._check_column(named or default)
        return named or default

    def _check_column(self, column: str) -> None:
        for file in self._files:
            if column not in file.types:
                found = ", ".join(map(repr, file.types)) or "none"
                raise DataError(
                    f"{file.name} has no column {column!r} (its columns: {found}); expected it in every file"
                )

    def _columns(self, modality: str) -> tuple[str, ...]:
        return _listed(self._section(modality).column or modality)

    def _section(self, modality: str) -> TableModality:
        return self._spec.modalities.get(modality, TableModality())

    def _inputs(self, modality: str) -> tuple[FloatArray, FloatArray]:
        """The modality's values in the rows that clients share, and in the held-out ones."""
        num_held_out = int(self._is_held_out.sum())
        sizes = (len(self._is_held_out) - num_held_out, num_held_out)
        parts: list[FloatArray] = []
        filled, first = [0, 0], 0
        for rows in self._rows(modality):
            parts = parts or [np.empty((size, *rows.shape[1:]), np.float32) for size in sizes]
            is_held_out = self._is_held_out[first : first + len(rows)]
            first += len(rows)
            for number, chosen in enumerate((~is_held_out, is_held_out)):
                end = filled[number] + int(chosen.sum())
                parts[number][filled[number] : end] = rows[chosen]
                filled[number] = end
        return parts[0], parts[1]

    def _rows(self, modality: str) -> Iterator[FloatArray]:
        """Some rows of the modality at a time, in order, (n, *shape)."""
        columns, section = self._columns(modality), self._section(modality)
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            for first_row, batch in file.batches(columns):
                arrays = {}
                for column in columns:
                    place = Place(file.name, column, first_row)
                    arrays[column] = tensor_rows(batch[column], place, shapes.get(column))
                    shapes[column] = arrays[column].shape[1:]
                    if len(columns) > 1 and shapes[column]:
                        raise place.error(
                            0, f"has shape {list(shapes[column])}", "a plain number, as one of several columns"
                        )
                yield _samples(list(arrays.values()), section.shape, Place(file.name, columns[0], first_row))


def _samples(columns: list[FloatArray], shape: tuple[int, ...] | None, place: Place) -> FloatArray:
    """Samples (n, *shape) from the rows of a modality's columns; plain numbers make a vector."""
    values = np.stack(columns, axis=1) if columns[0].ndim == 1 else columns[0]
    if shape is None or values.shape[1:] == shape:
        return values
    if values[0].size != math.prod(shape):
        found = f"has shape {list(values.shape[1:])}, {values[0].size} values"
        raise place.error(0, found, f"{math.prod(shape)} values, for the shape {list(shape)}")
    return values.reshape(len(values), *shape)


def _listed(columns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns
