"""AV-MNIST: handwritten digits (MNIST) paired with spoken digits (FSDD) of the same class.

No pairing is distributed; this one is drawn here. Training pairs hold MNIST's training images and the recordings
5 and up of each speaker and digit, held-out pairs MNIST's test images and recordings 0 to 4: no image and no
recording is in both.

Source: the task of Vielzeuf et al. 2018 (arXiv:1808.07275), with the images and recordings that BLOSSOM
(arXiv:2603.27552) uses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from blossom_ray.core.progress import tracked
from blossom_ray.core.section import Positive, Section
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.data.dataset import Dataset, LabelColumn, LeftOut
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.files.cache import cached
from blossom_ray.data.modalities.spectrograms import decibels, mel_power
from blossom_ray.data.sets.audio import read_wav
from blossom_ray.data.sets.av_mnist_files import (
    LANDMARKS,
    NUM_DIGITS,
    Recording,
    list_recordings,
    mnist_folder,
    normalised,
    open_spoken_digits,
    read_mnist,
    read_mnist_labels,
)
from blossom_ray.data.sets.base import DatasetFacts, Download, Opened, Shapes
from blossom_ray.data.targets import FloatArray, IntArray, Targets
from blossom_ray.errors import DataError

CLASS_NAMES = tuple(str(digit) for digit in range(NUM_DIGITS))
_DECODING = 1
"""Raised when spectrograms of the same recordings change, so that cached ones are not used."""
_PURPOSES = {"train": Purpose.DATA, "test": Purpose.HELD_OUT}
_KEYS = {"train": "data.pairs", "test": "data.held_out_pairs"}
_IMAGES, _RECORDINGS = range(2)  # in the round's place of a draw's key


class MelSpectrogram(Section):
    """How a spoken digit becomes an image of (channels, mels, 1 + rate_hz * duration_ms / 1000 / hop), in dB.

    The default is the paper's, (2, 64, 141).
    """

    rate_hz: Annotated[int, Field(ge=1000, le=192_000)] = 48_000
    """Samples per second, to which recordings are brought. They have 8000; more adds no information."""
    duration_ms: Annotated[int, Field(ge=10, le=10_000)] = 1500
    """Milliseconds that are kept; shorter recordings are followed by silence. Of 3,000 recordings 2 are longer than
    1500, 20 longer than 1000."""
    window: Annotated[int, Field(ge=2, le=65_536)] = 1024
    """Samples in a frame's window (Hann), and of its Fourier transform."""
    hop: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Samples from one frame to the next."""
    mels: Annotated[int, Field(ge=1, le=512)] = 64
    """Mel bands between 0 and half of `rate_hz`."""
    channels: Annotated[int, Field(ge=1, le=8)] = 2
    """Copies of the spectrogram; recordings have one channel."""

    @property
    def num_samples(self) -> int:
        """Samples of the sound that is transformed."""
        return round(self.rate_hz * self.duration_ms / 1000)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, mels, frames)."""
        return self.channels, self.mels, 1 + self.num_samples // self.hop


class AvMnistData(Download):
    """MNIST images (LeCun et al.) paired with spoken digits (Free Spoken Digit Dataset) of the same class: 10 digits.

    Modalities `image` (1, 28, 28) and `audio`, a mel spectrogram in dB. Clients share pairs of MNIST's training
    images and of recordings 5-49 of each speaker and digit; MNIST's test images with recordings 0-4 are the held-out
    global test set. Subjects are the six speakers. Needs the extra `audio`.
    """

    facts: ClassVar = DatasetFacts(
        title="MNIST (LeCun et al.) paired with the Free Spoken Digit Dataset (Jackson et al.) by digit",
        holds="2,700 pairs by default, each recording once; up to 54,210 with recordings used again; 6 speakers",
        classes="10 digits",
        tasks=("classification",),
        held_out="MNIST's test images with the official test recordings: 300 pairs by default",
        download="a folder with the four idx files of MNIST and the Free Spoken Digit Dataset (zip or folder)",
        page="yann.lecun.com/exdb/mnist and github.com/Jakobovski/free-spoken-digit-dataset",
        licence="CC BY-SA 3.0 (MNIST), CC BY-SA 4.0 (spoken digits)",
        extra="audio",
        shapes={"audio": (2, 64, 141), "image": (1, 28, 28)},
        labels={"digit": ("classification",), "speaker": ("classification",)},
    )
    landmarks: ClassVar = LANDMARKS

    dataset: Literal["av-mnist"]
    path: str | None = None
    """Folder with the four MNIST files (idx, compressed or not) and the Free Spoken Digit Dataset (zip or folder).
    Relative to the working directory."""
    pairs: Positive | None = None
    """Pairs that clients share; no image is used twice. null: each recording once (2,700 pairs). With more pairs than
    recordings, one comes with several images, and `split: sample` puts it on one side of all clients' splits (but not
    with `draws: reference`)."""
    held_out_pairs: Positive | None = None
    """Pairs of the held-out set. null: each recording once (300 pairs)."""
    pairing_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = 0
    """Seed of the pairing. null: the scenario's `seed`, so that pairs differ between seeds."""
    spectrogram: MelSpectrogram = MelSpectrogram()
    """How recordings become images."""

    @property
    def shapes(self) -> Shapes:
        return {**self.facts.shapes, "audio": self.spectrogram.shape}

    @property
    def num_subjects(self) -> int:
        return 6

    def read_targets(self, opened: Opened, /) -> Targets:
        """Digits, speakers and recordings of the pairs; no image and no sound is read."""
        folder = mnist_folder(opened.path)
        with open_spoken_digits(folder) as archive:
            recordings, _ = list_recordings(archive)
        labels = read_mnist_labels(folder, "train")
        _, sounds = self.paired(opened, "train", labels, recordings)
        return _targets(sounds, recordings)

    def read(self, opened: Opened, /) -> Dataset:
        """`image` (N, 1, 28, 28) and `audio` (N, channels, mels, frames) in dB.

        Smaller cuts of both data sets are accepted; every digit must be in each part of both.
        """
        folder = mnist_folder(opened.path)
        with open_spoken_digits(folder) as archive:
            recordings, missing = list_recordings(archive)
            spectrograms = self._spectrograms(archive, recordings) if "audio" in opened.modalities else None

        def part(name: str, held_out: Dataset | None = None) -> Dataset:
            mnist = read_mnist(folder, name)
            images, sounds = self.paired(opened, name, mnist.labels, recordings)
            inputs = {}
            if "image" in opened.modalities:
                inputs["image"] = normalised(mnist.pixels[images])
            if spectrograms is not None:
                inputs["audio"] = np.repeat(spectrograms[sounds][:, None], self.spectrogram.channels, axis=1)
            found, speakers = _targets(sounds, recordings), tuple(sorted({each.speaker for each in recordings}))
            assert found.subjects is not None, "they are the speakers"
            spoken = sum(recording.is_test == (name == "test") for recording in recordings)
            unpaired = {"images": len(mnist.labels) - len(images), "recordings": spoken - len(np.unique(sounds))}
            rest = f"of the {name} part in no pair ({_KEYS[name]})"
            lacking = (LeftOut(f"{what} {rest}", number) for what, number in unpaired.items() if number)
            left = (*mnist.left_out, *lacking)
            more = {"speaker": LabelColumn(found.subjects, speakers)}
            own = (found.labels, CLASS_NAMES, found.subjects, held_out, found.recordings, left)
            return Dataset(inputs, *own, label_columns=more)

        held_out = part("test")
        dataset = part("train", held_out)
        return replace(dataset, left_out=(*missing, *held_out.left_out, *dataset.left_out))

    def paired(
        self, opened: Opened, part: str, labels: IntArray, recordings: list[Recording]
    ) -> tuple[IntArray, IntArray]:
        """Rows of MNIST's part and of `recordings`, one of each per pair, by digit.

        Within a digit, images are drawn without repetition; each recording serves as often as any other, give or
        take one.
        """
        seed = opened.seed if self.pairing_seed is None else self.pairing_seed
        digits = np.array([recording.digit for recording in recordings], np.int64)
        in_part = np.array([recording.is_test == (part == "test") for recording in recordings], np.bool_)
        num_pairs = self.pairs if part == "train" else self.held_out_pairs
        images, sounds = [], []
        for digit in range(NUM_DIGITS):
            of_digit = np.flatnonzero(labels == digit)
            spoken = np.flatnonzero((digits == digit) & in_part)
            if len(spoken) == 0:
                raise DataError(f"no recording of the digit {digit} is in the {part} part; expected all ten digits")
            number = len(spoken) if num_pairs is None else (num_pairs + NUM_DIGITS - 1 - digit) // NUM_DIGITS
            if number > len(of_digit):
                raise DataError(
                    f"{_KEYS[part]} asks for {number} images of the digit {digit} in the {part} part, which has "
                    f"{len(of_digit)}; expected fewer pairs, since no image is used twice"
                )
            chosen = generator(seed, _PURPOSES[part], _IMAGES, digit).permutation(of_digit)
            order = generator(seed, _PURPOSES[part], _RECORDINGS, digit).permutation(spoken)
            images.append(chosen[:number])
            sounds.append(np.resize(order, number))
        return np.concatenate(images), np.concatenate(sounds)

    def _spectrograms(self, archive: Archive, recordings: list[Recording]) -> FloatArray:
        """(recordings, mels, frames) float32, in dB."""
        members = [recording.member for recording in recordings]
        settings = self.spectrogram.model_dump(exclude={"channels"})
        key = {"decoding": _DECODING, "recordings": archive.states(members), "spectrogram": settings}

        def build() -> dict[str, FloatArray]:
            return {"audio": np.stack([self._spectrogram(archive, name) for name in tracked(members, "spectrograms")])}

        return np.asarray(cached("av-mnist", key, build)["audio"])

    def _spectrogram(self, archive: Archive, member: str) -> FloatArray:
        settings = self.spectrogram
        place, rate_hz, window = f"{archive.name}: {member}", settings.rate_hz, settings.window
        sound = read_wav(archive.read(member), place, rate_hz=rate_hz, longest_s=settings.duration_ms / 1000)
        signal = np.zeros(settings.num_samples)
        signal[: len(sound)] = sound[: len(signal)]
        power = mel_power(
            signal, rate_hz=rate_hz, window=window, fft_size=window, hop=settings.hop, num_mels=settings.mels
        )
        return decibels(power.T)


def _targets(sounds: IntArray, recordings: list[Recording]) -> Targets:
    speakers = sorted({recording.speaker for recording in recordings})
    chosen = [recordings[sound] for sound in sounds]
    labels = np.array([recording.digit for recording in chosen], np.int64)
    subjects = np.array([speakers.index(recording.speaker) for recording in chosen], np.int64)
    # Where each recording serves once, no two pairs share material and a split may put any pair on any side.
    is_shared = len(np.unique(sounds)) < len(sounds)
    return Targets(labels, NUM_DIGITS, subjects, np.unique(sounds, return_inverse=True)[1] if is_shared else None)
