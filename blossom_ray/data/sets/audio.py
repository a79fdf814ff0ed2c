"""The sound of published data sets: wav files, decoded by SciPy (extra `audio`), and clips, by PyAV (extra `video`).

Own sounds are decoded in `data/modalities/audio.py`.
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
from blossom_ray.data.modalities.spectrograms import DoubleArray, resampled
from blossom_ray.errors import DataError

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


def _checked(signal: DoubleArray, name: str) -> DoubleArray:
    if len(signal) == 0:
        raise DataError(f"{name} is empty; expected a sound")
    if not np.isfinite(signal).all():
        raise DataError(f"{name} has a sample that is not finite; expected a sound")
    return signal
