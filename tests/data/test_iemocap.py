from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from data_sets import opened
from official_files import SENTENCES, tone, write_iemocap

from blossom_ray.data.sets.base import DataSource
from blossom_ray.data.sets.iemocap import CLASS_NAMES
from blossom_ray.data.sets.speech import SpeechFrames, speech_frames
from blossom_ray.data.sets.text import TextTokens, text_vectors
from blossom_ray.errors import DataError

AUDIO, TEXT = SpeechFrames(frames=12, mels=6), TextTokens(tokens=7, dim=16)
# By name, so the women of a dialogue come first: F000 neu, F001 ang, F003 neu, M000 hap, M001 exc, M002 sad; F002 and
# M003 are of no class.
LABELS = [2, 0, 2, 1, 1, 3]
IS_MAN = [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dialogues in each of the five sessions."""
    return write_iemocap(tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release")


def iemocap(path: Path, **options: object) -> DataSource:
    return opened("iemocap", path, **{"audio": AUDIO, "text": TEXT, **options})


def test_labels_and_speakers_by_hand(files: Path) -> None:
    dataset = iemocap(files).load()
    assert dataset.class_names == CLASS_NAMES
    assert dataset.input_shapes == {"audio": (12, 6), "text": (7, 16)}
    assert dataset.labels.tolist() == LABELS * 12
    expected = [2 * session + man for session in range(4) for _ in range(3) for man in IS_MAN]
    assert dataset.subjects.tolist() == expected
    assert dataset.held_out.labels.tolist() == LABELS * 3
    assert dataset.held_out.subjects.tolist() == [8 + man for man in IS_MAN] * 3


@pytest.mark.parametrize(("held_out", "num_shared"), [(None, 90), (1, 72), (5, 72)])
def test_the_held_out_session(held_out: int | None, num_shared: int, files: Path) -> None:
    source = iemocap(files, modalities=("text",), held_out_session=held_out, subjects="session")
    dataset = source.load()
    assert dataset.num_samples == num_shared
    assert source.targets().labels.tolist() == dataset.labels.tolist()
    assert source.targets().subjects.tolist() == dataset.subjects.tolist()
    for pieces in (source.targets().pieces, dataset.pieces):
        assert pieces is not None
        assert np.bincount(pieces.recordings).tolist() == [6] * (num_shared // 6)  # dialogues of six utterances
    sessions = set(dataset.subjects.tolist())
    if held_out is None:
        assert dataset.held_out is None
        assert sessions == {0, 1, 2, 3, 4}
    else:
        assert sessions == {0, 1, 2, 3, 4} - {held_out - 1}
        assert set(dataset.held_out.subjects.tolist()) == {held_out - 1}


def test_features_are_those_of_text_and_sound(files: Path) -> None:
    dataset = iemocap(files).load()
    said = [SENTENCES[position % 4].replace("\u2019", "'").replace("\u2026", "...") for position in (0, 1, 7, 2, 3, 4)]
    np.testing.assert_array_equal(dataset.inputs["text"][:6], text_vectors(said, TEXT))
    for row, position in enumerate((0, 1, 7, 2, 3, 4)):
        frames = speech_frames(tone(150 + 40 * position + 1, 0.1, 16_000) / 2**15, AUDIO)
        np.testing.assert_array_equal(dataset.inputs["audio"][row, :11], frames)
        assert not dataset.inputs["audio"][row, 11:].any()


def test_a_folder_above_the_release(files: Path) -> None:
    assert iemocap(files.parent).targets().labels.tolist() == LABELS * 12


def test_a_few_sessions_are_enough(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=(1, 2), dialogues=1)
    assert iemocap(tmp_path, held_out_session=2, modalities=("audio",)).load().num_samples == 6
    with pytest.raises(DataError, match=r"has no utterance of session 5; expected some"):
        iemocap(tmp_path).load()


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no Session1/dialog/EmoEvaluation/"):
        iemocap(tmp_path).targets()
    write_iemocap(tmp_path, sessions=(1,), dialogues=1)
    with pytest.raises(DataError, match=r"utterances of the held-out session alone; expected other sessions, too"):
        iemocap(tmp_path, held_out_session=1).targets()
    source = iemocap(tmp_path, held_out_session=None)
    top = tmp_path / "Session1"
    sound = top / "sentences" / "wav" / "Ses01F_impro01" / "Ses01F_impro01_F001.wav"
    sound.unlink()
    with pytest.raises(DataError, match=r"Ses01F_impro01_F001.wav is missing"):
        source.load()
    (top / "dialog" / "transcriptions" / "Ses01F_impro01.txt").write_text("Ses01F_impro01_F000 [0-1]: Hi.\nM: no\n")
    with pytest.raises(DataError, match=r"has no transcription of Ses01F_impro01_F001; expected one per evaluation"):
        source.load()
    evaluation = top / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    evaluation.write_text("[6.2901 - 8.2357]\tSes01F_impro01_F000\tglad\t[2.5, 2.5, 2.5]\n")
    with pytest.raises(DataError, match=r"Ses01F_impro01.txt: emotion 'glad'; expected one of ang, dis, exc"):
        source.targets()
    evaluation.write_text("[6.2901 - 8.2357]\tSes01F_impro01_F000\tfru\t[2.5, 2.5, 2.5]\n")
    with pytest.raises(DataError, match=r"has no utterance of anger, happiness, neutral, sadness"):
        source.targets()
    lines = (f"[0.1 - 0.2]\tSes01F_impro01_F{number:05}\tneu\t[2.5, 2.5, 2.5]\n" for number in range(10_039))
    evaluation.write_text("".join(lines))
    with pytest.raises(DataError, match=r"has 0 rows of class ang; expected 1103, as in the official files"):
        source.targets()
    with pytest.raises(DataError, match=r"iemocap has no modality 'video'; expected some of audio, text"):
        iemocap(tmp_path, modalities=("video",))


@pytest.mark.parametrize("stray", ["Ses01F_impro01_old.txt", "Ses01F_impro01 (1).txt", "Copy of Ses01F_impro01.TXT"])
@pytest.mark.parametrize(("kind", "what"), [("EmoEvaluation", "evaluation"), ("transcriptions", "transcription")])
def test_two_files_for_a_turn_are_refused(kind: str, what: str, stray: str, tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=(1,), dialogues=1)
    folder = tmp_path / "Session1" / "dialog" / kind
    shutil.copy(folder / "Ses01F_impro01.txt", folder / stray)
    with pytest.raises(DataError) as error:
        iemocap(tmp_path, held_out_session=None).load()
    for part in (stray, "/Ses01F_impro01.txt", f"expected one {what} of each turn"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name", ["._Ses01F_impro09.txt", "~$Ses01F_impro01.txt", ".~lock.txt", "Thumbs.db", "desktop.ini"]
)
def test_what_systems_leave_behind_is_no_evaluation(name: str, tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=(1,), dialogues=1)
    source = iemocap(tmp_path, held_out_session=None)
    expected = source.load()
    (tmp_path / "Session1" / "dialog" / "EmoEvaluation" / name).write_bytes(b"\x00\x05\x16\x07")
    assert source.load().fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Ses01F_x.txt has no evaluation; expected lines as"),
        ("% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n", r"Ses01F_x.txt has no evaluation"),
        ("[1.0 - 2.0]\tSes01F_x_F000\n", r"Ses01F_x.txt: '\[1.0 - 2.0\].*; expected \[6.29 - 8.23\], turn and emotion"),
    ],
)
def test_an_evaluation_file_without_an_evaluation(text: str, message: str, tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=(1,), dialogues=1)
    (tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_x.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        iemocap(tmp_path, held_out_session=None).targets()


def test_turns_left_out_are_counted_and_named(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=(1,), dialogues=2)
    (tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro02.txt").unlink()
    found = iemocap(tmp_path, held_out_session=None).load().left_out
    assert [(entry.count, entry.examples[:1]) for entry in found] == [
        (2, ("Ses01F_impro01_F002",)),
        (10_039 - 8, ()),
        (8, ("Session1/sentences/wav/Ses01F_impro02/Ses01F_impro02_F000.wav",)),
    ]
    assert str(found[0]).startswith("left out: turns of other emotions, or without agreement on one: 2, such as Ses01F")
