"""The user's own data as a table: a row per sample, a column per modality, one of labels, maybe subject and split.

Rows count from 0 within their file, as in polars and pandas. What files there are and how columns are read is in
`data/table/`; here is what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from blossom_ray.core.scores import TASKS, LearnedTask, Task
from blossom_ray.core.section import ModalityName
from blossom_ray.data.clients import GivenClients, Origin, check_recordings
from blossom_ray.data.dataset import SUBJECT, Dataset, LabelColumn
from blossom_ray.data.division.options import GivenPartition
from blossom_ray.data.files.remote import local_path
from blossom_ray.data.gaps import BoolArray, in_torn_clients
from blossom_ray.data.labels import encode_ids, encode_splits
from blossom_ray.data.modalities.base import ColumnNames, Media, each_once
from blossom_ray.data.modalities.numbers import NumbersModality
from blossom_ray.data.modalities.options import AnyModality, known_shapes
from blossom_ray.data.sets.base import DatasetFacts, OwnData
from blossom_ray.data.table.places import FILE_SPLIT
from blossom_ray.data.targets import IntArray, Pieces, Targets, targets_of
from blossom_ray.errors import DataError, InputError

if TYPE_CHECKING:
    from blossom_ray.data.files.decoded import Kept, Value
    from blossom_ray.data.table.column_kinds import Columns
    from blossom_ray.data.table.inputs import TableInputs
    from blossom_ray.data.table.rows import TableRows

_PIECE_OF = "piece_of"  # as `write_table` calls it


class TableData(OwnData):
    """Own data with a row per sample.

    They are a file of Parquet, Arrow (Feather), CSV, JSON lines or .npz, a folder of them, one of pictures, sounds and
    texts, or one that Hugging Face's `save_to_disk` wrote.

    A modality is a column of fixed-shape tensors, of lists (nested lists) of numbers that are equally long in all
    rows, or of plain numbers.
    """

    facts: ClassVar = DatasetFacts(
        title="Own data: a table, or a folder of files",
        holds="a row per sample",
        classes="as the column of labels says",
        tasks=TASKS,
        held_out="the rows whose column split says test",
        download="a Parquet, Arrow (Feather), CSV, JSON lines or .npz file, a folder of them, or one of pictures, "
        "sounds and texts",
    )

    dataset: Literal["table"]
    path: str
    """The file, or a folder: all its files are read, in the order of paths. Relative to the working directory."""
    modalities: dict[ModalityName, AnyModality] = Field(default_factory=dict)
    """Modality by name, where its column has another name, needs a shape, or is to be decoded."""
    label_column: ColumnNames = "label"
    """Classification: text or whole numbers. Multilabel: lists of 0 and 1, lists of class names, or several columns
    of 0 and 1. Regression: numbers, lists of numbers, or several columns of numbers."""
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Names of the classes in order: text labels must be among them, whole numbers count them from 0. Default: the
    labels that occur, sorted. In a regression the names of the targets."""
    subject_column: str | None = None
    """Whose sample a row is, whole numbers or text. Default: the column `subject` if there is one."""
    client_column: str | None = None
    """Which client's row it is, whole numbers or text, with `data.partition: {kind: given}`. Default: the column
    `client`. Clients that have no value of a modality in any row do not own it."""
    recording_column: str | None = None
    """Which recording a row comes from, whole numbers or text: the rows of one stand on one side of the splits of all
    clients. Default: the column `recording`, with `split: recording` or `partition: {kind: given}`."""
    split_column: str | None = None
    """`train`: a row that the clients share. `test` or `held-out`: one of the held-out global test set. With
    `data.partition: {kind: given}`, `train`, `validation` and `test` are the client's own splits, and `held-out` is
    the held-out set. Default: the column `split` if there is one, else the clients share all rows. `file_split` is
    what the names of Parquet and Arrow files in one folder say, such as `train-0.parquet`."""
    split_names: dict[str, Literal["train", "validation", "test", "held-out"]] = Field(default_factory=dict)
    """What other values of the column of splits mean, such as `{validation: train}` where clients have no splits of
    their own."""
    standardize: bool = False
    """Whether each channel of each modality is brought to mean 0 and deviation 1 over the training rows of all clients
    together: `scale: standard` and `over: all` for all modalities."""

    _label_columns = field_validator("label_column")(each_once)

    def open(self, modalities: tuple[str, ...], _seed: int, task: Task, /) -> Table:
        return Table(self, tuple(sorted(modalities)), task)

    def open_learned(self, modalities: tuple[str, ...], _seed: int, learned: Mapping[str, LearnedTask], /) -> Table:
        first = next(iter(learned.values()))
        own = {} if first.labels is None else {"label_column": first.labels, "class_names": first.class_names}
        more = [task for task in learned.values() if task.labels not in (None, SUBJECT)]
        return Table(self.model_copy(update=own), tuple(sorted(modalities)), first.kind, tuple(more))

    def input_shapes(self, modalities: Iterable[str], /) -> dict[str, tuple[int, ...]]:
        return known_shapes({name: self.modalities[name] for name in modalities if name in self.modalities})

    def problem(self, error: InputError) -> tuple[str, str, str]:
        found, _, expected = str(error).partition("; expected ")
        if found.startswith("data.modalities."):
            place, _, found = found.partition(" ")
            return place.removesuffix(":"), found, expected
        return "data.path", f"is {self.path!r}: {found}", expected


@dataclass(frozen=True)
class Table:
    """The table as a source."""

    spec: TableData
    modalities: tuple[str, ...]
    task: Task
    more: tuple[LearnedTask, ...] = ()

    def targets(self) -> Targets:
        """As `DataSource`. Of the modalities only the types are looked at, and which rows have them."""
        self._label_columns  # noqa: B018  # which refuses what is not right
        self.inputs.check()
        shared = self._shared
        whose, subject_names = self._subjects
        subjects = _known(whose, shared)
        own = self._labels.of(shared)
        return replace(
            targets_of(own.labels, len(own.class_names), subjects, own.known),
            recordings=_known(self._recordings, shared),
            pieces=self._pieces_of(shared),
            clients=self.given_clients,
            subject_names=() if subjects is None else self.rows.notes.subject_names or subject_names,
            observed=self._observed(shared, None if self.given_clients is None else self.given_clients.owners),
        )

    def load(self) -> Dataset:
        """As `DataSource`: the rows that clients share, and as held-out set those whose split says so."""
        targets, given = self.targets(), self.given_clients
        column = self._labels
        shared, others, held_out = self._shared, self._others, None
        inputs = {
            modality: self.inputs.samples(modality, self._is_held_out, 0.0 if modality in targets.observed else np.nan)
            for modality in self.modalities
        }
        if len(others):
            held_out = Dataset(
                inputs={modality: parts[1] for modality, parts in inputs.items()},
                **vars(column.of(others)),
                label_columns={name: more.of(others) for name, more in self._label_columns.items()},
                subjects=_known(self._subjects[0], others),
                recordings=_known(self._recordings, others),
                pieces=self._pieces_of(others),
                observed=self._observed(others, None),
            )
        return Dataset(
            inputs={modality: parts[0] for modality, parts in inputs.items()},
            **vars(column.of(shared)),
            label_columns={name: more.of(shared) for name, more in self._label_columns.items()},
            subjects=targets.subjects,
            held_out=held_out,
            recordings=targets.recordings,
            left_out=(*self.rows.notes.left_out, *self.inputs.left_out),
            pieces=targets.pieces,
            clients=None if given is None else given.owners,
            splits=None if given is None else given.splits,
            client_names=() if given is None else given.names,
            subject_names=targets.subject_names,
            notes=(*self.rows.unread, *self._unused_columns(), *self.inputs.notes),
            observed=targets.observed,
        )

    def columns(self) -> Columns:
        """What each column can be, but those of labels, and of what rows say of subjects, clients, recordings, splits.

        Raises:
            DataError: As `column_kinds`.
        """
        from blossom_ray.data.table.column_kinds import column_kinds

        spec = self.spec
        others = {
            *_listed(spec.label_column),
            spec.subject_column or "subject",
            spec.split_column or "split",
            FILE_SPLIT,
            spec.client_column or "client",
            spec.recording_column or "recording",
            *([] if self.rows.notes.overlap is None else [_PIECE_OF]),
        }
        return column_kinds(self.rows, others)

    def values(self, modality: str, samples: IntArray) -> Iterator[tuple[int, Value]]:
        """What the table has for samples (n,) of a modality that is decoded: the place of each there, and its value.

        Those of the held-out part are counted on from those that clients share. Null is left out.
        """
        from blossom_ray.data.table.media_columns import values_of

        (column,) = self.media[modality].columns(modality)
        rows = np.append(self._shared, self._others)[samples]
        return values_of(rows, self.rows.files, column, self.media[modality])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes or targets."""
        return self._labels.class_names

    @cached_property
    def inputs(self) -> TableInputs:
        """What the table has of the modalities."""
        from blossom_ray.data.table.inputs import TableInputs

        known = self.spec.modalities
        return TableInputs(
            local_path(self.spec.path), {name: known.get(name, NumbersModality()) for name in self.modalities}
        )

    @property
    def rows(self) -> TableRows:
        """The rows of all files, but those with a value that cannot be decoded and is to be dropped."""
        return self.inputs.rows

    @property
    def media(self) -> Mapping[str, Media]:
        """The modalities that are decoded."""
        return self.inputs.media

    def decode(self) -> dict[str, tuple[Kept, ...]]:
        """Decode what is to be decoded; by modality what is in the cache then.

        Raises:
            DataError: As `load`, of these modalities.
        """
        return self.inputs.decode()

    @property
    def _is_given(self) -> bool:
        return isinstance(self.spec.partition, GivenPartition)

    @cached_property
    def _labels(self) -> LabelColumn:
        return self._read_labels(_listed(self.spec.label_column), self.task, self.spec.class_names)

    @cached_property
    def _label_columns(self) -> dict[str, LabelColumn]:
        """The labels of all rows that tasks name."""
        return {
            task.labels: self._read_labels((task.labels,), task.kind, task.class_names)
            for task in self.more
            if task.labels is not None
        }

    def _read_labels(self, columns: tuple[str, ...], task: Task, class_names: tuple[str, ...] | None) -> LabelColumn:
        for column in columns:
            self.rows.check_column(column)
        found = self.rows.labels(columns, task, class_names or self.rows.notes.class_names.get(columns[0]))
        return LabelColumn(*found)

    @cached_property
    def _splits(self) -> IntArray:
        """The part of each row, as `encode_splits` has them."""
        column = self.rows.optional_column(self.spec.split_column, "split")
        if column is None:
            return np.zeros(self.rows.num_rows, np.int64)
        values = self.rows.values(column)
        distinct = [self.spec.split_names.get(value, value) for value in values.distinct]
        splits = encode_splits(replace(values, distinct=distinct), has_clients=self._is_given)
        if (splits < 0).all():
            which = "no row that can be decoded" if self.inputs.left_out else "no row"
            raise DataError(f"{self.rows.path}, column {column!r} says 'train' in {which}; expected it in some")
        return splits

    @cached_property
    def _is_held_out(self) -> npt.NDArray[np.bool_]:
        return self._splits < 0

    @cached_property
    def _shared(self) -> IntArray:
        """The row of each sample that clients share."""
        return np.repeat(np.arange(self.rows.num_rows), np.where(self._is_held_out, 0, self.inputs.num_samples))

    @cached_property
    def _others(self) -> IntArray:
        """The row of each sample that is held out."""
        return np.repeat(np.arange(self.rows.num_rows), np.where(self._is_held_out, self.inputs.num_samples, 0))

    @cached_property
    def _subjects(self) -> tuple[IntArray | None, tuple[str, ...]]:
        column = self.rows.optional_column(self.spec.subject_column, "subject")
        if column is None:
            return None, ()
        return encode_ids(self.rows.values(column), ~self._is_held_out, are_subjects=True)

    @cached_property
    def given_clients(self) -> GivenClients | None:
        """The clients of the rows that they share, where the scenario asks for them."""
        if not self._is_given:
            return None
        column = self.spec.client_column or "client"
        self.rows.check_column(column)
        rows = self._shared
        values = self.rows.values(column).of(rows)
        owners, names = encode_ids(values)
        if self.rows.notes.client_names:
            owners, names = _renumbered(owners, names, self.rows.notes.client_names)
        missing = {modality: gaps[rows] for modality, (gaps, _) in self.inputs.gaps.items()}
        splits = self._splits[rows] if (self._splits > 0).any() else None
        split_column = self.rows.optional_column(self.spec.split_column, "split") or column
        split_place = self.rows.place(split_column)
        origin = Origin(client=values.place, split=lambda row: split_place(int(rows[row])))
        return GivenClients.of(names, owners, missing, splits, origin, f"column {column!r}")

    def _observed(self, rows: IntArray, owners: IntArray | None) -> dict[str, BoolArray]:
        """As in `Dataset`, of some of the rows; (n,) `owners` says whose these are."""
        gaps = {name: missing[rows] for name, (missing, _) in self.inputs.gaps.items()}
        return {name: ~missing for name, missing in gaps.items() if in_torn_clients(missing, owners).any()}

    def _unused_columns(self) -> Iterator[str]:
        """What columns would say that the scenario does not ask for."""
        spec, columns = self.spec, self.rows.names
        used = {*_listed(spec.label_column), spec.subject_column, spec.split_column, *self._label_columns}
        used |= {column for name, own in self.inputs.sections.items() for column in own.columns(name)}
        if not self._is_given and "client" in columns and "client" not in used:
            yield (
                f"column 'client' is not used, since data.partition.kind is {spec.partition.kind!r}; with "
                "data.partition: {kind: given} its rows are those of one client"
            )
        if self.rows.optional_column(spec.split_column, "split") is None and FILE_SPLIT in columns:
            yield (
                f"the names of files say which rows are of which split, and clients share them all; "
                f"data.split_column: {FILE_SPLIT} goes by them"
            )
        if self._recording_column is None and "recording" in columns and "recording" not in used:
            yield (
                "column 'recording' is not used, so rows of one recording may stand in training and in testing; "
                "data.split: recording keeps them on one side"
            )

    @cached_property
    def _recording_column(self) -> str | None:
        spec = self.spec
        # `write_table` wrote the column where it has noted it.
        named = spec.recording_column or ("recording" if self.rows.notes.has_recordings else None)
        is_asked = named is not None or self._is_given or spec.split == "recording"
        return self.rows.optional_column(named, "recording") if is_asked else None

    @cached_property
    def _recordings(self) -> IntArray | None:
        """The recording of each row, counted from 0 in the rows that clients share; -1 where it has none."""
        column = self._recording_column
        if column is None:
            return None
        if self.rows.notes.has_recordings and column == "recording":
            return self.rows.whole_numbers("recording")
        values, shared = self.rows.values(column), ~self._is_held_out
        recordings, names = encode_ids(values, shared)
        check_recordings(recordings, self._splits, values.place, names)
        counted = np.full_like(recordings, -1)
        counted[shared] = np.unique(recordings[shared], return_inverse=True)[1]
        return counted

    @cached_property
    def _pieces(self) -> IntArray | None:
        return None if self.rows.notes.overlap is None else self.rows.whole_numbers(_PIECE_OF)

    def _pieces_of(self, rows: IntArray) -> Pieces | None:
        windows = [section.windows for section in self.inputs.cut.values()]
        if windows:
            return Pieces(
                np.unique(rows, return_inverse=True)[1], max(own.common for own in windows if own is not None)
            )
        overlap, recordings = self.rows.notes.overlap, _known(self._pieces, rows)
        return None if recordings is None or overlap is None else Pieces(recordings, overlap)


def _listed(columns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns


def _known(numbers: IntArray | None, rows: IntArray) -> IntArray | None:
    """The numbers of these rows; None where one of them has none."""
    return None if numbers is None or (numbers[rows] < 0).any() else numbers[rows]


def _renumbered(owners: IntArray, names: tuple[str, ...], order: tuple[str, ...]) -> tuple[IntArray, tuple[str, ...]]:
    """Owners as places in another order of the names; one that lacks a name is left aside."""
    if set(order) != set(names):
        return owners, names
    numbers = {name: number for number, name in enumerate(order)}
    return np.array([numbers[name] for name in names], np.int64)[owners], order
