from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import opened

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.uci_har import CLASS_NAMES
from blossom_ray.errors import DataError

OFFICIAL = Path(__file__).parents[3] / "shared/data/UCI-HAR/UCI HAR Dataset.zip"
NUM_ROWS = {"train": 6, "test": 3}
ACC_X = "train/Inertial Signals/body_acc_x_train.txt"


def official_text(values: np.ndarray) -> bytes:
    """16 characters a value, three digits in the exponent, CRLF, as in the official files."""

    def cell(value: float) -> str:
        mantissa, exponent = f"{value:.7e}".split("e")
        return f"{mantissa}e{exponent[0]}{int(exponent[1:]):03d}".rjust(16)

    return b"".join(("".join(map(cell, row)) + "\r\n").encode() for row in values)


def signals(name: str, part: str) -> np.ndarray:
    rng = np.random.default_rng(len(name) + ord(name[-1]) + ord(name[0]) + 1000 * len(part))
    return rng.normal(size=(NUM_ROWS[part], 128)).astype(np.float32)


@pytest.fixture
def members() -> dict[str, bytes]:
    content = {}
    for part, num_rows in NUM_ROWS.items():
        labels, subjects = (1 + np.arange(num_rows) % 6, 1 + np.arange(num_rows) // 2)
        content[f"{part}/y_{part}.txt"] = "".join(f"{label}\r\n" for label in labels).encode()
        content[f"{part}/subject_{part}.txt"] = "".join(f"{subject}\r\n" for subject in subjects).encode()
        for signal in ("body_acc", "body_gyro", "total_acc"):
            for axis in "xyz":
                name = f"{signal}_{axis}"
                text = official_text(signals(name, part))
                content[f"{part}/Inertial Signals/{name}_{part}.txt"] = text
    return content


def zipped(members: dict[str, bytes], top: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(top + name, content)
    return buffer.getvalue()


def as_zip(members: dict[str, bytes], folder: Path) -> Path:
    path = folder / "har.zip"
    path.write_bytes(zipped(members, "UCI HAR Dataset/"))
    return path


def as_zip_with_another_top(members: dict[str, bytes], folder: Path) -> Path:
    path = folder / "har.zip"
    path.write_bytes(zipped({**members, "__MACOSX/train/._y_train.txt": b""}, "cut/of/har/"))
    return path


def as_zip_without_top(members: dict[str, bytes], folder: Path) -> Path:
    path = folder / "har.zip"
    path.write_bytes(zipped(members, ""))
    return path


def as_zip_in_zip(members: dict[str, bytes], folder: Path) -> Path:
    path = folder / "human+activity.zip"
    inner = zipped(members, "UCI HAR Dataset/")
    path.write_bytes(zipped({"UCI HAR Dataset.names": b"names", "UCI HAR Dataset.zip": inner}, ""))
    return path


def as_folder(members: dict[str, bytes], folder: Path) -> Path:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def as_folder_in_folder(members: dict[str, bytes], folder: Path) -> Path:
    as_folder(members, folder / "UCI HAR Dataset")
    return folder


LAYOUTS = [as_zip, as_zip_with_another_top, as_zip_without_top, as_zip_in_zip, as_folder, as_folder_in_folder]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_data(
    layout: Callable[[dict[str, bytes], Path], Path], members: dict[str, bytes], tmp_path: Path
) -> None:
    source = opened("uci-har", layout(members, tmp_path))
    dataset = source.load()
    assert dataset.held_out is not None
    assert dataset.class_names == CLASS_NAMES
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.subjects.tolist() == [1, 1, 2, 2, 3, 3]
    assert dataset.held_out.labels.tolist() == [0, 1, 2]
    for part, found in (("train", dataset), ("test", dataset.held_out)):
        for modality, signal in (("acc", "body_acc"), ("gyro", "body_gyro")):
            expected = np.stack([signals(f"{signal}_{axis}", part) for axis in "xyz"], axis=-1)
            assert found.inputs[modality].shape == (NUM_ROWS[part], 128, 3)
            np.testing.assert_allclose(found.inputs[modality], expected, rtol=2e-7)
    assert source.targets().labels.tolist() == dataset.labels.tolist()
    assert source.targets().num_classes == 6


def test_total_acceleration(members: dict[str, bytes], tmp_path: Path) -> None:
    dataset = opened("uci-har", as_zip(members, tmp_path), acceleration="total").load()
    np.testing.assert_allclose(dataset.inputs["acc"][:, :, 1], signals("total_acc_y", "train"), rtol=2e-7)
    np.testing.assert_allclose(dataset.inputs["gyro"][:, :, 1], signals("body_gyro_y", "train"), rtol=2e-7)


def test_only_the_modalities_asked_for_are_read(members: dict[str, bytes], tmp_path: Path) -> None:
    kept = {name: content for name, content in members.items() if "gyro" not in name and "total" not in name}
    source = opened("uci-har", as_zip(kept, tmp_path), modalities=("acc",))
    assert source.modalities == ("acc",)
    assert set(source.load().inputs) == {"acc"}


def test_zscore_per_window_and_axis(members: dict[str, bytes], tmp_path: Path) -> None:
    constant = signals("body_acc_x", "train")
    constant[2] = 0.1
    members[ACC_X] = official_text(constant)
    values = opened("uci-har", as_zip(members, tmp_path), zscore=True).load().inputs["acc"]
    assert np.all(values[2, :, 0] == 0)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-6)
    deviations = values.std(axis=1)
    assert deviations[2, 0] == 0
    np.testing.assert_allclose(np.delete(deviations.ravel(), 6), 1, atol=1e-5)


def damaged(members: dict[str, bytes], name: str, content: bytes | None) -> dict[str, bytes]:
    others = {key: value for key, value in members.items() if key != name}
    return others if content is None else {**others, name: content}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (ACC_X, lambda _: None, "body_acc_x_train.txt is missing"),
        (ACC_X, lambda text: b"", "body_acc_x_train.txt is empty"),
        (ACC_X, lambda text: text[258 * 8 :], "body_acc_x_train.txt has 5 rows; expected 6, as many as y_train.txt"),
        (ACC_X, lambda text: text[16:], "body_acc_x_train.txt, line 1 has 127 values; expected 128"),
        (ACC_X, lambda text: text[:-18] + b"\r\n", "body_acc_x_train.txt, line 6 has 127 values; expected 128"),
        (
            ACC_X,
            lambda text: b"   x.0000000e+000" + text[16:],
            "line 1, value 1 is 'x.0000000e[+]000'; expected a finite",
        ),
        (ACC_X, lambda text: b"             nan" + text[16:], "line 1, value 1 is 'nan'; expected a finite number"),
        (ACC_X, lambda text: b"   \xff" + text, "line 1 has 129 values"),
        ("train/y_train.txt", lambda _: b"1\n2\n3\n4\n5\n7\n", "y_train.txt, row 6: label 7; expected 1 to 6"),
        ("train/y_train.txt", lambda _: b"1\n2\n0\n4\n5\n6\n", "y_train.txt, row 3: label 0; expected 1 to 6"),
        ("train/y_train.txt", lambda _: b"1\n2.5\n", "line 2, value 1 is '2.5'; expected an integer"),
        ("train/subject_train.txt", lambda _: b"1\n1\n", "subject_train.txt has 2 rows; expected 6"),
        ("test/y_test.txt", lambda _: None, "test/y_test.txt is missing"),
        ("train/y_train.txt", lambda _: None, "holds no train/y_train.txt"),
    ],
)
@pytest.mark.parametrize("layout", [as_zip, as_folder])
def test_faults_in_the_content_are_named(
    layout: Callable[[dict[str, bytes], Path], Path],
    name: str,
    change: Callable[[bytes], bytes | None],
    message: str,
    members: dict[str, bytes],
    tmp_path: Path,
) -> None:
    path = layout(damaged(members, name, change(members[name])), tmp_path)
    with pytest.raises(DataError, match=message):
        opened("uci-har", path).load()


def test_a_path_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.zip does not exist; expected a zip file or a folder"):
        opened("uci-har", tmp_path / "nowhere.zip").targets()
    (tmp_path / "notes.txt").write_text("no zip")
    with pytest.raises(DataError, match=r"notes.txt is not a zip file"):
        opened("uci-har", tmp_path / "notes.txt").targets()
    with pytest.raises(DataError, match=r"holds no train/y_train.txt"):
        opened("uci-har", tmp_path).targets()
    with pytest.raises(DataError, match=r"uci-har has no modality 'audio'; expected some of acc, gyro"):
        opened("uci-har", tmp_path, modalities=("audio",))


def test_a_truncated_zip(members: dict[str, bytes], tmp_path: Path) -> None:
    path = as_zip(members, tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"har.zip is not a zip file, or not all of one"):
        opened("uci-har", path).load()


def test_a_zip_with_flipped_bytes(members: dict[str, bytes], tmp_path: Path) -> None:
    path = as_zip(members, tmp_path)
    content = bytearray(path.read_bytes())
    start = content.index(ACC_X.encode()) + len(ACC_X) + 500
    content[start : start + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"body_acc_x_train.txt is damaged"):
        opened("uci-har", path).load()


def central_header(content: bytes, name: str) -> int:
    """Where the entry of a member begins in the zip's central directory."""
    return content.rindex(name.encode()) - len("UCI HAR Dataset/") - 46


def test_an_encrypted_member(members: dict[str, bytes], tmp_path: Path) -> None:
    path = as_zip(members, tmp_path)
    content = bytearray(path.read_bytes())
    content[central_header(content, "train/y_train.txt") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"y_train.txt is encrypted; expected a zip file without a password"):
        opened("uci-har", path).targets()


def test_a_member_that_announces_too_much(members: dict[str, bytes], tmp_path: Path) -> None:
    path = as_zip(members, tmp_path)
    content = bytearray(path.read_bytes())
    start = central_header(content, "train/y_train.txt") + 24
    content[start : start + 4] = (300_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"announces 300,000,000 bytes; expected at most 20,000,000"):
        opened("uci-har", path).targets()


@pytest.fixture(scope="module")
def official() -> Dataset:
    if not OFFICIAL.is_file():
        pytest.skip(f"the official archive is not at {OFFICIAL}")
    return opened("uci-har", OFFICIAL).load()


@pytest.mark.data
def test_the_official_archive(official: Dataset) -> None:
    assert official.held_out is not None
    assert official.input_shapes == {"acc": (128, 3), "gyro": (128, 3)}
    assert np.bincount(official.labels).tolist() == [1226, 1073, 986, 1286, 1374, 1407]
    assert np.bincount(official.held_out.labels).tolist() == [496, 471, 420, 491, 532, 537]
    train = {1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22, 23, 25, 26, 27, 28, 29, 30}
    assert set(official.subjects.tolist()) == train
    assert set(official.held_out.subjects.tolist()) == {2, 4, 9, 10, 12, 13, 18, 20, 24}
    assert official.inputs["acc"][0, 0, 0] == np.float32(1.8085150e-4)


@pytest.mark.data
def test_neighbouring_official_windows_overlap_by_half(official: Dataset) -> None:
    """Whichever axis of whichever signal tells it: 600 recordings, of which 92 % of windows are followed by another."""
    assert official.pieces is not None
    assert official.held_out is not None
    assert official.held_out.pieces is not None
    assert official.pieces.overlap == 0.5
    recordings = official.pieces.recordings
    for windows in official.inputs.values():
        for axis in range(3):
            goes_on = (windows[1:, :64, axis] == windows[:-1, 64:, axis]).all(axis=1)
            assert np.array_equal(goes_on, np.diff(recordings) == 0)
    assert len(set(recordings.tolist())) == 600
    assert round(100 * (np.diff(recordings) == 0).sum() / len(recordings)) == 92
    assert len(set(official.held_out.pieces.recordings.tolist())) == 257
    for numbers in (official.subjects, official.labels):
        assert len(set(zip(recordings.tolist(), numbers.tolist(), strict=True))) == 600


@pytest.mark.data
def test_recordings_are_known_without_reading_all_signals(official: Dataset) -> None:
    assert official.pieces is not None
    for source in (
        opened("uci-har", OFFICIAL, modalities=("gyro",)),
        opened("uci-har", OFFICIAL, acceleration="total", zscore=True),
    ):
        pieces = source.targets().pieces
        assert pieces is not None
        assert np.array_equal(pieces.recordings, official.pieces.recordings)


def test_a_recording_goes_on_as_long_as_halves_repeat(members: dict[str, bytes], tmp_path: Path) -> None:
    """Six windows of one signal of 448 steps; the third is of another activity, and the fifth of another subject."""
    signal = np.random.default_rng(0).normal(size=448).astype(np.float32)
    windows = np.stack([signal[64 * start : 64 * start + 128] for start in range(6)])
    members[ACC_X] = official_text(windows)
    members["train/y_train.txt"] = b"1\n1\n2\n2\n2\n2\n"
    members["train/subject_train.txt"] = b"1\n1\n1\n1\n2\n2\n"
    for source in (
        opened("uci-har", as_zip(members, tmp_path)),
        opened("uci-har", as_zip(members, tmp_path), zscore=True),
    ):
        dataset, targets = source.load(), source.targets()
        assert dataset.pieces is not None
        assert dataset.pieces.recordings.tolist() == [0, 0, 1, 1, 2, 2]
        assert targets.pieces is not None
        assert targets.pieces.recordings.tolist() == [0, 0, 1, 1, 2, 2]
    windows[4:] = windows[:2]
    members[ACC_X] = official_text(windows)
    members["train/subject_train.txt"] = b"1\n1\n1\n1\n1\n1\n"
    pieces = opened("uci-har", as_zip(members, tmp_path)).targets().pieces
    assert pieces is not None
    assert pieces.recordings.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_member_that_unpacks_to_more_than_it_announces(members: dict[str, bytes], tmp_path: Path) -> None:
    """100 MB of spaces that announce 12 bytes: no more than these are unpacked."""
    announced = len(members["train/y_train.txt"])
    path = as_zip({**members, "train/y_train.txt": b" " * 100_000_000}, tmp_path)
    content = bytearray(path.read_bytes())
    start = central_header(content, "train/y_train.txt") + 24
    content[start : start + 4] = announced.to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"y_train.txt is damaged"):
        opened("uci-har", path).targets()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(members: dict[str, bytes], tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "har.zip", "w", method) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    with pytest.raises(DataError, match=rf"is compressed by method {method}; expected deflate or none"):
        opened("uci-har", tmp_path / "har.zip").targets()


def test_white_space_beyond_ascii_is_empty(members: dict[str, bytes], tmp_path: Path) -> None:
    members["train/y_train.txt"] = b"\x85\xa0\n"
    with pytest.raises(DataError, match=r"y_train.txt is empty"):
        opened("uci-har", as_zip(members, tmp_path)).targets()


def test_many_labels_without_signals_ask_for_no_memory(members: dict[str, bytes], tmp_path: Path) -> None:
    many = b"1\n" * 9_000_000
    path = as_zip({**members, "train/y_train.txt": many, "train/subject_train.txt": many}, tmp_path)
    with pytest.raises(DataError, match=r"has 6 rows; expected 9000000"):
        opened("uci-har", path).load()
