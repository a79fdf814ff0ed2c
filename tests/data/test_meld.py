from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import opened
from official_files import MELD_COLUMNS, meld_rows, tone, write_clip, write_meld, write_meld_csv, write_wav

from blossom_ray.data.sets.base import DataSource
from blossom_ray.data.sets.meld import EMOTIONS, PAPER_EMOTIONS
from blossom_ray.data.sets.speech import SpeechFrames, speech_frames
from blossom_ray.data.sets.text import TextTokens, text_vectors
from blossom_ray.errors import DataError

OFFICIAL = Path(__file__).parents[3] / "shared/data/MELD"
AUDIO, TEXT = SpeechFrames(frames=20, mels=6), TextTokens(tokens=7, dim=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meld(tmp_path_factory.mktemp("MELD.Raw"))


def meld(path: Path, **options: object) -> DataSource:
    return opened("meld", path, **{"audio": AUDIO, "text": TEXT, **options})


def test_all_classes_by_hand(files: Path) -> None:
    dataset = meld(files).load()
    assert dataset.class_names == EMOTIONS
    assert dataset.input_shapes == {"audio": (20, 6), "text": (7, 16)}
    assert np.bincount(dataset.labels).tolist() == [12, 12, 12, 12, 24, 12, 12]
    assert dataset.subjects[:8].tolist() == [0, 1, 2, 3, 0, 1, 3, 0]  # Joey, Ross, Tag, Monica as they appear
    assert dataset.held_out.num_samples == 16


def test_the_papers_classes_by_hand(files: Path) -> None:
    """Of eight utterances, neutral, joy, sadness and neutral are left: Tag is dropped, and three emotions are."""
    dataset = meld(files, classes="paper").load()
    assert dataset.class_names == PAPER_EMOTIONS
    assert dataset.labels[:8].tolist() == [2, 1, 3, 2, 2, 1, 3, 2]
    assert dataset.subjects[:4].tolist() == [0, 1, 2, 0]
    assert dataset.held_out.labels.tolist() == [2, 1, 3, 2, 2, 1, 3, 2]


def test_features_are_those_of_text_and_sound(files: Path) -> None:
    dataset = meld(files).load()
    sentences = [str(row["Utterance"]) for row in meld_rows(12)]
    np.testing.assert_array_equal(dataset.inputs["text"], text_vectors(sentences, TEXT))
    for row in (0, 9, 95):
        frames = speech_frames(tone(200 + 10 * row, 0.15, 16_000) / 2**15, AUDIO)
        assert frames.shape == (16, 6)
        np.testing.assert_array_equal(dataset.inputs["audio"][row, :16], frames)
        assert not dataset.inputs["audio"][row, 16:].any()


def test_scales_of_frames() -> None:
    """Silence is 0 in both; ten times the amplitude is a hundred times the power and 2 in the logarithm."""
    sound = tone(440, 0.1, 16_000) / 2**15
    log, power = (SpeechFrames(frames=20, mels=6, scale=scale) for scale in ("log", "power"))
    for settings in (log, power):
        assert not speech_frames(np.zeros(800), settings).any()
    loud = speech_frames(10 * sound, log)
    np.testing.assert_allclose((loud - speech_frames(sound, log))[:, 1], 2, atol=1e-4)
    np.testing.assert_allclose(speech_frames(10 * sound, power), 100 * speech_frames(sound, power), rtol=1e-5)
    np.testing.assert_allclose(loud, np.log10(speech_frames(10 * sound, power).astype(float) + 1e-30) + 8, atol=1e-4)


def test_text_alone_needs_no_sound(tmp_path: Path, files: Path) -> None:
    """The official repository's folder: three csv files side by side."""
    write_meld(tmp_path / "a", sound=False)
    shutil.move(tmp_path / "a" / "train" / "train_sent_emo.csv", tmp_path / "a" / "train_sent_emo.csv")
    source = meld(tmp_path / "a", modalities=("text",), classes="paper")
    dataset = source.load()
    assert set(dataset.inputs) == {"text"}
    expected = meld(files, classes="paper").load()
    np.testing.assert_array_equal(dataset.inputs["text"], expected.inputs["text"])
    assert source.targets().labels.tolist() == expected.labels.tolist()
    assert source.targets().subjects.tolist() == expected.subjects.tolist()
    for pieces in (source.targets().pieces, expected.pieces):
        assert pieces is not None
        assert np.bincount(pieces.recordings).tolist() == [4] * 12  # of twelve dialogues of eight utterances
    with pytest.raises(
        DataError, match=r"no sound of 48 of 48 .* train part, such as dia0_utt0; expected dia0_utt0.wav"
    ):
        meld(tmp_path / "a", classes="paper").load()


def test_the_clip_that_cannot_be_decoded_is_left_out_of_text_too(tmp_path: Path) -> None:
    rows = meld_rows(126)
    write_meld_csv(tmp_path / "train_sent_emo.csv", rows)
    write_meld_csv(tmp_path / "test_sent_emo.csv", rows)
    dataset = meld(tmp_path, modalities=("text",)).load()
    assert dataset.num_samples == len(rows) - 1
    assert dataset.held_out.num_samples == len(rows)


def test_clips_where_there_is_no_wav_file(tmp_path: Path) -> None:
    write_meld(tmp_path)
    clips = tmp_path / "train" / "train_splits"
    (clips / "dia0_utt0.wav").unlink()
    (clips / "._dia0_utt0.mp4").write_bytes(b"\x00\x05\x16\x07")
    write_clip(clips / "dia0_utt0.mp4")
    audio = meld(tmp_path, modalities=("audio",)).load().inputs["audio"]
    assert (audio[0] != 0).all(axis=1).sum() == 20


def with_row(change: dict[str, object]) -> Callable[[list[dict[str, object]]], list[dict[str, object]]]:
    return lambda rows: [rows[0], {**rows[1], **change}, *rows[2:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "train_sent_emo.csv has no rows"),
        (with_row({"Emotion": "bored"}), "row 2: Emotion 'bored'; expected one of anger, disgust"),
        (with_row({"Speaker": ""}), "row 2: Speaker is missing; expected Utterance, Speaker, Emotion"),
        (with_row({"Dialogue_ID": "-1"}), "row 2: Dialogue_ID '-1'; expected a number"),
        (with_row({"Utterance_ID": 2}), "has two rows for utterance dia0_utt2, 2 and 3; expected one per utterance"),
        (lambda rows: [{**row, "Emotion": "fear"} for row in rows], "has no utterance of these emotions"),
        (lambda rows: [{**rows[0], "Dialogue_ID": n} for n in range(9989)], "has 0 rows of class anger; expected 1109"),
    ],
)
def test_faults_of_the_table(
    change: Callable[[list[dict[str, object]]], list[dict[str, object]]], message: str, tmp_path: Path
) -> None:
    write_meld(tmp_path, sound=False)
    write_meld_csv(tmp_path / "train" / "train_sent_emo.csv", change(meld_rows(3)))
    with pytest.raises(DataError, match=message):
        meld(tmp_path, classes="paper").targets()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'Utterance' among none"),
        (b"\xff\xfe", "cannot be read .*; expected a CSV file in UTF-8 with columns 'Utterance', 'Speaker'"),
        (b"a,b\n1,2\n", "has no column 'Utterance' among 'a', 'b'; expected a CSV file"),
        (",".join(MELD_COLUMNS).encode() + b"\n" + b'1,"' + b"x" * 200_000, "cannot be read .field larger"),
    ],
)
def test_what_is_no_table(content: bytes, message: str, tmp_path: Path) -> None:
    write_meld(tmp_path, sound=False)
    (tmp_path / "train" / "train_sent_emo.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        meld(tmp_path).targets()


def test_faults_of_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no test_sent_emo.csv"):
        meld(tmp_path).targets()
    write_meld(tmp_path)
    (tmp_path / "train" / "train_splits" / "dia1_utt1.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"dia1_utt1.wav cannot be decoded"):
        meld(tmp_path).load()
    (tmp_path / "train" / "train_sent_emo.csv").unlink()
    with pytest.raises(DataError, match=r"train/train_sent_emo.csv is missing"):
        meld(tmp_path).targets()
    with pytest.raises(DataError, match=r"meld has no modality 'video'; expected some of audio, text"):
        meld(tmp_path, modalities=("video",))


@pytest.mark.data
def test_the_official_texts() -> None:
    if not OFFICIAL.is_dir():
        pytest.skip(f"the official files are not at {OFFICIAL}")
    everything = meld(OFFICIAL, modalities=("text",)).load()
    assert np.bincount(everything.labels).tolist() == [1109, 271, 268, 1743, 4709, 683, 1205]
    assert np.bincount(everything.held_out.labels).tolist() == [345, 68, 50, 402, 1256, 208, 281]
    assert len(set(everything.subjects.tolist())) == 260
    assert len(set(everything.held_out.subjects.tolist())) == 100
    paper = meld(OFFICIAL, modalities=("text",), classes="paper")
    assert np.bincount(paper.targets().labels).tolist() == [1100, 1719, 4652, 681]
    assert len(set(paper.targets().subjects.tolist())) == 244


def moved(folder: Path, train: str, test: str) -> Path:
    """MELD with the clips of each part in another folder; those of the test part sound otherwise."""
    write_meld(folder)
    parts = {"train/train_splits": train, "output_repeated_splits_test": test}
    for old, new in parts.items():
        clips = [(clip.name, clip.read_bytes()) for clip in sorted((folder / old).iterdir())]
        shutil.rmtree(folder / old)
        for name, content in clips:
            target = folder / new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for row in range(16):
        name = f"dia{row // 8}_utt{row % 8}.wav"
        write_wav(folder / test / name, tone(3000, 0.15, 16_000), 16_000)
    return folder


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/train_splits", "output_repeated_splits_test"),
        ("train_dev_test_wav/train", "train_dev_test_wav/test"),
        ("audio/Train", "audio/TEST"),
        ("wav_train_16k", "wav_test_16k"),
        ("contest/training", "contest/latest/testing"),
        ("wav/TrainSplits", "wav/testSplits"),
        ("dev-train-test/train/train_splits", "dev-train-test/test/output_repeated_splits_test"),
    ],
)
def test_clips_belong_to_the_part_that_folders_name_word_by_word(train: str, test: str, tmp_path: Path) -> None:
    held_out = meld(moved(tmp_path / "test-of-train", train, test), modalities=("audio",)).load().held_out
    frames = speech_frames(tone(3000, 0.15, 16_000) / 2**15, AUDIO)
    for row in range(16):
        np.testing.assert_array_equal(held_out.inputs["audio"][row, :16], frames)


@pytest.mark.parametrize(
    ("train", "test"), [("train/wav", "train/test"), ("clips/train", "clips/more"), ("a/train", ".")]
)
def test_clips_of_no_part_or_two_are_refused(train: str, test: str, tmp_path: Path) -> None:
    path = moved(tmp_path, train, test)
    with pytest.raises(DataError, match=r"dia0_utt0.wav is in folders that name no part, or two; expected one"):
        meld(path).load()


def test_clips_of_the_dev_part_are_nobodys(tmp_path: Path) -> None:
    expected = meld(write_meld(tmp_path / "a")).load().fingerprint()
    write_meld(tmp_path / "b")
    (tmp_path / "b/train/train_splits").joinpath("dia0_utt0.wav").rename(
        tmp_path / "b/train/train_splits/DIA00_utt0.WAV"
    )
    write_wav(tmp_path / "b/dev_splits_complete/dia0_utt0.wav", tone(900, 0.15, 16_000), 16_000)
    assert meld(tmp_path / "b").load().fingerprint() == expected


def test_two_sounds_of_an_utterance(tmp_path: Path) -> None:
    write_meld(tmp_path)
    shutil.copy(tmp_path / "train/train_splits/dia0_utt0.wav", tmp_path / "train/dia0_utt0.wav")
    with pytest.raises(DataError, match=r"train/dia0_utt0.wav and train/train_splits/dia0_utt0.wav of the train part"):
        meld(tmp_path).load()


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    write_meld(tmp_path)
    clips = tmp_path / "train" / "train_splits"
    shutil.copy(clips / "dia0_utt0.wav", clips / "dia99_utt0.wav")
    shutil.copy(clips / "dia0_utt0.wav", clips / "final_videos_dia0_utt0.wav")
    found = {entry.what: (entry.count, entry.examples) for entry in meld(tmp_path, classes="paper").load().left_out}
    train, test = ("utterances of train_sent_emo.csv", "utterances of test_sent_emo.csv")
    assert found == {
        f"{train} that the official files have and this copy has not": (9989 - 96, ()),
        f"{train} of other emotions (data.classes: paper)": (36, ("dia0_utt4", "dia0_utt5", "dia0_utt6")),
        f"{train} by the speakers All, Man, Policeman, Tag, Woman (data.classes: paper)":
            (12, ("dia0_utt2", "dia1_utt2", "dia2_utt2")),
        f"{test} that the official files have and this copy has not": (2610 - 16, ()),
        f"{test} of other emotions (data.classes: paper)": (6, ("dia0_utt4", "dia0_utt5", "dia0_utt6")),
        f"{test} by the speakers All, Man, Policeman, Tag, Woman (data.classes: paper)":
            (2, ("dia0_utt2", "dia1_utt2")),
        "sounds without a row in train_sent_emo.csv": (1, ("train/train_splits/dia99_utt0.wav",)),
        "sounds with another name than dia<number>_utt<number>":
            (1, ("train/train_splits/final_videos_dia0_utt0.wav",)),
    }  # fmt: skip
