"""A data set as a file that `dataset: table` reads."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from blossom_ray.core.locations import local_path
from blossom_ray.data.clients import HELD_OUT, SPLITS
from blossom_ray.data.dataset import Dataset, LeftOut
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.stored import slices
from blossom_ray.data.targets import FloatArray, IntArray, Labels
from blossom_ray.errors import RunFolderError
from blossom_ray.storage import replacing

_ROWS_AT_ONCE = 4096
"""Of narrow rows; of wide ones as many as `slices` says."""
PIECE_OF = "piece_of"
"""The column of the recordings that samples are pieces of, as in `dataset.Pieces`."""
NOTES_KEY = b"blossom_ray"
"""Of the file's metadata, for its `Notes` as JSON."""


@dataclass(frozen=True)
class Notes:
    """What columns do not hold of a data set.

    Attributes:
        left_out: As in `Dataset`.
        has_recordings: Whether the column `recording` is the data set's recordings, and no modality.
        overlap: That of the data set's `Pieces`, whose recordings are in the column `piece_of`; None where it has none.
        client_names: What the clients are called, in their order.
        subject_names: As in `Dataset`.
        class_names: By column, those of the data set's `label_columns`.
    """

    left_out: tuple[LeftOut, ...] = ()
    has_recordings: bool = False
    overlap: float | None = None
    client_names: tuple[str, ...] = ()
    subject_names: tuple[str, ...] = ()
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


NOTES = TypeAdapter(Notes)


def write_table(dataset: Dataset, path: str | Path) -> Path:
    """Write a data set as one Arrow file, which `dataset: table` reads with the same values and fingerprint.

    Columns: a fixed-shape tensor per modality, null where it is not observed, `label` (the class's number, or a list of
    float32) and the data set's `label_columns` in the same way, `subject` and `split` (`train`, then `test` for the
    held-out set), `recording` where samples share recordings, and `piece_of` where they are pieces of recordings. Where
    the data say whose samples they are, `client`, and `split` has the clients' own splits and `held-out`: read it with
    `data.partition: {kind: given}`. What is left out of the data set is noted in the file. Class names of `label` stand
    in no file: give them as `data.class_names`.

    Args:
        dataset: What to write. No modality may be called as one of these columns.
        path: The file; its folder is made if it does not exist. It appears when it is whole.

    Returns:
        The file.

    Raises:
        RunFolderError: The file cannot be written.
    """
    target = local_path(path, "path")
    optional = {"recording": dataset.recordings, PIECE_OF: dataset.pieces, "client": dataset.clients}
    own = ["label", "subject", "split", *(name for name, rows in optional.items() if rows is not None)]
    for column in (*own, *dataset.label_columns):
        if column in dataset.inputs or (column in own and column in dataset.label_columns):
            what = "a modality is" if column in dataset.inputs else "further labels are"
            raise RunFolderError(f"{target}: {what} called {column!r}, as a column is; expected another name")
    if dataset.subjects is None:
        own.remove("subject")
    held_out = "test" if dataset.clients is None else HELD_OUT
    parts = {"train": dataset} | ({} if dataset.held_out is None else {held_out: dataset.held_out})
    given, overlap = dataset.given_clients, None if dataset.pieces is None else dataset.pieces.overlap
    names = () if given is None else given.names
    called = {name: column.class_names for name, column in dataset.label_columns.items()}
    notes = Notes(dataset.left_out, dataset.recordings is not None, overlap, names, dataset.subject_names, called)
    first = _columns(dataset, slice(1), "train", own, names)
    metadata = None if notes == Notes() else {NOTES_KEY: NOTES.dump_json(notes)}
    schema = pa.schema({name: column.type for name, column in first.items()}, metadata)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(target, shared=True) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for split, part in parts.items():
                widest = max(part.inputs.values(), key=lambda values: math.prod(values.shape[1:]))
                for rows in slices(widest, most=_ROWS_AT_ONCE):
                    columns = _columns(part, rows, split, own, names)
                    writer.write_batch(pa.record_batch([*columns.values()], schema=schema))
    except OSError as error:
        raise RunFolderError(f"{target} cannot be written: {error}") from error
    return target


def _columns(
    part: Dataset, rows: slice, split: str, own: Collection[str], client_names: tuple[str, ...]
) -> dict[str, Any]:
    """Some rows by column, in the order of columns; null where the part does not say what the column does."""
    labels = part.labels[rows]
    splits = [split] * len(labels) if part.splits is None else [SPLITS[number] for number in part.splits[rows]]
    owners = [None] * len(labels) if part.clients is None else [client_names[client] for client in part.clients[rows]]

    def numbers(values: IntArray | None) -> Any:
        return pa.nulls(len(labels), pa.int64()) if values is None else pa.array(values[rows])

    columns = {
        "label": _listed(labels, None if part.known is None else part.known[rows]),
        "subject": numbers(part.subjects),
        "split": pa.array(splits, pa.string()),
        "recording": numbers(part.recordings),
        PIECE_OF: numbers(None if part.pieces is None else part.pieces.recordings),
        "client": pa.array(owners, pa.string()),
    }
    inputs = {name: _tensors(values[rows], part.lacking(name, rows)) for name, values in sorted(part.inputs.items())}
    more = {
        name: _listed(column.labels[rows], None if column.known is None else column.known[rows])
        for name, column in part.label_columns.items()
    }
    return inputs | {name: column for name, column in columns.items() if name in own} | more


def _listed(labels: Labels, known: BoolArray | None) -> Any:
    mask = None if known is None else np.ascontiguousarray(~known).reshape(-1)
    flat = pa.array(np.ascontiguousarray(labels).reshape(-1), mask=mask)
    return flat if labels.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, labels.shape[1])


def _tensors(values: FloatArray, missing: BoolArray) -> Any:
    type_ = pa.fixed_shape_tensor(pa.float32(), values.shape[1:])
    # Arrow's own way from NumPy makes the strides a part of the type, which say nothing where a dimension is 1.
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    mask = pa.array(missing) if missing.any() else None
    storage = pa.FixedSizeListArray.from_arrays(flat, type_.storage_type.list_size, mask=mask)
    return pa.ExtensionArray.from_storage(type_, storage)
