from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official_files import tone, write_clip
from scipy.io import wavfile

from blossom_ray.data.modalities.spectrograms import decibels, mel_filters, mel_power, resampled
from blossom_ray.data.sets.audio import read_clip, read_wav
from blossom_ray.errors import DataError


def wav(samples: np.ndarray, rate_hz: int = 8000) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate_hz, samples)
    return file.getvalue()


def read(content: bytes, rate_hz: int = 8000, longest_s: float = 10) -> np.ndarray:
    return read_wav(content, "a.wav", rate_hz=rate_hz, longest_s=longest_s)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([-(2**15), 0, 2**14], np.int16), [-1, 0, 0.5]),
        (np.array([0, 128, 192], np.uint8), [-1, 0, 0.5]),
        (np.array([-(2**31), 2**30], np.int32), [-1, 0.5]),
        (np.array([-1, 0.25], np.float32), [-1, 0.25]),
        (np.array([[2**14, 0], [2**14, 2**14]], np.int16), [0.25, 0.5]),
    ],
)
def test_samples_by_hand(samples: np.ndarray, expected: list[float]) -> None:
    """16 bits, 8 bits, 32 bits, float, and two channels whose mean is taken."""
    assert read(wav(samples)).tolist() == expected


def test_only_the_beginning_is_kept() -> None:
    samples = np.arange(8000, dtype=np.int16)
    assert len(read(wav(samples), longest_s=0.25)) == 2000
    assert len(read(wav(samples), longest_s=0.25, rate_hz=16_000)) == 4000


def test_another_rate_keeps_a_tone() -> None:
    """440 Hz, up from 8 to 48 kHz and down to 16: away from the ends it is the same sine."""
    low = tone(440, 0.5, 8000) / 2**15
    for rate_hz in (48_000, 16_000):
        signal = resampled(low, 8000, rate_hz)
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate_hz // 2) / rate_hz)
        assert len(signal) == rate_hz // 2
        assert np.abs(signal - expected)[rate_hz // 20 : -rate_hz // 20].max() < 2e-3


def test_filters_of_an_independent_implementation() -> None:
    """`librosa.filters.mel(sr=8000, n_fft=16, n_mels=4, htk=True, norm=None)` of librosa 0.11.0."""
    expected = [
        [0, 0.6304, 0, 0, 0, 0, 0, 0, 0],
        [0, 0.3696, 0.7113, 0, 0, 0, 0, 0, 0],
        [0, 0, 0.2887, 0.9944, 0.5028, 0.0112, 0, 0, 0],
        [0, 0, 0, 0.0056, 0.4972, 0.9888, 0.6718, 0.3359, 0],
    ]
    np.testing.assert_allclose(mel_filters(4, 16, 8000), expected, atol=5e-5)


@given(num_mels=st.integers(1, 40), rate_hz=st.integers(2000, 96_000))
@settings(deadline=None, max_examples=30)
def test_neighbouring_filters_add_to_one_between_the_first_and_the_last_corner(num_mels: int, rate_hz: int) -> None:
    filters = mel_filters(num_mels, 2048, rate_hz)
    total = filters.sum(axis=0)
    peaks = np.flatnonzero(filters.max(axis=0) > 0)
    inner = slice(int(filters[0].argmax()) + 1, int(filters[-1].argmax()))
    assert filters.min() == 0
    assert filters.max() <= 1
    assert peaks[0] > 0
    np.testing.assert_allclose(total[inner], 1, atol=1e-9)


def test_power_of_a_sine_by_hand() -> None:
    """A sine of amplitude a on bin 8 of 64: the window's values add to 32, so |X| = 16 a there and half beside it."""
    time = np.arange(1024)
    signal = 0.5 * np.sin(2 * np.pi * 8 * time / 64)
    power = mel_power(signal, rate_hz=8000, window=64, fft_size=64, hop=32, num_mels=5)
    spectrum = np.zeros(33)
    spectrum[[7, 8, 9]] = 16.0, 64.0, 16.0
    np.testing.assert_allclose(power[10], mel_filters(5, 64, 8000) @ spectrum, rtol=1e-9, atol=1e-20)
    assert power.shape == (1 + 1024 // 32, 5)


@pytest.mark.parametrize(
    ("num_samples", "hop", "num_frames"), [(1, 10, 1), (9, 10, 1), (10, 10, 2), (72_000, 512, 141)]
)
def test_number_of_frames(num_samples: int, hop: int, num_frames: int) -> None:
    power = mel_power(np.ones(num_samples), rate_hz=48_000, window=400, fft_size=512, hop=hop, num_mels=3)
    assert len(power) == num_frames


def test_decibels_by_hand() -> None:
    assert decibels(np.array([100.0, 1.0, 1e-7, 0.0])).tolist() == [20, 0, -60, -60]
    assert decibels(np.array([0.0])).tolist() == [-100]
    assert decibels(np.array([100.0, 1.0]), top_db=5).tolist() == [20, 15]


GOOD = wav(np.arange(50, dtype=np.int16))


def with_rate(rate_hz: int) -> bytes:
    """The file with another rate in its header, and the bytes per second that follow from it."""
    return GOOD[:24] + struct.pack("<II", rate_hz, 2 * rate_hz % 2**32) + GOOD[32:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.wav cannot be decoded"),
        (b"RIFF", "a.wav cannot be decoded"),
        (b"\x00\x05\x16\x07" * 20, "a.wav cannot be decoded .*; expected a wav file"),
        (GOOD[:30], "a.wav cannot be decoded"),
        (wav(np.zeros(0, np.int16)), "a.wav is empty; expected a sound"),
        (with_rate(0), "a.wav has 0 samples per second; expected 1 to 384,000"),
        (with_rate(2**31 - 1), "a.wav has 2,147,483,647 samples per second; expected 1 to 384,000"),
        (wav(np.array([0, np.nan], np.float32)), "a.wav has a sample that is not finite"),
    ],
)
def test_what_is_no_sound(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(content)


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        signal = read(bytes(content), rate_hz=8000, longest_s=0.1)
    except DataError:
        return
    assert np.isfinite(signal).all()


def test_the_sound_of_a_clip(tmp_path: Path) -> None:
    """A second of 440 Hz in an mp4: the strongest of the frequencies, a second long, at the rate asked for."""
    write_clip(tmp_path / "clip.mp4")
    content = (tmp_path / "clip.mp4").read_bytes()
    signal = read_clip(content, "clip.mp4", rate_hz=16_000, longest_s=10)
    assert 16_000 <= len(signal) <= 17_000
    spectrum = np.abs(np.fft.rfft(signal[4000:12_000]))
    assert spectrum.argmax() == 220  # 440 Hz over half a second
    assert len(read_clip(content, "clip.mp4", rate_hz=16_000, longest_s=0.3)) == 4800
    for damaged in (b"", content[:100], b"text"):
        with pytest.raises(DataError, match=r"clip.mp4 cannot be decoded .*; expected a clip with sound"):
            read_clip(damaged, "clip.mp4", rate_hz=16_000, longest_s=1)


@pytest.mark.parametrize(
    ("module", "extra"),
    [("scipy.io.wavfile", r"wav files need SciPy, .*\[audio\]"), ("av", r"clips .*\[video\].*ffmpeg")],
)
def test_what_to_install(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    decode = read_clip if module == "av" else read_wav
    with pytest.raises(DataError, match=extra):
        decode(GOOD, "a.wav", rate_hz=8000, longest_s=1)
