"""From a signal to another rate, to the power in mel bands, to decibels and MFCC.

Resampling and the cosine transform are SciPy's (extra `audio`); the rest needs NumPy alone.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from blossom_ray.core.extras import module_of_extra

DoubleArray = npt.NDArray[np.float64]

_SMALLEST_POWER = 1e-10
_LONG_FILTER = 2**15
_one_long = threading.Lock()


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
    up, down = to_hz // divisor, from_hz // divisor
    signals = module_of_extra("scipy.signal", "another rate needs SciPy", "audio")
    # Of rates with little in common, such as 383,989 and 16,000, a filter takes hundreds of megabytes: one at a time.
    with _one_long if max(up, down) > _LONG_FILTER else nullcontext():
        return np.asarray(signals.resample_poly(signal, up, down))


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


@lru_cache(maxsize=16)
def mel_filters(num_mels: int, fft_size: int, rate_hz: int) -> DoubleArray:
    """Triangles over frequency whose corners are equally spaced in mel between 0 and half the rate.

    Args:
        num_mels: Number of triangles.
        fft_size: Samples of the transform.
        rate_hz: Samples per second.

    Returns:
        (num_mels, fft_size // 2 + 1) float64, read-only, each triangle of height 1. A triangle narrower than the
        distance of two frequencies may hold none of them, and is all zeros then.

    Source: Young et al., The HTK Book, 2006, 5.4: mel = 2595 log10(1 + Hz / 700).
    """
    frequencies = np.linspace(0, rate_hz / 2, fft_size // 2 + 1)
    highest = 2595 * np.log10(1 + rate_hz / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, num_mels + 2) / 2595) - 1)
    lower, middle, upper = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies - lower) / (middle - lower)
    falling = (upper - frequencies) / (upper - middle)
    filters = np.maximum(0, np.minimum(rising, falling))
    filters.setflags(write=False)
    return np.asarray(filters)


def decibels(power: DoubleArray, *, top_db: float = 80) -> npt.NDArray[np.float32]:
    """10 log10 of a power, nothing further than `top_db` below its largest value, nor below -100.

    Args:
        power: Any shape, >= 0.
        top_db: Range that is kept, in dB.

    Returns:
        float32 of the same shape.
    """
    level = 10 * np.log10(np.maximum(power, _SMALLEST_POWER))
    return np.asarray(np.maximum(level, level.max() - top_db), np.float32)


def cepstrum(levels: npt.NDArray[np.float32], number: int) -> npt.NDArray[np.float32]:
    """The mel-frequency cepstral coefficients (MFCC) of a spectrogram.

    Args:
        levels: (bands, frames), in dB.
        number: Coefficients that are kept, from the first, which is the frame's mean times the root of `bands`.

    Returns:
        (number, frames) float32: the orthonormal discrete cosine transform of type II of each frame.

    Source: Davis and Mermelstein 1980 (doi:10.1109/TASSP.1980.1163420), in dB as `torchaudio.transforms.MFCC` has it.
    """
    fft = module_of_extra("scipy.fft", "MFCC need SciPy", "audio")
    return np.asarray(fft.dct(levels.astype(np.float64), type=2, norm="ortho", axis=0)[:number], np.float32)
