"""KU-HAR from small files in the official layouts; the real ones are not at hand."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import opened

from blossom_ray.data.files.cache import FOLDER_VARIABLE
from blossom_ray.data.sets.ku_har import CLASS_NAMES, PAPER_CLASS_NAMES, SUBSAMPLES
from blossom_ray.errors import DataError
from blossom_ray.reading.scenario import Scenario

LABELS = [0, 0, 1, 5, 8, 11, 14, 15, 16, 17]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def signals(num_windows: int) -> np.ndarray:
    """(N, sensor, axis, step), with four decimals as in the official file."""
    return np.random.default_rng(3).normal(size=(num_windows, 2, 3, 300)).round(4)


def table(values: np.ndarray, labels: list[int] | np.ndarray) -> str:
    """Six channels of 300 steps one after the other, class, length of a channel, number of the window."""
    rows = (
        ",".join([*(f"{value:.4f}" for value in window.ravel()), str(label), "300", str(number)])
        for number, (window, label) in enumerate(zip(values, labels, strict=True), start=1)
    )
    return "\n".join(rows) + "\n"


@pytest.fixture
def subsamples() -> str:
    return table(signals(len(LABELS)), LABELS)


def as_zip(text: str, folder: Path) -> Path:
    path = folder / "3.Time_domain_subsamples.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(SUBSAMPLES, text)
    return path


def as_folder(text: str, folder: Path) -> Path:
    path = folder / "archive" / "3.Time_domain_subsamples"
    path.mkdir(parents=True)
    (path / SUBSAMPLES).write_text(text)
    return folder / "archive"


def as_file(text: str, folder: Path) -> Path:
    (folder / "windows.csv").write_text(text)
    return folder / "windows.csv"


@pytest.mark.parametrize("layout", [as_zip, as_folder, as_file])
def test_every_layout_gives_the_same_windows(
    layout: Callable[[str, Path], Path], subsamples: str, tmp_path: Path
) -> None:
    source = opened("ku-har", layout(subsamples, tmp_path))
    dataset = source.load()
    assert dataset.labels.tolist() == LABELS
    assert dataset.class_names == CLASS_NAMES
    assert len(CLASS_NAMES) == 18
    assert dataset.subjects is None
    assert dataset.held_out is None
    expected = signals(len(LABELS)).astype(np.float32)
    assert np.array_equal(dataset.inputs["acc"], expected[:, 0].transpose(0, 2, 1))
    assert np.array_equal(dataset.inputs["gyro"], expected[:, 1].transpose(0, 2, 1))
    assert source.targets().labels.tolist() == LABELS


def test_the_papers_classes_rate_and_standardisation(subsamples: str, tmp_path: Path) -> None:
    options = {"classes": "paper", "rate_hz": 50, "zscore": True, "modalities": ("gyro",)}
    source = opened("ku-har", as_zip(subsamples, tmp_path), **options)
    dataset = source.load()
    assert dataset.class_names == PAPER_CLASS_NAMES
    # Stand, Sit, Lay, Jump, Walk, Run, Stair-up, Stair-down; the last window (Table-tennis) is left out.
    assert dataset.labels.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert source.targets().num_classes == 8
    assert set(dataset.inputs) == {"gyro"}
    kept = signals(len(LABELS))[:-1, 1, :, ::2].transpose(0, 2, 1)
    standard = (kept - kept.mean(1, keepdims=True)) / kept.std(1, keepdims=True)
    assert dataset.inputs["gyro"].shape == (9, 150, 3)
    np.testing.assert_allclose(dataset.inputs["gyro"], standard, atol=1e-5)


def test_the_table_is_read_once(subsamples: str, tmp_path: Path, own_cache: Path) -> None:
    path = as_zip(subsamples, tmp_path)
    first = opened("ku-har", path).load()
    second = opened("ku-har", path, classes="paper").targets()
    assert [entry.name[:7] for entry in own_cache.iterdir() if not entry.name.startswith(".")] == ["ku-har-"]
    assert len(second.labels) == len(first.labels) - 1
    # Another content under the same name is read anew.
    as_zip(table(signals(1), [3]), tmp_path)
    assert opened("ku-har", path).targets().labels.tolist() == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "is empty; expected lines of 1803 numbers"),
        (lambda text: text.replace(",300,1\n", ",300\n", 1), "line 1 has 1802 values; expected 1803"),
        (lambda text: text.replace(",300,2\n", ",300,x\n", 1), "line 2, value 1803 is 'x'; expected a finite number"),
        (lambda text: text.replace("\n", ",9\n"), "line 1 has 1804 values; expected 1803"),
        (lambda text: text.replace(",17,300,", ",18,300,"), "row 10: class 18; expected 0 to 17"),
        (lambda text: text.replace(",17,300,", ",1.5,300,"), "row 10: class 1.5; expected 0 to 17"),
    ],
)
def test_faults_of_the_table_are_named(
    change: Callable[[str], str], message: str, subsamples: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"KU-HAR_time_domain_subsamples_20750x300.csv.*{message}"):
        opened("ku-har", as_zip(change(subsamples), tmp_path)).load()


@pytest.mark.slow
def test_the_whole_table_has_all_classes_and_no_more_rows(tmp_path: Path) -> None:
    def rows(labels: list[int]) -> str:
        return "".join(f"{'0,' * 1800}{label},300,1\n" for label in labels)

    with pytest.raises(DataError, match=r"has no window of Table-tennis; expected all 18 classes"):
        opened("ku-har", as_zip(rows([*range(17), *[0] * (20_750 - 17)]), tmp_path)).targets()
    with pytest.raises(DataError, match=r"has 20751 rows; expected at most 20750"):
        opened("ku-har", as_zip(rows([*range(18), *[0] * (20_751 - 18)]), tmp_path)).targets()


def test_a_cut_without_the_papers_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zip has no window of Stand, Sit, Lay, .*; expected some"):
        opened("ku-har", as_zip(table(signals(1), [17]), tmp_path), classes="paper").targets()


# --- recordings ---------------------------------------------------------------------------------------------------


def recording(num_steps: int, num_acc: int, num_gyro: int, seed: int) -> np.ndarray:
    """Time and three axes of both sensors; zeros fill up the one that stopped earlier."""
    values = np.random.default_rng(seed).normal(size=(num_steps, 8)).round(4)
    values[:, 0] = values[:, 4] = 10.0 * np.arange(num_steps)
    values[num_acc:, :4] = 0
    values[num_gyro:, 4:] = 0
    return values


RECORDINGS = {
    "0.Stand/1001_A_1.csv": recording(650, 650, 640, 1),  # two windows and a rest
    "0.Stand/1002_A_1.csv": recording(610, 610, 599, 2),  # the gyroscope stopped within the second window
    "11.Walk/1001_L_1_N.csv": recording(300, 300, 300, 3),
    "12.Walk-backwards/1003_M_1.csv": recording(299, 299, 299, 4),  # too short
    "17.Table-tennis/1090_R_1.csv": recording(400, 0, 400, 5),  # no accelerometer
}


def write_recordings(folder: Path, recordings: dict[str, np.ndarray]) -> Path:
    path = folder / "2.Trimmed_interpolated_data.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        for name, values in recordings.items():
            bundle.writestr(name, "\n".join(",".join(f"{value:g}" for value in row) for row in values))
        bundle.writestr("readme.txt", "not a recording")
    return path


def test_recordings_are_cut_into_windows_with_subjects(tmp_path: Path) -> None:
    dataset = opened("ku-har", write_recordings(tmp_path, RECORDINGS), windows="recordings").load()
    assert dataset.labels.tolist() == [0, 0, 0, 11]
    assert dataset.subjects is not None
    assert dataset.subjects.tolist() == [1001, 1001, 1002, 1001]
    first = RECORDINGS["0.Stand/1001_A_1.csv"].astype(np.float32)
    np.testing.assert_allclose(dataset.inputs["acc"][1], first[300:600, 1:4], rtol=1e-5)
    np.testing.assert_allclose(dataset.inputs["gyro"][0], first[:300, 5:8], rtol=1e-5)
    targets = opened("ku-har", write_recordings(tmp_path, RECORDINGS), windows="recordings").targets()
    assert targets.subjects is not None
    for pieces in (dataset.pieces, targets.pieces):
        assert pieces is not None
        assert (pieces.recordings.tolist(), pieces.overlap) == ([0, 0, 1, 2], 0)


def test_recordings_that_cannot_be_cut(tmp_path: Path) -> None:
    short = {"0.Stand/1001_A_1.csv": recording(20, 20, 20, 0)}
    with pytest.raises(DataError, match="has no recording of 300 steps; expected the trimmed recordings"):
        opened("ku-har", write_recordings(tmp_path, short), windows="recordings").targets()
    other = {**RECORDINGS, "18.Swim/1001_S_1.csv": recording(300, 300, 300, 0)}
    with pytest.raises(DataError, match=r"18.Swim/1001_S_1.csv: class 18; expected 0 to 17"):
        opened("ku-har", write_recordings(tmp_path, other), windows="recordings").targets()
    narrow = {"0.Stand/1001_A_1.csv": recording(300, 300, 300, 0)[:, :7]}
    with pytest.raises(DataError, match=r"0.Stand/1001_A_1.csv, line 1 has 7 values; expected 8"):
        opened("ku-har", write_recordings(tmp_path, narrow), windows="recordings").targets()


def test_the_other_official_file_is_told_apart(subsamples: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"2.Trimmed_interpolated_data.zip holds no {SUBSAMPLES}"):
        opened("ku-har", write_recordings(tmp_path, RECORDINGS)).targets()
    with pytest.raises(DataError, match=r"3.Time_domain_subsamples.zip holds no 0.Stand/"):
        opened("ku-har", as_zip(subsamples, tmp_path), windows="recordings").targets()


def test_a_path_or_modality_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ku-har has no modality 'audio'; expected some of acc, gyro"):
        opened("ku-har", tmp_path, modalities=("audio",))
    with pytest.raises(DataError, match=r"expected the official"):
        opened("ku-har", "~nobody-of-that-name/x")
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        opened("ku-har", tmp_path / "nowhere.csv").targets()


def test_from_a_scenario(small_scenario: Scenario, subsamples: str, tmp_path: Path) -> None:
    from data_sets import open_source

    data = {"dataset": "ku-har", "path": str(as_zip(subsamples, tmp_path)), "classes": "paper", "rate_hz": 50}
    scenario = small_scenario.override({"data": data})
    dataset = open_source(scenario.data, scenario.modalities, scenario.seed).load()
    assert dataset.input_shapes == {"acc": (150, 3), "gyro": (150, 3)}


# --- files that were saved again, stray files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace(",", ";").replace(".", ",").encode("utf-8-sig"),
    ],
)
def test_a_table_that_was_saved_again_is_the_same(
    saved: Callable[[str], bytes], subsamples: str, tmp_path: Path
) -> None:
    expected = opened("ku-har", as_zip(subsamples, tmp_path)).load()
    (tmp_path / "windows.csv").write_bytes(saved(subsamples))
    assert opened("ku-har", tmp_path / "windows.csv").load().fingerprint() == expected.fingerprint()


def test_a_window_that_is_there_twice(subsamples: str, tmp_path: Path) -> None:
    lines = subsamples.splitlines(keepends=True)
    with pytest.raises(DataError, match=r"row 3 and .*, row 11 are the same; expected each window once"):
        opened("ku-har", as_zip(subsamples + lines[2], tmp_path)).load()


def test_recordings_that_no_rule_matches_are_named(tmp_path: Path, own_cache: Path) -> None:
    """The second load is from the cache, and tells the same."""
    strays = ["0.Stand/rec.csv", "0.Stand/deeper/1001_A_2.csv", "1.Sit/1001_B_1.xlsx", "Sit/1001_B_1.csv"]
    recordings = {name.replace("1002_A_1.csv", "1002_A_1.CSV"): values for name, values in RECORDINGS.items()}
    path = write_recordings(tmp_path, recordings)
    with zipfile.ZipFile(path, "a") as bundle:
        for name in strays:
            bundle.writestr(name, "what it holds does not matter")
        bundle.writestr("__MACOSX/0.Stand/._1001_A_1.csv", "x")
        bundle.writestr("0.Stand/._1001_A_1.csv", "x")
    first, second = (opened("ku-har", path, windows="recordings").load() for _ in range(2))
    assert first.labels.tolist() == [0, 0, 0, 11]
    assert first.left_out == second.left_out
    found = [(entry.count, entry.examples) for entry in first.left_out]
    assert found == [
        (2, ("12.Walk-backwards/1003_M_1.csv", "17.Table-tennis/1090_R_1.csv")),
        (1945 - 5, ()),
        (4, tuple(sorted(strays)[:3])),
    ]


def test_a_recording_that_is_there_twice_or_has_a_header(tmp_path: Path) -> None:
    values = recording(300, 300, 300, 1)
    twice = {"0.Stand/1001_A_1 (1).csv": values, "0.Stand/1001_A_1.csv": values}
    with pytest.raises(DataError, match=r"1001_A_1 \(1\).csv and 0.Stand/1001_A_1.csv are the same"):
        opened("ku-har", write_recordings(tmp_path, twice), windows="recordings").load()
    headed = {"0.Stand/1001_A_1.csv": np.concatenate([np.arange(8.0)[None], values])}
    with pytest.raises(DataError, match=r"1001_A_1.csv begins with numbers of its columns"):
        opened("ku-har", write_recordings(tmp_path, headed), windows="recordings").load()


def test_windows_of_other_classes_are_counted(subsamples: str, tmp_path: Path) -> None:
    assert [
        str(entry) for entry in opened("ku-har", as_zip(subsamples, tmp_path), classes="paper").load().left_out
    ] == [
        "left out: windows that the official files have and this copy has not: 20,740",
        "left out: windows of other classes (data.classes: paper): 1",
    ]
