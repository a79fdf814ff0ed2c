"""Utterances of a dialogue as a data set: vectors of their words, mel frames of their sound.

What MELD and IEMOCAP have in common. Where their files lie and what they say is in their own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from blossom_ray.core.progress import tracked
from blossom_ray.core.section import Section
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.files.cache import cached
from blossom_ray.data.modalities.spectrograms import DoubleArray, mel_power
from blossom_ray.data.sets.audio import read_clip, read_wav
from blossom_ray.data.sets.base import Download, Shapes
from blossom_ray.data.sets.text import TextTokens, text_key, text_vectors
from blossom_ray.data.targets import FloatArray, Pieces, Targets

_DECODING = 1
"""Raised when frames of the same sound change, so that cached ones are not used."""
_RATE_HZ = 16_000
_WINDOW, _FFT_SIZE, _HOP = 400, 512, 160
_FLOOR_BELS = 8


class SpeechFrames(Section):
    """How speech becomes a sequence of (frames, mels): 25 ms windows every 10 ms, at 16 kHz."""

    frames: Annotated[int, Field(ge=8, le=10_000)] = 400
    """Frames of 10 ms that are kept; shorter speech is followed by zeros. The paper's 1000 takes 320 kB an
    utterance, 400 takes 128 kB."""
    mels: Annotated[int, Field(ge=1, le=512)] = 80
    """Mel bands between 0 and 8 kHz."""
    scale: Literal["log", "power"] = "log"
    """`log`: log10(power) + 8, at least 0, so that silence equals the zeros behind the end. `power`: as it is, the
    paper's."""


class SpokenData(Download):
    """A data set of utterances."""

    if TYPE_CHECKING:
        audio: SpeechFrames
        text: TextTokens

    @property
    def shapes(self) -> Shapes:
        return {"audio": (self.audio.frames, self.audio.mels), "text": (self.text.tokens, self.text.dim)}


@dataclass(frozen=True)
class Utterance:
    """What one speaker says at a time.

    Attributes:
        name: Its name in the data set, which begins with that of its dialogue and `_`.
        subject: Whose it is.
        label: Its class, from 0.
        text: What is said.
        sound: The archive's member that holds its sound, or "" where none is needed.
        sentiment: Its sentiment, "" where the data set has none.
    """

    name: str
    subject: int
    label: int
    text: str = ""
    sound: str = ""
    sentiment: str = ""


def utterance_targets(utterances: Sequence[Utterance], num_classes: int) -> Targets:
    """Classes, subjects and dialogues of utterances."""
    dialogues = [each.name.rpartition("_")[0] for each in utterances]
    return Targets(
        np.array([each.label for each in utterances], np.int64),
        num_classes,
        np.array([each.subject for each in utterances], np.int64),
        pieces=Pieces(np.unique(dialogues, return_inverse=True)[1].astype(np.int64)),
    )


def utterance_dataset(
    spec: SpokenData,
    modalities: Sequence[str],
    archive: Archive,
    utterances: Sequence[Utterance],
    class_names: tuple[str, ...],
    held_out: Dataset | None = None,
) -> Dataset:
    """Utterances as a data set: `text` (N, tokens, dim), the vectors of their words, and `audio` (N, frames, mels).

    Both are float32, and come from the cache where they are there.

    Raises:
        DataError: A sound is missing or damaged, a library that reads it is not installed; or as `text.text_vectors`.
    """
    inputs: dict[str, FloatArray] = {}
    if "audio" in modalities:
        members = [each.sound for each in utterances]
        key = {"decoding": _DECODING, "audio": spec.audio.model_dump(), "sounds": archive.states(members)}
        found = cached(spec.dataset, key, lambda: {"audio": _sounds(archive, members, spec.audio)})
        inputs["audio"] = np.asarray(found["audio"])
    if "text" in modalities:
        sentences = [each.text for each in utterances]
        key = {**text_key(spec.text), "sentences": sentences}
        found = cached(spec.dataset, key, lambda: {"text": text_vectors(sentences, spec.text)})
        inputs["text"] = np.asarray(found["text"])
    targets = utterance_targets(utterances, len(class_names))
    return Dataset(inputs, targets.labels, class_names, targets.subjects, held_out, pieces=targets.pieces)


def speech_frames(sound: DoubleArray, settings: SpeechFrames) -> FloatArray:
    """The mel frames of a sound at 16 kHz: windows of 25 ms every 10 ms, a transform of 512 samples.

    Args:
        sound: (samples,) float64, at least one sample.
        settings: How many frames and bands, and their scale.

    Returns:
        (at most settings.frames, settings.mels) float32.
    """
    power = mel_power(sound, rate_hz=_RATE_HZ, window=_WINDOW, fft_size=_FFT_SIZE, hop=_HOP, num_mels=settings.mels)[
        : settings.frames
    ]
    if settings.scale == "power":
        return power.astype(np.float32)
    # Counted from the floor up, so that the zeros behind the end mean silence.
    return (np.log10(np.maximum(power, 10.0**-_FLOOR_BELS)) + _FLOOR_BELS).astype(np.float32)


def _sounds(archive: Archive, members: Sequence[str], settings: SpeechFrames) -> FloatArray:
    # A window longer than asked for: the last frame is whole.
    longest_s = (settings.frames * _HOP + _FFT_SIZE) / _RATE_HZ
    frames = np.zeros((len(members), settings.frames, settings.mels), np.float32)
    for row, member in enumerate(tracked(members, "sounds")):
        decode = read_wav if PurePosixPath(member).suffix.lower() == ".wav" else read_clip
        sound = decode(archive.read(member), f"{archive.name}: {member}", rate_hz=_RATE_HZ, longest_s=longest_s)
        found = speech_frames(sound, settings)
        frames[row, : len(found)] = found
    return frames
