"""UCI-HAR: Human Activity Recognition Using Smartphones 1.0, from the official files.

Windows of 128 steps at 50 Hz (2.56 s, neighbours overlap by half) from a phone at the waist of 30 subjects. Only
the raw windows, the labels and the subjects are read; the 561 hand-made features (`X_*.txt`) need not be there.

The files do not say which windows are of one recording, but the windows do: the first half of a window repeats the
second half of the one before it, value by value in each of the nine signals, as long as the recording lasts.

Source: Anguita et al., "A Public Domain Dataset for Human Activity Recognition Using Smartphones", ESANN 2013.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.sets.base import DatasetFacts, Download, Opened, rows_lacking, standardised
from blossom_ray.data.targets import FloatArray, IntArray, Pieces, Targets
from blossom_ray.errors import DataError

CLASS_NAMES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")

_NUM_WINDOWS = {"train": 7352, "test": 2947}
_WINDOW_STEPS = 128
_AXES = "xyz"


class UciHarData(Download):
    """Human Activity Recognition Using Smartphones 1.0 (Anguita et al. 2013): 6 activities, 30 subjects.

    Modalities `acc` and `gyro`, windows of (128, 3). Clients share the official training part; the official test
    part (9 other subjects) is the held-out global test set.
    """

    facts: ClassVar = DatasetFacts(
        title="Human Activity Recognition Using Smartphones 1.0 (Anguita et al. 2013)",
        holds="7,352 windows of 2.56 s at 50 Hz from 21 subjects",
        classes="6 activities",
        tasks=("classification",),
        held_out="the official test part: 2,947 windows of 9 other subjects",
        download="the official 'UCI HAR Dataset.zip' or its unpacked folder",
        page="the UCI Machine Learning Repository, data set 240 (doi:10.24432/C54S4K)",
        licence="CC BY 4.0",
        shapes={"acc": (128, 3), "gyro": (128, 3)},
        labels={"activity": ("classification",), "subject": ("classification",)},
    )
    landmarks: ClassVar = ("train/y_train.txt",)

    dataset: Literal["uci-har"]
    path: str | None = None
    """The official `UCI HAR Dataset.zip`, or the folder it unpacks to. Relative to the working directory."""
    acceleration: Literal["body", "total"] = "body"
    """Which acceleration: `body` (gravity removed) or `total`, in g. Angular velocity is in rad/s."""
    zscore: bool = False
    """Whether each axis of each window is brought to mean 0 and deviation 1."""

    @property
    def num_subjects(self) -> int:
        return 21

    def read_targets(self, opened: Opened, /) -> Targets:
        """Labels, subjects and recordings; one axis of one signal is read."""
        with opened.archive() as archive:
            labels, subjects = _labels_and_subjects(archive, "train")
            axis = _axis(archive, "train", self._signal(opened.modalities[0]), _AXES[0], len(labels))
        return Targets(labels, len(CLASS_NAMES), subjects, pieces=_overlapping(axis, labels, subjects))

    def read(self, opened: Opened, /) -> Dataset:
        """(N, 128, 3) by modality, labels 0..5 in the order of `CLASS_NAMES`.

        Smaller cuts of the official files are accepted; labels, subjects and signals of a part must agree.
        """
        with opened.archive() as archive:
            held_out = self._part(opened, archive, "test", None)
            return self._part(opened, archive, "train", held_out)

    def _signal(self, modality: str) -> str:
        return f"{self.acceleration}_acc" if modality == "acc" else "body_gyro"

    def _part(self, opened: Opened, archive: Archive, part: str, held_out: Dataset | None) -> Dataset:
        labels, subjects = _labels_and_subjects(archive, part)
        inputs: dict[str, FloatArray] = {}
        for modality in opened.modalities:
            axes = [_axis(archive, part, self._signal(modality), axis, len(labels)) for axis in _AXES]
            if not inputs:
                pieces = _overlapping(axes[0], labels, subjects)
            windows = np.stack(axes, axis=-1)
            inputs[modality] = standardised(windows) if self.zscore else windows
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


def _axis(archive: Archive, part: str, signal: str, axis: str, num_rows: int) -> FloatArray:
    """(num_rows, 128) float32."""
    member = f"{part}/Inertial Signals/{signal}_{axis}_{part}.txt"
    values = archive.table(member, _WINDOW_STEPS, np.float32)
    _check_rows(archive, part, member, len(values), num_rows)
    return values


def _overlapping(axis: FloatArray, labels: IntArray, subjects: IntArray) -> Pieces:
    """The recordings, numbered in the order of the files: a window goes on with the one before, or begins one.

    One axis of one signal tells it, (N, 128) as in the files.
    """
    half = _WINDOW_STEPS // 2
    goes_on = (axis[1:, :half] == axis[:-1, half:]).all(axis=1)
    goes_on &= (labels[1:] == labels[:-1]) & (subjects[1:] == subjects[:-1])
    return Pieces(np.concatenate([[0], np.cumsum(~goes_on)]).astype(np.int64), half / _WINDOW_STEPS)


def _check_rows(archive: Archive, part: str, member: str, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(f"{archive.name}: {member} has {found} rows; expected {expected}, as many as y_{part}.txt")
