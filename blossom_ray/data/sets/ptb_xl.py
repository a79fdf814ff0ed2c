"""PTB-XL: clinical 12-lead electrocardiograms of 10 s, version 1.0.3, at 100 Hz.

Two modalities: the limb leads I to aVF and the chest leads V1 to V6. Labels are the five diagnostic superclasses.

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7:154, 2020;
PhysioNet, doi:10.13026/kfzx-aw45. Labels and folds as in its `example_physionet.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from blossom_ray.core.scores import Task
from blossom_ray.core.section import Finding
from blossom_ray.data.dataset import Dataset, IntArray, Labels, LeftOut, Targets, left_out, targets_of
from blossom_ray.data.files.archives import is_file
from blossom_ray.data.sets.base import DatasetFacts, Download, Opened, standardised
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

    def read_targets(self, opened: Opened, /) -> Targets:
        """Labels, and patients where the files name them; no signal is decoded."""
        records = _read_records(opened.path)
        rows = self._client_rows(opened, records)
        return targets_of(self._labels_of(records, rows), len(SUPERCLASSES), _patients_of(records, rows))

    def read(self, opened: Opened, /) -> Dataset:
        """(N, 1000, 6) by modality, in mV (official files) unless standardised; fold 10 is held out."""
        records = _read_records(opened.path)
        signals = records.signals()

        def part(rows: IntArray, held_out: Dataset | None = None) -> Dataset:
            inputs = {}
            for modality in opened.modalities:
                values = signals[modality][rows]
                inputs[modality] = standardised(values) if self.zscore else values * np.float32(records.scale)
            labels, patients = self._labels_of(records, rows), _patients_of(records, rows)
            return Dataset(inputs, labels, SUPERCLASSES, patients, held_out)

        held_out_rows = self._rows(records, HELD_OUT_FOLD, HELD_OUT_FOLD)
        held_out = part(held_out_rows) if len(held_out_rows) else None
        rows = self._client_rows(opened, records)
        missing = self._left_out(records, np.concatenate([rows, held_out_rows]))
        return replace(part(rows, held_out), left_out=missing)

    def _client_rows(self, opened: Opened, records: Records) -> IntArray:
        last_fold = VALIDATION_FOLD if self.use_validation_fold else VALIDATION_FOLD - 1
        rows = self._rows(records, 1, last_fold)
        if len(rows) == 0:
            kind = "exactly one superclass" if self.labels == "single" else "a superclass"
            raise DataError(f"{opened.path.name} has no record with {kind} in folds 1 to {last_fold}; expected some")
        return rows

    def _rows(self, records: Records, first_fold: int, last_fold: int) -> IntArray:
        folds, num_labels = records.folds, records.num_labels
        has_label = num_labels == 1 if self.labels == "single" else num_labels >= 1
        return np.flatnonzero(has_label & (folds >= first_fold) & (folds <= last_fold))

    def _left_out(self, records: Records, chosen: IntArray) -> tuple[LeftOut, ...]:
        """Records by the first reason that holds."""
        names, num_labels = np.array(records.names), records.num_labels
        is_left = np.ones(len(names), np.bool_)
        is_left[chosen] = False
        is_single = self.labels == "single"
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

    def _labels_of(self, records: Records, rows: IntArray) -> Labels:
        chosen = records.superclasses[rows]
        return chosen.argmax(axis=1).astype(np.int64) if self.labels == "single" else chosen.astype(np.float32)


def _read_records(path: Path) -> Records:
    if path.suffix.lower() == ".npz":
        return read_prepared(path)
    if is_file(path / PREPARED):
        return read_prepared(path / PREPARED)
    return read_official(path)


def _patients_of(records: Records, rows: IntArray) -> IntArray | None:
    return None if records.patients is None else records.patients[rows]
