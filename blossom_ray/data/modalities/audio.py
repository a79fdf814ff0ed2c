"""Sounds: files of WAV, FLAC, OGG (Vorbis, Opus) and MP3 as waveforms, mel spectrograms or MFCC.

Files are decoded by libsndfile (soundfile, extra `audio`), brought to a rate by SciPy. What follows from a signal
stands in `spectrograms.py`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from blossom_ray.core.extras import module_of_extra
from blossom_ray.core.section import Finding
from blossom_ray.data.modalities.base import Media, MediaValue, UndecodableError, beginning_of
from blossom_ray.data.modalities.lengths import Keep, first_kept, fitted
from blossom_ray.data.modalities.spectrograms import DoubleArray, cepstrum, decibels, mel_power, resampled

_VERSION = 1
_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # libsndfile's names; it opens many others
_EXPECTED = "a WAV, FLAC, OGG or MP3 file"
_HIGHEST_RATE_HZ = 384_000  # the filter of a resampling takes memory in proportion to it
_MOST_CHANNELS = 64
_MOST_NUMBERS = 2**24  # of a sample, or of its windows
_MOST_SAMPLES = 2**26  # of a file, in the seconds that are kept
_NUMBERS_AT_ONCE = 2**20
_LEAST_PART = 0.9  # of the length that a file promises; in an MP3 that is an estimate


class AudioModality(Media):
    """Sounds. A column of the contents of WAV, FLAC, OGG (Vorbis, Opus) or MP3 files, or of their paths.

    Channels become one, their mean; full scale is -1..1, and what floats go beyond it stays. Only the seconds that are
    kept are decoded. Of an MP3, the silence that its encoder put around it is left out where its header tells how much.
    """

    libraries: ClassVar[tuple[str, ...]] = ("soundfile", "scipy")

    kind: Literal["audio"]
    form: Literal["log-mel", "mfcc", "raw"] = "log-mel"
    """`log-mel`: a mel spectrogram in dB, nothing further than 80 dB below its largest value, nor below -100, which is
    silence. `mfcc`: the first coefficients of its discrete cosine transform. `raw`: the waveform, (samples, 1)."""
    rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000
    """Samples per second, to which sounds are brought."""
    seconds: Annotated[float, Field(ge=0.01, le=3600, allow_inf_nan=False)] = 3.0
    """How much is kept; shorter sounds are filled up with silence."""
    keep: Keep = "start"
    """Which part of a longer sound is kept, and where among the silence a shorter one stands."""
    window: Annotated[int, Field(ge=2, le=65_536)] = 1024
    """Samples in a frame's window (Hann)."""
    hop: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Samples from one frame to the next, so that a sound has 1 + rate * seconds / hop of them, rounded down."""
    fft: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Samples of the Fourier transform, in whose middle the window stands. null: as many as in the window."""
    bands: Annotated[int, Field(ge=1, le=512)] = 64
    """Mel bands between 0 and half of `rate`."""
    coefficients: Annotated[int, Field(ge=1, le=512)] = 13
    """Of `mfcc`, at most as many as there are bands."""
    channels: Annotated[int, Field(ge=1, le=8)] | None = None
    """null: a sequence (frames, bands), or (frames, coefficients). A number: an image of so many channels, copies of
    (bands, frames)."""

    def conflicts(self) -> Iterator[Finding]:
        yield from super().conflicts()
        if self.num_samples > _MOST_NUMBERS:
            yield Finding("seconds", f"{self.seconds:g} are {self.num_samples:,} samples", f"at most {_MOST_NUMBERS:,}")
        if self.form == "raw":
            return
        if self.features is not None and self.features.transformers is not None:
            yield Finding("form", f"is {self.form!r}, while models in transformers are given signals", "'raw'")
        if self.fft_size < self.window:
            yield Finding("fft", f"is {self.fft}, less than the {self.window} samples of window", "as many or more")
        if self.num_frames * max(self.fft_size, self.bands * (self.channels or 1)) > _MOST_NUMBERS:
            found = f"is {self.hop}, which makes {self.num_frames:,} windows of {self.fft_size:,} samples"
            yield Finding("hop", found, f"fewer than {_MOST_NUMBERS:,} samples in all")
        if self.form == "mfcc" and self.coefficients > self.bands:
            yield Finding("coefficients", f"is {self.coefficients}", f"at most {self.bands}, the number of bands")

    @property
    def num_samples(self) -> int:
        """Samples of the sound that is kept."""
        return round(self.rate * self.seconds)

    @property
    def num_frames(self) -> int:
        """Windows of it."""
        return 1 + self.num_samples // self.hop

    @property
    def fft_size(self) -> int:
        """Samples of a Fourier transform."""
        return self.fft or self.window

    def decoder(self) -> AudioDecoder:
        soundfile = module_of_extra("soundfile", "sounds need soundfile", "audio")
        module_of_extra("scipy", "sounds need SciPy", "audio")
        return AudioDecoder(self, soundfile)

    def version(self) -> int:
        return _VERSION


@dataclass(frozen=True)
class AudioDecoder:
    """From the content of a file to a waveform, a spectrogram or MFCC.

    Attributes:
        options: Which of them.
        soundfile: The library.
    """

    options: AudioModality
    soundfile: Any
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    factor: ClassVar[float] = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, 1), (frames, bands) or (channels, bands, frames)."""
        options = self.options
        if options.form == "raw":
            return options.num_samples, 1
        rows = options.bands if options.form == "log-mel" else options.coefficients
        frames = options.num_frames
        return (frames, rows) if options.channels is None else (options.channels, rows, frames)

    def __call__(self, value: MediaValue) -> npt.NDArray[np.float32]:
        """The sample (*shape) float32."""
        options = self.options
        if isinstance(value, str):
            raise UndecodableError(f"is a text; expected the content of {_EXPECTED}")
        signal = fitted(self._signal(value), options.num_samples, options.keep)
        if options.form == "raw":
            return signal[:, None].astype(np.float32)
        power = mel_power(
            signal,
            rate_hz=options.rate,
            window=options.window,
            fft_size=options.fft_size,
            hop=options.hop,
            num_mels=options.bands,
        )
        image = decibels(power.T)
        if options.form == "mfcc":
            image = cepstrum(image, options.coefficients)
        return image.T if options.channels is None else np.repeat(image[None], options.channels, axis=0)

    def _signal(self, content: bytes) -> DoubleArray:
        """(samples,) float64: of what is kept as much as there is, at the rate asked for."""
        try:
            sound = self.soundfile.SoundFile(io.BytesIO(content))
        except self.soundfile.SoundFileError as error:
            raise UndecodableError(
                f"is no sound, or a damaged one ({beginning_of(content)}); expected {_EXPECTED}"
            ) from error
        with sound:
            if sound.format not in _FORMATS:
                raise UndecodableError(f"is a sound in the format {sound.format}; expected {_EXPECTED}")
            if not 1 <= sound.samplerate <= _HIGHEST_RATE_HZ:
                found = f"has {sound.samplerate:,} samples per second"
                raise UndecodableError(f"{found}; expected 1 to {_HIGHEST_RATE_HZ:,}")
            if sound.channels > _MOST_CHANNELS:
                raise UndecodableError(f"has {sound.channels:,} channels; expected at most {_MOST_CHANNELS}")
            wanted = math.ceil(self.options.seconds * sound.samplerate)
            if wanted > _MOST_SAMPLES:
                found = f"has {sound.samplerate:,} samples per second, {wanted:,} in {self.options.seconds:g} s"
                raise UndecodableError(f"{found}; expected at most {_MOST_SAMPLES:,}")
            begin = max(0, first_kept(sound.frames, wanted, self.options.keep))
            promised = min(wanted, sound.frames - begin)
            signal = self._mono(sound, begin, promised)
        if len(signal) == 0:
            raise UndecodableError("has no samples; expected a sound")
        if len(signal) < _LEAST_PART * promised:
            found = f"has {len(signal):,} of the {promised:,} samples that its header tells of"
            raise UndecodableError(f"{found}; expected all")
        if not np.isfinite(signal).all():
            place = int(np.isfinite(signal).argmin())
            raise UndecodableError(f"has a sample, {begin + place:,}, that is {signal[place]}; expected finite numbers")
        return resampled(signal, sound.samplerate, self.options.rate)

    def _mono(self, sound: Any, begin: int, number: int) -> DoubleArray:
        """The mean of the channels, some frames at a time."""
        signal = np.empty(number)
        end = 0
        try:
            sound.seek(begin)
            while end < number:
                frames = sound.read(
                    min(_NUMBERS_AT_ONCE // sound.channels, number - end), dtype="float64", always_2d=True
                )
                if len(frames) == 0:
                    break
                signal[end : end + len(frames)] = frames.mean(axis=1)
                end += len(frames)
        except (
            self.soundfile.SoundFileError,
            ValueError,
        ) as error:  # the latter where it stands behind the sound's end
            raise UndecodableError(f"is a damaged sound; expected {_EXPECTED}") from error
        return signal[:end]
