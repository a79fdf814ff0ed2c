"""UCI-HAR: Human Activity Recognition Using Smartphones 1.0, from the official files.

Windows of 128 steps at 50 Hz (2.56 s, neighbours overlap by half) from a phone at the waist of 30 subjects. Only
the raw windows, the labels and the subjects are read; the 561 hand-made features (`X_*.txt`) need not be there.

The files do not say which windows are of one recording, but the windows do: the first half of a window repeats the
second half of the one before it, value by value in each of the nine signals, as long as the recording lasts.

Source: Anguita et al., "A Public Domain Dataset for Human Activity Recognition Using Smartphones", ESANN 2013.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import numpy as np

from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Pieces, Targets
from blossom_ray.data.files.archives import Archive, open_archive
from blossom_ray.data.sets.content import rows_lacking
from blossom_ray.data.sets.windows import standardised
from blossom_ray.errors import DataError

MODALITIES = ("acc", "gyro")
CLASS_NAMES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
LANDMARK = "train/y_train.txt"

_NUM_WINDOWS = {"train": 7352, "test": 2947}
_WINDOW_STEPS = 128
_AXES = "xyz"


class UciHar:
    """The data set as a source: the official training part, and the official test part as held-out set.

    Smaller cuts of the official files are accepted; labels, subjects and signals of a part must agree.

    Args:
        path: The official zip (also inside the zip that the UCI repository hands out), or the folder that it
            unpacks to.
        modalities: Some of `acc` and `gyro`; the files of others are not read.
        acceleration: `body` (gravity removed) or `total`, in g. Angular velocity is in rad/s.
        zscore: Whether each axis of each window is brought to mean 0 and deviation 1; a constant axis becomes 0.

    Raises:
        DataError: A modality that the data set does not have, or a path in the home of nobody.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        modalities: tuple[str, ...] = MODALITIES,
        acceleration: Literal["body", "total"] = "body",
        zscore: bool = False,
    ) -> None:
        for modality in modalities:
            if modality not in MODALITIES:
                raise DataError(f"uci-har has no modality {modality!r}; expected some of {', '.join(MODALITIES)}")
        try:
            self._path = Path(path).expanduser()
        except RuntimeError as error:
            raise DataError(f"{path}: {error}; expected a zip file or a folder") from error
        self._modalities = tuple(sorted(modalities))
        self._signals = {"acc": f"{acceleration}_acc", "gyro": "body_gyro"}
        self._zscore = zscore

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` reads, sorted."""
        return self._modalities

    def targets(self) -> Targets:
        """Labels, subjects and recordings of the training part; one axis of one signal is read.

        Raises:
            DataError: The archive or one of the three files is missing, damaged or not as announced.
        """
        with self._open() as archive:
            labels, subjects = _labels_and_subjects(archive, "train")
            axis = _axis(archive, "train", self._signals[self._modalities[0]], _AXES[0], len(labels))
        return Targets(labels, len(CLASS_NAMES), subjects, pieces=_overlapping(axis, labels, subjects))

    def load(self) -> Dataset:
        """Both parts: inputs (N, 128, 3) float32 by modality, labels 0..5 in the order of `CLASS_NAMES`.

        Raises:
            DataError: The archive or one of its files is missing, damaged or not as announced.
        """
        with self._open() as archive:
            held_out = self._part(archive, "test", None)
            return self._part(archive, "train", held_out)

    def _open(self) -> AbstractContextManager[Archive]:
        return open_archive(self._path, landmark=LANDMARK)

    def _part(self, archive: Archive, part: str, held_out: Dataset | None) -> Dataset:
        labels, subjects = _labels_and_subjects(archive, part)
        inputs = {}
        pieces = None
        for modality in self._modalities:
            windows = _windows(archive, part, self._signals[modality], len(labels))
            if pieces is None:
                pieces = _overlapping(windows[:, :, 0], labels, subjects)
            inputs[modality] = standardised(windows) if self._zscore else windows
        missing = rows_lacking(f"windows of the {part} part", len(labels), _NUM_WINDOWS[part])
        missing += () if held_out is None else held_out.left_out
        return Dataset(inputs, labels, CLASS_NAMES, subjects, held_out, left_out=missing, pieces=pieces)


def _labels_and_subjects(archive: Archive, part: str) -> tuple[IntArray, IntArray]:
    member = f"{part}/y_{part}.txt"
    labels = archive.table(member, 1, np.int64)[:, 0]
    outside = (labels < 1) | (labels > len(CLASS_NAMES))
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"{archive.name}: {member}, row {row + 1}: label {labels[row]}; expected 1 to {len(CLASS_NAMES)}"
        )
    member = f"{part}/subject_{part}.txt"
    subjects = archive.table(member, 1, np.int64)[:, 0]
    _check_rows(archive, part, member, len(subjects), len(labels))
    return labels - 1, subjects


def _windows(archive: Archive, part: str, signal: str, num_rows: int) -> FloatArray:
    return np.stack([_axis(archive, part, signal, axis, num_rows) for axis in _AXES], axis=-1)


def _axis(archive: Archive, part: str, signal: str, axis: str, num_rows: int) -> FloatArray:
    """(num_rows, 128) float32."""
    member = f"{part}/Inertial Signals/{signal}_{axis}_{part}.txt"
    values = archive.table(member, _WINDOW_STEPS, np.float32)
    _check_rows(archive, part, member, len(values), num_rows)
    return values


def _overlapping(axis: FloatArray, labels: IntArray, subjects: IntArray) -> Pieces:
    """The recordings, numbered in the order of the files: a window goes on with the one before, or begins one.

    Args:
        axis: (N, 128) float32: one axis of one signal, as in the files.
        labels: (N,) int64.
        subjects: (N,) int64.
    """
    half = _WINDOW_STEPS // 2
    goes_on = (axis[1:, :half] == axis[:-1, half:]).all(axis=1)
    goes_on &= (labels[1:] == labels[:-1]) & (subjects[1:] == subjects[:-1])
    return Pieces(np.concatenate([[0], np.cumsum(~goes_on)]).astype(np.int64), half / _WINDOW_STEPS)


def _check_rows(archive: Archive, part: str, member: str, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(f"{archive.name}: {member} has {found} rows; expected {expected}, as many as y_{part}.txt")
