from __future__ import annotations

import io
import struct
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.base import UndecodableError
from blossom_ray.data.modalities.lengths import fitted
from blossom_ray.data.sets.audio import read_wav
from blossom_ray.data.sets.av_mnist import AvMnistData, MelSpectrogram
from blossom_ray.errors import DataError

WAVE: dict[str, Any] = {"form": "raw", "rate": 8000, "seconds": 1}


def audio(**options: Any) -> AudioModality:
    modality = AudioModality.model_validate({"kind": "audio", **options})
    assert list(modality.conflicts()) == []
    return modality


def decoded(content: bytes, **options: Any) -> np.ndarray:
    decode = audio(**options).decoder()
    sample = decode(content)
    assert sample.dtype == decode.dtype == np.float32
    assert sample.shape == decode.shape
    assert decode.factor == 1
    return sample


def written(samples: np.ndarray, rate: int = 8000, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def tone(seconds: float = 1, rate: int = 8000, hertz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([-(2**15), 0, 2**14], np.int16), [-1, 0, 0.5]),
        (np.array([0, 128, 192], np.uint8), [-1, 0, 0.5]),
        (np.array([-(2**31), 2**30], np.int32), [-1, 0.5]),
        (np.array([-1, 0.25, 1.5], np.float32), [-1, 0.25, 1.5]),
        (np.array([[2**14, 0], [2**14, 2**14]], np.int16), [0.25, 0.5]),
    ],
)
def test_waves_by_hand(samples: np.ndarray, expected: list[float]) -> None:
    """16 bits, 8 bits, 32 bits, floats beyond full scale, and two channels whose mean is taken."""
    file = io.BytesIO()
    wavfile.write(file, 8000, samples)
    found = decoded(file.getvalue(), **WAVE | {"seconds": 0.01})
    assert found[:, 0].tolist() == expected + [0] * (80 - len(expected))


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("WAVEX", "PCM_16"), ("FLAC", "PCM_16")])
def test_formats_without_loss_hold_what_was_written(container: str, subtype: str) -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (8000, 2)) / 2**15
    found = decoded(written(samples, 8000, container, subtype), **WAVE)
    assert (found[:, 0] == samples.mean(axis=1).astype(np.float32)).all()


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_formats_with_loss_hold_the_tone_in_its_place(container: str, subtype: str) -> None:
    """Encoders put silence before a sound, which decoders take off: the tone stands where it was."""
    content = written(tone(), container=container, subtype=subtype)
    found = decoded(content, **WAVE)[400:-400, 0]
    assert np.corrcoef(found, tone()[400:-400])[0, 1] > 0.99
    if container == "MP3":
        tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 1]) + bytes(257)  # 257 bytes of tags, in sevens of bits
        assert (decoded(tag + content, **WAVE)[400:-400, 0] == found).all()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3),
    st.sampled_from([(8000, 8000), (8000, 48_000), (44_100, 16_000)]),
    st.sampled_from([0.01, 0.1, 0.31]),
)
def test_waves_are_those_of_scipy(length: int, channels: int, rates: tuple[int, int], seconds: float) -> None:
    """WAV through SciPy, its mean, its first seconds, SciPy's polyphase filter, zeros behind."""
    samples = np.random.default_rng(length).integers(-(2**15), 2**15, (length, channels)).astype(np.int16)
    file = io.BytesIO()
    wavfile.write(file, rates[0], samples)
    expected = np.zeros(round(rates[1] * seconds))
    signal = read_wav(file.getvalue(), "a.wav", rate_hz=rates[1], longest_s=seconds)[: len(expected)]
    expected[: len(signal)] = signal
    found = decoded(file.getvalue(), form="raw", rate=rates[1], seconds=seconds)
    assert (found[:, 0] == expected.astype(np.float32)).all()


@pytest.mark.parametrize("samples", [12_000, 3000])
def test_av_mnist_as_files_has_the_numbers_of_its_own_loader(samples: int) -> None:
    """The paper's spectrogram, of a recording that is cut and of one that is filled up."""
    file = io.BytesIO()
    draw = np.random.default_rng(0).normal(0, 3000, samples) * np.linspace(0, 1, samples)
    wavfile.write(file, 8000, draw.astype(np.int16))

    class Files:
        name = "recordings"

        def read(self, _member: str) -> bytes:
            return file.getvalue()

    loader = AvMnistData.model_construct(dataset="av-mnist", spectrogram=MelSpectrogram())
    expected = np.repeat(loader._spectrogram(Files(), "a.wav")[None], 2, axis=0)  # type: ignore[arg-type]
    found = decoded(file.getvalue(), rate=48_000, seconds=1.5, channels=2)
    assert (found == expected).all()


def test_a_spectrogram_of_plain_loops() -> None:
    """Each frame by itself: mirrored ends, Hann window, Fourier transform, triangles in mel, dB."""
    rate, window, size, hop, bands = 4000, 64, 128, 32, 6
    signal = tone(0.2, rate) + 0.1 * tone(0.2, rate, 1333)
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    corners = [700 * (10 ** (mel / 2595) - 1) for mel in np.linspace(0, highest, bands + 2)]
    padded = np.concatenate([signal[size // 2 : 0 : -1], signal, signal[-2 : -size // 2 - 2 : -1]])
    expected = np.zeros((1 + len(signal) // hop, bands))
    for frame in range(len(expected)):
        part = padded[frame * hop : frame * hop + size].copy()
        taper = scipy.signal.get_window("hann", window)
        part *= np.concatenate([np.zeros(32), taper, np.zeros(32)])
        power = np.abs(np.fft.fft(part)[: size // 2 + 1]) ** 2
        for band in range(bands):
            low, middle, high = corners[band : band + 3]
            for place, value in enumerate(power):
                hertz = place * rate / size
                weight = max(0, min((hertz - low) / (middle - low), (high - hertz) / (high - middle)))
                expected[frame, band] += weight * value
    expected = 10 * np.log10(np.maximum(expected, 1e-10))
    expected = np.maximum(expected, expected.max() - 80)
    content = written(signal, rate, subtype="DOUBLE")
    options = {"rate": rate, "seconds": 0.2, "window": window, "fft": size, "hop": hop, "bands": bands}
    found = decoded(content, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert (decoded(content, channels=3, **options) == found.T).all()
    for number in (1, 4, 6):
        cosines = scipy.fft.dct(found.astype(np.float64), type=2, norm="ortho", axis=1)[:, :number]
        coefficients = decoded(content, form="mfcc", coefficients=number, **options)
        np.testing.assert_allclose(coefficients, cosines, rtol=1e-5, atol=1e-4)
        assert (decoded(content, form="mfcc", coefficients=number, channels=1, **options)[0] == coefficients.T).all()


def test_the_first_coefficient_is_the_mean_of_a_frame() -> None:
    content = written(tone())
    levels, found = (decoded(content, form=form, seconds=1, bands=16) for form in ("log-mel", "mfcc"))
    np.testing.assert_allclose(found[:, 0], levels.mean(axis=1) * 4, rtol=1e-4)


def test_silence_is_minus_100() -> None:
    assert (decoded(written(np.zeros(8000))) == -100).all()
    assert not decoded(written(np.zeros(8000)), form="raw").any()


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_which_part_of_a_longer_sound_is_kept(container: str) -> None:
    """A tone that rises: its beginning, middle and end."""
    samples = np.concatenate([tone(1, hertz=hertz) for hertz in (300, 900, 1500)])
    content = written(samples, container=container)
    for keep, hertz in {"start": 300, "middle": 900, "end": 1500}.items():
        found = decoded(content, **WAVE, keep=keep)[800:-800, 0]
        assert np.abs(np.fft.rfft(found)).argmax() == pytest.approx(hertz * len(found) / 8000, abs=2)


@pytest.mark.parametrize(
    ("length", "keep", "expected"),
    [
        (5, "start", [1, 2, 3, 4, 5]),
        (3, "start", [1, 2, 3]),
        (3, "middle", [2, 3, 4]),
        (2, "middle", [2, 3]),
        (3, "end", [3, 4, 5]),
        (7, "start", [1, 2, 3, 4, 5, 9, 9]),
        (8, "middle", [9, 9, 1, 2, 3, 4, 5, 9]),
        (7, "end", [9, 9, 1, 2, 3, 4, 5]),
    ],
)
def test_cut_and_filled_up_by_hand(length: int, keep: Any, expected: list[int]) -> None:
    values = np.array([1, 2, 3, 4, 5])
    assert fitted(values, length, keep, 9).tolist() == expected
    assert fitted(values[:, None], length, keep, 9)[:, 0].tolist() == expected


def header(rate: int = 8000, channels: int = 1, promised: int = 2**32 - 9, samples: bytes = bytes(1600)) -> bytes:
    """A WAV of 16 bits, of which the header may promise more than there is."""
    layout = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 2**32 - 1)
        + b"WAVEfmt \x10\0\0\0"
        + layout
        + b"data"
        + struct.pack("<I", promised)
        + samples
    )


def test_of_a_long_sound_the_seconds_are_read() -> None:
    """A header may promise ten hours, a file of some KB may hold ten minutes of silence: 29 million samples."""
    assert decoded(header(), **WAVE).shape == (8000, 1)
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 48_000, 1, format="FLAC") as sound:
        for _ in range(600):
            sound.write(np.zeros(48_000, np.int16))
    decode = audio(**WAVE, keep="end").decoder()
    decode(file.getvalue())
    tracemalloc.start()
    decode(file.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


FLAC = written(np.random.default_rng(0).normal(0, 0.1, 8000), container="FLAC")
MP3 = written(tone(4), container="MP3")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", r"is no sound, or a damaged one \(is empty\); expected a WAV, FLAC, OGG or MP3 file"),
        (b"#!/bin/sh\nrm -rf /\n", r"is no sound, or a damaged one \(begins with b'#!/bin'\)"),
        (b"RIFF\xff\xff\xff\xffWAVE", "is no sound, or a damaged one"),
        (b"<svg>" * 200, "is no sound, or a damaged one"),
        (written(tone(), container="AIFF"), "is a sound in the format AIFF; expected a WAV, FLAC, OGG or MP3 file"),
        (written(tone(), container="CAF"), "is a sound in the format CAF"),
        (header(rate=2_000_000_000), "has 2,000,000,000 samples per second; expected 1 to 384,000"),
        (header(channels=1000), "has 1,000 channels; expected at most 64"),
        (header(samples=b""), "has no samples; expected a sound"),
        (written(np.zeros(0)), "has no samples; expected a sound"),
        (
            written(np.array([0, 0, np.nan, 0]), subtype="FLOAT"),
            "has a sample, 2, that is nan; expected",
        ),
        (written(np.array([np.inf]), subtype="FLOAT"), "has a sample, 0, that is inf; expected finite numbers"),
        (FLAC[: len(FLAC) // 2], "is a damaged sound; expected a WAV"),
        (MP3[: len(MP3) // 4], r"has [\d,]+ of the 8,000 samples that its header tells of; expected all"),
    ],
    ids=lambda value: value[:32] if isinstance(value, str) else "",
)
def test_what_is_no_sound_is_refused_in_a_line(content: bytes, found: str) -> None:
    decode = audio(**WAVE).decoder()
    with pytest.raises(UndecodableError, match=f"^{found}") as error:
        decode(content)
    assert "\n" not in str(error.value)


def test_a_decoder_that_stands_behind_the_end_of_a_sound_is_told() -> None:
    """soundfile then asks NumPy for less than no frames."""
    content = bytearray(written(0.3 * np.sin(np.arange(2400) / 5), container="MP3"))
    content[1], content[145:149] = 0xFF, b"\x7f\xff\xff\xff"
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        sound.seek(sound.frames - 2000)
        with pytest.raises(ValueError, match="negative dimensions"):
            sound.read(2000)
    with pytest.raises(UndecodableError, match=r"^is a damaged sound"):
        audio(form="raw", rate=8000, seconds=0.2, keep="end").decoder()(bytes(content))


def test_a_text_is_no_sound() -> None:
    with pytest.raises(UndecodableError, match=r"^is a text; expected the content of a WAV"):
        audio().decoder()("hello")


def test_a_rate_times_the_seconds_is_bounded() -> None:
    with pytest.raises(UndecodableError, match=r"^has 384,000 samples per second, 384,000,000 in 1000 s"):
        audio(**WAVE | {"seconds": 1000}).decoder()(header(rate=384_000))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_sounds_or_refused(data: st.DataObject) -> None:
    content = bytearray(
        data.draw(st.sampled_from([written(tone(0.2), container=name) for name in ("WAV", "FLAC", "OGG")]))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    keep = data.draw(st.sampled_from(["start", "middle", "end"]))
    reason = "; expected "
    try:
        sample = audio(form="raw", rate=8000, seconds=0.1, keep=keep).decoder()(
            bytes(content[: data.draw(st.integers(0, 4000))])
        )
    except UndecodableError as error:
        reason = str(error)
    else:
        assert np.isfinite(sample).all()
    assert "; expected " in reason


@pytest.mark.parametrize(
    ("options", "path", "found"),
    [
        ({"window": 512, "fft": 256}, "fft", "is 256, less than the 512 samples of window"),
        ({"form": "mfcc", "bands": 10}, "coefficients", "is 13"),
        ({"seconds": 3600, "hop": 1, "rate": 1000, "bands": 1}, "hop", "is 1, which makes 3,600,001 windows of 1,024"),
        ({"seconds": 3600, "rate": 48_000, "form": "raw"}, "seconds", "3600 are 172,800,000 samples"),
    ],
)
def test_options_that_cannot_stand_together(options: dict[str, Any], path: str, found: str) -> None:
    (finding,) = AudioModality.model_validate({"kind": "audio", **options}).conflicts()
    assert finding.path == path
    assert found in finding.found


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"sounds need soundfile, which .*pip install 'blossom-ray\[audio\]'"):
        audio().decoder()
