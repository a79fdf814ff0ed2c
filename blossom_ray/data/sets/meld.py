"""MELD: utterances of the series Friends with text, sound and emotion, from the official files.

Source: Poria et al., "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL 2019.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import Dataset, FloatArray, LeftOut, Targets, left_out
from blossom_ray.data.files.archives import Archive, open_archive
from blossom_ray.data.files.csv_tables import Row, check_unique, read_rows, whole_number
from blossom_ray.data.sets.base import DatasetFacts, Download, Shapes, check_content, rows_lacking
from blossom_ray.data.sets.speech import SpeechFrames, Utterance, dialogues, utterance_sounds, utterance_texts
from blossom_ray.data.sets.text import TextTokens
from blossom_ray.errors import DataError

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
PAPER_EMOTIONS = ("anger", "joy", "neutral", "sadness")
_PAPER_DROPS = frozenset({"All", "Man", "Policeman", "Tag", "Woman"})
_OFFICIAL = {"train": (1109, 271, 268, 1743, 4710, 683, 1205), "test": (345, 68, 50, 402, 1256, 208, 281)}
_NO_SOUND = {"train": "dia125_utt3", "test": None}
"""An official clip that cannot be decoded. Its row is left out whatever the modalities, so that all of them have the
same rows."""
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_CLIP = re.compile(r"dia(?P<dialogue>[0-9]{1,9})_utt(?P<utterance>[0-9]{1,9})", re.IGNORECASE)
_SUFFIXES = (".mp4", ".wav")  # of which the last is read where both are there
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_PART_OF_WORD = {
    "train": "train", "training": "train", "trainset": "train", "test": "test", "testing": "test", "testset": "test",
    "dev": "dev", "devset": "dev", "val": "dev", "valid": "dev", "validation": "dev",
}  # fmt: skip
_LARGEST_BYTES = 200_000_000


@dataclass(frozen=True)
class _Part:
    """A part's utterances, its name, `train` or `test`, the names of all rows, and what is left out of these."""

    name: Literal["train", "test"]
    utterances: list[Utterance]
    rows: frozenset[str]
    left_out: tuple[LeftOut, ...]


class MeldData(Download):
    """MELD (Poria et al. 2019): utterances from the TV series Friends, 7 emotions.

    Modalities `text` (tokens, dim) and `audio` (frames, mels). Clients share the official training part; the official
    test part is the held-out global test set; the development part is not used. Subjects are the speakers. `audio`
    needs the clips and the extra `audio`; `text` alone needs the csv files only.
    """

    facts: ClassVar = DatasetFacts(
        title="Multimodal EmotionLines Dataset (Poria et al. 2019): utterances of the series Friends",
        holds="9,988 utterances of 260 speakers; 8,152 of 244 with the paper's classes",
        classes="7 emotions, or the paper's 4",
        tasks=("classification",),
        held_out="the official test part: 2,610 utterances; 2,180 with the paper's classes",
        download="the unpacked MELD.Raw, or a folder with its train_sent_emo.csv and test_sent_emo.csv for text alone",
        page="github.com/declare-lab/MELD (affective-meld.github.io)",
        licence="GPL-3.0 (annotations); dialogues for research",
        extra="audio,video",
        shapes={"audio": (400, 80), "text": (32, 512)},
    )
    landmarks: ClassVar = ("test_sent_emo.csv",)

    dataset: Literal["meld"]
    path: str | None = None
    """Folder (or zip) with `train_sent_emo.csv` and `test_sent_emo.csv`, such as the unpacked MELD.Raw. Sound is looked
    for as `dia<D>_utt<U>.wav`, else `.mp4` (extra `video`), in folders whose names contain `train` or `test`. Relative
    to the working directory."""
    classes: Literal["all", "paper"] = "all"
    """`all`: 7 emotions, all speakers. `paper`: anger, joy, neutral and sadness, without the speakers All, Man,
    Policeman, Tag and Woman."""
    audio: SpeechFrames = SpeechFrames()
    """The frames of speech."""
    text: TextTokens = TextTokens()
    """The vectors of words."""

    @property
    def shapes(self) -> Shapes:
        return {"audio": (self.audio.frames, self.audio.mels), "text": (self.text.tokens, self.text.dim)}

    @property
    def num_subjects(self) -> int:
        return 260 if self.classes == "all" else 244

    @property
    def class_names(self) -> tuple[str, ...]:
        """The emotions asked for, in their order."""
        return EMOTIONS if self.classes == "all" else PAPER_EMOTIONS

    def open(self, modalities: tuple[str, ...], _seed: int, _task: Task, /) -> Meld:
        return Meld(self, self.files(), self.known(modalities))


@dataclass(frozen=True)
class Meld:
    """The data set as a source: the official training part, and the official test part as held-out set.

    Smaller cuts of the official files are accepted. Features are computed once and kept in the cache.
    """

    spec: MeldData
    path: Path
    modalities: tuple[str, ...]

    def targets(self) -> Targets:
        """Emotions and speakers of the training part; no sound is read.

        Raises:
            DataError: The csv file is missing, damaged or not as announced.
        """
        with self._open() as archive:
            part = self._part(archive, "train")
        return _targets(part.utterances, self.spec.class_names, _speakers(part.utterances))

    def load(self) -> Dataset:
        """Both parts: `text` (N, tokens, dim) and `audio` (N, frames, mels), float32, and the emotions' numbers.

        Raises:
            DataError: A file is missing, damaged or not as announced, or a library that reads it is not installed.
        """
        with self._open() as archive:
            parts = [self._part(archive, "train"), self._part(archive, "test")]
            missing = parts[0].left_out + parts[1].left_out
            if "audio" in self.modalities:
                clips = _clips(archive)
                parts = [_with_sounds(archive, part, clips) for part in parts]
                for part in parts:
                    unknown = [clip for name, clip in clips.of_part[part.name].items() if name not in part.rows]
                    missing += left_out(f"sounds without a row in {part.name}_sent_emo.csv", unknown)
                missing += clips.left_out
            speakers = _speakers(utterance for part in parts for utterance in part.utterances)
            held_out = self._dataset(archive, parts[1].utterances, speakers, None)
            return replace(self._dataset(archive, parts[0].utterances, speakers, held_out), left_out=missing)

    def _open(self) -> AbstractContextManager[Archive]:
        return open_archive(self.path, landmark=self.spec.landmarks[0], largest_bytes=_LARGEST_BYTES)

    def _part(self, archive: Archive, part: Literal["train", "test"]) -> _Part:
        rows = _rows(archive, part)
        labels = np.array([EMOTIONS.index(row["Emotion"]) for row in rows], np.int64)
        check_content(f"{archive.name}: {part}_sent_emo.csv", labels, _OFFICIAL[part], EMOTIONS)
        file = f"{part}_sent_emo.csv"
        missing = rows_lacking(f"utterances of {file}", len(rows), sum(_OFFICIAL[part]))
        kept = rows
        for rule, holds in self._rules(part):
            missing += left_out(f"utterances of {file} {rule}", [_name(row) for row in kept if holds(row)])
            kept = [row for row in kept if not holds(row)]
        if not kept:
            raise DataError(f"{archive.name}: {file} has no utterance of these emotions; expected some")
        utterances = [
            Utterance(_name(row), row["Speaker"], self.spec.class_names.index(row["Emotion"]), row["Utterance"])
            for row in kept
        ]
        return _Part(part, utterances, frozenset(map(_name, rows)), missing)

    def _rules(self, part: str) -> list[tuple[str, Callable[[Row], bool]]]:
        """Why rows are left out, and which."""
        by_classes: list[tuple[str, Callable[[Row], bool]]] = [
            ("of other emotions (data.classes: paper)", lambda row: row["Emotion"] not in self.spec.class_names),
            ("by the speakers All, Man, Policeman, Tag, Woman (data.classes: paper)",
             lambda row: row["Speaker"] in _PAPER_DROPS),
        ]  # fmt: skip
        return [
            *(by_classes if self.spec.class_names == PAPER_EMOTIONS else []),
            ("whose official clip cannot be decoded", lambda row: _name(row) == _NO_SOUND[part]),
        ]

    def _dataset(
        self, archive: Archive, utterances: list[Utterance], speakers: list[str], held_out: Dataset | None
    ) -> Dataset:
        inputs: dict[str, FloatArray] = {}
        if "audio" in self.modalities:
            inputs["audio"] = utterance_sounds("meld", archive, utterances, self.spec.audio)
        if "text" in self.modalities:
            inputs["text"] = utterance_texts("meld", utterances, self.spec.text)
        targets = _targets(utterances, self.spec.class_names, speakers)
        return Dataset(inputs, targets.labels, self.spec.class_names, targets.subjects, held_out, pieces=targets.pieces)


def _rows(archive: Archive, part: str) -> list[Row]:
    name = f"{part}_sent_emo.csv"
    # In MELD.Raw the training part's is beside the clips.
    member = name if name in archive.members() else f"{part}/{name}"
    place = f"{archive.name}: {member}"
    rows = read_rows(archive, member, _COLUMNS)
    for number, row in enumerate(rows, start=1):
        for column in _COLUMNS:
            if not row[column]:
                raise DataError(f"{place}, row {number}: {column} is missing; expected {', '.join(_COLUMNS)}")
        if row["Emotion"] not in EMOTIONS:
            raise DataError(f"{place}, row {number}: Emotion {row['Emotion']!r}; expected one of {', '.join(EMOTIONS)}")
        for column in ("Dialogue_ID", "Utterance_ID"):
            if (whole_number(row[column]) or 0) < 0 or whole_number(row[column]) is None:
                raise DataError(f"{place}, row {number}: {column} {row[column]!r}; expected a number")
    check_unique(place, "utterance", map(_name, rows))
    return rows


def _name(row: Row) -> str:
    return f"dia{whole_number(row['Dialogue_ID'])}_utt{whole_number(row['Utterance_ID'])}"


@dataclass(frozen=True)
class _Clips:
    """The members with sound by the name of their utterance, and those that are none's.

    Attributes:
        of_part: Of each part, utterance to member.
        unclear: Utterance to a member whose folders do not say one part.
        left_out: Sounds whose names are no utterance's.
    """

    of_part: Mapping[str, Mapping[str, str]]
    unclear: Mapping[str, str]
    left_out: tuple[LeftOut, ...]


def _clips(archive: Archive) -> _Clips:
    """Where the sounds are; wav files come before clips.

    Raises:
        DataError: Two files of a kind are of the same utterance.
    """
    of_part: dict[str, dict[str, str]] = {"train": {}, "dev": {}, "test": {}}
    unclear: dict[str, str] = {}
    others = []
    paths = [PurePosixPath(member) for member in archive.members()]
    for suffix in _SUFFIXES:
        seen: dict[tuple[str, str], PurePosixPath] = {}
        for path in (path for path in paths if path.suffix.lower() == suffix):
            match = _CLIP.fullmatch(path.stem)
            if match is None:
                others.append(str(path))
                continue
            name = f"dia{int(match['dialogue'])}_utt{int(match['utterance'])}"
            part = _part_of(path)
            if part is None:
                unclear[name] = str(path)
                continue
            if (part, name) in seen:
                first = seen[part, name]
                raise DataError(
                    f"{archive.name} has {first} and {path} of the {part} part; expected one {name}{suffix}"
                )
            seen[part, name] = path
            of_part[part][name] = str(path)
    return _Clips(of_part, unclear, left_out("sounds with another name than dia<number>_utt<number>", others))


def _part_of(path: PurePosixPath) -> str | None:
    """The part that a file's folders name: `train_splits` one, `train_dev_test_wav` none since it names several."""
    named = set()
    for folder in path.parent.parts:
        parts = {_PART_OF_WORD[word.lower()] for word in _WORD.findall(folder) if word.lower() in _PART_OF_WORD}
        named |= parts if len(parts) == 1 else set()
    return named.pop() if len(named) == 1 else None


def _with_sounds(archive: Archive, part: _Part, clips: _Clips) -> _Part:
    """The part with each utterance's member."""
    for utterance in part.utterances:
        if utterance.name in clips.unclear:
            raise DataError(
                f"{archive.name}: {clips.unclear[utterance.name]} is in folders that name no part, or two; expected "
                f"one of them to name train, dev or test, as in {part.name}/{utterance.name}.wav"
            )
    found = clips.of_part[part.name]
    missing = [utterance.name for utterance in part.utterances if utterance.name not in found]
    if missing:
        raise DataError(
            f"{archive.name} has no sound of {len(missing)} of {len(part.utterances)} utterances of the {part.name} "
            f"part, such as {missing[0]}; expected {missing[0]}.wav or .mp4 in a folder whose name has the word "
            f"{part.name!r}"
        )
    return replace(part, utterances=[replace(each, sound=found[each.name]) for each in part.utterances])


def _speakers(utterances: Iterable[Utterance]) -> list[str]:
    """Speakers as they first appear: those of the training part have the same numbers with and without the test's."""
    return list(dict.fromkeys(utterance.speaker for utterance in utterances))


def _targets(utterances: list[Utterance], class_names: tuple[str, ...], speakers: list[str]) -> Targets:
    numbers = {speaker: number for number, speaker in enumerate(speakers)}
    labels = np.array([utterance.label for utterance in utterances], np.int64)
    subjects = np.array([numbers[utterance.speaker] for utterance in utterances], np.int64)
    return Targets(labels, len(class_names), subjects, pieces=dialogues(utterance.name for utterance in utterances))
