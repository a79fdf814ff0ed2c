"""PTB-XL from small records in the official layout, and from the real subset."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import opened

from blossom_ray.data.files.cache import FOLDER_VARIABLE
from blossom_ray.data.sets import ptb_xl
from blossom_ray.data.sets.ptb_xl import LEADS, NUM_OF_SUPERCLASS, NUM_RECORDS, SUPERCLASSES
from blossom_ray.errors import DataError
from blossom_ray.reading.scenario import Scenario

pytestmark = pytest.mark.slow

SUBSET = Path(__file__).parents[3] / "shared/data/PTB-XL-subset"
COLUMNS = ["ecg_id", "patient_id", "age", "report", "scp_codes", "strat_fold", "filename_lr", "filename_hr"]
STATEMENTS = (
    ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
    "NORM,normal ECG,1.0,,,NORM,NORM\n"
    "IMI,inferior myocardial infarction,1.0,,,MI,IMI\n"
    'ISC_,"non-specific, ischemic",1.0,1.0,,STTC,ISC_\n'
    "CLBBB,complete left bundle branch block,1.0,,,CD,CLBBB\n"
    "LVH,left ventricular hypertrophy,1.0,,,HYP,LVH\n"
    "SR,sinus rhythm,,,1.0,,\n"
)
# Statements, fold and patient of each record.
RECORDS = [
    ("{'NORM': 100.0, 'SR': 0.0}", 1, 15709.0),
    ("{'IMI': 0.0}", 8, 13243.0),
    ("{'LVH': 50.0, 'ISC_': 35.0, 'SR': 0.0}", 3, 13243.0),
    ("{'SR': 0.0}", 4, 7.0),
    ("{'CLBBB': 100.0}", 9, 8.0),
    ("{'NORM': 80.0}", 10, 9.0),
    ("{'IMI': 100.0, 'CLBBB': 100.0}", 10, 9.0),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def digital(number: int) -> np.ndarray:
    """(1000, 12) microvolts of a record, as large as the format holds."""
    return np.random.default_rng(number).integers(-32767, 32768, (1000, 12))


def name_of(number: int, rate: str = "lr") -> str:
    return f"records{'100' if rate == 'lr' else '500'}/00000/{number:05d}_{rate}"


def write_record(folder: Path, number: int, signal: np.ndarray, **changes: Any) -> None:
    path = folder / name_of(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "fs": 100,
        "units": ["mV"] * 12,
        "sig_name": list(LEADS),
        "fmt": ["16"] * 12,
        "adc_gain": [1000.0] * 12,
        "baseline": [0] * 12,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb 4.3 calls what pandas 3 has deprecated
        import wfdb

        wfdb.wrsamp(path.name, d_signal=signal, write_dir=str(path.parent), **(facts | changes))


def database(records: list[tuple[str, int, float]]) -> str:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for number, (codes, fold, patient) in enumerate(records, start=1):
        report = "sinusrhythmus,\nlagetyp normal"  # the real reports have line breaks, too
        table.writerow([number, patient, 56.0, report, codes, fold, name_of(number), name_of(number, "hr")])
    return text.getvalue()


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Seven records in the official layout, unpacked."""
    folder = tmp_path / "ptb-xl-1.0.3"
    for number in range(1, len(RECORDS) + 1):
        write_record(folder, number, digital(number))
    (folder / "ptbxl_database.csv").write_text(database(RECORDS))
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    return folder


def as_zip(folder: Path) -> Path:
    path = folder.with_name("official.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in sorted(folder.rglob("*.*")):
            bundle.write(file, f"a-large-dataset-1.0.3/{file.relative_to(folder)}")
    return path


@pytest.mark.parametrize("layout", [lambda folder: folder, lambda folder: folder.parent, as_zip])
def test_records_with_one_superclass(layout: Callable[[Path], Path], official: Path) -> None:
    dataset = opened("ptb-xl", layout(official)).load()
    assert dataset.class_names == ("NORM", "MI", "STTC", "CD", "HYP")
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.subjects is not None
    assert dataset.subjects.tolist() == [15709, 13243]
    assert dataset.held_out is not None
    assert dataset.held_out.labels.tolist() == [0]
    for part, numbers in ((dataset, [1, 2]), (dataset.held_out, [6])):
        millivolts = np.stack([digital(number) for number in numbers]).astype(np.float32) * np.float32(0.001)
        assert np.array_equal(part.inputs["i_to_avf"], millivolts[:, :, :6])
        assert np.array_equal(part.inputs["v1_to_v6"], millivolts[:, :, 6:])


def test_records_with_any_superclass(official: Path) -> None:
    source = opened("ptb-xl", official, labels="multi", modalities=("v1_to_v6",))
    dataset = source.load()
    assert dataset.task == "multilabel"
    assert dataset.labels.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert dataset.held_out is not None
    assert dataset.held_out.labels.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
    assert set(dataset.inputs) == {"v1_to_v6"}
    assert source.targets().subjects.tolist() == [15709, 13243, 13243]


def test_the_validation_fold_goes_to_clients_when_asked(official: Path) -> None:
    assert opened("ptb-xl", official, use_validation_fold=True).load().labels.tolist() == [0, 1, 3]


def test_each_lead_of_each_record_is_standardised(official: Path) -> None:
    write_record(official, 1, np.where(np.arange(12) == 3, 17, digital(1)))
    values = opened("ptb-xl", official, zscore=True).load().inputs["i_to_avf"]
    assert np.all(values[0, :, 3] == 0)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.delete(values.std(axis=1).ravel(), 3), 1, atol=1e-5)


def test_gain_and_baseline_of_the_header_count(official: Path) -> None:
    changes = {"adc_gain": [200.0] * 12, "baseline": [40] * 12}
    write_record(official, 1, np.full((1000, 12), 240), **changes)
    assert np.all(opened("ptb-xl", official).load().inputs["v1_to_v6"][0] == np.float32(1))
    write_record(official, 1, np.full((1000, 12), 30000), **changes)
    with pytest.raises(DataError, match=r"00001_lr.hea: a gain that makes it 149800.0 µV; expected below 32,768"):
        opened("ptb-xl", official).load()


def test_labels_need_no_record_and_no_wfdb(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in official.rglob("*_lr.*"):
        file.unlink()
    assert opened("ptb-xl", official).targets().labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"records100/00000/00001_lr.hea is missing"):
        opened("ptb-xl", official).load()


def test_signals_are_decoded_once(official: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_zip(official)
    first = opened("ptb-xl", path).load()
    assert [entry.name[:7] for entry in own_cache.iterdir() if not entry.name.startswith(".")] == ["ptb-xl-"]

    def fails(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(ptb_xl, "_decode", fails)
    again = opened("ptb-xl", path, labels="multi").load()
    assert np.array_equal(again.inputs["i_to_avf"][:2], first.inputs["i_to_avf"])


def test_without_wfdb_the_message_says_what_to_install(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(DataError, match=r"needs wfdb, which is not installed; pip install 'blossom-ray\[ecg\]'"):
        opened("ptb-xl", official).load()


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def cut(file: str, num_bytes: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:num_bytes]) and None


HEADER = name_of(1) + ".hea"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no statements": (lambda folder: (folder / "scp_statements.csv").unlink(), "scp_statements.csv is missing"),
    "no column": (
        replace("ptbxl_database.csv", "scp_codes", "codes"),
        "ptbxl_database.csv has no column 'scp_codes' among 'ecg_id', 'patient_id', .*; expected a CSV file in UTF-8",
    ),
    "no rows": (lambda folder: (folder / "ptbxl_database.csv").write_text(database([])) and None, "has no rows"),
    "not a text": (
        lambda folder: (folder / "ptbxl_database.csv").write_bytes(b"\xff\xfe\x00") and None,
        "cannot be read .*; expected a CSV file in UTF-8",
    ),
    "another class": (replace("scp_statements.csv", ",CD,", ",XX,"), "CLBBB has diagnostic_class 'XX'; expected one"),
    "codes that are no mapping": (
        replace("ptbxl_database.csv", "{'IMI': 0.0}", "IMI"),
        r"record 2: scp_codes are 'IMI'; expected such as \{'NORM'",
    ),
    "a fold": (replace("ptbxl_database.csv", ",8,records", ",11,records"), "strat_fold is '11'; .* from 1 to 10"),
    "a patient": (replace("ptbxl_database.csv", "15709.0", "x"), "record 1: patient_id is 'x'; expected a number of"),
    "a path": (
        replace("ptbxl_database.csv", "records100/00000/00001_lr", "../../secret"),
        "record 1: filename_lr is '../../secret'; expected such as records100/00000/00001_lr",
    ),
    "another rate": (replace(HEADER, " 12 100 1000", " 12 500 5000"), "expected '00001_lr 12 100 1000'"),
    "an empty header": (cut(HEADER, 0), "00001_lr.hea begins with b''"),
    "another file": (replace(HEADER, "00001_lr.dat 16", "/etc/passwd 16"), "expected 12 lines that begin with"),
    "another lead": (replace(HEADER, "AVF", "X"), "leads I, II, III, AVR, AVL, X, .*; expected I, II"),
    "another unit": (replace(HEADER, "/mV", "/uV"), "00001_lr.hea: leads .*; expected .* in mV"),
    "a cut signal": (cut(name_of(1) + ".dat", 23_000), r"00001_lr (cannot be decoded|.dat lacks samples)"),
    "no number": (replace(HEADER, "1000.0(0)/mV", "0(0)/mV"), "a gain that makes it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, official: Path) -> None:
    change, message = FAULTS[fault]
    change(official)
    with pytest.raises(DataError, match=message):
        opened("ptb-xl", official).load()


def test_missing_samples_are_told(official: Path) -> None:
    signal = digital(1)
    signal[5, 7] = -32768
    write_record(official, 1, signal)
    with pytest.raises(DataError, match=r"00001_lr.dat lacks samples; expected 1000 of 12 leads"):
        opened("ptb-xl", official).load()


def all_records() -> list[tuple[str, int, float]]:
    """As many records of each superclass as version 1.0.3 has."""
    codes = {"NORM": "NORM", "MI": "IMI", "STTC": "ISC_", "CD": "CLBBB", "HYP": "LVH"}
    statements: list[list[str]] = [[] for _ in range(NUM_RECORDS)]
    for number, (superclass, count) in enumerate(NUM_OF_SUPERCLASS.items()):
        for row in range(count):
            statements[(row + 4000 * number) % NUM_RECORDS].append(f"'{codes[superclass]}': 100.0")
    return [("{" + ", ".join(names) + "}", 1, 1.0) for names in statements]


def test_the_whole_table_is_counted(official: Path) -> None:
    records = all_records()
    (official / "ptbxl_database.csv").write_text(database(records))
    assert len(opened("ptb-xl", official, labels="multi").targets().labels) > 0
    (official / "ptbxl_database.csv").write_text(database([*records[:-1], ("{'LVH': 1.0, 'IMI': 1.0}", 1, 1.0)]))
    with pytest.raises(DataError, match=r"has .*'HYP': 26\d\d.* records of the superclasses; expected .*'HYP': 2649"):
        opened("ptb-xl", official).targets()
    (official / "ptbxl_database.csv").write_text(database([*records, records[0]]))
    with pytest.raises(DataError, match=r"has 21,800 records; expected version 1.0.3, which has 21,799"):
        opened("ptb-xl", official).targets()


def test_a_cut_without_rows_for_clients(official: Path) -> None:
    (official / "ptbxl_database.csv").write_text(database([("{'NORM': 1.0}", 10, 1.0)]))
    with pytest.raises(DataError, match=r"no record with exactly one superclass in folds 1 to 8; expected some"):
        opened("ptb-xl", official).targets()
    (official / "ptbxl_database.csv").write_text(database([("{'NORM': 1.0}", 1, 1.0)]))
    assert opened("ptb-xl", official).load().held_out is None


def test_a_path_or_modality_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ptb-xl has no modality 'audio'; expected some of i_to_avf, v1_to_v6"):
        opened("ptb-xl", tmp_path, modalities=("audio",))
    with pytest.raises(DataError, match=r"holds no ptbxl_database.csv"):
        opened("ptb-xl", tmp_path).targets()
    with pytest.raises(DataError, match=r"x.npz does not exist"):
        opened("ptb-xl", tmp_path / "x.npz").targets()
    with pytest.raises(DataError, match=r"expected the official"):
        opened("ptb-xl", "~nobody-of-that-name/x")


# --- the prepared file --------------------------------------------------------------------------------------------


def prepared(**changes: Any) -> dict[str, np.ndarray]:
    return {
        "signal": np.stack([digital(number) for number in range(4)]).astype(np.int16),
        "scale": np.float32(0.002),
        "leads": np.array(LEADS),
        "label": np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]], np.uint8),
        "classes": np.array(["MI", "NORM", "STTC", "CD", "HYP"]),
        "split": np.array(["train", "train", "val", "test"]),
    } | changes


def test_a_prepared_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "ptbxl_subset_100hz.npz", **prepared())
    for path in (tmp_path, tmp_path / "ptbxl_subset_100hz.npz"):
        dataset = opened("ptb-xl", path).load()
        assert dataset.labels.tolist() == [1, 2]
        assert dataset.subjects is None
        assert dataset.held_out is not None
        assert dataset.held_out.labels.tolist() == [4]
        expected = digital(1)[:, 6:].astype(np.float32) * np.float32(0.002)
        assert np.array_equal(dataset.inputs["v1_to_v6"][1], expected)
    multi = opened("ptb-xl", tmp_path, labels="multi", use_validation_fold=True).load()
    assert multi.labels.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": np.zeros((4, 1000, 12), np.float32)}, "signal is float32 with 3 axes; expected int16 with 3"),
        ({"signal": np.zeros((4, 500, 12), np.int16)}, r"signal has shape \(4, 500, 12\) .*expected \(records, 1000"),
        ({"leads": np.array(LEADS[::-1])}, "leads .*; expected .* and I, II, III"),
        ({"classes": np.array(["A", "B", "C", "D", "E"])}, "classes are .*; expected NORM, MI"),
        ({"split": np.array(["train", "train", "dev", "test"])}, "split has 'dev'; expected one of train, val, test"),
        ({"label": np.ones((3, 5), np.uint8)}, r"label has shape \(3, 5\) .*each of 4 records"),
        ({"label": np.full((4, 5), 2, np.uint8)}, "expected a row of 0 and 1"),
        ({"split": np.array([{}, {}, {}, {}], object)}, "split.npy is no array"),
    ],
)
def test_faults_of_a_prepared_file(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **prepared(**changes))
    with pytest.raises(DataError, match=message):
        opened("ptb-xl", tmp_path / "own.npz").targets()


def test_a_prepared_file_that_announces_too_much(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **prepared())
    with zipfile.ZipFile(tmp_path / "own.npz") as bundle:
        members = {name: bundle.read(name) for name in bundle.namelist()}
    members["signal.npy"] = members["signal.npy"].replace(b"(4, 1000, 12)", b"(4, 9000000000000, 12)")
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    with pytest.raises(DataError, match=r"own.npz: signal.npy is no array"):
        opened("ptb-xl", tmp_path / "own.npz").targets()


def test_a_prepared_file_that_lacks_an_array(tmp_path: Path) -> None:
    arrays = prepared()
    del arrays["split"]
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=r"own.npz: split.npy is missing"):
        opened("ptb-xl", tmp_path / "own.npz").targets()


# --- real records -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subset() -> Path:
    if not SUBSET.exists():
        pytest.skip(f"the real records are not at {SUBSET}")
    return SUBSET


@pytest.mark.data
def test_the_real_subset(subset: Path) -> None:
    """Counts of its README: single labels of train and test, all labels of both."""
    dataset = opened("ptb-xl", subset, modalities=("i_to_avf",)).load()
    assert dataset.held_out is not None
    assert (dataset.num_samples, dataset.held_out.num_samples) == (1067, 136)
    # Nearly unit deviation per lead and record: it was standardised at 500 Hz.
    np.testing.assert_allclose(dataset.inputs["i_to_avf"].std(axis=1), 1, atol=0.02)
    multi = opened("ptb-xl", subset, modalities=("i_to_avf",), labels="multi", use_validation_fold=True).load()
    assert multi.held_out is not None
    assert (multi.num_samples, multi.held_out.num_samples) == (1442 + 183, 194)
    totals = multi.labels.sum(axis=0) + multi.held_out.labels.sum(axis=0)
    assert dict(zip(SUPERCLASSES, totals.tolist(), strict=True)) == {
        "NORM": 964, "MI": 262, "STTC": 527, "CD": 462, "HYP": 193,
    }  # fmt: skip


@pytest.mark.data
def test_real_records_pass_through_the_official_format(subset: Path, tmp_path: Path) -> None:
    arrays = np.load(subset / "ptbxl_subset_100hz.npz")
    chosen = np.flatnonzero(arrays["label"].sum(axis=1) == 1)[:12]
    codes = {"NORM": "NORM", "MI": "IMI", "STTC": "ISC_", "CD": "CLBBB", "HYP": "LVH"}
    classes = arrays["classes"].tolist()
    records = [("{'" + codes[classes[int(arrays["label"][row].argmax())]] + "': 100.0}", 1, 1.0) for row in chosen]
    for number, row in enumerate(chosen, start=1):
        write_record(tmp_path / "own", number, arrays["signal"][row].astype(np.int64))
    (tmp_path / "own/ptbxl_database.csv").write_text(database(records))
    (tmp_path / "own/scp_statements.csv").write_text(STATEMENTS)
    dataset = opened("ptb-xl", tmp_path / "own").load()
    assert [classes[label] for label in dataset.labels] == [
        classes[int(label.argmax())] if classes == list(SUPERCLASSES) else "" for label in arrays["label"][chosen]
    ]
    expected = arrays["signal"][chosen][:, :, :6].astype(np.float32) * np.float32(0.001)
    assert np.array_equal(dataset.inputs["i_to_avf"], expected)


@pytest.mark.data
def test_the_documented_totals_are_those_of_the_real_label_table(subset: Path) -> None:
    text = gzip.decompress((subset / "ptbxl_all_records_superclass.csv.gz").read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == NUM_RECORDS
    assert {name: sum(int(row[name]) for row in rows) for name in SUPERCLASSES} == NUM_OF_SUPERCLASS
    num_labels = [sum(int(row[name]) for name in SUPERCLASSES) for row in rows]
    assert num_labels.count(1) == 16_244
    assert [sum(n >= 1 for n, row in zip(num_labels, rows, strict=True) if row["split"] == "test")] == [2158]


def test_labels_and_task_must_agree(small_scenario: Scenario, tmp_path: Path) -> None:
    from blossom_ray.errors import ScenarioError

    data = {"dataset": "ptb-xl", "path": str(tmp_path), "labels": "multi"}
    with pytest.raises(ScenarioError, match=r"data.labels is 'multi', while task is 'classification'; expected 'sing"):
        small_scenario.override({"data": data})


# --- tables that were saved again, and what is left out -----------------------------------------------------------


def semicolons(text: str) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    saved = io.StringIO()
    csv.writer(saved, delimiter=";").writerows(
        [cell.replace(".", ",") if cell.replace(".", "").isdecimal() else cell for cell in row] for row in rows
    )
    return saved.getvalue()


SAVED_AGAIN = {
    "with a mark": lambda text: "\ufeff" + text,
    "with semicolons": semicolons,
    "with semicolons and a mark": lambda text: "\ufeff" + semicolons(text),
    "with other line ends": lambda text: text.replace("\n", "\r\n").replace("\r\r", "\r"),
}


@pytest.mark.parametrize("table", ["ptbxl_database.csv", "scp_statements.csv"])
@pytest.mark.parametrize("way", SAVED_AGAIN)
def test_tables_that_were_saved_again_are_the_same(way: str, table: str, official: Path) -> None:
    expected = opened("ptb-xl", official).load().fingerprint()
    text = SAVED_AGAIN[way]((official / table).read_text())
    (official / table).write_bytes(text.encode())
    assert opened("ptb-xl", official).load().fingerprint() == expected


def test_statements_that_pandas_saved_again(official: Path) -> None:
    expected = opened("ptb-xl", official).load().fingerprint()
    path = official / "scp_statements.csv"
    with_name = "Unnamed: 0" + path.read_text()
    path.write_text(with_name)
    assert opened("ptb-xl", official).load().fingerprint() == expected
    numbered = [f"{row - 1 if row else ''},{line}" for row, line in enumerate(with_name.splitlines())]
    path.write_text("\n".join(numbered))
    assert opened("ptb-xl", official).load().fingerprint() == expected
    path.write_text(with_name.replace("Unnamed: 0", "name"))
    with pytest.raises(DataError, match=r"scp_statements.csv has no column of codes among name, "):
        opened("ptb-xl", official).targets()
    path.write_text("\n".join(numbered).replace("Unnamed: 0", "name"))
    with pytest.raises(DataError, match=r"scp_statements.csv, row 1 is for '0'; expected a code as NORM"):
        opened("ptb-xl", official).targets()


def test_a_record_that_is_there_twice_and_rows_that_were_mixed_up(official: Path) -> None:
    text = database(RECORDS)
    path = official / "ptbxl_database.csv"
    path.write_text(text + text[text.index("\n2,") + 1 : text.index("\n3,") + 1])
    with pytest.raises(DataError, match=rf"has two rows for record 2, 2 and {len(RECORDS) + 1}; expected one"):
        opened("ptb-xl", official).targets()
    path.write_text(text.replace("\n3,", "\n30,"))
    with pytest.raises(DataError, match=r"record 3: ecg_id is '30' and filename_lr records100/00000/00003_lr"):
        opened("ptb-xl", official).targets()


def test_records_left_out_are_counted_and_named(official: Path) -> None:
    write_record(official, 99, digital(99))
    found = {entry.what: (entry.count, entry.examples) for entry in opened("ptb-xl", official).load().left_out}
    assert found == {
        "records that the official files have and this copy has not": (21_799 - len(RECORDS), ()),
        "signals without a row in ptbxl_database.csv": (1, (name_of(99),)),
        "records without a diagnostic superclass": (1, (name_of(4),)),
        "records with several superclasses (data.labels: single)": (2, (name_of(3), name_of(7))),
        "records of fold 9 (data.use_validation_fold: false)": (1, (name_of(5),)),
    }
    assert {
        entry.what for entry in opened("ptb-xl", official, labels="multi", use_validation_fold=True).load().left_out
    } == {
        "records that the official files have and this copy has not",
        "signals without a row in ptbxl_database.csv",
        "records without a diagnostic superclass",
    }
