"""A data set from arrays that a program has at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.core.scores import TASKS, Task
from blossom_ray.data.clients import Place, check_recordings
from blossom_ray.data.dataset import Dataset, LabelColumn, LeftOut
from blossom_ray.data.gaps import BoolArray, fill_gaps
from blossom_ray.data.labels import RowValues, encode_classes, encode_ids, encode_numbers, encode_sets, encode_splits
from blossom_ray.data.media_arrays import decoded_values, kind_of
from blossom_ray.data.modalities.base import Media, Modality
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.series_rows import samples_by_row, stored_series
from blossom_ray.data.stored import Rows, StoredRows, taken
from blossom_ray.data.targets import FloatArray, IntArray, Pieces
from blossom_ray.errors import DataError

Arrays = Mapping[str, Any]
_Arrays = Mapping[str, tuple[Rows, BoolArray]]

_PLAIN = (str, int, float, Decimal, np.generic, NoneType)


def from_arrays(
    inputs: Arrays,
    labels: Any,
    *,
    task: Task = "classification",
    class_names: Sequence[str] | None = None,
    subjects: Any = None,
    held_out: tuple[Arrays, Any] | None = None,
    clients: Any = None,
    recordings: Any = None,
    splits: Any = None,
    observed: Arrays | None = None,
    label_columns: Mapping[str, tuple[Any, Task]] | None = None,
    modalities: Mapping[str, Mapping[str, Any] | Modality] | None = None,
) -> Dataset:
    """A data set from NumPy arrays, PyTorch tensors, or whatever `np.asarray` takes; and from files and texts.

    Values become float32. The arrays are not modified; those that are float32 already are not copied.

    Args:
        inputs: Modality to array (N, *shape), numbers or truth values; (N,) counts as (N, 1).
        labels: Classification: (N,) whole numbers (of any type) or text. An array of NumPy's fixed-width text has lost
            the NULs at its ends; a list keeps them. Multilabel: (N, C) of 0 and 1, or for each sample a list of
            class names. Regression: (N,) or (N, T) numbers. None in a list is a label that is not known.
        task: What the labels are for; the scenario's `task` must be the same.
        class_names: Names of the classes in order; text labels must be among them, whole numbers count them from 0.
            Left out: the labels that occur, sorted. In a regression the names of the targets.
        subjects: (N,) whole numbers from 0 or text, whose sample it is; None where samples belong to nobody.
        held_out: Inputs and labels of a global test set that no client trains on.
        clients: (N,) whole numbers or text, whose each sample is, for `data.partition: {kind: given}`. A client owns
            the modalities that it has in some row to train on.
        recordings: (N,) whole numbers or text, of which recording each sample is: those of one recording stand on one
            side of the splits of all clients.
        splits: (N,) `train`, `validation`, `test` for a client's own splits, `held-out` for the global test set (None
            as client and recording will do there). Without clients `test` is `held-out`.
        observed: Modality to (N,) truth values, whether each sample has a value of it; what stands where there is none
            counts for nothing. None in a list says the same, and so does NaN throughout a row where clients are given.
        label_columns: Further labels by name, each with the task that they are for, which a scenario's `tasks` name;
            the held-out set has them where `splits` says which rows it is.
        modalities: Of modalities that are to be decoded, what decodes them, such as
            `{"photo": {"kind": "image", "size": 32}}`, with the keys of a scenario's `data.modalities.<name>`. Their
            inputs are lists of contents of files (bytes), paths, mappings with `bytes` or `path`, or texts. Samples
            stay on disk, in the cache. Of the kind `series`: lists of arrays (time,) or (time, channels), which need
            not be equally long; where they are cut into windows, a row becomes several samples.

    Raises:
        DataError: Something is no array of numbers, has another length, or is not finite; a label is none of the
            classes; what is said of clients, recordings and splits contradicts itself.

    Examples:
        >>> dataset = from_arrays({"acc": np.zeros((4, 64, 3)), "gyro": np.ones((4, 64, 3))}, ["sit", "run"] * 2)
        >>> dataset.class_names
        ('run', 'sit')
    """
    if held_out is not None and (not isinstance(held_out, tuple) or len(held_out) != 2):
        raise DataError(f"held_out is {type(held_out).__name__}; expected a pair of inputs and labels")
    parts = [_array("labels", labels, task)]
    if held_out is not None:
        parts.append(_array("held-out labels", held_out[1], task))
    encoded = _encoded(parts, task, class_names)
    number = len(encoded[0].labels)
    kinds = {name: kind_of(name, options) for name, options in (modalities or {}).items()}
    inputs, is_kept, left_out = _decoded(inputs, kinds, "modality", number)
    arrays, owner = _inputs(inputs, "modality", number, observed or {}, kinds, has_clients=clients is not None)
    is_kept, whole = is_kept[owner], encoded[0].of(owner)
    sides, has_clients = np.zeros(len(owner), np.int64), clients is not None
    if splits is not None:
        sides = encode_splits(_row_values("splits", splits, number).of(owner), has_clients=has_clients)
    is_shared, others = (sides >= 0) & is_kept, (sides < 0) & is_kept
    if not is_shared.any():
        raise DataError("splits say 'train' in no row; expected it in some")
    shared = np.flatnonzero(is_shared)

    numbers: dict[str, Any] = dict.fromkeys(("subjects", "clients", "recordings"))
    called: dict[str, tuple[str, ...]] = dict.fromkeys(numbers, ())
    for name, given in (("subjects", subjects), ("clients", clients), ("recordings", recordings)):
        if given is not None:
            values = _row_values(name, given, number).of(owner[shared])
            numbers[name], called[name] = encode_ids(values, are_subjects=name == "subjects")
    columns = {name: _label_column(name, *given, number).of(owner) for name, given in (label_columns or {}).items()}
    test_set = None
    if held_out is not None:
        what, own_number = "held-out modality", len(encoded[1].labels)
        decoded, is_tested, lacking = _decoded(held_out[0], kinds, what, own_number)
        given, rows = _inputs(decoded, what, own_number, {}, kinds, has_clients=False)
        test_set = _dataset(given, is_tested[rows], encoded[1].of(rows[is_tested[rows]]))
        left_out += lacking
    if others.any():
        if held_out is not None:
            raise DataError("splits say 'held-out', while held_out is given; expected one of the two")
        of_test = {name: column.of(others) for name, column in columns.items()}
        test_set = _dataset(arrays, others, whole.of(others), label_columns=of_test)
    own_splits = sides[shared] if has_clients and (sides > 0).any() else None
    if own_splits is not None and numbers["recordings"] is not None:
        place = _place("recordings")
        check_recordings(
            numbers["recordings"], own_splits, lambda row: place(int(owner[shared[row]])), called["recordings"]
        )
    return _dataset(
        arrays,
        is_shared,
        whole.of(is_shared),
        held_out=test_set,
        splits=own_splits,
        client_names=called["clients"],
        subject_names=called["subjects"],
        label_columns={name: column.of(is_shared) for name, column in columns.items()},
        left_out=left_out,
        pieces=_pieces(owner[shared], kinds),
        **numbers,
    )


def _dataset(arrays: _Arrays, rows: BoolArray, labels: LabelColumn, **others: Any) -> Dataset:
    """The data set of some rows (N,), where labels are those of these rows alone."""
    some: Any = slice(None) if rows.all() else rows
    inputs, observed = fill_gaps(
        {modality: taken(values, some) for modality, (values, _) in arrays.items()},
        {modality: missing[some] for modality, (_, missing) in arrays.items()},
        others.get("clients"),
    )
    return Dataset(inputs, **vars(labels), observed=observed, **others)


def _pieces(rows: IntArray, kinds: Mapping[str, Modality]) -> Pieces | None:
    """The rows that samples are windows of, where some are."""
    windows = [own.windows for own in kinds.values() if isinstance(own, SeriesModality) and own.windows is not None]
    recordings = np.unique(rows, return_inverse=True)[1]
    return Pieces(recordings, max(own.common for own in windows)) if windows else None


def _decoded(
    inputs: Arrays, kinds: Mapping[str, Modality], what: str, number: int
) -> tuple[Arrays, BoolArray, tuple[LeftOut, ...]]:
    """The inputs, those of some modalities decoded; which rows (N,) the data set has; and that in words."""
    is_kept, left_out, found = np.full(number, True), tuple[LeftOut, ...](), inputs
    for modality, decoder in kinds.items():
        if modality not in inputs:
            raise DataError(f"modalities has {modality!r}; expected some of {', '.join(map(str, inputs))}")
        if not isinstance(decoder, Media):
            continue
        own = decoded_values(f"{what} {modality!r}", inputs[modality], decoder)
        found = {**found, modality: own.samples}
        if len(own.is_wrong) == number:  # or it is refused with the others
            is_kept &= ~own.is_wrong
        left_out += own.left_out(modality)
    if not is_kept.any():
        raise DataError(f"no row can be decoded of each {what}; expected some: {'; '.join(map(str, left_out))}")
    return found, is_kept, left_out


def _label_column(name: str, labels: Any, task: Task, number: int) -> LabelColumn:
    column = _encoded([_array(f"labels {name!r}", labels, task)], task, None, f"labels {name!r}")[0]
    if len(column.labels) != number:
        raise DataError(f"labels {name!r} have {len(column.labels)} rows; expected {number}, as many as labels")
    return column


def _row_values(name: str, given: Any, number: int) -> RowValues:
    values = RowValues.listed(_plain_values(name, given), _place(name))
    if len(values.codes) != number:
        raise DataError(f"{name} have shape ({len(values.codes)},); expected {number} rows, as many as labels")
    return values


def _place(name: str) -> Place:
    return lambda row: f"{name}, row {row}"


def _inputs(
    inputs: Arrays, what: str, number: int, observed: Arrays, kinds: Mapping[str, Modality], *, has_clients: bool
) -> tuple[_Arrays, IntArray]:
    """By modality the values of samples (M, *shape), and whether each lacks it; and the row of each sample."""
    if not isinstance(inputs, Mapping):
        raise DataError(f"inputs are of type {type(inputs).__name__}; expected a mapping from modality to array")
    for modality in observed:
        if modality not in inputs:
            raise DataError(f"observed has {modality!r}; expected some of {', '.join(map(str, inputs))}")
    found: dict[str, tuple[Any, BoolArray]] = {}
    series = {name: kind for name, kind in kinds.items() if isinstance(kind, SeriesModality)}
    for modality, given in inputs.items():
        name = f"{what} {modality!r}"
        array: Any
        if modality in series:
            array = _series(name, given)
            missing = np.array([each is None for each in array], np.bool_)
        elif isinstance(given, StoredRows):
            array, missing = given, given.lacking
        else:
            array, missing = _numbers_of(name, given, has_clients=has_clients)
        if modality in observed:
            rows = _plain(f"observed rows of {name}", observed[modality])
            if rows.dtype != np.bool_ or rows.shape != missing.shape:
                expected = f"({len(array)},) truth values, one per sample"
                raise DataError(f"observed rows of {name} are {rows.dtype} of shape {rows.shape}; expected {expected}")
            missing = missing | ~rows
        if len(array) != number:
            raise DataError(f"modality {modality!r} has {len(array)} rows; expected {number}, as many as labels")
        found[modality] = array, missing
    lengths = {
        name: np.array([-1 if lacks else len(own) for own, lacks in zip(*found[name], strict=True)], np.int64)
        for name in series
    }
    counts = samples_by_row(lengths, series, number, lambda name, row: f"{what} {name!r}, row {row}")
    owner = np.repeat(np.arange(number), counts)
    for modality, (values, missing) in found.items():
        if modality in series:
            own = [each for each, lacks in zip(values, missing, strict=True) if not lacks]
            values = stored_series([(~missing, own)], series[modality], counts)
            if values is None:
                raise DataError(f"{what} {modality!r} has a series in no row; expected one in some")
        elif len(owner) > number:
            values = StoredRows.of(values).chosen(owner)
        found[modality] = values, missing[owner]
    return found, owner


def _series(name: str, given: Any) -> list[FloatArray | None]:
    """The series (time, channels) of each row, or None."""
    found: list[FloatArray | None] = []
    num_channels: int | None = None
    for row, value in enumerate(_listed(given)):
        place = f"{name}, row {row}"
        array = None if value is None else _numbers(place, value)
        if array is not None:
            array = array[:, np.newaxis] if array.ndim == 1 else array
            num_channels = array.shape[-1] if num_channels is None else num_channels
            if array.ndim != 2 or not len(array) or array.shape[1] != num_channels:
                found_shape = f"{place} has shape {array.shape}"
                raise DataError(f"{found_shape}; expected (time, {num_channels or 'channels'}), time at least 1")
            if not np.isfinite(array).all():
                raise DataError(f"{place} holds a value that is not finite; expected finite numbers")
        found.append(array)
    return found


def _numbers_of(name: str, given: Any, *, has_clients: bool) -> tuple[FloatArray, BoolArray]:
    values, missing = _without_nulls(given)
    array = _numbers(name, values)
    array = array[:, np.newaxis] if array.ndim == 1 else array
    missing = np.zeros(len(array), np.bool_) if missing is None else missing
    if has_clients and array.size:
        missing |= np.isnan(array).reshape(len(array), -1).all(axis=1)
    return array, missing


def _without_nulls(values: Any) -> tuple[Any, BoolArray | None]:
    """Zeros in the place of each null of a list or column, and where they are; what has none is left as it is."""
    num_nulls = getattr(values, "null_count", 0)
    num_nulls = num_nulls() if callable(num_nulls) else num_nulls
    if isinstance(num_nulls, int) and num_nulls:  # a frame of several columns counts them by column, and is an array
        values = _listed(values)
    is_list = isinstance(values, list | tuple) or getattr(values, "dtype", None) == np.dtype(object)
    rows = list(values) if is_list else []
    present = next((row for row in rows if row is not None), None)
    if present is None or all(row is not None for row in rows):
        return values, None
    gap = np.zeros(np.shape(present), np.float32)
    return [gap if row is None else row for row in rows], np.array([row is None for row in rows])


def _array(name: str, labels: Any, task: Task) -> Any:
    """Labels as an array, NaN where one is not known; classes, and names of several classes per sample, as a list."""
    if task not in TASKS:
        raise DataError(f"{name} are for task {task!r}; expected one of {', '.join(TASKS)}")
    if task == "classification":
        return _plain_values(name, labels)
    if task == "multilabel" and _holds_names(listed := _listed(labels)):
        return [None if own is None else list(map(str, own)) for own in listed]
    filled, known = _with_known(labels)
    numbers = _numbers(name, filled)
    numbers = numbers[:, np.newaxis] if numbers.ndim == 1 else numbers
    if numbers.ndim != 2:
        raise DataError(f"{name} have shape {numbers.shape}; expected (N, classes or targets)")
    if (is_nan := np.isnan(numbers).any(axis=1)).any():
        found = f"{name}, row {int(is_nan.argmax())} is {numbers[is_nan.argmax()].tolist()}"
        raise DataError(f"{found}; expected finite numbers, or None in a list where none is known")
    return numbers if known is None else np.where(known.reshape(numbers.shape), numbers, np.float32(np.nan))


def _with_known(labels: Any) -> tuple[Any, BoolArray | None]:
    """Zeros in the place of each None of a list, or of lists in it, and which are none of these; None: all."""
    labels = _listed(labels)
    if getattr(labels, "dtype", None) == np.dtype(object):
        labels = labels.tolist()
    rows = labels if isinstance(labels, list | tuple) else []
    inner = next((row for row in rows if isinstance(row, list | tuple)), None)
    wide = [row if isinstance(row, list | tuple) else [row] * (1 if inner is None else len(inner)) for row in rows]
    known = [[value is not None for value in row] for row in wide]
    if all(map(all, known)):
        return labels, None
    filled = [[0 if value is None else value for value in row] for row in wide]
    return (filled if inner is not None else [value for (value,) in filled]), np.array(known)


def _plain_values(name: str, values: Any) -> list[Any]:
    """Text and numbers, one per sample, of Python's types. Only what is no list of them goes through NumPy."""
    values = _listed(values)
    items = values if isinstance(values, list | tuple) else [None, ...]
    if not (any(isinstance(item, str) for item in items) or all(isinstance(item, _PLAIN) for item in items)):
        array = _plain(name, values)
        if array.ndim != 1:
            raise DataError(f"{name} have shape {array.shape}; expected (N,), one per sample")
        if array.dtype.kind not in "biufUTO":
            raise DataError(f"{name} have type {array.dtype}; expected whole numbers or text")
        values = array.tolist()
    found = [
        value.item() if isinstance(value, np.generic) and not isinstance(value, str) else value for value in values
    ]
    for row, value in enumerate(found):
        if not isinstance(value, _PLAIN):
            raise DataError(f"{name}, row {row} is of type {type(value).__name__}; expected a whole number or text")
    return found


def _listed(values: Any) -> Any:
    """Columns of pyarrow, and of polars and pandas, as lists; anything else as it is."""
    for method in ("to_pylist", "to_list"):
        values = getattr(values, method)() if hasattr(values, method) else values
    return values


def _encoded(
    parts: Sequence[Any], task: Task, class_names: Sequence[str] | None, what: str = "labels"
) -> list[LabelColumn]:
    """The labels of each part, with the classes of all together."""
    ends = [len(part) for part in parts]

    def place(row: int) -> str:
        return f"{what}, row {row}" if row < ends[0] else f"held-out labels, row {row - ends[0]}"

    if task == "classification":
        found = encode_classes(RowValues.listed((value for part in parts for value in part), place), class_names)
    elif task == "multilabel" and all(isinstance(part, list) for part in parts):
        found = encode_sets([own for part in parts for own in part], place, class_names)
    elif any(isinstance(part, list) or part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise DataError("labels and held-out labels are of different kinds or widths; expected the same for both")
    else:
        numbers = np.concatenate(list(parts))
        known = ~np.isnan(numbers)
        found = encode_numbers(np.where(known, numbers, np.float32(0)), place, task, class_names, known=known)
    whole, is_first = LabelColumn(*found), np.arange(sum(ends)) < ends[0]
    return [whole.of(is_first), whole.of(~is_first)]


def _numbers(name: str, values: Any) -> FloatArray:
    array = _plain(name, values)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        found = f"shape {array.shape}" if array.ndim == 0 else f"type {array.dtype}"
        raise DataError(f"{name} has {found}; expected an array of numbers, one row per sample")
    # What does not fit into float32 becomes infinite, and is refused as not finite with its row.
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _plain(name: str, values: Any) -> npt.NDArray[Any]:
    try:
        # A tensor that has a gradient, lies on a GPU or is bfloat16 is no NumPy array yet.
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} cannot be made an array ({error}); expected rows of equal shape") from error


def _holds_names(labels: Any) -> bool:
    """Whether labels are a list of lists of text, empty ones included."""
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, str)
        and all(own is None or isinstance(own, list | tuple | set | frozenset) for own in labels)
        and all(isinstance(name, str) for own in labels for name in own or ())
        and any(own is not None for own in labels)
    )
