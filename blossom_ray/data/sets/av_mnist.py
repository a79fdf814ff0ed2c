"""AV-MNIST: handwritten digits (MNIST) paired with spoken digits (FSDD) of the same class.

No pairing is distributed; this one is drawn here. Training pairs hold MNIST's training images and the recordings
5 and up of each speaker and digit, held-out pairs MNIST's test images and recordings 0 to 4: no image and no
recording is in both.

Source: the task of Vielzeuf et al. 2018 (arXiv:1808.07275), with the images and recordings that BLOSSOM
(arXiv:2603.27552) uses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.data.audio_text_data import MelSpectrogram
from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, LeftOut, Targets
from blossom_ray.data.files.archives import Archive
from blossom_ray.data.files.cache import cached
from blossom_ray.data.files.progress import tracked
from blossom_ray.data.sets.audio import decibels, mel_power, read_wav
from blossom_ray.data.sets.content import rows_lacking
from blossom_ray.data.sets.mnist import NUM_DIGITS, NUM_IMAGES, mnist_folder, normalised, read_mnist, read_mnist_labels
from blossom_ray.data.sets.spoken_digits import Recording, list_recordings, open_spoken_digits, recordings_left_out
from blossom_ray.errors import DataError

MODALITIES = ("audio", "image")
CLASS_NAMES = tuple(str(digit) for digit in range(NUM_DIGITS))
_DECODING = 1
"""Raised when spectrograms of the same recordings change, so that cached ones are not used."""
_PURPOSES = {"train": Purpose.DATA, "test": Purpose.HELD_OUT}
_IMAGES, _RECORDINGS = range(2)  # in the round's place of a draw's key


class AvMnist:
    """The data set as a source: pairs of the training parts, and pairs of the test parts as held-out set.

    Smaller cuts of both data sets are accepted; every digit must be in each part of both. Spectrograms are computed
    once and kept in the cache.

    Args:
        path: Folder with the four files of MNIST and with the recordings, as a zip or a folder.
        modalities: Some of `audio` and `image`; the content of the other is not read.
        pairs: Pairs that clients share, or None for each recording once.
        held_out_pairs: Pairs of the held-out set, or None for each recording once.
        pairing_seed: Seed of the pairing, >= 0.
        spectrogram: How recordings become images.

    Raises:
        DataError: A modality that the data set does not have, or a path in the home of nobody.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        modalities: tuple[str, ...] = MODALITIES,
        pairs: int | None = None,
        held_out_pairs: int | None = None,
        pairing_seed: int = 0,
        spectrogram: MelSpectrogram | None = None,
    ) -> None:
        for modality in modalities:
            if modality not in MODALITIES:
                raise DataError(f"av-mnist has no modality {modality!r}; expected some of {', '.join(MODALITIES)}")
        try:
            self._path = Path(path).expanduser()
        except RuntimeError as error:
            raise DataError(f"{path}: {error}; expected a folder") from error
        self._modalities = tuple(sorted(modalities))
        self._num_pairs = {"train": pairs, "test": held_out_pairs}
        self._seed = pairing_seed
        self._settings = MelSpectrogram() if spectrogram is None else spectrogram

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` reads, sorted."""
        return self._modalities

    def targets(self) -> Targets:
        """Digits, speakers and recordings of the training pairs; no image and no sound is read.

        Raises:
            DataError: Files are missing or damaged, or there are fewer images than pairs.
        """
        folder = mnist_folder(self._path)
        with open_spoken_digits(folder) as archive:
            recordings = list_recordings(archive)
        labels = read_mnist_labels(folder, "train")
        _, sounds = self._paired("train", labels, recordings)
        return _targets(sounds, recordings)

    def load(self) -> Dataset:
        """Both parts: `image` (N, 1, 28, 28) and `audio` (N, channels, mels, frames) in dB, float32; labels 0..9.

        Raises:
            DataError: Files are missing or damaged, there are fewer images than pairs, or SciPy is not installed.
        """
        folder = mnist_folder(self._path)
        with open_spoken_digits(folder) as archive:
            recordings = list_recordings(archive)
            missing = recordings_left_out(archive)
            spectrograms = self._spectrograms(archive, recordings) if "audio" in self._modalities else None
        held_out = self._part(folder, "test", recordings, spectrograms, None)
        dataset = self._part(folder, "train", recordings, spectrograms, held_out)
        return replace(dataset, left_out=(*missing, *held_out.left_out, *dataset.left_out))

    def _part(
        self,
        folder: Path,
        part: str,
        recordings: list[Recording],
        spectrograms: FloatArray | None,
        held_out: Dataset | None,
    ) -> Dataset:
        mnist = read_mnist(folder, part)
        images, sounds = self._paired(part, mnist.labels, recordings)
        inputs = {}
        if "image" in self._modalities:
            inputs["image"] = normalised(mnist.pixels[images])
        if spectrograms is not None:
            inputs["audio"] = np.repeat(spectrograms[sounds][:, None], self._settings.channels, axis=1)
        targets = _targets(sounds, recordings)
        spoken = sum(recording.is_test == (part == "test") for recording in recordings)
        key = "data.pairs" if part == "train" else "data.held_out_pairs"
        unpaired = {"images": len(mnist.labels) - len(images), "recordings": spoken - len(np.unique(sounds))}
        missing = (
            *rows_lacking(f"images of the {part} part", len(mnist.labels), NUM_IMAGES[part]),
            *(LeftOut(f"{what} of the {part} part in no pair ({key})", n) for what, n in unpaired.items() if n),
        )
        return Dataset(
            inputs, targets.labels, CLASS_NAMES, targets.subjects, held_out, targets.recordings, left_out=missing
        )

    def _paired(self, part: str, labels: IntArray, recordings: list[Recording]) -> tuple[IntArray, IntArray]:
        """Rows of MNIST's part and of `recordings`, one of each per pair, by digit.

        Within a digit, images are drawn without repetition; each recording serves as often as any other, give or
        take one.
        """
        digits = np.array([recording.digit for recording in recordings], np.int64)
        in_part = np.array([recording.is_test == (part == "test") for recording in recordings], np.bool_)
        num_pairs = self._num_pairs[part]
        images, sounds = [], []
        for digit in range(NUM_DIGITS):
            of_digit = np.flatnonzero(labels == digit)
            spoken = np.flatnonzero((digits == digit) & in_part)
            if len(spoken) == 0:
                raise DataError(f"no recording of the digit {digit} is in the {part} part; expected all ten digits")
            number = len(spoken) if num_pairs is None else (num_pairs + NUM_DIGITS - 1 - digit) // NUM_DIGITS
            if number > len(of_digit):
                key = "data.pairs" if part == "train" else "data.held_out_pairs"
                raise DataError(
                    f"{key} asks for {number} images of the digit {digit} in the {part} part, which has "
                    f"{len(of_digit)}; expected fewer pairs, since no image is used twice"
                )
            chosen = generator(self._seed, _PURPOSES[part], _IMAGES, digit).permutation(of_digit)
            order = generator(self._seed, _PURPOSES[part], _RECORDINGS, digit).permutation(spoken)
            images.append(chosen[:number])
            sounds.append(np.resize(order, number))
        return np.concatenate(images), np.concatenate(sounds)

    def _spectrograms(self, archive: Archive, recordings: list[Recording]) -> FloatArray:
        """(recordings, mels, frames) float32, in dB."""
        members = [recording.member for recording in recordings]
        settings = self._settings.model_dump(exclude={"channels"})
        key = {"decoding": _DECODING, "recordings": archive.states(members), "spectrogram": settings}

        def build() -> dict[str, FloatArray]:
            return {"audio": np.stack([self._spectrogram(archive, name) for name in tracked(members, "spectrograms")])}

        return np.asarray(cached("av-mnist", key, build)["audio"])

    def _spectrogram(self, archive: Archive, member: str) -> FloatArray:
        settings = self._settings
        sound = read_wav(
            archive.read(member),
            f"{archive.name}: {member}",
            rate_hz=settings.rate_hz,
            longest_s=settings.duration_ms / 1000,
        )
        signal = np.zeros(settings.num_samples)
        signal[: len(sound)] = sound[: len(signal)]
        power = mel_power(
            signal,
            rate_hz=settings.rate_hz,
            window=settings.window,
            fft_size=settings.window,
            hop=settings.hop,
            num_mels=settings.mels,
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
