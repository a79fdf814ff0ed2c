"""Small data sets in the layout and format in which their authors hand them out."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from scipy.io import wavfile

SPEAKERS = ("jackson", "nicolas")
MELD_COLUMNS = (
    "Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode",
    "StartTime", "EndTime",
)  # fmt: skip
SENTENCES = ("You\u2019re late, again!", "Oh, that is great news.", "Okay.", "He left me \u2026 for good")


def tone(frequency_hz: float, seconds: float, rate_hz: int) -> np.ndarray:
    """A sine of half the full scale, 16 bits."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.round(0.5 * 2**15 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate_hz, samples)


def write_clip(path: Path, rate_hz: int = 44_100) -> None:
    """A second of 440 Hz, AAC in an mp4."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("aac", rate=rate_hz, layout="stereo")
        sound = np.repeat(tone(440, 1.0, rate_hz)[None], 2, axis=0).astype(np.float32) / 2**15
        for start in range(0, sound.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(sound[:, start : start + 1024], format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate_hz, start
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def mnist_image(part: str, row: int) -> np.ndarray:
    """A different image for each row and part."""
    return np.random.default_rng([len(part), row]).integers(0, 256, (28, 28), np.uint8)


def write_mnist(folder: Path, *, per_digit: int = 12, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        labels = np.arange(10 * per_digit) % 10
        images = np.stack([mnist_image(part, row) for row in range(len(labels))])
        for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (folder / name).write_bytes(idx(values))


def write_spoken_digits(folder: Path, *, indices: Iterable[int] = (0, 5, 6, 7)) -> None:
    for digit in range(10):
        for number, speaker in enumerate(SPEAKERS):
            for index in indices:
                sound = tone(300 + 200 * digit + 20 * number + index, 0.2 + 0.01 * index, 8000)
                write_wav(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", sound, 8000)


def write_av_mnist(folder: Path) -> Path:
    write_mnist(folder)
    write_spoken_digits(folder / "free-spoken-digit-dataset")
    return folder


def meld_rows(num_dialogues: int) -> list[dict[str, object]]:
    """Dialogues of eight utterances; all seven emotions, four speakers."""
    emotions = ("neutral", "joy", "anger", "sadness", "surprise", "fear", "disgust", "neutral")
    speakers = ("Joey", "Ross", "Tag", "Monica", "Joey", "Ross", "Monica", "Joey")
    return [
        {
            **dict.fromkeys(MELD_COLUMNS, "1"),
            "Utterance": SENTENCES[(dialogue + number) % len(SENTENCES)],
            "Speaker": speakers[number],
            "Emotion": emotions[number],
            "Sentiment": {"neutral": "neutral", "joy": "positive"}.get(emotions[number], "negative"),
            "Dialogue_ID": dialogue,
            "Utterance_ID": number,
        }
        for dialogue in range(num_dialogues)
        for number in range(8)
    ]


def write_meld_csv(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, MELD_COLUMNS)
        table.writeheader()
        table.writerows(rows)


def write_meld(folder: Path, *, sound: bool = True, num_dialogues: int = 12) -> Path:
    """MELD.Raw as its archives unpack, with wav files where the clips are."""
    parts = (("train", num_dialogues, "train/train_splits"), ("test", 2, "output_repeated_splits_test"))
    for part, number, clips in parts:
        rows = meld_rows(number)
        name = f"{part}_sent_emo.csv"
        write_meld_csv(folder / ("train" if part == "train" else ".") / name, rows)
        for position, row in enumerate(rows if sound else []):
            clip = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}.wav"
            write_wav(folder / clips / clip, tone(200 + 10 * position, 0.15, 16_000), 16_000)
    return folder


IEMOCAP_TURNS = ("F000", "F001", "M000", "M001", "M002", "F002", "M003", "F003")
IEMOCAP_CODES = ("neu", "ang", "hap", "exc", "sad", "xxx", "fru", "neu")


def write_iemocap(folder: Path, *, sessions: Iterable[int] = (1, 2, 3, 4, 5), dialogues: int = 3) -> Path:
    """The release's evaluations, transcriptions and sentences; a mark of macOS beside one of them."""
    for session in sessions:
        top = folder / f"Session{session}"
        for number in range(dialogues):
            dialogue = f"Ses0{session}F_impro0{number + 1}"
            evaluation, transcript = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"], []
            for position, (turn, code) in enumerate(zip(IEMOCAP_TURNS, IEMOCAP_CODES, strict=True)):
                evaluation.append(f"[{position}.2901 - {position}.9999]\t{dialogue}_{turn}\t{code}\t[2.5, 2.5, 2.5]\n")
                evaluation.append("C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n")
                said = SENTENCES[position % len(SENTENCES)].replace("\u2019", "'").replace("\u2026", "...")
                transcript.append(f"{dialogue}_{turn} [00{position}.2901-00{position}.9999]: {said}\n")
                sound = tone(150 + 40 * position + session, 0.1, 16_000)
                write_wav(top / "sentences" / "wav" / dialogue / f"{dialogue}_{turn}.wav", sound, 16_000)
            for kind, lines in (("EmoEvaluation", evaluation), ("transcriptions", transcript)):
                (top / "dialog" / kind).mkdir(parents=True, exist_ok=True)
                (top / "dialog" / kind / f"{dialogue}.txt").write_text("".join(lines), encoding="latin1")
        (top / "dialog" / "EmoEvaluation" / f"._Ses0{session}F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    return folder
