"""A data set: the samples of each modality, labels, and subjects where the data set has them.

Three kinds of labels, one per task; dtype and shape tell which:

    classification    (N,) int64, the class of each sample
    multilabel        (N, C) float32, 1 where the sample has the class and 0 where not
    regression        (N, T) float32, finite, the values of T targets
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.core.phrases import one_of, shortened
from blossom_ray.core.scores import Task
from blossom_ray.data.clients import SPLITS, GivenClients, Origin, check_recordings
from blossom_ray.data.gaps import BoolArray, fill_gaps, in_torn_clients
from blossom_ray.data.stored import Rows, StoredRows, slices
from blossom_ray.data.targets import IntArray, Labels, Pieces, Targets, targets_of
from blossom_ray.errors import DataError
from blossom_ray.text import is_unicode

MOST_EXAMPLES = 3
_NOT_FINITE, _NOT_ZERO = "a value is not finite", "a value is not 0, while observed says that there is none"


@dataclass(frozen=True)
class LeftOut:
    """What a data set could have had, by its files or by its authors, and has not, for one reason.

    Attributes:
        what: Samples of which part, or which files, and by which rule they are left out.
        count: How many, >= 1.
        examples: The names of the first of them; none where they have no names.
    """

    what: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        examples = f", such as {', '.join(self.examples)}" if self.examples else ""
        return f"left out: {self.what}: {self.count:,}{examples}"


def left_out(what: str, names: Sequence[str]) -> tuple[LeftOut, ...]:
    """One entry for what has these names, or none where there are no names."""
    return (LeftOut(what, len(names), tuple(names[:MOST_EXAMPLES])),) if names else ()


@dataclass(frozen=True)
class LabelColumn:
    """Labels of a data set's samples, of any task.

    Attributes:
        labels: As in `Dataset`.
        class_names: Name of each class or target.
        known: Of the shape of `labels`, which of them are known; the others are 0. None: all.
    """

    labels: Labels
    class_names: tuple[str, ...]
    known: BoolArray | None = None

    def of(self, rows: BoolArray | IntArray) -> LabelColumn:
        """Those of some rows."""
        known = None if self.known is None or self.known[rows].all() else self.known[rows]
        return LabelColumn(self.labels[rows], self.class_names, known)


SUBJECT = "subject"
"""The label column of every data set with subjects: whose a sample is."""


@dataclass(frozen=True)
class Dataset:
    """Samples of several modalities with their labels.

    Attributes:
        inputs: Modality to array or `StoredRows` (N, *shape), float32, finite. Rows of all modalities belong together.
            Zeros in a row that `observed` says has no value. Where the data say whose samples they are, a modality that
            a client does not own is NaN throughout its rows, unless it is in `observed`.
        labels: (N,) int64, 0..len(class_names)-1 (classification); (N, len(class_names)) float32, 0 or 1 (multilabel)
            or any finite values (regression).
        class_names: Name of each class, or of each target of a regression.
        subjects: (N,) int64, or None.
        held_out: A global test set that no client trains on, or None. Its labels are of the same kind.
        recordings: (N,) int64, as in `Targets`, or None.
        left_out: What is not in it and not in its held-out set, by reason.
        pieces: As in `Targets`, or None. No part of the fingerprint: it is told by the inputs, or by files' names.
        clients: (N,) int64, 0..K-1: whose each sample is, for `data.partition: {kind: given}`; or None.
        splits: (N,) int64: 0 to train on, 1 to validate on, 2 to test on, for its client; or None. With clients alone.
        client_names: What the clients are called, by number; empty: by their numbers.
        subject_names: What the subjects are called, by number; empty: by their numbers.
        notes: What a reader of the numbers should know of it.
        observed: Modality to (N,) bool, whether each row has a value of it; of the modalities alone that some row
            lacks.
        label_columns: Further labels by name, for scenarios with several tasks. No part of the fingerprint: `labelled`
            makes them the labels.
        known: Of the shape of `labels`, which of them are known; the others are 0. None: all.

    Raises:
        DataError: Arrays of unequal length, a wrong type or shape, a label out of range, a value that is not finite, or
            not 0 where none was observed; a client whose rows of a modality are NaN in part, or that has no row of a
            split that others have; a recording in several splits.
    """

    inputs: Mapping[str, Rows]
    labels: Labels
    class_names: tuple[str, ...]
    subjects: IntArray | None = None
    held_out: Dataset | None = None
    recordings: IntArray | None = None
    left_out: tuple[LeftOut, ...] = ()
    pieces: Pieces | None = None
    clients: IntArray | None = None
    splits: IntArray | None = None
    client_names: tuple[str, ...] = ()
    subject_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    observed: Mapping[str, BoolArray] = field(default_factory=dict)
    label_columns: Mapping[str, LabelColumn] = field(default_factory=dict)
    known: BoolArray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Mapping):
            raise DataError(
                f"inputs are of type {type(self.inputs).__name__}; expected a mapping from modality to array"
            )
        if not self.inputs:
            raise DataError("the data set has no modality")
        _check_names(self.inputs, self.class_names)
        _check_labels(self.labels, self.class_names)
        _check_known(self.labels, self.known)
        for name, column in self.label_columns.items():
            if not isinstance(name, str):
                raise DataError(f"labels are called {name!r}; expected text")
            _check_labels(column.labels, column.class_names, f"labels {name!r}")
            _check_known(column.labels, column.known, f"labels {name!r}")
            if len(column.labels) != self.num_samples:
                found = f"labels {name!r} have shape {column.labels.shape}"
                raise DataError(f"{found}; expected {self.num_samples} rows, as many as labels")
        for name, numbers in (
            ("subject", self.subjects), ("client", self.clients), ("split", self.splits),
            ("recording", self.recordings), ("recording", None if self.pieces is None else self.pieces.recordings),
        ):  # fmt: skip
            if numbers is not None:
                _check_array(f"{name}s", numbers, np.int64, self.num_samples)
                if numbers.ndim != 1:
                    raise DataError(f"{name}s have shape {numbers.shape}; expected one {name} per sample")
                if name == "recording" and numbers.min() < 0:
                    raise DataError(f"recordings begin at {numbers.min()}; expected numbers from 0")
        self._check_clients()
        for modality, observed in self.observed.items():
            if modality not in self.inputs:
                raise DataError(f"observed has {modality!r}; expected some of {', '.join(self.inputs)}")
            _check_array(f"observed rows of {modality!r}", observed, np.bool_, self.num_samples)
            if observed.ndim != 1 or observed.all():
                found = f"have shape {observed.shape}" if observed.ndim != 1 else "are all"
                raise DataError(f"observed rows of {modality!r} {found}; expected (N,), False for some, or none at all")
        for modality, values in self.inputs.items():
            _check_array(f"modality {modality!r}", values, np.float32, self.num_samples)
            if values.ndim < 2 or 0 in values.shape:
                raise DataError(
                    f"modality {modality!r} has shape {values.shape}; expected (samples, ...), none of it 0"
                )
            self._check_values(modality, values)
        given = self.given_clients  # which refuses clients that contradict themselves
        if given is not None and given.splits is not None and self.recordings is not None:
            check_recordings(self.recordings, given.splits, "recordings, row {}".format)
        other = self.held_out
        if other is not None and not isinstance(other, Dataset):
            raise DataError(f"the held-out set is of type {type(other).__name__}; expected a Dataset")
        if other is not None and other.input_shapes != self.input_shapes:
            raise DataError(f"the held-out set has shapes {other.input_shapes}; expected {self.input_shapes}")
        if other is not None and _described(other) != _described(self):
            raise DataError(f"the held-out set has labels of {_described(other)}; expected {_described(self)}")

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, or of targets: the outputs that a model needs."""
        return len(self.class_names)

    @property
    def task(self) -> Task:
        """What the labels are for. Float labels that are all 0 or 1 say `multilabel`; they fit `regression` too."""
        if self.labels.dtype == np.int64:
            return "classification"
        return "multilabel" if self._is_binary else "regression"

    @property
    def has_held_out_labels(self) -> bool:
        """Whether some label of the held-out set is known."""
        known = None if self.held_out is None else self.held_out.known
        return self.held_out is not None and (known is None or bool(known.any()))

    def check_task(self, task: Task, name: str | None = None) -> None:
        """Refuse a task that the labels are not for; `name` is that of the labels, where they have one.

        Raises:
            DataError: They are for another one.
        """
        if self.task != task and not (self.task == "multilabel" and task == "regression"):
            labels = "the data set's labels" if name is None else f"the labels {name!r}"
            raise DataError(f"{labels} are for {self.task} ({_described(self)}); expected task: {task}")

    def labelled(self, name: str | None) -> Dataset:
        """The data set with the labels of this name; None: as it is.

        Where its held-out set lacks them, or has classes of its own, as subjects nobody trains on are, there is none.

        Raises:
            DataError: There are no such labels.
        """
        if name is None:
            return self
        column = self._column(name)
        if column is None:
            known = sorted({*self.label_columns, *([] if self.subjects is None else [SUBJECT])})
            raise DataError(f"the data set has no labels {shortened(name)!r}; expected {one_of(known) or 'null'}")
        held_out = None
        if self.held_out is not None:
            other = self.held_out._column(name, self)
            if other is not None and other.class_names == column.class_names:
                held_out = replace(self.held_out, **vars(other))
        return replace(self, **vars(column), held_out=held_out)

    def _column(self, name: str, known: Dataset | None = None) -> LabelColumn | None:
        """The labels of this name; None where there are none. Subjects are those of `known`, where it is given."""
        if name in self.label_columns or name != SUBJECT or self.subjects is None:
            return self.label_columns.get(name)
        subjects = np.unique(self.subjects if known is None or known.subjects is None else known.subjects)
        if not np.isin(self.subjects, subjects).all():
            return None
        names = self.subject_names if known is None else known.subject_names
        called = tuple(names[number] if names else str(number) for number in subjects.tolist())
        return LabelColumn(np.searchsorted(subjects, self.subjects).astype(np.int64), called)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample by modality."""
        return {modality: tuple(values.shape[1:]) for modality, values in self.inputs.items()}

    @property
    def targets(self) -> Targets:
        """A stratum per sample, subjects, recordings and clients."""
        return replace(
            targets_of(self.labels, self.num_classes, self.subjects, self.known),
            recordings=self.recordings,
            pieces=self.pieces,
            clients=self.given_clients,
            subject_names=self.subject_names,
            observed=self.observed,
            held_out=None if self.held_out is None else self.held_out.targets,
        )

    def lacking(self, modality: str, rows: slice = slice(None)) -> BoolArray:
        """Whether each of these rows has no value of a modality."""
        if modality in self.observed:
            return ~self.observed[modality][rows]
        if self.clients is None:
            return np.zeros(len(self.labels[rows]), np.bool_)
        inputs = self.inputs[modality]
        if isinstance(inputs, StoredRows):
            return inputs.lacking[rows]
        values = inputs[rows]
        # By the first value: no other NaN passes the checks.
        missing: BoolArray = np.isnan(values.reshape(len(values), -1)[:, 0])
        return missing

    @property
    def given_clients(self) -> GivenClients | None:
        """The clients of the data, or None where the data do not say whose their samples are."""
        if self.clients is None:
            return None
        missing = {modality: self.lacking(modality) for modality in self.inputs}
        return GivenClients.of(self._client_names, self.clients, missing, self.splits, Origin())

    def without_clients(self) -> Dataset:
        """The data set for a partition that does not ask whose the samples are.

        What a client does not own is not observed in its rows, which may become another's.
        """
        if self.clients is None:
            return self
        inputs, observed = fill_gaps(self.inputs, {modality: self.lacking(modality) for modality in self.inputs})
        note = "clients say whose the samples are, and are not used: data.partition: {kind: given} uses them"
        return replace(
            self, inputs=inputs, observed=observed, clients=None, splits=None, client_names=(),
            notes=(*self.notes, note),
        )  # fmt: skip

    def only(self, modalities: Sequence[str]) -> Dataset:
        """The data set, and its held-out set, with these of its modalities alone."""
        if set(self.inputs) == set(modalities):
            return self
        return replace(
            self,
            inputs={modality: self.inputs[modality] for modality in modalities},
            observed={modality: rows for modality, rows in self.observed.items() if modality in modalities},
            held_out=None if self.held_out is None else self.held_out.only(modalities),
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, shapes and values: equal for equal data, whatever file they came from."""
        digest = hashlib.sha256()
        own = {
            "labels": self.labels, "subjects": self.subjects, "recordings": self.recordings, "clients": self.clients,
            "splits": self.splits, "known": self.known,
        }  # fmt: skip
        known: Iterator[tuple[str, Any]] = ((n, each) for n, each in own.items() if each is not None)
        # One after the other: a modality may be called `labels`.
        for name, values in chain(sorted(self.inputs.items()), known):
            digest.update(f"{name}{values.shape}{values.dtype}".encode())
            for rows in slices(values):
                piece: npt.NDArray[Any] = values[rows]
                if self.clients is not None and piece.dtype == np.float32:
                    piece = np.where(np.isnan(piece), np.float32(np.nan), piece)  # of the many NaNs there are, one
                digest.update(np.ascontiguousarray(piece).data)
        for name, observed in sorted(self.observed.items()):
            digest.update(f"observed {name}".encode())
            digest.update(np.ascontiguousarray(observed).data)
        digest.update("\0".join(self.class_names).encode())
        if self.clients is not None:
            digest.update("\0".join(("", *self._client_names)).encode())
        if self.held_out is not None:
            digest.update(self.held_out.fingerprint().encode())
        return digest.hexdigest()

    def _check_values(self, modality: str, values: Rows) -> None:
        observed = self.observed.get(modality)
        if isinstance(values, StoredRows):
            self._check_stored(modality, values)
        for piece in slices(values) if isinstance(values, np.ndarray) else ():
            rows = values[piece].reshape(piece.stop - piece.start, -1)
            if not np.isfinite(rows).all():
                wrong = ~np.isfinite(rows).all(axis=1)
                if self.clients is not None and observed is None:
                    wrong = wrong & ~np.isnan(rows).all(axis=1)
                if wrong.any():
                    raise _wrong_value(modality, piece.start + int(wrong.argmax()), _NOT_FINITE)
            if observed is not None and (filled := ~observed[piece] & rows.any(axis=1)).any():
                raise _wrong_value(modality, piece.start + int(filled.argmax()), _NOT_ZERO)
        if self.clients is not None and observed is None:
            missing = self.lacking(modality)
            if (torn := missing & in_torn_clients(missing, self.clients)).any():
                row = int(torn.argmax())
                name = self._client_names[self.clients[row]]
                raise DataError(
                    f"modality {modality!r}, row {row} is missing, while client {name!r} has it in other rows; "
                    f"expected it in all rows of a client or in none, or zeros there and observed to say so"
                )

    def _check_stored(self, modality: str, values: StoredRows) -> None:
        """The same of values that are not read again for each data set that has them."""
        observed, lacking, row = self.observed.get(modality), values.lacking, values.first_not_finite
        if row is None and lacking.any() and not (self.clients is not None and observed is None):
            row = None if math.isfinite(values.fill) else int(lacking.argmax())
        if row is not None:
            raise _wrong_value(modality, row, _NOT_FINITE)
        if observed is not None and (filled := ~(observed | lacking)).any():
            raise _wrong_value(modality, int(filled.argmax()), _NOT_ZERO)

    @property
    def _client_names(self) -> tuple[str, ...]:
        assert self.clients is not None, "asked where there are clients"
        return self.client_names or tuple(map(str, range(int(self.clients.max()) + 1)))

    def _check_clients(self) -> None:
        if self.clients is None:
            if self.splits is not None:
                raise DataError("splits are given, while clients are not; expected clients, whose splits they are")
            return
        numbers = np.unique(self.clients)
        names = self._client_names if numbers[0] >= 0 else ()
        if len(numbers) != len(names) or numbers[-1] != len(names) - 1:
            expected = f"0 to {len(names) - 1}, each in some row" if names else "numbers from 0"
            raise DataError(
                f"clients are {len(numbers)} numbers from {numbers[0]} to {numbers[-1]}; expected {expected}"
            )
        if len(set(names)) < len(names):
            raise DataError("client_names has a name twice; expected different names")
        if self.splits is None:
            return
        wrong = (self.splits < 0) | (self.splits >= len(SPLITS))
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"splits, row {row} is {self.splits[row]}; expected 0 (train), 1 (validation) or 2 (test)")

    @property
    def _is_binary(self) -> bool:
        own = bool(((self.labels == 0) | (self.labels == 1)).all())
        return own and (self.held_out is None or self.held_out._is_binary)


def _check_labels(labels: Any, class_names: tuple[str, ...], what: str = "labels") -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype not in (np.int64, np.float32):
        found = getattr(labels, "dtype", type(labels).__name__)
        raise DataError(
            f"{what} have type {found}; expected a NumPy array of int64 (classification) or float32 (multilabel, "
            f"regression)"
        )
    if labels.dtype == np.int64 and labels.ndim != 1:
        raise DataError(f"{what} have shape {labels.shape}; expected one label per sample")
    if labels.dtype == np.float32 and (labels.ndim != 2 or labels.shape[1] != len(class_names)):
        raise DataError(
            f"{what} have shape {labels.shape}; expected (samples, {len(class_names)}), one column per class name"
        )
    if len(labels) == 0:
        raise DataError("the data set has no samples")
    if labels.shape[1:] == (0,):
        raise DataError("the data set has no class names; expected one per class or target")
    if labels.dtype == np.float32:
        is_finite = np.isfinite(labels).all(axis=1)
        if not is_finite.all():
            raise DataError(f"{what}, row {int(is_finite.argmin())}: a value is not finite")
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(class_names):
        raise DataError(f"{what} run from {low} to {high}; expected 0 to {len(class_names) - 1}")


def _check_known(labels: Labels, known: Any, what: str = "labels") -> None:
    if known is None:
        return
    if not isinstance(known, np.ndarray) or known.dtype != np.bool_ or known.shape != labels.shape or known.all():
        found = f"{known.dtype} of shape {known.shape}" if isinstance(known, np.ndarray) else type(known).__name__
        raise DataError(f"what is known of {what} is {found}; expected bool {labels.shape}, False for some, or None")
    if labels[~known].any():
        raise DataError(f"{what} have a value that is not 0, while known says that there is none")


def _wrong_value(modality: str, row: int, found: str) -> DataError:
    return DataError(f"modality {modality!r}, row {row}: {found}")


def _described(dataset: Dataset) -> str:
    labels = dataset.labels
    return f"{labels.dtype}, {'one' if labels.ndim == 1 else labels.shape[1]} per sample"


def _check_names(inputs: Mapping[Any, Any], class_names: Any) -> None:
    if not isinstance(class_names, tuple | list) or not all(isinstance(name, str) for name in class_names):
        raise DataError("class_names are not a tuple of text; expected the name of each class")
    for modality in inputs:
        if not isinstance(modality, str):
            raise DataError(f"a modality is called {modality!r}; expected text")
    for name in (*inputs, *class_names):
        if not is_unicode(name):
            raise DataError(f"a class or modality is called {name!r}; expected text without half surrogates")


def _check_array(name: str, values: Any, dtype: type[np.generic], length: int) -> None:
    if not isinstance(values, np.ndarray | StoredRows) or values.dtype != dtype:
        found = getattr(values, "dtype", type(values).__name__)
        raise DataError(f"{name} have type {found}; expected a NumPy array of {np.dtype(dtype)}")
    if values.ndim == 0 or len(values) != length:
        raise DataError(f"{name} have shape {values.shape}; expected {length} rows, as many as labels")
