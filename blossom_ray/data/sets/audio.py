"""From sound to numbers: wav files, resampling, mel spectrograms. Which of them a data set uses, it says itself.

Decoding and resampling are SciPy's (extra `audio`), clips PyAV's (extra `video`); spectrograms need NumPy alone.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import warnings

import numpy as np
import numpy.typing as npt

from blossom_ray.core.extras import module_of_extra
from blossom_ray.data.targets import FloatArray
from blossom_ray.errors import DataError

DoubleArray = npt.NDArray[np.float64]

_SMALLEST_POWER = 1e-10
_HIGHEST_RATE_HZ = 384_000  # the filter of a resampling takes memory in proportion to it
_WRITE_WAV = "find . -name '*.mp4' -exec sh -c 'ffmpeg -i \"$1\" -ac 1 -ar 16000 \"${1%.mp4}.wav\"' _ {} ';'"
# What SciPy raises for files that are none, or damaged.
_NO_WAV = (ValueError, struct.error, EOFError, OverflowError, ZeroDivisionError, TypeError, UnboundLocalError)
_FULL_SCALE = {"u1": 2**7, "i2": 2**15, "i4": 2**31, "i8": 2**63}


def read_wav(content: bytes, name: str, *, rate_hz: int, longest_s: float) -> DoubleArray:
    """A wav file as one channel at a chosen rate.

    Args:
        content: The file. PCM of 8 to 64 bits or float, any rate, any number of channels (their mean is taken).
        name: What messages call it.
        rate_hz: Samples per second of the result.
        longest_s: Seconds from its beginning that are kept; the rest is not even resampled.

    Returns:
        (samples,) float64, full scale is -1..1; at least one sample.

    Raises:
        DataError: It is no wav file, or a damaged one, or has no samples, or one that is not finite; or SciPy is
            not installed.
    """
    wavfile = module_of_extra("scipy.io.wavfile", "wav files need SciPy", "audio")
    try:
        with warnings.catch_warnings():
            # Chunks that SciPy does not know (ffmpeg's LIST) and a size in the header that streaming left at 0.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            found_hz, samples = wavfile.read(io.BytesIO(content))
    except _NO_WAV as error:
        raise DataError(f"{name} cannot be decoded ({error}); expected a wav file") from error
    if not 0 < found_hz <= _HIGHEST_RATE_HZ:
        raise DataError(f"{name} has {found_hz:,} samples per second; expected 1 to {_HIGHEST_RATE_HZ:,}")
    samples = samples[: math.ceil(longest_s * found_hz)]
    scale = _FULL_SCALE.get(samples.dtype.str[1:], 1)
    offset = scale if samples.dtype.kind == "u" else 0  # 8 bits are unsigned in wav files
    signal = (samples.astype(np.float64) - offset) / scale
    return resampled(_checked(signal if signal.ndim == 1 else signal.mean(axis=1), name), found_hz, rate_hz)


def read_clip(content: bytes, name: str, *, rate_hz: int, longest_s: float) -> DoubleArray:
    """The sound of a film clip as one channel at a chosen rate, decoded by PyAV (FFmpeg).

    Arguments and result are those of `read_wav`.

    Raises:
        DataError: It is no clip, or a damaged one, or has no sound; or PyAV is not installed.
    """
    av = module_of_extra("av", "clips (mp4) need PyAV", "video", f", or write wav files beside them: {_WRITE_WAV}")
    longest = math.ceil(longest_s * rate_hz)
    parts: list[npt.NDArray[np.float32]] = []
    try:
        with av.open(io.BytesIO(content), metadata_errors="ignore") as clip:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
            for frame in itertools.chain(clip.decode(audio=0), [None]):  # None: what the resampler still holds
                parts += [found.to_ndarray()[0] for found in resampler.resample(frame)]
                if sum(map(len, parts)) >= longest:
                    break
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); expected a clip with sound") from error
    signal = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)[:longest]
    return _checked(signal, name)


def resampled(signal: DoubleArray, from_hz: int, to_hz: int) -> DoubleArray:
    """A signal at another rate, by SciPy's polyphase filter (a Kaiser window of 5.0).

    Args:
        signal: (samples,) float64.
        from_hz: Its rate, > 0.
        to_hz: The rate asked for, > 0.

    Returns:
        (ceil(samples * to_hz / from_hz),) float64; the signal itself where the rates are equal.

    Raises:
        DataError: SciPy is not installed.
    """
    if from_hz == to_hz:
        return signal
    divisor = int(np.gcd(from_hz, to_hz))
    return np.asarray(
        module_of_extra("scipy.signal", "another rate needs SciPy", "audio").resample_poly(
            signal, to_hz // divisor, from_hz // divisor
        )
    )


def mel_power(signal: DoubleArray, *, rate_hz: int, window: int, fft_size: int, hop: int, num_mels: int) -> DoubleArray:
    """The power of a signal in mel bands, frame by frame, each frame's middle at a multiple of `hop`.

    Args:
        signal: (samples,) float64, at least one sample. It is continued by its mirror image at both ends.
        rate_hz: Its rate.
        window: Samples in a frame's window (periodic Hann).
        fft_size: Samples of the transform, at least `window`; the window stands in its middle.
        hop: Samples from one frame to the next.
        num_mels: Number of bands between 0 and half the rate.

    Returns:
        (1 + samples // hop, num_mels) float64: squared magnitudes, summed with the weights of `mel_filters`.

    Source: the spectrogram that torchaudio 2 computes by default (`transforms.MelSpectrogram`: centred, reflected,
    power 2, HTK mels without normalisation).
    """
    padded = np.pad(signal, fft_size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft_size)[::hop]
    taper = np.zeros(fft_size)
    start = (fft_size - window) // 2
    taper[start : start + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = np.abs(np.fft.rfft(frames * taper, axis=1)) ** 2
    return np.asarray(spectrum @ mel_filters(num_mels, fft_size, rate_hz).T)


def mel_filters(num_mels: int, fft_size: int, rate_hz: int) -> DoubleArray:
    """Triangles over frequency whose corners are equally spaced in mel between 0 and half the rate.

    Args:
        num_mels: Number of triangles.
        fft_size: Samples of the transform.
        rate_hz: Samples per second.

    Returns:
        (num_mels, fft_size // 2 + 1) float64, each triangle of height 1. A triangle narrower than the distance of
        two frequencies may hold none of them, and is all zeros then.

    Source: Young et al., The HTK Book, 2006, 5.4: mel = 2595 log10(1 + Hz / 700).
    """
    frequencies = np.linspace(0, rate_hz / 2, fft_size // 2 + 1)
    highest = 2595 * np.log10(1 + rate_hz / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, num_mels + 2) / 2595) - 1)
    lower, middle, upper = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies - lower) / (middle - lower)
    falling = (upper - frequencies) / (upper - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


def decibels(power: DoubleArray, *, top_db: float = 80) -> FloatArray:
    """10 log10 of a power, nothing further than `top_db` below its largest value, nor below -100.

    Args:
        power: Any shape, >= 0.
        top_db: Range that is kept, in dB.

    Returns:
        float32 of the same shape.
    """
    level = 10 * np.log10(np.maximum(power, _SMALLEST_POWER))
    return np.asarray(np.maximum(level, level.max() - top_db), np.float32)


def _checked(signal: DoubleArray, name: str) -> DoubleArray:
    if len(signal) == 0:
        raise DataError(f"{name} is empty; expected a sound")
    if not np.isfinite(signal).all():
        raise DataError(f"{name} has a sample that is not finite; expected a sound")
    return signal
