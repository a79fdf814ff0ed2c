"""A data set as a file that `dataset: table` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from blossom_ray.core.locations import local_path
from blossom_ray.data.clients import HELD_OUT, SPLITS
from blossom_ray.data.dataset import Dataset, FloatArray, LeftOut, is_missing
from blossom_ray.errors import RunFolderError
from blossom_ray.storage import replacing

_ROWS_AT_ONCE = 4096
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
    """

    left_out: tuple[LeftOut, ...] = ()
    has_recordings: bool = False
    overlap: float | None = None
    client_names: tuple[str, ...] = ()
    subject_names: tuple[str, ...] = ()


NOTES = TypeAdapter(Notes)


def write_table(dataset: Dataset, path: str | Path) -> Path:
    """Write a data set as one Arrow file, which `dataset: table` reads with the same values and fingerprint.

    Columns: a fixed-shape tensor per modality, null where a client lacks it, `label` (the class's number, or a list of
    float32), `subject` and `split` (`train`, then `test` for the held-out set), `recording` where samples share
    recordings, and `piece_of` where they are pieces of recordings. Where the data say whose samples they are, `client`,
    and `split` has the clients' own splits and `held-out`: read it with `data.partition: {kind: given}`. What is left
    out of the data set is noted in the file. Class names stand in no file: give them as `data.class_names`.

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
    for column in ("label", "subject", "split", *(name for name, rows in optional.items() if rows is not None)):
        if column in dataset.inputs:
            raise RunFolderError(f"{target}: a modality is called {column!r}, as a column is; expected another name")
    held_out = "test" if dataset.clients is None else HELD_OUT
    parts = {"train": dataset} | ({} if dataset.held_out is None else {held_out: dataset.held_out})
    given = dataset.given_clients
    names = () if given is None else given.names
    schema = _schema(dataset, names)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(target, shared=True) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for split, part in parts.items():
                for start in range(0, part.num_samples, _ROWS_AT_ONCE):
                    writer.write_batch(_batch(part, slice(start, start + _ROWS_AT_ONCE), split, schema, names))
    except OSError as error:
        raise RunFolderError(f"{target} cannot be written: {error}") from error
    return target


def _schema(dataset: Dataset, client_names: tuple[str, ...]) -> Any:
    fields = {
        modality: pa.fixed_shape_tensor(pa.float32(), shape) for modality, shape in sorted(dataset.input_shapes.items())
    }
    width = dataset.labels.shape[1:]
    fields["label"] = pa.list_(pa.float32(), width[0]) if width else pa.int64()
    if dataset.subjects is not None:
        fields["subject"] = pa.int64()
    fields["split"] = pa.string()
    if dataset.recordings is not None:
        fields["recording"] = pa.int64()
    if dataset.pieces is not None:
        fields[PIECE_OF] = pa.int64()
    if dataset.clients is not None:
        fields["client"] = pa.string()
    overlap = None if dataset.pieces is None else dataset.pieces.overlap
    notes = Notes(dataset.left_out, dataset.recordings is not None, overlap, client_names, dataset.subject_names)
    return pa.schema(fields, None if notes == Notes() else {NOTES_KEY: NOTES.dump_json(notes)})


def _batch(part: Dataset, rows: slice, split: str, schema: Any, client_names: tuple[str, ...]) -> Any:
    labels = part.labels[rows]
    columns = {
        modality: _tensors(values[rows], schema.field(modality).type) for modality, values in part.inputs.items()
    }
    flat = pa.array(np.ascontiguousarray(labels).reshape(-1))
    columns["label"] = flat if labels.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, labels.shape[1])
    numbers = {"subject": part.subjects, "recording": part.recordings}
    numbers[PIECE_OF] = None if part.pieces is None else part.pieces.recordings
    for name, values in numbers.items():
        columns[name] = pa.nulls(len(labels), pa.int64()) if values is None else pa.array(values[rows])
    columns["client"], columns["split"] = pa.nulls(len(labels), pa.string()), pa.array([split] * len(labels))
    if part.clients is not None:
        columns["client"] = pa.array([client_names[client] for client in part.clients[rows]])
    if part.splits is not None:
        columns["split"] = pa.array([SPLITS[number] for number in part.splits[rows]])
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _tensors(values: FloatArray, type_: Any) -> Any:
    # Arrow's own way from NumPy makes the strides a part of the type, which say nothing where a dimension is 1.
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    missing = is_missing(values)
    mask = pa.array(missing) if missing.any() else None
    storage = pa.FixedSizeListArray.from_arrays(flat, type_.storage_type.list_size, mask=mask)
    return pa.ExtensionArray.from_storage(type_, storage)
