"""KU-HAR: an open data set for human activity recognition, from the official files, version 5.

90 people, 18 activities, accelerometer (m/s²) and gyroscope (rad/s) of a phone at the waist, interpolated to 100 Hz.
Two of the official files are read: the 20,750 windows of 3 s (`3.Time_domain_subsamples.zip`), which do not say whose
they are, or the trimmed recordings (`2.Trimmed_interpolated_data.zip`), which do, cut here into windows of 3 s.

Source: Sikder & Nahid, "KU-HAR: An open dataset for heterogeneous human activity recognition", Pattern Recognition
Letters 146, 2021; Mendeley Data, doi:10.17632/45f952y38r.5.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from blossom_ray.core.progress import tracked
from blossom_ray.data.dataset import Dataset, LeftOut, left_out
from blossom_ray.data.files.archives import Archive, open_archive
from blossom_ray.data.files.cache import Arrays, cached
from blossom_ray.data.sets.base import DatasetFacts, Download, Opened, Shapes, rows_lacking, standardised
from blossom_ray.data.targets import FloatArray, IntArray, Pieces, Targets
from blossom_ray.errors import DataError

CLASS_NAMES = (
    "Stand", "Sit", "Talk-sit", "Talk-stand", "Stand-sit", "Lay", "Lay-stand", "Pick", "Jump", "Push-up", "Sit-up",
    "Walk", "Walk-backwards", "Walk-circle", "Run", "Stair-up", "Stair-down", "Table-tennis",
)  # fmt: skip
PAPER_CLASS_NAMES = ("Stand", "Sit", "Lay", "Jump", "Walk", "Run", "Stair-up", "Stair-down")
WINDOW_STEPS = 300
NUM_WINDOWS = 20_750
SUBSAMPLES = "KU-HAR_time_domain_subsamples_20750x300.csv"
RECORDINGS = "0.Stand/"

_NUM_RECORDINGS = 1945
# Three axes of both sensors, one after the other; the class, the length and the number of the window.
_SUBSAMPLE_COLUMNS = 6 * WINDOW_STEPS + 3
# Time (ms), x, y, z of the accelerometer; the same of the gyroscope.
_RECORDING_COLUMNS = 8
_RECORDING = re.compile(r"(?P<label>\d{1,2})\.[^/]+/(?P<subject>\d{1,9})_[^/]*\.csv", re.IGNORECASE)
_OF_A_CLASS = re.compile(r"\d{1,2}\..*/.*")
_DECODING = 1
_CUTTING = 2


class KuHarData(Download):
    """KU-HAR, version 5 (Sikder & Nahid 2021): 18 activities, 90 people, 100 Hz.

    Modalities `acc` (m/s²) and `gyro` (rad/s), windows of 3 s: (300, 3), or (150, 3) at 50 Hz. There is no official
    test part, so no held-out set. The paper of BLOSSOM: `classes: paper`, `rate_hz: 50`, `zscore: true`.
    """

    facts: ClassVar = DatasetFacts(
        title="KU-HAR, version 5 (Sikder & Nahid 2021)",
        holds="20,750 windows of 3 s at 100 Hz; from recordings, as many as fit, of 90 people",
        classes="18 activities, or the paper's 8",
        tasks=("classification",),
        held_out="none",
        download=(
            "the official '3.Time_domain_subsamples.zip', its folder or CSV file, or with windows: recordings "
            "'2.Trimmed_interpolated_data.zip' or its folder"
        ),
        page="Mendeley Data (doi:10.17632/45f952y38r.5)",
        licence="CC BY 4.0",
        shapes={"acc": (300, 3), "gyro": (300, 3)},
        labels={"activity": ("classification",), "subject": ("classification",)},
    )
    landmarks: ClassVar = (SUBSAMPLES, RECORDINGS)
    largest_bytes: ClassVar = 1_000_000_000

    dataset: Literal["ku-har"]
    path: str | None = None
    """The official `3.Time_domain_subsamples.zip`, its folder or its CSV file; with `windows: recordings`
    `2.Trimmed_interpolated_data.zip` or its folder. Relative to the working directory."""
    windows: Literal["official", "recordings"] = "official"
    """`official`: the 20,750 windows as the authors cut them, which do not say whose they are. `recordings`: windows
    cut here from the trimmed recordings, without overlap, with subjects."""
    classes: Literal["all", "paper"] = "all"
    """`all`: 18 activities. `paper`: the 8 Stand, Sit, Lay, Jump, Walk, Run, Stair-up, Stair-down."""
    rate_hz: Literal[100, 50] = 100
    """Steps per second: as recorded, or every second step of it, without a filter."""
    zscore: bool = False
    """Whether each axis of each window is brought to mean 0 and deviation 1."""

    @property
    def shapes(self) -> Shapes:
        return dict.fromkeys(self.facts.shapes, (3 * self.rate_hz, 3))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes asked for, in their order."""
        return CLASS_NAMES if self.classes == "all" else PAPER_CLASS_NAMES

    def read_targets(self, opened: Opened, /) -> Targets:
        """Subjects and recordings of windows of recordings alone. All is decoded once and cached."""
        return self._chosen(opened, self._decoded(opened)[0])[1]

    def read(self, opened: Opened, /) -> Dataset:
        """(N, 300, 3) by modality, (N, 150, 3) at 50 Hz; labels in the order of the class names.

        Smaller cuts of the official files are accepted. Windows of recordings are cut one after the other from the
        first step on; what is left at the end is dropped, and so are the zeros with which the file of a sensor that
        stopped earlier is filled up. The number at the head of a file's name is the subject.
        """
        arrays, missing = self._decoded(opened)
        rows, targets = self._chosen(opened, arrays)
        inputs = {}
        for modality in opened.modalities:
            steps = np.ascontiguousarray(arrays[modality][rows, :: 100 // self.rate_hz])
            inputs[modality] = standardised(steps) if self.zscore else steps
        others = len(arrays["labels"]) - len(rows)
        if others:
            missing += (LeftOut("windows of other classes (data.classes: paper)", others),)
        names, pieces = self.class_names, targets.pieces
        return Dataset(inputs, targets.labels, names, targets.subjects, left_out=missing, pieces=pieces)

    def _chosen(self, opened: Opened, arrays: Arrays) -> tuple[IntArray, Targets]:
        """Rows of the classes asked for, and their targets; windows that were cut here do not overlap."""
        names, pieces = self.class_names, None
        new_labels = np.array([names.index(name) if name in names else -1 for name in CLASS_NAMES], np.int64)
        labels = new_labels[arrays["labels"]]
        rows = np.flatnonzero(labels >= 0)
        if len(rows) == 0:
            raise DataError(f"{opened.path.name} has no window of {', '.join(names)}; expected some")
        if "num_windows" in arrays:
            recordings = np.repeat(np.arange(len(arrays["num_windows"])), arrays["num_windows"])[rows]
            pieces = Pieces(np.unique(recordings, return_inverse=True)[1].astype(np.int64))
        subjects = arrays["subjects"][rows] if "subjects" in arrays else None
        return rows, Targets(labels[rows], len(names), subjects, pieces=pieces)

    def _decoded(self, opened: Opened) -> tuple[Arrays, tuple[LeftOut, ...]]:
        if self.windows == "official":
            with self._open(opened.path, SUBSAMPLES) as (archive, member):
                key: dict[str, object] = {"decoding": _DECODING, "files": archive.states([member])}
                arrays = cached("ku-har", key, lambda: _subsamples(archive, member))
            return arrays, rows_lacking("windows", len(arrays["labels"]), NUM_WINDOWS)
        with self._open(opened.path, RECORDINGS) as (archive, _):
            recordings = [member for member in archive.members() if _RECORDING.fullmatch(member)]
            key = {"decoding": _CUTTING, "files": archive.states(recordings)}
            arrays = cached("ku-har", key, lambda: _cut(archive, recordings))
            # What could be a recording by its folder or its suffix, and is none by its name.
            others = [
                member
                for member in archive.members()
                if (_OF_A_CLASS.fullmatch(member) or member.lower().endswith(".csv"))
                and not _RECORDING.fullmatch(member)
            ]
        short = [name for name, number in zip(recordings, arrays["num_windows"], strict=True) if number == 0]
        return arrays, (
            *left_out(f"recordings in which both sensors have fewer than {WINDOW_STEPS} steps", short),
            *rows_lacking("recordings", len(recordings), _NUM_RECORDINGS),
            *left_out("files whose names are no recording's, as <class>.<name>/<subject>_<any>.csv", others),
        )

    @contextmanager
    def _open(self, path: Path, landmark: str) -> Iterator[tuple[Archive, str]]:
        """The archive, and the name of its table: any `.csv` that `path` names itself."""
        if self.windows == "official" and path.suffix.lower() == ".csv" and os.path.isfile(path):
            path, landmark = path.parent, path.name
        with open_archive(path, landmark=landmark, largest_bytes=self.largest_bytes) as archive:
            yield archive, landmark


def _check_twice(archive: Archive, what: str, contents: Iterable[tuple[str, bytes]]) -> None:
    """Refuse a copy that has the same content under two names."""
    names: dict[bytes, str] = {}
    for name, content in contents:
        digest = hashlib.sha256(content).digest()
        if digest in names:
            raise DataError(f"{archive.name}: {names[digest]} and {name} are the same; expected each {what} once")
        names[digest] = name


def _subsamples(archive: Archive, member: str) -> Arrays:
    (name,) = tracked([member], "reading windows")
    table = archive.table(name, _SUBSAMPLE_COLUMNS, np.float32, delimiter=",")
    column = table[:, 6 * WINDOW_STEPS]
    wrong = ~np.isin(column, np.arange(len(CLASS_NAMES)))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{archive.name}: {member}, row {row + 1}: class {column[row]:g}; expected 0 to {len(CLASS_NAMES) - 1}"
        )
    labels = column.astype(np.int64)
    if len(table) > NUM_WINDOWS:
        raise DataError(f"{archive.name}: {member} has {len(table)} rows; expected at most {NUM_WINDOWS}")
    missing = set(range(len(CLASS_NAMES))) - set(labels.tolist())
    if len(table) == NUM_WINDOWS and missing:
        absent = ", ".join(CLASS_NAMES[label] for label in sorted(missing))
        raise DataError(f"{archive.name}: {member} has no window of {absent}; expected all {len(CLASS_NAMES)} classes")
    _check_twice(archive, "window", ((f"{member}, row {row}", line.tobytes()) for row, line in enumerate(table, 1)))
    axes = table[:, : 6 * WINDOW_STEPS].reshape(len(table), 2, 3, WINDOW_STEPS)
    acc, gyro = (np.ascontiguousarray(axes[:, sensor].transpose(0, 2, 1)) for sensor in range(2))
    return {"acc": acc, "gyro": gyro, "labels": labels}


def _cut(archive: Archive, recordings: list[str]) -> Arrays:
    if len(recordings) > _NUM_RECORDINGS:
        raise DataError(f"{archive.name} has {len(recordings)} recordings; expected at most {_NUM_RECORDINGS}")
    pieces: list[FloatArray] = []
    contents: list[tuple[str, bytes]] = []
    labels: list[int] = []
    subjects: list[int] = []
    for member in tracked(recordings, "cutting recordings"):
        name = _RECORDING.fullmatch(member)
        assert name is not None
        label = int(name["label"])
        if label >= len(CLASS_NAMES):
            raise DataError(f"{archive.name}: {member}: class {label}; expected 0 to {len(CLASS_NAMES) - 1}")
        table = archive.table(member, _RECORDING_COLUMNS, np.float32, delimiter=",")
        if np.array_equal(table[0], np.arange(_RECORDING_COLUMNS)):
            raise DataError(f"{archive.name}: {member} begins with numbers of its columns; expected measurements alone")
        contents.append((member, hashlib.sha256(table.tobytes()).digest()))
        # Up to the last step that both sensors recorded; zeros fill up the shorter one.
        recorded = [np.flatnonzero(table[:, columns].any(axis=1)) for columns in (slice(0, 4), slice(4, 8))]
        num_windows = min(int(steps[-1]) + 1 if len(steps) else 0 for steps in recorded) // WINDOW_STEPS
        pieces.append(table[: num_windows * WINDOW_STEPS].reshape(num_windows, WINDOW_STEPS, _RECORDING_COLUMNS))
        labels += [label] * num_windows
        subjects += [int(name["subject"])] * num_windows
    _check_twice(archive, "recording", contents)
    if not labels:
        raise DataError(f"{archive.name} has no recording of {WINDOW_STEPS} steps; expected the trimmed recordings")
    windows = np.concatenate(pieces)
    return {
        "acc": np.ascontiguousarray(windows[:, :, 1:4]),
        "gyro": np.ascontiguousarray(windows[:, :, 5:8]),
        "labels": np.array(labels, np.int64),
        "subjects": np.array(subjects, np.int64),
        "num_windows": np.array([len(piece) for piece in pieces], np.int64),
    }
