"""PTB-XL, or a part of it, in one `.npz` file of plain arrays: how a subset is handed on without WFDB files.

    signal    (N, 1000, 12) int16, to be multiplied by `scale`
    scale     float32
    leads     (12,) text: I, II, III, AVR, AVL, AVF, V1 to V6
    label     (N, 5) uint8, 0 or 1 for each of `classes`
    classes   (5,) text: the superclasses
    split     (N,) text: train (folds 1 to 8), val (fold 9) or test (fold 10)

Patients are not in it. Other arrays are not read.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from blossom_ray.data.files.archives import Archive, open_archive
from blossom_ray.data.sets.content import rows_lacking
from blossom_ray.data.sets.ptb_xl_records import (
    LARGEST_MEMBER_BYTES,
    LEADS,
    LEADS_OF,
    NUM_RECORDS,
    NUM_STEPS,
    SUPERCLASSES,
    Records,
)
from blossom_ray.errors import DataError

PREPARED = "ptbxl_subset_100hz.npz"

_FOLD_OF_SPLIT = {"train": 1, "val": 9, "test": 10}


def read_prepared(path: Path) -> Records:
    """The records of a prepared file.

    Raises:
        DataError: It is missing, damaged, or an array is missing or of another type or shape.
    """
    with open_archive(path, landmark="signal.npy", largest_bytes=LARGEST_MEMBER_BYTES) as archive:
        signal = _array(archive, "signal", np.int16, 3)
        num_records = len(signal)
        arrays = {name: _array(archive, name, kind, axes) for name, kind, axes in _ARRAYS}
    leads, classes = arrays["leads"].tolist(), arrays["classes"].tolist()
    if signal.shape[1:] != (NUM_STEPS, len(LEADS)) or [lead.upper() for lead in leads] != list(LEADS):
        raise DataError(
            f"{path.name}: signal has shape {signal.shape} and leads {leads}; expected (records, {NUM_STEPS}, "
            f"{len(LEADS)}) and {', '.join(LEADS)}"
        )
    if sorted(classes) != sorted(SUPERCLASSES):
        raise DataError(f"{path.name}: classes are {classes}; expected {', '.join(SUPERCLASSES)}")
    label, split = arrays["label"], arrays["split"]
    if label.shape != (num_records, len(classes)) or split.shape != (num_records,) or label.max(initial=0) > 1:
        raise DataError(
            f"{path.name}: label has shape {label.shape} and split {split.shape}; expected a row of 0 and 1 and a "
            f"split for each of {num_records} records"
        )
    unknown = set(split.tolist()) - set(_FOLD_OF_SPLIT)
    if unknown:
        raise DataError(f"{path.name}: split has {min(unknown)!r}; expected one of {', '.join(_FOLD_OF_SPLIT)}")
    return Records(
        superclasses=label[:, [classes.index(name) for name in SUPERCLASSES]],
        folds=np.array([_FOLD_OF_SPLIT[name] for name in split.tolist()], np.int64),
        patients=None,
        signals=lambda: {modality: signal[:, :, leads] for modality, leads in LEADS_OF.items()},
        names=[f"row {row}" for row in range(1, num_records + 1)],
        left_out=rows_lacking("records", num_records, NUM_RECORDS),
        scale=float(arrays["scale"]),
    )


_ARRAYS: tuple[tuple[str, type[np.generic], int], ...] = (
    ("leads", np.str_, 1),
    ("classes", np.str_, 1),
    ("split", np.str_, 1),
    ("label", np.uint8, 2),
    ("scale", np.float32, 0),
)


def _array(archive: Archive, name: str, kind: type[np.generic], num_axes: int) -> np.ndarray:
    try:
        values: np.ndarray = np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
    except (ValueError, EOFError, TypeError, MemoryError, OverflowError) as error:  # a header that announces anything
        raise DataError(f"{archive.name}: {name}.npy is no array ({error}); download it again") from error
    if not np.issubdtype(values.dtype, kind) or values.ndim != num_axes:
        raise DataError(
            f"{archive.name}: {name} is {values.dtype} with {values.ndim} axes; expected {kind.__name__} with "
            f"{num_axes}"
        )
    return values
