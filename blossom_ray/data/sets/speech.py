"""Utterances of a dialogue as a data set: vectors of their words, mel frames of their sound.

What MELD and IEMOCAP have in common. Where their files lie and what they say is in their own modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from blossom_ray.core.section import Section
from blossom_ray.data.dataset import FloatArray, Pieces
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.files.cache import cached, tracked
from blossom_ray.data.sets.audio import DoubleArray, mel_power, read_clip, read_wav
from blossom_ray.data.sets.text import TextTokens, text_key, text_vectors

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


@dataclass(frozen=True)
class Utterance:
    """What one speaker says at a time.

    Attributes:
        name: Its name in the data set.
        speaker: Who says it.
        label: Its class, from 0.
        text: What is said.
        sound: The archive's member that holds its sound, or "" where none is needed.
    """

    name: str
    speaker: str
    label: int
    text: str
    sound: str = ""


def dialogues(names: Iterable[str]) -> Pieces:
    """The dialogue of each utterance, which is its name without the last part, in both data sets."""
    return Pieces(np.unique([name.rpartition("_")[0] for name in names], return_inverse=True)[1].astype(np.int64))


def utterance_texts(dataset: str, utterances: Sequence[Utterance], settings: TextTokens) -> FloatArray:
    """(N, tokens, dim) float32: the vectors of the utterances' words, from the cache where they are there.

    Raises:
        DataError: As `text.text_vectors`.
    """
    sentences = [utterance.text for utterance in utterances]
    key = {**text_key(settings), "sentences": sentences}
    return np.asarray(cached(dataset, key, lambda: {"text": text_vectors(sentences, settings)})["text"])


def utterance_sounds(
    dataset: str, archive: Archive, utterances: Sequence[Utterance], settings: SpeechFrames
) -> FloatArray:
    """(N, frames, mels) float32: the mel frames of the utterances' sounds, from the cache where they are there.

    Raises:
        DataError: A sound is missing or damaged, or a library that decodes it is not installed.
    """
    members = [utterance.sound for utterance in utterances]
    key = {"decoding": _DECODING, "audio": settings.model_dump(), "sounds": archive.states(members)}

    def build() -> dict[str, FloatArray]:
        frames = np.zeros((len(members), settings.frames, settings.mels), np.float32)
        for row, member in enumerate(tracked(members, "sounds")):
            found = speech_frames(_sound(archive, member, settings), settings)
            frames[row, : len(found)] = found
        return {"audio": frames}

    return np.asarray(cached(dataset, key, build)["audio"])


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


def _sound(archive: Archive, member: str, settings: SpeechFrames) -> DoubleArray:
    decode = read_wav if PurePosixPath(member).suffix.lower() == ".wav" else read_clip
    # A window longer than asked for: the last frame is whole.
    longest_s = (settings.frames * _HOP + _FFT_SIZE) / _RATE_HZ
    return decode(archive.read(member), f"{archive.name}: {member}", rate_hz=_RATE_HZ, longest_s=longest_s)
