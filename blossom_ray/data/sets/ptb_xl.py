"""PTB-XL: clinical 12-lead electrocardiograms of 10 s, version 1.0.3, at 100 Hz.

Two modalities: the limb leads I to aVF and the chest leads V1 to V6. Labels are the five diagnostic superclasses.

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7:154, 2020;
PhysioNet, doi:10.13026/kfzx-aw45. Labels and folds as in its `example_physionet.py`.
"""

from __future__ import annotations

import ast
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from blossom_ray.core.extras import module_of_extra
from blossom_ray.core.progress import tracked
from blossom_ray.core.scores import Task
from blossom_ray.core.section import Finding
from blossom_ray.data.dataset import Dataset, LabelColumn, LeftOut, left_out
from blossom_ray.data.files.archives import Archive, open_archive
from blossom_ray.data.files.cache import Arrays, cached
from blossom_ray.data.files.csv_tables import Row, check_unique, read_rows, whole_number
from blossom_ray.data.sets.base import DatasetFacts, Download, Opened, rows_lacking, standardised
from blossom_ray.data.targets import IntArray, Labels, Targets, targets_of
from blossom_ray.errors import DataError
from blossom_ray.storage import temporary_folder

ByteArray = npt.NDArray[np.uint8]

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
NUM_STEPS = 1000
NUM_RECORDS = 21_799
NUM_OF_SUPERCLASS = {"NORM": 9514, "MI": 5469, "STTC": 5235, "CD": 4898, "HYP": 2649}
VALIDATION_FOLD = 9
HELD_OUT_FOLD = 10

_LEADS_OF = {"i_to_avf": slice(0, 6), "v1_to_v6": slice(6, 12)}
_DATABASE = "ptbxl_database.csv"
_STATEMENTS = "scp_statements.csv"
_RECORD = re.compile(r"records100/\d{5}/\d{5}_lr")
_DECODING = 1
_PREPARED = "ptbxl_subset_100hz.npz"
_FOLD_OF_SPLIT = {"train": 1, "val": 9, "test": 10}


@dataclass(frozen=True)
class Records:
    """All records of a source, in its order.

    Attributes:
        superclasses: (N, 5) uint8: 1 where the record has the superclass, in the order of `SUPERCLASSES`.
        folds: (N,) int64: the official stratified fold, 1 to 10.
        patients: (N,) int64, or None where the source does not say.
        signals: Gives modality to (N, 1000, 6) int16.
        names: Of each record.
        left_out: What is not among them.
        scale: What a unit of `signals` stands for: 0.001 mV in the official files.
    """

    superclasses: ByteArray
    folds: IntArray
    patients: IntArray | None
    signals: Callable[[], Arrays]
    names: Sequence[str]
    left_out: tuple[LeftOut, ...]
    scale: float

    @property
    def num_labels(self) -> IntArray:
        """(N,) int64: superclasses of each record."""
        return np.asarray(self.superclasses.sum(axis=1, dtype=np.int64))


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
        labels={"superclasses": ("classification", "multilabel"), "normal": ("classification",)},
    )
    landmarks: ClassVar = (_DATABASE, "signal.npy")  # a prepared file has an array of this name
    largest_bytes: ClassVar = 1_000_000_000

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
        records = _read_records(opened)
        labels, patients = self._labelled(records, self._client_rows(opened, records))
        return targets_of(labels, len(SUPERCLASSES), patients)

    def read(self, opened: Opened, /) -> Dataset:
        """(N, 1000, 6) by modality, in mV (official files) unless standardised; fold 10 is held out."""
        records = _read_records(opened)
        signals = records.signals()

        def part(rows: IntArray, held_out: Dataset | None = None) -> Dataset:
            inputs = {}
            for modality in opened.modalities:
                values = signals[modality][rows]
                inputs[modality] = standardised(values) if self.zscore else values * np.float32(records.scale)
            labels, patients = self._labelled(records, rows)
            is_normal = records.superclasses[rows, SUPERCLASSES.index("NORM")].astype(np.int64)
            more = {"normal": LabelColumn(is_normal, ("abnormal", "normal"))}
            return Dataset(inputs, labels, SUPERCLASSES, patients, held_out, label_columns=more)

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

    def _labelled(self, records: Records, rows: IntArray) -> tuple[Labels, IntArray | None]:
        """Labels and patients of some records."""
        chosen, is_single = records.superclasses[rows], self.labels == "single"
        labels = chosen.argmax(axis=1).astype(np.int64) if is_single else chosen.astype(np.float32)
        return labels, None if records.patients is None else records.patients[rows]


def _read_records(opened: Opened) -> Records:
    for path in (opened.path, opened.path / _PREPARED):
        if path.suffix.lower() == ".npz" and (path == opened.path or os.path.isfile(path)):
            return _read_prepared(path, opened.spec.largest_bytes)
    return _read_official(opened)


def _read_official(opened: Opened) -> Records:
    """The records of the official zip or of the folder that it unpacks to; a cut of them has a shorter table.

    Only tables are read at once. Signals are decoded when they are first asked for, and cached.
    """
    with opened.archive() as archive:
        superclass_of = _superclass_of_code(archive)
        rows = read_rows(archive, _DATABASE, ("patient_id", "scp_codes", "strat_fold", "filename_lr"))
        table = f"{archive.name}: {_DATABASE}"
        superclasses = np.zeros((len(rows), len(SUPERCLASSES)), np.uint8)
        folds, patients = np.zeros((2, len(rows)), np.int64)
        for number, row in enumerate(rows):
            place, name = f"{table}, record {number + 1}", row["filename_lr"]
            for code in _codes(row["scp_codes"], place):
                if code in superclass_of:
                    superclasses[number, SUPERCLASSES.index(superclass_of[code])] = 1
            if not _RECORD.fullmatch(name):
                raise DataError(f"{place}: filename_lr is {name[:60]!r}; expected such as records100/00000/00001_lr")
            identity = row.get("ecg_id")
            if identity is not None and whole_number(identity) != _number_of(name):
                raise DataError(
                    f"{place}: ecg_id is {identity[:40]!r} and filename_lr {name}; expected the same number in both"
                )
            folds[number] = _integer(row, "strat_fold", 1, 10, "an integer from 1 to 10", place)
            patients[number] = _integer(row, "patient_id", 0, 2**53, "a number of a patient", place)
        _check_counts(superclasses, table)
        names = [row["filename_lr"] for row in rows]
        check_unique(table, "record", (str(_number_of(name)) for name in names))
        headers = (member for member in archive.members() if member.startswith("records100/") and member[-4:] == ".hea")
        unknown = sorted({member.removesuffix(".hea") for member in headers} - set(names))
    return Records(
        superclasses=superclasses,
        folds=folds,
        patients=patients,
        signals=lambda: _decoded(opened, names),
        names=names,
        left_out=(
            *rows_lacking("records", len(rows), NUM_RECORDS),
            *left_out(f"signals without a row in {_DATABASE}", unknown),
        ),
        scale=0.001,
    )


def _number_of(name: str) -> int:
    return int(name.rpartition("/")[2].removesuffix("_lr"))


def _superclass_of_code(archive: Archive) -> dict[str, str]:
    """Superclass of each diagnostic code; codes of form and rhythm have none."""
    found = {}
    rows = read_rows(archive, _STATEMENTS, ("diagnostic", "diagnostic_class"))
    # The first column has no name, until pandas saves the table again.
    code = next((column for column in ("Unnamed: 0", "", "scp_code") if column in rows[0]), None)
    if code is None:
        raise DataError(
            f"{archive.name}: {_STATEMENTS} has no column of codes among {', '.join(rows[0])[:200]}; expected one "
            "without a name"
        )
    for number, row in enumerate(rows, start=1):
        if whole_number(row["diagnostic"]) != 1:
            continue
        if row["diagnostic_class"] not in SUPERCLASSES:
            raise DataError(
                f"{archive.name}: {_STATEMENTS}: {row[code]} has diagnostic_class {row['diagnostic_class'][:40]!r}; "
                f"expected one of {', '.join(SUPERCLASSES)}"
            )
        if not row[code] or row[code].isdecimal():
            raise DataError(
                f"{archive.name}: {_STATEMENTS}, row {number} is for {row[code]!r}; expected a code as NORM"
            )
        found[row[code]] = row["diagnostic_class"]
    return found


def _codes(text: str, place: str) -> Mapping[str, float]:
    """Statements of a record with their likelihood, which does not count: 0 says that it is unknown."""
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        codes = None
    if not isinstance(codes, dict):
        raise DataError(f"{place}: scp_codes are {text[:60]!r}; expected such as {{'NORM': 100.0, 'SR': 0.0}}")
    return codes


def _integer(row: Row, column: str, low: int, high: int, expected: str, place: str) -> int:
    """An integer, which the official table writes as 15709.0."""
    value = whole_number(row[column])
    if value is None or not low <= value <= high:
        raise DataError(f"{place}: {column} is {row[column][:40]!r}; expected {expected}")
    return value


def _check_counts(superclasses: ByteArray, place: str) -> None:
    if len(superclasses) > NUM_RECORDS:
        raise DataError(
            f"{place} has {len(superclasses):,} records; expected version 1.0.3, which has {NUM_RECORDS:,} (earlier "
            f"versions hold duplicates)"
        )
    counts = dict(zip(SUPERCLASSES, superclasses.sum(axis=0, dtype=np.int64).tolist(), strict=True))
    if len(superclasses) == NUM_RECORDS and counts != NUM_OF_SUPERCLASS:
        raise DataError(f"{place} has {counts} records of the superclasses; expected {NUM_OF_SUPERCLASS}")


def _decoded(opened: Opened, names: list[str]) -> Arrays:
    """Microvolts by modality, (N, 1000, 6) int16."""
    with opened.archive() as archive:
        files = [f"{name}.{suffix}" for name in names for suffix in ("hea", "dat")]
        key = {"decoding": _DECODING, "files": archive.fingerprint(files)}
        return cached("ptb-xl", key, lambda: _decode(archive, names))


def _decode(archive: Archive, names: list[str]) -> Arrays:
    signals = {modality: np.empty((len(names), NUM_STEPS, 6), np.int16) for modality in _LEADS_OF}
    with temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb 4.3 calls what pandas 3 has deprecated
        wfdb = module_of_extra("wfdb", "decoding records of ptb-xl needs wfdb", "ecg")
        for number, name in enumerate(tracked(names, "decoding records")):
            microvolts = _decode_one(archive, name, folder, wfdb)
            for modality, leads in _LEADS_OF.items():
                signals[modality][number] = microvolts[:, leads]
    return signals


def _decode_one(archive: Archive, name: str, folder: Path, wfdb: Any) -> np.ndarray:
    """One record, (1000, 12) int16 in microvolts. wfdb reads files, so both are put into `folder` for it."""
    short = name.rsplit("/", maxsplit=1)[-1]
    place = f"{archive.name}: {name}"
    header = archive.read(f"{name}.hea")
    text = header.decode("latin1").splitlines()
    lines = [line.split() for line in text if line.strip() and not line.startswith("#")]
    # A header may name any other file, or one on the network: it is read only if it names the record's own.
    if not lines or lines[0][:4] != [short, "12", "100", str(NUM_STEPS)]:
        raise DataError(f"{place}.hea begins with {header[:60]!r}; expected '{short} 12 100 {NUM_STEPS}'")
    if [line[:2] for line in lines[1:]] != [[f"{short}.dat", "16"]] * len(LEADS):
        raise DataError(f"{place}.hea: expected {len(LEADS)} lines that begin with '{short}.dat 16'")
    files = {folder / f"{short}.hea": header, folder / f"{short}.dat": archive.read(f"{name}.dat")}
    try:
        for file, content in files.items():
            file.write_bytes(content)
        record = wfdb.rdrecord(str(folder / short), physical=False, return_res=16)
        digital, leads = record.d_signal, tuple(str(lead).upper() for lead in record.sig_name)
        microvolts = np.rint((digital.astype(np.float64) - record.baseline) * (1000 / np.array(record.adc_gain)))
    except OSError as error:
        raise DataError(f"{place} cannot be put into {folder} to decode it ({error.strerror or error})") from error
    except Exception as error:  # of many types
        raise DataError(f"{place} cannot be decoded ({type(error).__name__}: {error}); download it again") from error
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    if leads != LEADS or set(record.units) != {"mV"}:
        raise DataError(f"{place}.hea: leads {', '.join(leads)}; expected {', '.join(LEADS)} in mV")
    if digital.shape != (NUM_STEPS, len(LEADS)) or (digital == np.iinfo(np.int16).min).any():
        raise DataError(f"{place}.dat lacks samples; expected {NUM_STEPS} of {len(LEADS)} leads")
    if not (np.abs(microvolts) <= np.iinfo(np.int16).max).all():
        raise DataError(f"{place}.hea: a gain that makes it {np.nanmax(np.abs(microvolts))} µV; expected below 32,768")
    whole: np.ndarray = microvolts.astype(np.int16)
    return whole


def _read_prepared(path: Path, largest_bytes: int) -> Records:
    """The records of a prepared file, which has an array for each of them besides `signal`."""
    with open_archive(path, landmark="signal.npy", largest_bytes=largest_bytes) as archive:
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
        signals=lambda: {modality: signal[:, :, leads] for modality, leads in _LEADS_OF.items()},
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
