"""IEMOCAP: utterances of acted dialogues with text, sound and emotion, from the official files.

Source: Busso et al., "IEMOCAP: interactive emotional dyadic motion capture database", Language Resources and
Evaluation 42, 2008.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import Dataset, FloatArray, LeftOut, Targets, left_out
from blossom_ray.data.files.archives import Archive, open_archive
from blossom_ray.data.sets.base import DatasetFacts, Download, Shapes, check_content, rows_lacking
from blossom_ray.data.sets.speech import SpeechFrames, Utterance, dialogues, utterance_sounds, utterance_texts
from blossom_ray.data.sets.text import TextTokens
from blossom_ray.errors import DataError

CLASS_NAMES = ("anger", "happiness", "neutral", "sadness")
SESSIONS = (1, 2, 3, 4, 5)
_LABELS = {"ang": 0, "hap": 1, "exc": 1, "neu": 2, "sad": 3}
_CODES = ("ang", "dis", "exc", "fea", "fru", "hap", "neu", "oth", "sad", "sur", "xxx")
_OFFICIAL = (1103, 2, 1041, 40, 1849, 595, 1708, 3, 1084, 107, 2507)
_EVALUATION = re.compile(r"\[[0-9.]+ - [0-9.]+\]\s+(?P<turn>Ses0[1-5][FM]_\w+_[FM]\w+)\s+(?P<code>\w+)\s")
_BEGINS_EVALUATION = re.compile(r"\[[0-9.]+ - ")
_TRANSCRIPT = re.compile(r"(?P<turn>Ses0[1-5][FM]_\w+_[FM]\w+) \[[0-9.-]+\]: ?(?P<text>.*)")


@dataclass(frozen=True)
class _Turn:
    """One line of an evaluation: `Ses01F_impro05_M019` is said by the man of session 1."""

    name: str
    code: str

    @property
    def session(self) -> int:
        return int(self.name[4])

    @property
    def speaker(self) -> str:
        return self.name[3:5] + self.name.rsplit("_", 1)[1][0]

    @property
    def sound(self) -> str:
        dialogue = self.name.rsplit("_", 1)[0]
        return f"Session{self.session}/sentences/wav/{dialogue}/{self.name}.wav"


class IemocapData(Download):
    """IEMOCAP (Busso et al. 2008): acted dialogues of ten speakers in five sessions, 4 emotions.

    Classes are anger, happiness (with excitement), neutral and sadness: 5,531 utterances. Modalities `text`
    (tokens, dim) and `audio` (frames, mels), which needs the extra `audio`.
    """

    facts: ClassVar = DatasetFacts(
        title="Interactive Emotional Dyadic Motion Capture database (Busso et al. 2008)",
        holds="5,531 utterances of 4 emotions, 10 speakers in 5 sessions",
        classes="4 emotions (happiness includes excitement)",
        tasks=("classification",),
        held_out="session 5 by default, or none",
        download="the unpacked IEMOCAP_full_release, with Session1 to Session5",
        page="sail.usc.edu/iemocap (on request, no charge)",
        licence="for research, by agreement with the University of Southern California",
        extra="audio",
        shapes={"audio": (400, 80), "text": (32, 512)},
    )
    landmarks: ClassVar = ("Session1/dialog/EmoEvaluation/",)

    dataset: Literal["iemocap"]
    path: str | None = None
    """The unpacked `IEMOCAP_full_release`, with `Session1` to `Session5`. Relative to the working directory."""
    held_out_session: Annotated[int, Field(ge=1, le=5)] | None = 5
    """The session that is the held-out global test set. null: none, clients share all five, as in the paper."""
    subjects: Literal["speaker", "session"] = "speaker"
    """What a subject is: one of the ten speakers, or a session of two."""
    audio: SpeechFrames = SpeechFrames()
    """The frames of speech."""
    text: TextTokens = TextTokens()
    """The vectors of words."""

    @property
    def shapes(self) -> Shapes:
        return {"audio": (self.audio.frames, self.audio.mels), "text": (self.text.tokens, self.text.dim)}

    @property
    def num_subjects(self) -> int:
        num_sessions = len(SESSIONS) - (self.held_out_session is not None)
        return num_sessions if self.subjects == "session" else 2 * num_sessions

    def open(self, modalities: tuple[str, ...], _seed: int, _task: Task, /) -> Iemocap:
        return Iemocap(self, self.files(), self.known(modalities))


@dataclass(frozen=True)
class Iemocap:
    """The data set as a source: some sessions for the clients, one as held-out set where that is asked for.

    Smaller cuts of the official files are accepted. Features are computed once and kept in the cache.
    """

    spec: IemocapData
    path: Path
    modalities: tuple[str, ...]

    def targets(self) -> Targets:
        """Emotions and subjects of the clients' sessions; no text and no sound is read.

        Raises:
            DataError: The evaluations are missing, damaged or not as announced.
        """
        with self._open() as archive:
            return self._targets(self._shared(_turns(archive)[0]))

    def load(self) -> Dataset:
        """`text` (N, tokens, dim) and `audio` (N, frames, mels), float32, and the emotions' numbers.

        Raises:
            DataError: A file is missing, damaged or not as announced, or a library that reads it is not installed.
        """
        with self._open() as archive:
            turns, missing = _turns(archive)
            held_out = [turn for turn in turns if turn.session == self.spec.held_out_session]
            if self.spec.held_out_session is not None and not held_out:
                raise DataError(
                    f"{archive.name} has no utterance of session {self.spec.held_out_session}; expected some, since "
                    "data.held_out_session is that session"
                )
            texts = _transcripts(archive) if "text" in self.modalities else {}
            test = self._dataset(archive, held_out, texts, None) if held_out else None
            return replace(self._dataset(archive, self._shared(turns), texts, test), left_out=missing)

    def _open(self) -> AbstractContextManager[Archive]:
        return open_archive(self.path, landmark=self.spec.landmarks[0])

    def _shared(self, turns: list[_Turn]) -> list[_Turn]:
        shared = [turn for turn in turns if turn.session != self.spec.held_out_session]
        if not shared:
            raise DataError(f"{self.path} has utterances of the held-out session alone; expected other sessions, too")
        return shared

    def _targets(self, turns: list[_Turn]) -> Targets:
        labels = np.array([_LABELS[turn.code] for turn in turns], np.int64)
        pieces = dialogues(turn.name for turn in turns)
        sessions = np.array([turn.session - 1 for turn in turns], np.int64)
        if self.spec.subjects == "session":
            return Targets(labels, len(CLASS_NAMES), sessions, pieces=pieces)
        is_man = np.array([turn.speaker.endswith("M") for turn in turns], np.int64)
        return Targets(labels, len(CLASS_NAMES), 2 * sessions + is_man, pieces=pieces)

    def _dataset(
        self, archive: Archive, turns: list[_Turn], texts: Mapping[str, str], held_out: Dataset | None
    ) -> Dataset:
        utterances = []
        for turn in turns:
            if "text" in self.modalities and turn.name not in texts:
                raise DataError(f"{archive.name} has no transcription of {turn.name}; expected one per evaluation")
            text = texts.get(turn.name, "")
            utterances.append(Utterance(turn.name, turn.speaker, _LABELS[turn.code], text, turn.sound))
        inputs: dict[str, FloatArray] = {}
        if "audio" in self.modalities:
            inputs["audio"] = utterance_sounds("iemocap", archive, utterances, self.spec.audio)
        if "text" in self.modalities:
            inputs["text"] = utterance_texts("iemocap", utterances, self.spec.text)
        targets = self._targets(turns)
        return Dataset(inputs, targets.labels, CLASS_NAMES, targets.subjects, held_out, pieces=targets.pieces)


def _turns(archive: Archive) -> tuple[list[_Turn], tuple[LeftOut, ...]]:
    """The evaluated turns of the four classes, by name, and those that are left out."""
    turns: dict[str, _Turn] = {}
    evaluated_by: dict[str, str] = {}
    for member in _members(archive, "EmoEvaluation"):
        lines = archive.read(member).decode("latin1").splitlines()
        matches = [(line, _EVALUATION.match(line)) for line in lines if _BEGINS_EVALUATION.match(line)]
        if not matches:
            raise DataError(f"{archive.name}: {member} has no evaluation; expected lines as [6.29 - 8.23] turn emotion")
        for line, found in matches:
            if found is None:
                raise DataError(f"{archive.name}: {member}: {line[:60]!r}; expected [6.29 - 8.23], turn and emotion")
            if found["code"] not in _CODES:
                expected = ", ".join(_CODES)
                raise DataError(f"{archive.name}: {member}: emotion {found['code']!r}; expected one of {expected}")
            _check_once(archive, evaluated_by, found["turn"], member, "evaluation")
            turns[found["turn"]] = _Turn(found["turn"], found["code"])
    codes = np.array([_CODES.index(turn.code) for turn in turns.values()], np.int64)
    check_content(archive.name, codes, _OFFICIAL, _CODES)
    kept = [turns[name] for name in sorted(turns) if turns[name].code in _LABELS]
    if not kept:
        raise DataError(f"{archive.name} has no utterance of {', '.join(CLASS_NAMES)}; expected some")
    others = [name for name in sorted(turns) if turns[name].code not in _LABELS]
    unknown = [member for member in archive.members() if _is_sound(member) and PurePosixPath(member).stem not in turns]
    return kept, (
        *left_out("turns of other emotions, or without agreement on one", others),
        *rows_lacking("turns", len(turns), sum(_OFFICIAL)),
        *left_out("sounds without an evaluation", unknown),
    )


def _is_sound(member: str) -> bool:
    path = PurePosixPath(member)
    return member.startswith("Session") and "/sentences/wav/" in member and path.suffix.lower() == ".wav"


def _check_once(archive: Archive, members: dict[str, str], turn: str, member: str, what: str) -> None:
    """Note in `members` what a turn's member is; refuse a second one."""
    if turn in members:
        where = f"{members[turn]} and {member}" if members[turn] != member else f"{member} twice"
        raise DataError(f"{archive.name}: {turn} is in {where}; expected one {what} of each turn")
    members[turn] = member


def _transcripts(archive: Archive) -> dict[str, str]:
    texts = {}
    members: dict[str, str] = {}
    for member in _members(archive, "transcriptions"):
        for line in archive.read(member).decode("latin1").splitlines():
            if found := _TRANSCRIPT.match(line):
                if members.get(found["turn"]) != member:
                    _check_once(archive, members, found["turn"], member, "transcription")
                texts[found["turn"]] = found["text"].strip()
    return texts


def _members(archive: Archive, folder: str) -> list[str]:
    """The text files directly in this folder of each session's dialogues."""
    wanted = {f"Session{session}/dialog/{folder}" for session in SESSIONS}
    paths = (PurePosixPath(member) for member in archive.members())
    return [str(path) for path in paths if str(path.parent) in wanted and path.suffix.lower() == ".txt"]
