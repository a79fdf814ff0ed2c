"""PTB-XL: clinical 12-lead electrocardiograms of 10 s, version 1.0.3, at 100 Hz.

Two modalities: the limb leads I to aVF and the chest leads V1 to V6. Labels are the five diagnostic superclasses.

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7:154, 2020;
PhysioNet, doi:10.13026/kfzx-aw45. Labels and folds as in its `example_physionet.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels, LeftOut, Targets, left_out, targets_of
from blossom_ray.data.files.archives import is_file
from blossom_ray.data.files.cache import Arrays
from blossom_ray.data.sets.ptb_xl_files import LEADS_OF, PREPARED, SUPERCLASSES, Records, read_official, read_prepared
from blossom_ray.data.sets.windows import standardised
from blossom_ray.errors import DataError

MODALITIES = tuple(LEADS_OF)
VALIDATION_FOLD = 9
HELD_OUT_FOLD = 10


class PtbXl:
    """The data set as a source. Fold 10 is held out, as its authors propose; clients share folds 1 to 8.

    Args:
        path: The official zip or the folder that it unpacks to, or a prepared `.npz` file or a folder with it.
        modalities: Some of `i_to_avf` and `v1_to_v6`.
        labels: `single`: records with exactly one superclass, and that class. `multi`: records with at least one,
            and a column of 0 and 1 for each. The likelihood of statements does not count.
        use_validation_fold: Whether clients get fold 9 too; else it is left out.
        zscore: Whether each lead of each record is brought to mean 0 and deviation 1; a constant lead becomes 0.

    Raises:
        DataError: A modality that the data set does not have, or a path in the home of nobody.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        modalities: tuple[str, ...] = MODALITIES,
        labels: Literal["single", "multi"] = "single",
        use_validation_fold: bool = False,
        zscore: bool = False,
    ) -> None:
        for modality in modalities:
            if modality not in MODALITIES:
                raise DataError(f"ptb-xl has no modality {modality!r}; expected some of {', '.join(MODALITIES)}")
        try:
            self._path = Path(path).expanduser()
        except RuntimeError as error:
            raise DataError(f"{path}: {error}; expected a zip file or a folder") from error
        self._modalities = tuple(sorted(modalities))
        self._labels = labels
        self._last_fold = VALIDATION_FOLD if use_validation_fold else VALIDATION_FOLD - 1
        self._zscore = zscore

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` gives, sorted."""
        return self._modalities

    def targets(self) -> Targets:
        """Labels, and patients where the source names them; no signal is decoded.

        Raises:
            DataError: The archive or one of its tables is missing, damaged or not as announced.
        """
        rows = self._client_rows()
        return targets_of(self._labels_of(rows), len(SUPERCLASSES), self._patients_of(rows))

    def load(self) -> Dataset:
        """Inputs (N, 1000, 6) float32 by modality, in mV (official files) unless standardised.

        Raises:
            DataError: The archive or one of its files is missing, damaged or not as announced.
        """
        signals = self._records.signals()
        held_out_rows = self._rows(HELD_OUT_FOLD, HELD_OUT_FOLD)
        held_out = self._part(signals, held_out_rows, None) if len(held_out_rows) else None
        return replace(self._part(signals, self._client_rows(), held_out), left_out=self._left_out())

    @cached_property
    def _records(self) -> Records:
        if self._path.suffix.lower() == ".npz":
            return read_prepared(self._path)
        if is_file(self._path / PREPARED):
            return read_prepared(self._path / PREPARED)
        return read_official(self._path)

    def _client_rows(self) -> IntArray:
        rows = self._rows(1, self._last_fold)
        if len(rows) == 0:
            kind = "exactly one superclass" if self._labels == "single" else "a superclass"
            raise DataError(
                f"{self._path.name} has no record with {kind} in folds 1 to {self._last_fold}; expected some"
            )
        return rows

    def _rows(self, first_fold: int, last_fold: int) -> IntArray:
        records = self._records
        num_labels = records.superclasses.sum(axis=1, dtype=np.int64)
        has_label = num_labels == 1 if self._labels == "single" else num_labels >= 1
        return np.flatnonzero(has_label & (records.folds >= first_fold) & (records.folds <= last_fold))

    def _left_out(self) -> tuple[LeftOut, ...]:
        """Records by the first reason that holds."""
        records, names = self._records, np.array(self._records.names)
        chosen = np.concatenate([self._client_rows(), self._rows(HELD_OUT_FOLD, HELD_OUT_FOLD)])
        num_labels = records.superclasses.sum(axis=1, dtype=np.int64)
        is_left = np.ones(len(names), np.bool_)
        is_left[chosen] = False
        reasons = {
            "records without a diagnostic superclass": num_labels == 0,
            "records with several superclasses (data.labels: single)": (num_labels > 1) & (self._labels == "single"),
            f"records of fold {VALIDATION_FOLD} (data.use_validation_fold: false)": records.folds == VALIDATION_FOLD,
        }
        found = records.left_out
        for what, holds in reasons.items():
            found += left_out(what, names[is_left & holds].tolist())
            is_left &= ~holds
        return found

    def _part(self, signals: Arrays, rows: IntArray, held_out: Dataset | None) -> Dataset:
        inputs = {modality: self._inputs(signals[modality][rows]) for modality in self._modalities}
        return Dataset(inputs, self._labels_of(rows), SUPERCLASSES, self._patients_of(rows), held_out)

    def _inputs(self, values: np.ndarray) -> FloatArray:
        return standardised(values) if self._zscore else values * np.float32(self._records.scale)

    def _labels_of(self, rows: IntArray) -> Labels:
        chosen = self._records.superclasses[rows]
        return chosen.argmax(axis=1).astype(np.int64) if self._labels == "single" else chosen.astype(np.float32)

    def _patients_of(self, rows: IntArray) -> IntArray | None:
        return None if self._records.patients is None else self._records.patients[rows]
