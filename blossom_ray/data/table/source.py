"""The user's own data as a table: a row per sample, a column per modality, one of labels, maybe subject and split.

Rows count from 0 within their file, as in polars and pandas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from blossom_ray.core.scores import Task
from blossom_ray.data.clients import GivenClients, Origin, check_owned, check_recordings, check_splits, owned_modalities
from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels, Pieces, Targets, targets_of
from blossom_ray.data.labels import Place as RowPlace
from blossom_ray.data.labels import encode_ids, encode_splits, encode_subjects, used_values
from blossom_ray.data.options import TableData, TableModality
from blossom_ray.data.partition_options import GivenPartition
from blossom_ray.data.table.columns import ColumnFile, open_column_files
from blossom_ray.data.table.labels import read_labels
from blossom_ray.data.table.rows import places, values_of
from blossom_ray.data.table.tensor_columns import (
    Place,
    check_numeric,
    chosen_rows,
    is_number,
    present_rows,
    tensor_rows,
)
from blossom_ray.data.table.writer import NOTES, NOTES_KEY, PIECE_OF, Notes
from blossom_ray.errors import DataError

_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+(\.\d+)*")
"""What pandas calls an index without a name, in Parquet and in CSV."""


class _Rows(NamedTuple):
    """Some rows of a modality one after the other: whether each is there, and the values (n, *shape) of those."""

    present: npt.NDArray[np.bool_]
    values: FloatArray


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
        self._is_given = isinstance(spec.partition, GivenPartition)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` reads, sorted."""
        return self._modalities

    def targets(self) -> Targets:
        """Strata, subjects, recordings and clients of the rows that clients share.

        Of the modalities only the types are looked at, and in a given federation who has them.

        Raises:
            DataError: A file cannot be read, a column is missing or of a wrong type, or a label cannot be used; what
                rows say of their clients contradicts itself.
        """
        for modality in self._modalities:
            for column in self._columns(modality):
                self._check_column(column)
                self._check_numeric(column)
        shared = ~self._is_held_out
        subjects = self._subjects_of(shared)
        labels, names = self._labels
        return replace(
            targets_of(labels[shared], len(names), subjects),
            recordings=self._recordings_of(shared),
            pieces=self._pieces_of(shared),
            clients=self._given_clients,
            subject_names=() if subjects is None else self._subject_names,
        )

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
                rest, labels[others], names, self._subjects_of(others), recordings=self._recordings_of(others),
                pieces=self._pieces_of(others),
            )  # fmt: skip
        train = {modality: parts[0] for modality, parts in inputs.items()}
        given = targets.clients
        return Dataset(
            inputs=train,
            labels=labels[shared],
            class_names=names,
            subjects=targets.subjects,
            held_out=held_out,
            recordings=targets.recordings,
            left_out=self._notes.left_out,
            pieces=targets.pieces,
            clients=None if given is None else given.owners,
            splits=None if given is None else given.splits,
            client_names=() if given is None else given.names,
            subject_names=targets.subject_names,
            notes=tuple(self._unused_columns()),
        )

    def columns(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Shape of a sample by column, for all columns that can be a modality as they are; of others, why they cannot.

        Plain numbers have the shape (). All values are read. Columns of labels, and of what rows say of subjects,
        clients, recordings and splits, are in neither.

        Raises:
            DataError: A file cannot be read.
        """
        spec = self._spec
        others = {
            *_listed(spec.label_column),
            spec.subject_column or "subject",
            spec.split_column or "split",
            spec.client_column or "client",
            spec.recording_column or "recording",
            *([] if self._notes.overlap is None else [PIECE_OF]),
        }
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
    def names(self) -> tuple[str, ...]:
        """Names of all columns.

        Raises:
            DataError: A file cannot be read.
        """
        return tuple(self._files[0].types)

    def is_whole(self, column: str) -> bool:
        """Whether a column has plain whole numbers by its type, as ids and counts do."""
        return all(pa.types.is_integer(file.types[column]) for file in self._files)

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
        self._check_numeric(column)
        shape: tuple[int, ...] = ()
        for rows in self._rows(column):
            shape = rows.values.shape[1:] if len(rows.values) else shape
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
    def _splits(self) -> IntArray:
        """The part of each row, as `encode_splits` has them."""
        column = self._optional_column(self._spec.split_column, "split")
        if column is None:
            return np.zeros(sum(file.num_rows for file in self._files), np.int64)
        splits = encode_splits(values_of(self._files, column), places(self._files, column), has_clients=self._is_given)
        if (splits < 0).all():
            raise DataError(f"{self._spec.path}, column {column!r} says 'train' in no row; expected it in some")
        return splits

    @cached_property
    def _is_held_out(self) -> npt.NDArray[np.bool_]:
        return self._splits < 0

    @cached_property
    def _subjects(self) -> tuple[IntArray, tuple[str, ...]] | None:
        column = self._optional_column(self._spec.subject_column, "subject")
        if column is None:
            return None
        return encode_subjects(values_of(self._files, column), places(self._files, column), ~self._is_held_out)

    @property
    def _subject_names(self) -> tuple[str, ...]:
        return self._notes.subject_names or (() if self._subjects is None else self._subjects[1])

    def _subjects_of(self, rows: npt.NDArray[np.bool_]) -> IntArray | None:
        if self._subjects is None or (self._subjects[0][rows] < 0).any():
            return None
        return self._subjects[0][rows]

    @cached_property
    def _given_clients(self) -> GivenClients | None:
        """The clients of the rows that they share, where the scenario asks for them.

        Raises:
            DataError: A row does not say whose it is, or what rows say contradicts itself.
        """
        if not self._is_given:
            return None
        column = self._spec.client_column or "client"
        self._check_column(column)
        rows = np.flatnonzero(~self._is_held_out)
        split_column = self._optional_column(self._spec.split_column, "split") or column
        origin = Origin(client=self._place(column, rows), split=self._place(split_column, rows))
        found = values_of(self._files, column)
        owners, names = encode_ids(used_values(found.distinct, found.codes[rows]), origin.client)
        if self._notes.client_names:
            owners, names = _renumbered(owners, names, self._notes.client_names)
        splits = self._splits[rows] if (self._splits > 0).any() else None
        if splits is not None:
            check_splits(owners, names, splits, origin)
        missing = {}
        for modality in self._modalities:
            is_missing, modality_column = self._is_missing(modality), self._columns(modality)[0]
            if (is_missing & self._is_held_out).any():
                row = int((is_missing & self._is_held_out).argmax())
                place = places(self._files, modality_column)(row)
                raise DataError(f"{place} is null; expected a value in every row of the held-out set")
            missing[modality] = is_missing[rows]
            check_owned(owners, names, missing[modality], self._place(modality_column, rows))
        modalities = owned_modalities(owners, names, missing, origin)
        return GivenClients(names, owners, modalities, splits, f"column {column!r}")

    def _place(self, column: str, rows: IntArray) -> RowPlace:
        """Words for the places of some of all rows."""
        place = places(self._files, column)
        return lambda row: place(int(rows[row]))

    def _is_missing(self, modality: str) -> npt.NDArray[np.bool_]:
        """Whether each row has no value in any of the modality's columns."""
        columns = self._columns(modality)
        parts = [
            ~np.logical_or.reduce([present_rows(batch[column]) for column in columns])
            for file in self._files
            for _, batch in file.batches(columns)
        ]
        return np.concatenate(parts)

    def _unused_columns(self) -> Iterator[str]:
        """What columns would say that the scenario does not ask for."""
        spec, columns = self._spec, self._files[0].types
        used = {*_listed(spec.label_column), spec.subject_column, spec.split_column}
        used |= {column for modality in self._modalities for column in self._columns(modality)}
        if not self._is_given and "client" in columns and "client" not in used:
            yield (
                f"column 'client' is not used, since data.partition.kind is {spec.partition.kind!r}; with "
                "data.partition: {kind: given} its rows are those of one client"
            )
        if self._recording_column is None and "recording" in columns and "recording" not in used:
            yield (
                "column 'recording' is not used, so rows of one recording may stand in training and in testing; "
                "data.split: recording keeps them on one side"
            )

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
    def _recording_column(self) -> str | None:
        spec = self._spec
        # `write_table` wrote the column where it has noted it.
        named = spec.recording_column or ("recording" if self._notes.has_recordings else None)
        is_asked = named is not None or self._is_given or spec.split == "recording"
        return self._optional_column(named, "recording") if is_asked else None

    @cached_property
    def _recordings(self) -> IntArray | None:
        """The recording of each row, counted from 0 in the rows that clients share; -1 where it has none.

        Raises:
            DataError: A row that clients share says nothing, or a recording stands in several splits.
        """
        column = self._recording_column
        if column is None:
            return None
        if self._notes.has_recordings and column == "recording":
            return self._noted_numbers("recording")
        place, shared = places(self._files, column), ~self._is_held_out
        recordings, names = encode_ids(values_of(self._files, column), place, shared)
        check_recordings(recordings, self._splits, Origin(recording=place, recording_names=names))
        counted = np.full_like(recordings, -1)
        counted[shared] = np.unique(recordings[shared], return_inverse=True)[1]
        return counted

    def _noted_numbers(self, column: str) -> IntArray:
        """The recordings that `write_table` has written, -1 for none."""
        self._check_column(column)
        file = self._files[0]
        if not pa.types.is_int64(file.types[column]):
            raise DataError(f"{file.name}, column {column!r} is of type {file.types[column]}; expected int64")
        return np.concatenate([batch[column].fill_null(-1).to_numpy() for _, batch in file.batches([column])])

    @cached_property
    def _pieces(self) -> IntArray | None:
        return None if self._notes.overlap is None else self._noted_numbers(PIECE_OF)

    def _pieces_of(self, rows: npt.NDArray[np.bool_]) -> Pieces | None:
        overlap = self._notes.overlap
        if self._pieces is None or overlap is None or (self._pieces[rows] < 0).any():
            return None
        return Pieces(self._pieces[rows], overlap)

    def _recordings_of(self, rows: npt.NDArray[np.bool_]) -> IntArray | None:
        if self._recordings is None or (self._recordings[rows] < 0).any():
            return None
        return self._recordings[rows]

    def _check_numeric(self, column: str) -> None:
        for file in self._files:
            # A file of clients that all lack a modality may have no type for it.
            if not (self._is_given and pa.types.is_null(file.types[column])):
                check_numeric(file.types[column], file.name, column)

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
        """The modality's values in the rows that clients share, and in the held-out ones; NaN where it is missing.

        Raises:
            DataError: As `load`.
        """
        num_held_out = int(self._is_held_out.sum())
        sizes = (len(self._is_held_out) - num_held_out, num_held_out)
        parts: list[FloatArray] = []
        filled, first = [0, 0], 0
        for rows in self._rows(modality):
            if not parts and len(rows.values):
                parts = [np.full((size, *rows.values.shape[1:]), np.nan, np.float32) for size in sizes]
            is_held_out = self._is_held_out[first : first + len(rows.present)]
            first += len(rows.present)
            for number, chosen in enumerate((~is_held_out, is_held_out)):
                end = filled[number] + int(chosen.sum())
                if len(rows.values):
                    parts[number][filled[number] : end][rows.present[chosen]] = rows.values[chosen[rows.present]]
                filled[number] = end
        if not parts:
            column = self._columns(modality)[0]
            raise DataError(f"{self._spec.path}, column {column!r} is null in all rows; expected values in some")
        return parts[0], parts[1]

    def _rows(self, modality: str) -> Iterator[_Rows]:
        """Some rows of the modality at a time, in order."""
        columns, section = self._columns(modality), self._section(modality)
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            for first_row, batch in file.batches(columns):
                found = [present_rows(batch[column]) for column in columns]
                present = np.logical_or.reduce(found) if self._is_given else np.ones_like(found[0])
                if not present.any():
                    yield _Rows(present, np.empty((0,), np.float32))
                    continue
                numbers = None if present.all() else np.flatnonzero(present)
                arrays = {}
                for column in columns:
                    place = Place(file.name, column, first_row, numbers)
                    values = batch[column] if numbers is None else chosen_rows(batch[column], present)
                    arrays[column] = tensor_rows(values, place, shapes.get(column))
                    shapes[column] = arrays[column].shape[1:]
                    if len(columns) > 1 and shapes[column]:
                        raise place.error(
                            0, f"has shape {list(shapes[column])}", "a plain number, as one of several columns"
                        )
                place = Place(file.name, columns[0], first_row, numbers)
                yield _Rows(present, _samples(list(arrays.values()), section.shape, place))


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


def _renumbered(owners: IntArray, names: tuple[str, ...], order: tuple[str, ...]) -> tuple[IntArray, tuple[str, ...]]:
    """Owners as places in another order of the names; one that lacks a name is left aside."""
    if set(order) != set(names):
        return owners, names
    numbers = {name: number for number, name in enumerate(order)}
    return np.array([numbers[name] for name in names], np.int64)[owners], order
