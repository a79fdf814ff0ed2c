"""MELD: utterances of the series Friends with text, sound and emotion, from the official files.

Source: Poria et al., "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL 2019.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from blossom_ray.data.dataset import Dataset, LabelColumn, LeftOut, left_out
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.files.csv_tables import Row, check_unique, read_rows, whole_number
from blossom_ray.data.sets.base import DatasetFacts, Opened, check_content
from blossom_ray.data.sets.speech import SpeechFrames, SpokenData, Utterance, utterance_dataset, utterance_targets
from blossom_ray.data.sets.text import TextTokens
from blossom_ray.data.targets import Targets
from blossom_ray.errors import DataError

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
PAPER_EMOTIONS = ("anger", "joy", "neutral", "sadness")
_PAPER_DROPS = frozenset({"All", "Man", "Policeman", "Tag", "Woman"})
_OFFICIAL = {"train": (1109, 271, 268, 1743, 4710, 683, 1205), "test": (345, 68, 50, 402, 1256, 208, 281)}
_NO_SOUND = {"train": "dia125_utt3", "test": None}
"""An official clip that cannot be decoded. Its row is left out whatever the modalities, so that all of them have the
same rows."""
SENTIMENTS = ("negative", "neutral", "positive")
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_CLIP = re.compile(r"dia(?P<dialogue>[0-9]{1,9})_utt(?P<utterance>[0-9]{1,9})", re.IGNORECASE)
_SUFFIXES = (".mp4", ".wav")  # of which the last is read where both are there
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_PART_OF_WORD = {
    "train": "train", "training": "train", "trainset": "train", "test": "test", "testing": "test", "testset": "test",
    "dev": "dev", "devset": "dev", "val": "dev", "valid": "dev", "validation": "dev",
}  # fmt: skip


class MeldData(SpokenData):
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
        labels={"emotion": ("classification",), "sentiment": ("classification",), "subject": ("classification",)},
    )
    landmarks: ClassVar = ("test_sent_emo.csv",)
    largest_bytes: ClassVar = 200_000_000

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
    def num_subjects(self) -> int:
        return 260 if self.classes == "all" else 244

    @property
    def class_names(self) -> tuple[str, ...]:
        """The emotions asked for, in their order."""
        return EMOTIONS if self.classes == "all" else PAPER_EMOTIONS

    def read_targets(self, opened: Opened, /) -> Targets:
        """Emotions and speakers of the training part; no sound is read."""
        with opened.archive() as archive:
            utterances, _ = self._part(archive, "train", _rows(archive, "train"), {})
        return utterance_targets(utterances, len(self.class_names))

    def read(self, opened: Opened, /) -> Dataset:
        """The official training part, and the official test part as held-out set; smaller cuts are accepted."""
        with opened.archive() as archive:
            # As they first appear: speakers of the training part have the same numbers with and without the test's.
            speakers: dict[str, int] = {}
            rows = {part: _rows(archive, part) for part in _OFFICIAL}
            parts = {part: self._part(archive, part, rows[part], speakers) for part in _OFFICIAL}
            utterances = {part: found for part, (found, _) in parts.items()}
            missing = tuple(entry for _, left in parts.values() for entry in left)
            if "audio" in opened.modalities:
                clips, unclear, misnamed = _clips(archive)
                for part in _OFFICIAL:
                    utterances[part] = _with_sounds(archive, part, utterances[part], clips[part], unclear)
                for part in _OFFICIAL:
                    names = set(map(_name, rows[part]))
                    unknown = [clip for name, clip in clips[part].items() if name not in names]
                    missing += left_out(f"sounds without a row in {part}_sent_emo.csv", unknown)
                missing += left_out("sounds with another name than dia<number>_utt<number>", misnamed)
            given = (self, opened.modalities, archive)
            held_out = _with_sentiments(
                utterance_dataset(*given, utterances["test"], self.class_names), utterances["test"]
            )
            found = utterance_dataset(*given, utterances["train"], self.class_names, held_out)
            return replace(_with_sentiments(found, utterances["train"]), left_out=missing)

    def _part(
        self, archive: Archive, part: str, rows: list[Row], speakers: dict[str, int]
    ) -> tuple[list[Utterance], tuple[LeftOut, ...]]:
        """A part's utterances, and what is left out of its rows; new speakers get the next numbers."""
        file = f"{part}_sent_emo.csv"
        labels = [EMOTIONS.index(row["Emotion"]) for row in rows]
        missing = check_content(f"{archive.name}: {file}", f"utterances of {file}", labels, _OFFICIAL[part], EMOTIONS)
        names = self.class_names
        rules: dict[str, Callable[[Row], bool]] = {
            "of other emotions (data.classes: paper)": lambda row: row["Emotion"] not in names,
            "by the speakers All, Man, Policeman, Tag, Woman (data.classes: paper)": (
                lambda row: names == PAPER_EMOTIONS and row["Speaker"] in _PAPER_DROPS
            ),
            "whose official clip cannot be decoded": lambda row: _name(row) == _NO_SOUND[part],
        }
        for rule, holds in rules.items():
            missing += left_out(f"utterances of {file} {rule}", [_name(row) for row in rows if holds(row)])
            rows = [row for row in rows if not holds(row)]
        if not rows:
            raise DataError(f"{archive.name}: {file} has no utterance of these emotions; expected some")
        return [
            Utterance(
                _name(row),
                speakers.setdefault(row["Speaker"], len(speakers)),
                names.index(row["Emotion"]),
                row["Utterance"],
                sentiment=row.get("Sentiment", ""),
            )
            for row in rows
        ], missing


def _with_sentiments(dataset: Dataset, utterances: Sequence[Utterance]) -> Dataset:
    """The data set with the labels `sentiment`, where the table has one for each utterance."""
    found = [each.sentiment for each in utterances]
    if not set(found) <= set(SENTIMENTS):
        return dataset
    labels = np.array([SENTIMENTS.index(sentiment) for sentiment in found], np.int64)
    return replace(dataset, label_columns={"sentiment": LabelColumn(labels, SENTIMENTS)})


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


def _clips(archive: Archive) -> tuple[dict[str, dict[str, str]], dict[str, str], list[str]]:
    """Where the sounds are; wav files come before clips.

    Of each part, utterance to member; utterance to a member whose folders do not say one part; members whose names are
    no utterance's.
    """
    of_part: dict[str, dict[str, str]] = {"train": {}, "dev": {}, "test": {}}
    unclear: dict[str, str] = {}
    misnamed = []
    for suffix in _SUFFIXES:
        seen: dict[tuple[str, str], PurePosixPath] = {}
        for path in map(PurePosixPath, archive.members()):
            if path.suffix.lower() != suffix:
                continue
            match = _CLIP.fullmatch(path.stem)
            if match is None:
                misnamed.append(str(path))
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
    return of_part, unclear, misnamed


def _part_of(path: PurePosixPath) -> str | None:
    """The part that a file's folders name: `train_splits` one, `train_dev_test_wav` none since it names several."""
    named = set()
    for folder in path.parent.parts:
        parts = {_PART_OF_WORD[word.lower()] for word in _WORD.findall(folder) if word.lower() in _PART_OF_WORD}
        named |= parts if len(parts) == 1 else set()
    return named.pop() if len(named) == 1 else None


def _with_sounds(
    archive: Archive, part: str, utterances: list[Utterance], clips: Mapping[str, str], unclear: Mapping[str, str]
) -> list[Utterance]:
    for each in utterances:
        if each.name in unclear:
            raise DataError(
                f"{archive.name}: {unclear[each.name]} is in folders that name no part, or two; expected "
                f"one of them to name train, dev or test, as in {part}/{each.name}.wav"
            )
    missing = [each.name for each in utterances if each.name not in clips]
    if missing:
        raise DataError(
            f"{archive.name} has no sound of {len(missing)} of {len(utterances)} utterances of the {part} "
            f"part, such as {missing[0]}; expected {missing[0]}.wav or .mp4 in a folder whose name has the word "
            f"{part!r}"
        )
    return [replace(each, sound=clips[each.name]) for each in utterances]
