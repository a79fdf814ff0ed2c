"""PTB-XL: clinical 12-lead electrocardiograms of 10 s, version 1.0.3, at 100 Hz.

Two modalities: the limb leads I to aVF and the chest leads V1 to V6. Labels are the five diagnostic superclasses.

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7:154, 2020;
PhysioNet, doi:10.13026/kfzx-aw45. Labels and folds as in its `example_physionet.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from blossom_ray.core.scores import Task
from blossom_ray.core.section import Finding
from blossom_ray.data.dataset import Dataset, IntArray, Labels, LeftOut, Targets, left_out, targets_of
from blossom_ray.data.files.archives import is_file
from blossom_ray.data.files.cache import Arrays
from blossom_ray.data.sets.base import DatasetFacts, Download, standardised
from blossom_ray.data.sets.ptb_xl_files import DATABASE, PREPARED, SUPERCLASSES, Records, read_official, read_prepared
from blossom_ray.errors import DataError

VALIDATION_FOLD = 9
HELD_OUT_FOLD = 10


class PtbXlData(Download):
    """PTB-XL 1.0.3 (Wagner et al. 2020): 12-lead electrocardiograms of 10 s at 100 Hz, five diagnostic superclasses.

    Modalities `i_to_avf` (leads I to aVF) and `v1_to_v6` (V1 to V6), each (1000, 6), in mV: the paper's iToAvf and
    v1ToV6. Clients share the official folds 1 to 8; fold 10 is the held-out global test set. The paper of BLOSSOM:
    `labels: single`, `zscore: true`.
    """

    facts: ClassVar = DatasetFacts(
        title="PTB-XL 1.0.3 (Wagner et al. 2020)",
        holds="21,799 electrocardiograms of 10 s at 100 Hz; 16,244 have exactly one label",
        classes="5 diagnostic superclasses",
        tasks=("classification", "multilabel"),
        held_out="the official fold 10: 1,650 records with one label, 2,158 with any",
        download="the official PTB-XL 1.0.3 zip or its unpacked folder, or a prepared .npz file",
        page="PhysioNet (doi:10.13026/kfzx-aw45)",
        licence="CC BY 4.0",
        extra="ecg",
        shapes={"i_to_avf": (1000, 6), "v1_to_v6": (1000, 6)},
    )
    landmarks: ClassVar = (DATABASE, "signal.npy")  # a prepared file has an array of this name

    dataset: Literal["ptb-xl"]
    path: str | None = None
    """The official zip or the folder that it unpacks to (decoding needs the extra `ecg` once, then the cache has it),
    or a prepared `.npz` file. Relative to the working directory."""
    labels: Literal["single", "multi"] = "single"
    """`single`: records with exactly one superclass, for `task: classification`. `multi`: records with at least one,
    for `task: multilabel`. Statements count whatever their likelihood."""
    use_validation_fold: bool = False
    """Whether clients share fold 9, too. Otherwise it is left out."""
    zscore: bool = False
    """Whether each lead of each record is brought to mean 0 and deviation 1."""

    def task_problems(self, task: Task) -> Iterator[Finding]:
        yield from super().task_problems(task)
        suited = {"single": "classification", "multi": "multilabel"}
        if suited[self.labels] != task:
            expected = " or ".join(f"{labels!r} with task: {name}" for labels, name in suited.items())
            yield Finding("data.labels", f"is {self.labels!r}, while task is {task!r}", expected)

    def open(self, modalities: tuple[str, ...], _seed: int, _task: Task, /) -> PtbXl:
        return PtbXl(self, self.files(), self.known(modalities))


@dataclass(frozen=True)
class PtbXl:
    """The data set as a source. Fold 10 is held out, as its authors propose; clients share folds 1 to 8."""

    spec: PtbXlData
    path: Path
    modalities: tuple[str, ...]

    def targets(self) -> Targets:
        """As `DataSource`, patients where the files name them; no signal is decoded."""
        rows = self._client_rows()
        return targets_of(self._labels_of(rows), len(SUPERCLASSES), self._patients_of(rows))

    def load(self) -> Dataset:
        """As `DataSource`: (N, 1000, 6) by modality, in mV (official files) unless standardised."""
        signals = self._records.signals()
        held_out_rows = self._rows(HELD_OUT_FOLD, HELD_OUT_FOLD)
        held_out = self._part(signals, held_out_rows, None) if len(held_out_rows) else None
        return replace(self._part(signals, self._client_rows(), held_out), left_out=self._left_out())

    @property
    def _last_fold(self) -> int:
        return VALIDATION_FOLD if self.spec.use_validation_fold else VALIDATION_FOLD - 1

    @cached_property
    def _records(self) -> Records:
        if self.path.suffix.lower() == ".npz":
            return read_prepared(self.path)
        if is_file(self.path / PREPARED):
            return read_prepared(self.path / PREPARED)
        return read_official(self.path)

    @property
    def _num_labels(self) -> IntArray:
        return np.asarray(self._records.superclasses.sum(axis=1, dtype=np.int64))

    def _client_rows(self) -> IntArray:
        rows = self._rows(1, self._last_fold)
        if len(rows) == 0:
            kind = "exactly one superclass" if self.spec.labels == "single" else "a superclass"
            raise DataError(
                f"{self.path.name} has no record with {kind} in folds 1 to {self._last_fold}; expected some"
            )
        return rows

    def _rows(self, first_fold: int, last_fold: int) -> IntArray:
        folds, num_labels = self._records.folds, self._num_labels
        has_label = num_labels == 1 if self.spec.labels == "single" else num_labels >= 1
        return np.flatnonzero(has_label & (folds >= first_fold) & (folds <= last_fold))

    def _left_out(self) -> tuple[LeftOut, ...]:
        """Records by the first reason that holds."""
        records, names = self._records, np.array(self._records.names)
        chosen = np.concatenate([self._client_rows(), self._rows(HELD_OUT_FOLD, HELD_OUT_FOLD)])
        num_labels = self._num_labels
        is_left = np.ones(len(names), np.bool_)
        is_left[chosen] = False
        is_single = self.spec.labels == "single"
        reasons = {
            "records without a diagnostic superclass": num_labels == 0,
            "records with several superclasses (data.labels: single)": (num_labels > 1) & is_single,
            f"records of fold {VALIDATION_FOLD} (data.use_validation_fold: false)": records.folds == VALIDATION_FOLD,
        }
        found = records.left_out
        for what, holds in reasons.items():
            found += left_out(what, names[is_left & holds].tolist())
            is_left &= ~holds
        return found

    def _part(self, signals: Arrays, rows: IntArray, held_out: Dataset | None) -> Dataset:
        inputs = {}
        for modality in self.modalities:
            values = signals[modality][rows]
            inputs[modality] = standardised(values) if self.spec.zscore else values * np.float32(self._records.scale)
        return Dataset(inputs, self._labels_of(rows), SUPERCLASSES, self._patients_of(rows), held_out)

    def _labels_of(self, rows: IntArray) -> Labels:
        chosen = self._records.superclasses[rows]
        return chosen.argmax(axis=1).astype(np.int64) if self.spec.labels == "single" else chosen.astype(np.float32)

    def _patients_of(self, rows: IntArray) -> IntArray | None:
        return None if self._records.patients is None else self._records.patients[rows]
