"""IEMOCAP: utterances of acted dialogues with text, sound and emotion, from the official files.

Source: Busso et al., "IEMOCAP: interactive emotional dyadic motion capture database", Language Resources and
Evaluation 42, 2008.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from blossom_ray.data.dataset import Dataset, LeftOut, left_out
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.sets.base import DatasetFacts, Opened, check_content
from blossom_ray.data.sets.speech import SpeechFrames, SpokenData, Utterance, utterance_dataset, utterance_targets
from blossom_ray.data.sets.text import TextTokens
from blossom_ray.data.targets import Targets
from blossom_ray.errors import DataError

CLASS_NAMES = ("anger", "happiness", "neutral", "sadness")
SESSIONS = (1, 2, 3, 4, 5)
_LABELS = {"ang": 0, "hap": 1, "exc": 1, "neu": 2, "sad": 3}
_CODES = ("ang", "dis", "exc", "fea", "fru", "hap", "neu", "oth", "sad", "sur", "xxx")
_OFFICIAL = (1103, 2, 1041, 40, 1849, 595, 1708, 3, 1084, 107, 2507)
_EVALUATION = re.compile(r"\[[0-9.]+ - [0-9.]+\]\s+(?P<turn>Ses0[1-5][FM]_\w+_[FM]\w+)\s+(?P<code>\w+)\s")
_BEGINS_EVALUATION = re.compile(r"\[[0-9.]+ - ")
_TRANSCRIPT = re.compile(r"(?P<turn>Ses0[1-5][FM]_\w+_[FM]\w+) \[[0-9.-]+\]: ?(?P<text>.*)")


class IemocapData(SpokenData):
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
        labels={"emotion": ("classification",), "subject": ("classification",)},
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
    def num_subjects(self) -> int:
        num_sessions = len(SESSIONS) - (self.held_out_session is not None)
        return num_sessions if self.subjects == "session" else 2 * num_sessions

    def read_targets(self, opened: Opened, /) -> Targets:
        """Emotions and subjects; no text and no sound is read."""
        with opened.archive() as archive:
            return utterance_targets(self._shared(opened, _turns(archive)[0]), len(CLASS_NAMES))

    def read(self, opened: Opened, /) -> Dataset:
        """Some sessions for the clients, one as held-out set where that is asked for; smaller cuts are accepted."""
        with opened.archive() as archive:
            turns, missing = _turns(archive)
            held_out = self._utterances(turns, of_held_out=True)
            if self.held_out_session is not None and not held_out:
                raise DataError(
                    f"{archive.name} has no utterance of session {self.held_out_session}; expected some, since "
                    "data.held_out_session is that session"
                )
            texts = _transcripts(archive) if "text" in opened.modalities else {}
            test = self._dataset(opened, archive, held_out, texts) if held_out else None
            found = self._dataset(opened, archive, self._shared(opened, turns), texts, test)
            return replace(found, left_out=missing)

    def _utterances(self, codes: Mapping[str, str], *, of_held_out: bool) -> list[Utterance]:
        """Utterances from the emotions of turns; that of `Ses01F_impro05_M019` is the man's of session 1."""
        found = []
        for name, code in codes.items():
            dialogue, _, number = name.rpartition("_")
            session = int(name[4])
            if (session == self.held_out_session) == of_held_out:
                speaker = 2 * (session - 1) + number.startswith("M")
                subject = session - 1 if self.subjects == "session" else speaker
                sound = f"Session{session}/sentences/wav/{dialogue}/{name}.wav"
                found.append(Utterance(name, subject, _LABELS[code], sound=sound))
        return found

    def _shared(self, opened: Opened, codes: Mapping[str, str]) -> list[Utterance]:
        shared = self._utterances(codes, of_held_out=False)
        if not shared:
            raise DataError(f"{opened.path} has utterances of the held-out session alone; expected other sessions, too")
        return shared

    def _dataset(
        self,
        opened: Opened,
        archive: Archive,
        utterances: list[Utterance],
        texts: Mapping[str, str],
        held_out: Dataset | None = None,
    ) -> Dataset:
        if "text" in opened.modalities:
            for each in utterances:
                if each.name not in texts:
                    raise DataError(f"{archive.name} has no transcription of {each.name}; expected one per evaluation")
            utterances = [replace(each, text=texts[each.name]) for each in utterances]
        return utterance_dataset(self, opened.modalities, archive, utterances, CLASS_NAMES, held_out)


def _turns(archive: Archive) -> tuple[dict[str, str], tuple[LeftOut, ...]]:
    """The emotions of evaluated turns of the four classes, by name, and what is left out."""
    codes: dict[str, str] = {}
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
            codes[found["turn"]] = found["code"]
    lacking = check_content(archive.name, "turns", [_CODES.index(code) for code in codes.values()], _OFFICIAL, _CODES)
    kept = {name: codes[name] for name in sorted(codes) if codes[name] in _LABELS}
    if not kept:
        raise DataError(f"{archive.name} has no utterance of {', '.join(CLASS_NAMES)}; expected some")
    sounds = [PurePosixPath(name) for name in archive.members() if name.startswith("Session")]
    unknown = [
        str(path) for path in sounds
        if "/sentences/wav/" in str(path) and path.suffix.lower() == ".wav" and path.stem not in codes
    ]  # fmt: skip
    return kept, (
        *left_out("turns of other emotions, or without agreement on one", sorted(codes.keys() - kept)),
        *lacking,
        *left_out("sounds without an evaluation", unknown),
    )


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
