from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import opened
from official_files import SPEAKERS, idx, mnist_image, tone, write_av_mnist, write_mnist, write_spoken_digits

from blossom_ray.data.dataset import LeftOut
from blossom_ray.data.modalities.spectrograms import decibels, mel_power
from blossom_ray.data.sets.av_mnist import MelSpectrogram
from blossom_ray.data.sets.av_mnist_files import (
    Recording,
    list_recordings,
    normalised,
    open_spoken_digits,
    read_mnist,
)
from blossom_ray.errors import DataError

OFFICIAL = Path(__file__).parents[3] / "shared/data/AV-MNIST"
SMALL = MelSpectrogram(rate_hz=8000, duration_ms=400, window=256, hop=200, mels=8, channels=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images a digit in both parts; recordings 0, 5, 6 and 7 of each digit by two speakers."""
    return write_av_mnist(tmp_path_factory.mktemp("av-mnist"))


def rows_of(images: np.ndarray, part: str) -> list[int]:
    """Which rows of MNIST's part these are, by their values."""
    known = {normalised(mnist_image(part, row)[None]).tobytes(): row for row in range(120)}
    return [known[image[None].tobytes()] for image in images]


def test_pairs_have_one_digit_and_each_recording_once(files: Path) -> None:
    dataset = opened("av-mnist", files, spectrogram=SMALL).load()
    held_out = dataset.held_out
    assert held_out is not None
    assert dataset.input_shapes == held_out.input_shapes == {"image": (1, 28, 28), "audio": (2, 8, 17)}
    assert np.bincount(dataset.labels).tolist() == [6] * 10  # recordings 5, 6 and 7 of two speakers
    assert np.bincount(held_out.labels).tolist() == [2] * 10
    assert np.bincount(dataset.subjects).tolist() == [30, 30]
    for part, found in (("train", dataset), ("test", held_out)):
        rows = rows_of(found.inputs["image"], part)
        assert len(set(rows)) == len(rows)
        assert [row % 10 for row in rows] == found.labels.tolist()
        sounds = {sound.tobytes() for sound in found.inputs["audio"]}
        assert len(sounds) == found.num_samples
        assert found.recordings is None
    assert not sounds & {sound.tobytes() for sound in dataset.inputs["audio"]}


def test_the_spectrogram_is_that_of_the_recording(files: Path) -> None:
    dataset = opened("av-mnist", files, modalities=("audio",), spectrogram=SMALL).load()
    assert set(dataset.inputs) == {"audio"}
    signal = np.zeros(3200)
    sound = tone(300 + 200 * 3 + 20 * 1 + 6, 0.26, 8000) / 2**15
    signal[: len(sound)] = sound
    power = mel_power(signal, rate_hz=8000, window=256, fft_size=256, hop=200, num_mels=8)
    matches = (dataset.inputs["audio"] == decibels(power.T)).all(axis=(1, 2, 3))
    assert matches.sum() == 1
    assert dataset.labels[matches].tolist() == [3]
    assert dataset.subjects[matches].tolist() == [1]


def test_targets_are_those_of_the_data_set(files: Path) -> None:
    for pairs in (None, 73):
        source = opened("av-mnist", files, modalities=("image",), pairs=pairs)
        targets, dataset = source.targets(), source.load()
        assert targets.labels.tolist() == dataset.labels.tolist()
        assert targets.subjects.tolist() == dataset.subjects.tolist()
        assert (targets.recordings is None) == (pairs is None)
        assert pairs is None or targets.recordings.tolist() == dataset.recordings.tolist()
    assert np.bincount(targets.labels).tolist() == [8] * 3 + [7] * 7


def test_recordings_are_used_again_evenly_and_told(files: Path) -> None:
    dataset = opened("av-mnist", files, spectrogram=SMALL, pairs=100, held_out_pairs=40).load()
    assert dataset.num_samples == 100
    assert len(set(rows_of(dataset.inputs["image"], "train"))) == 100
    uses = np.bincount(dataset.recordings)
    assert len(uses) == 60
    assert set(uses.tolist()) == {1, 2}
    for recording in range(60):
        rows = np.flatnonzero(dataset.recordings == recording)
        assert (dataset.inputs["audio"][rows] == dataset.inputs["audio"][rows[0]]).all()
    assert np.bincount(dataset.held_out.recordings).tolist() == [2] * 20


def test_the_pairing_follows_its_seed(files: Path) -> None:
    def images(seed: int) -> bytes:
        return opened("av-mnist", files, modalities=("image",), pairing_seed=seed).load().inputs["image"].tobytes()

    assert images(0) == images(0)
    assert images(0) != images(1)


def folder_above(files: Path, target: Path) -> Path:
    shutil.copytree(files, target / "AV-MNIST")
    return target


def packed_recordings(files: Path, target: Path) -> Path:
    """The layout of GitHub's zip, with what macOS adds, beside files of MNIST that are not compressed."""
    write_mnist(target, packed=False)
    with zipfile.ZipFile(target / "free-spoken-digit-dataset-master.zip", "w") as bundle:
        bundle.writestr("__MACOSX/recordings/._0_jackson_0.wav", b"")
        for file in sorted((files / "free-spoken-digit-dataset" / "recordings").iterdir()):
            bundle.write(file, f"free-spoken-digit-dataset-master/recordings/{file.name}")
        bundle.writestr("free-spoken-digit-dataset-master/metadata.py", b"")
    return target


def torchvision_layout(files: Path, target: Path) -> Path:
    write_mnist(target / "MNIST" / "raw")
    shutil.copytree(files / "free-spoken-digit-dataset" / "recordings", target / "recordings")
    return target


@pytest.mark.parametrize("layout", [folder_above, packed_recordings, torchvision_layout])
def test_layouts_give_the_same_data(layout: Callable[[Path, Path], Path], files: Path, tmp_path: Path) -> None:
    expected = opened("av-mnist", files, spectrogram=SMALL).load().fingerprint()
    assert opened("av-mnist", layout(files, tmp_path), spectrogram=SMALL).load().fingerprint() == expected


def test_names_of_recordings(files: Path) -> None:
    with open_spoken_digits(files) as archive:
        recordings, _ = list_recordings(archive)
    assert recordings[0] == Recording(0, SPEAKERS[0], 0, f"recordings/0_{SPEAKERS[0]}_0.wav")
    assert recordings[0].member == "recordings/0_jackson_0.wav"
    assert [recording.is_test for recording in recordings[:4]] == [True, False, False, False]
    assert Recording(1, "theo", 4, "").is_test
    assert not Recording(1, "theo", 5, "").is_test


def replaced(files: Path, target: Path, name: str, content: bytes | None) -> Path:
    shutil.copytree(files, target / "copy")
    path = target / "copy" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    return target / "copy"


LABELS = "train-labels-idx1-ubyte.gz"
IMAGES = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, None, "holds no train-labels-idx1-ubyte.gz; expected the four files of MNIST"),
        (LABELS, gzip.compress(b"text"), "train-labels-idx1-ubyte.gz is no idx file of bytes in 1 dimensions"),
        (LABELS, gzip.compress(idx(np.zeros(3)))[:-9], "train-labels-idx1-ubyte.gz is damaged"),
        (LABELS, gzip.compress(idx(np.zeros(3))[:-1]), "announces 3 values and has 2; download it again"),
        (LABELS, gzip.compress(idx(np.array([0, 10]))), "row 2: label 10; expected 0 to 9"),
        (LABELS, gzip.compress(idx(np.zeros(3))), "has 3 labels; expected 120, as many as images"),
        (LABELS, gzip.compress(bytes(100_000_001)), "unpacks to more than 100,000,000 bytes"),
        (LABELS, gzip.compress(idx(np.zeros(60_000))), "has 60000 rows of class 0; expected 5923"),
        (IMAGES, gzip.compress(idx(np.zeros((2, 28, 27)))), "has images of 28 x 27; expected 28 x 28"),
        (IMAGES, gzip.compress(idx(np.zeros((0, 28, 28)))), "announces 0 values and has 0"),
    ],
    ids=str.split("missing text cut short digit rows bomb counts shape empty"),
)
def test_faults_of_mnist(name: str, content: bytes | None, message: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened("av-mnist", replaced(files, tmp_path, name, content), modalities=("image",)).load()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0_jackson_0.wav", None, "holds no recordings/0_jackson_0.wav; expected the Free Spoken Digit Dataset"),
        ("4_nicolas_5.wav", b"RIFF", "4_nicolas_5.wav cannot be decoded"),
    ],
)
def test_faults_of_recordings(name: str, content: bytes | None, message: str, files: Path, tmp_path: Path) -> None:
    path = replaced(files, tmp_path, f"free-spoken-digit-dataset/recordings/{name}", content)
    with pytest.raises(DataError, match=message):
        opened("av-mnist", path, spectrogram=SMALL).load()


def test_a_digit_that_nobody_speaks(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_spoken_digits(tmp_path, indices=(0,))
    with pytest.raises(DataError, match=r"no recording of the digit 0 is in the train part; expected all ten digits"):
        opened("av-mnist", tmp_path).targets()


def test_what_cannot_be_paired(files: Path) -> None:
    with pytest.raises(
        DataError, match=r"data.pairs asks for 13 images of the digit 0 .* has 12; expected fewer pairs"
    ):
        opened("av-mnist", files, pairs=121).targets()
    with pytest.raises(DataError, match=r"data.held_out_pairs asks for 13 images of the digit 0 in the test part"):
        opened("av-mnist", files, modalities=("image",), held_out_pairs=130).load()
    with pytest.raises(DataError, match=r"av-mnist has no modality 'video'; expected some of audio, image"):
        opened("av-mnist", files, modalities=("video",))
    with pytest.raises(DataError, match=r"expected a folder"):
        opened("av-mnist", "~nobody-of-this-name/mnist")
    for path in ("no/where", files / LABELS):
        with pytest.raises(DataError, match=r"cannot be read .*; expected a folder"):
            opened("av-mnist", path).targets()
    with pytest.raises(DataError, match=r"holds no train-labels-idx1-ubyte.gz; expected the four files of MNIST"):
        opened("av-mnist", files / "free-spoken-digit-dataset").targets()


@pytest.mark.data
def test_the_official_files() -> None:
    if not OFFICIAL.is_dir():
        pytest.skip(f"the official files are not at {OFFICIAL}")
    for part, counts in (
        ("train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ):
        mnist = read_mnist(OFFICIAL, part)
        assert np.bincount(mnist.labels).tolist() == counts
    images = normalised(read_mnist(OFFICIAL, "train").pixels)
    assert abs(float(images.mean(dtype=np.float64))) < 1e-3
    assert abs(float(images.std(dtype=np.float64)) - 1) < 1e-3
    dataset = opened("av-mnist", OFFICIAL, spectrogram=SMALL).load()
    assert np.bincount(dataset.labels).tolist() == [270] * 10
    assert np.bincount(dataset.held_out.labels).tolist() == [30] * 10
    assert np.bincount(dataset.subjects).tolist() == [450] * 6
    assert np.bincount(dataset.held_out.subjects).tolist() == [50] * 6
    everything = opened("av-mnist", OFFICIAL, modalities=("image",), pairs=54_210).targets()
    assert np.bincount(everything.labels).tolist() == [5421] * 10
    with pytest.raises(DataError, match=r"asks for 5422 images of the digit 5"):
        opened("av-mnist", OFFICIAL, pairs=54_220).targets()


def test_recordings_of_other_names_are_counted_and_named(files: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(files, tmp_path / "copy")
    recordings = next(folder.rglob("recordings"))
    expected = opened("av-mnist", folder, spectrogram=SMALL).load()
    (recordings / "0_jackson_5.wav").rename(recordings / "0_jackson_5.WAV")
    shutil.copy(recordings / "0_jackson_6.wav", recordings / "0_jackson_6 (1).wav")
    found = opened("av-mnist", folder, spectrogram=SMALL).load()
    assert found.fingerprint() == expected.fingerprint()
    assert set(found.left_out) - set(expected.left_out) == {
        LeftOut(
            "files whose names are no recording's, as <digit>_<speaker>_<index>.wav",
            1,
            ("recordings/0_jackson_6 (1).wav",),
        )
    }
    shutil.copy(recordings / "0_jackson_6.wav", recordings / "0_jackson_06.wav")
    with pytest.raises(DataError, match=r"0_jackson_06.wav and recordings/0_jackson_6.wav; expected each"):
        opened("av-mnist", folder, spectrogram=SMALL).load()


def test_images_and_recordings_in_no_pair_are_counted(files: Path) -> None:
    dataset = opened("av-mnist", files, spectrogram=SMALL, pairs=20, held_out_pairs=10).load()
    counts = {entry.what: entry.count for entry in dataset.left_out}
    assert counts["images of the train part in no pair (data.pairs)"] == 120 - 20
    assert counts["images of the train part that the official files have and this copy has not"] == 60_000 - 120
    assert counts["images of the test part in no pair (data.held_out_pairs)"] == 120 - 10


def test_recordings_in_two_zips(files: Path, tmp_path: Path) -> None:
    folder = packed_recordings(files, tmp_path)
    packed = next(folder.glob("*.zip"))
    shutil.copy(packed, packed.with_name("old.ZIP"))
    with pytest.raises(DataError, match=r"has recordings in .*zip and in old.ZIP; expected one of them"):
        opened("av-mnist", folder, spectrogram=SMALL).targets()
