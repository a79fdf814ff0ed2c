"""MELD: utterances of the series Friends with text, sound and emotion, from the official files.

Source: Poria et al., "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL 2019.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from blossom_ray.data.archives import Archive, open_archive
from blossom_ray.data.content import check_content
from blossom_ray.data.dataset import Dataset, FloatArray, Targets
from blossom_ray.data.speech import Utterance, utterance_sounds, utterance_texts
from blossom_ray.errors import DataError
from blossom_ray.scenario.sections import SpeechFrames, TextTokens

MODALITIES = ("audio", "text")
EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
PAPER_EMOTIONS = ("anger", "joy", "neutral", "sadness")
LANDMARK = "test_sent_emo.csv"
_PAPER_DROPS = frozenset({"All", "Man", "Policeman", "Tag", "Woman"})
_OFFICIAL = {"train": (1109, 271, 268, 1743, 4710, 683, 1205), "test": (345, 68, 50, 402, 1256, 208, 281)}
_NO_SOUND = {"train": "dia125_utt3", "test": None}
"""An official clip that cannot be decoded. Its row is left out whatever the modalities, so that all of them have the
same rows."""
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_CLIP = re.compile(r"dia[0-9]+_utt[0-9]+")
_LARGEST_BYTES = 200_000_000


@dataclass(frozen=True)
class _Part:
    """A part's utterances and its name, `train` or `test`."""

    name: Literal["train", "test"]
    utterances: list[Utterance]


class Meld:
    """The data set as a source: the official training part, and the official test part as held-out set.

    Smaller cuts of the official files are accepted. Features are computed once and kept in the cache.

    Args:
        path: Folder or zip with `train_sent_emo.csv` and `test_sent_emo.csv`.
        modalities: Some of `audio` and `text`; the files of the other are not read.
        classes: `all`: the 7 of `EMOTIONS`. `paper`: the 4 of `PAPER_EMOTIONS`, without five of the speakers.
        audio: The frames of speech.
        text: The vectors of words.

    Raises:
        DataError: A modality that the data set does not have, or a path in the home of nobody.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        modalities: tuple[str, ...] = MODALITIES,
        classes: Literal["all", "paper"] = "all",
        audio: SpeechFrames | None = None,
        text: TextTokens | None = None,
    ) -> None:
        for modality in modalities:
            if modality not in MODALITIES:
                raise DataError(f"meld has no modality {modality!r}; expected some of {', '.join(MODALITIES)}")
        try:
            self._path = Path(path).expanduser()
        except RuntimeError as error:
            raise DataError(f"{path}: {error}; expected a folder") from error
        self._modalities = tuple(sorted(modalities))
        self._class_names = EMOTIONS if classes == "all" else PAPER_EMOTIONS
        self._audio = SpeechFrames() if audio is None else audio
        self._text = TextTokens() if text is None else text

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` reads, sorted."""
        return self._modalities

    def targets(self) -> Targets:
        """Emotions and speakers of the training part; no sound is read.

        Raises:
            DataError: The csv file is missing, damaged or not as announced.
        """
        with self._open() as archive:
            part = self._part(archive, "train")
        return _targets(part.utterances, self._class_names, _speakers(part.utterances))

    def load(self) -> Dataset:
        """Both parts: `text` (N, tokens, dim) and `audio` (N, frames, mels), float32, and the emotions' numbers.

        Raises:
            DataError: A file is missing, damaged or not as announced, or a library that reads it is not installed.
        """
        with self._open() as archive:
            parts = [self._part(archive, "train"), self._part(archive, "test")]
            if "audio" in self._modalities:
                parts = [_with_sounds(archive, part) for part in parts]
            speakers = _speakers(utterance for part in parts for utterance in part.utterances)
            held_out = self._dataset(archive, parts[1].utterances, speakers, None)
            return self._dataset(archive, parts[0].utterances, speakers, held_out)

    @contextmanager
    def _open(self) -> Iterator[Archive]:
        with open_archive(self._path, landmark=LANDMARK, largest_bytes=_LARGEST_BYTES) as archive:
            yield archive

    def _part(self, archive: Archive, part: Literal["train", "test"]) -> _Part:
        rows = _rows(archive, part)
        labels = np.array([EMOTIONS.index(row["Emotion"]) for row in rows], np.int64)
        check_content(f"{archive.name}: {part}_sent_emo.csv", labels, _OFFICIAL[part], EMOTIONS)
        drops = _PAPER_DROPS if self._class_names == PAPER_EMOTIONS else frozenset[str]()
        kept = [
            Utterance(
                name=_name(row),
                speaker=row["Speaker"],
                label=self._class_names.index(row["Emotion"]),
                text=row["Utterance"],
            )
            for row in rows
            if row["Emotion"] in self._class_names and row["Speaker"] not in drops
        ]
        kept = [utterance for utterance in kept if utterance.name != _NO_SOUND[part]]
        if not kept:
            raise DataError(f"{archive.name}: {part}_sent_emo.csv has no utterance of these emotions; expected some")
        return _Part(part, kept)

    def _dataset(
        self, archive: Archive, utterances: list[Utterance], speakers: list[str], held_out: Dataset | None
    ) -> Dataset:
        inputs: dict[str, FloatArray] = {}
        if "audio" in self._modalities:
            inputs["audio"] = utterance_sounds("meld", archive, utterances, self._audio)
        if "text" in self._modalities:
            inputs["text"] = utterance_texts("meld", utterances, self._text)
        targets = _targets(utterances, self._class_names, speakers)
        return Dataset(inputs, targets.labels, self._class_names, targets.subjects, held_out)


def _rows(archive: Archive, part: str) -> list[dict[str, str]]:
    name = f"{part}_sent_emo.csv"
    # In MELD.Raw the training part's is beside the clips.
    member = name if name in archive.members() else f"{part}/{name}"
    place = f"{archive.name}: {member}"
    try:
        rows = list(csv.DictReader(io.StringIO(archive.read(member).decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{place} cannot be read ({error}); expected the official csv file") from error
    if not rows:
        raise DataError(f"{place} has no rows; expected one per utterance")
    for number, row in enumerate(rows, start=1):
        for column in _COLUMNS:
            if not row.get(column):
                raise DataError(f"{place}, row {number}: {column} is missing; expected {', '.join(_COLUMNS)}")
        if row["Emotion"] not in EMOTIONS:
            raise DataError(f"{place}, row {number}: Emotion {row['Emotion']!r}; expected one of {', '.join(EMOTIONS)}")
        for column in ("Dialogue_ID", "Utterance_ID"):
            if not row[column].isdecimal():
                raise DataError(f"{place}, row {number}: {column} {row[column]!r}; expected a number")
    names = [_name(row) for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise DataError(f"{place} has two rows for {twice}; expected one per utterance")
    return rows


def _name(row: dict[str, str]) -> str:
    return f"dia{int(row['Dialogue_ID'])}_utt{int(row['Utterance_ID'])}"


def _with_sounds(archive: Archive, part: _Part) -> _Part:
    """The part with each utterance's member; wav files come before clips."""
    found: dict[str, str] = {}
    for suffix in (".mp4", ".wav"):
        for member in archive.members():
            path = PurePosixPath(member)
            if path.suffix == suffix and _CLIP.fullmatch(path.stem) and part.name in str(path.parent):
                found[path.stem] = member
    missing = [utterance.name for utterance in part.utterances if utterance.name not in found]
    if missing:
        raise DataError(
            f"{archive.name} has no sound of {len(missing)} of {len(part.utterances)} utterances of the {part.name} "
            f"part, such as {missing[0]}; expected {missing[0]}.wav or .mp4 in a folder whose name has {part.name!r}"
        )
    return _Part(part.name, [replace(utterance, sound=found[utterance.name]) for utterance in part.utterances])


def _speakers(utterances: Iterable[Utterance]) -> list[str]:
    """Speakers as they first appear: those of the training part have the same numbers with and without the test's."""
    return list(dict.fromkeys(utterance.speaker for utterance in utterances))


def _targets(utterances: list[Utterance], class_names: tuple[str, ...], speakers: list[str]) -> Targets:
    numbers = {speaker: number for number, speaker in enumerate(speakers)}
    labels = np.array([utterance.label for utterance in utterances], np.int64)
    subjects = np.array([numbers[utterance.speaker] for utterance in utterances], np.int64)
    return Targets(labels, len(class_names), subjects)
