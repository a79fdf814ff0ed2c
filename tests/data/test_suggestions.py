"""What a column's first values are taken for: pictures, sounds, texts, and what is none of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from pydantic import TypeAdapter

from blossom_ray.data.modalities.options import AnyModality
from blossom_ray.data.modalities.suggestions import suggestion


def picture(width: int, height: int, mode: str = "RGB", form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, form, **options)
    return file.getvalue()


def sound(seconds: float, rate_hz: int, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(int(seconds * rate_hz))) / 2, rate_hz, format=form)
    return file.getvalue()


def section_of(values: list[Any]) -> dict[str, Any]:
    found = suggestion(values)
    assert found is not None
    # It is a section that decodes what it was made of.
    decoder = TypeAdapter(AnyModality).validate_python(found.section).decoder()
    assert decoder(values[0]).shape == decoder.shape
    return found.section


TURNED = Image.Exif()
TURNED[0x0112] = 6  # its left side is above


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([picture(28, 28, "L")] * 3, {"size": [28, 28], "channels": 1}),
        ([picture(48, 40)] * 3, {"size": [40, 48]}),
        # The longer side becomes 64, in the shape that pictures have.
        ([picture(640, 480, form="JPEG"), picture(320, 240, form="WEBP"), picture(320, 240)], {"size": [48, 64]}),
        # They lie and stand: a square in whose middle all are.
        ([picture(320, 240), picture(240, 320), picture(320, 240, form="GIF")], {"size": [64, 64]}),
        # One that stands, by its flag.
        ([picture(100, 50, form="JPEG", exif=TURNED)], {"size": [64, 32]}),
        ([picture(300, 4, form="BMP")], {"size": [16, 64]}),
        # Half of the grey ones are coloured; one of four is damaged.
        ([picture(20, 20, "L"), picture(20, 20), picture(20, 20), picture(20, 20)[:20]], {"size": [20, 20]}),
    ],
)
def test_pictures(values: list[bytes], expected: dict[str, Any]) -> None:
    assert section_of(values) == {"kind": "image", **expected}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([sound(1.0, 44_100), sound(1.91, 44_100)], {"rate": 16_000, "seconds": 1.9, "window": 1024, "hop": 512}),
        # At its own rate, with windows of as many milliseconds, and enough of them of a short one.
        ([sound(0.3, 8000, "FLAC")], {"rate": 8000, "seconds": 0.3, "window": 512, "hop": 64, "bands": 40}),
        ([sound(21, 8000, "OGG")], {"rate": 8000, "seconds": 10.0, "window": 512, "hop": 256, "bands": 40}),
    ],
)
def test_sounds(values: list[bytes], expected: dict[str, Any]) -> None:
    assert section_of(values) == {"kind": "audio", **expected, "channels": 1, "scale": "standard", "over": "all"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a red circle, drawn", "a blue square"] * 20, {"max_length": 5, "buckets": 256}),
        ([" ".join(f"word{n}" for n in range(at, at + 100)) for at in range(9)], {"max_length": 100, "buckets": 1024}),
        (["the same word " * 500, "another"], {"max_length": 256, "buckets": 256}),
        # Without spaces, characters and pairs of them tell words apart.
        (
            ["猫が好きです。とても。", "犬が好きです。とても。"],
            {"words": [], "characters": [1, 2], "max_length": 22, "buckets": 256},
        ),
    ],
)
def test_texts(values: list[str], expected: dict[str, Any]) -> None:
    assert section_of(values) == {"kind": "text", **expected}


@pytest.mark.parametrize(
    "values",
    [
        [],
        ["red", "green", "light blue"],
        ["https://example.org/a_long_address_of_something.html"],
        [b"\x00\x01\x02"] * 3,
        [picture(9, 9), b"none", b"none"],
        [b"\x89PNG\r\n and no picture"],
        [b"RIFF....WAVE and no sound"],
    ],
    ids=["nothing", "categories", "addresses", "bytes", "mostly bytes", "no picture", "no sound"],
)
def test_what_is_no_media(values: list[Any]) -> None:
    assert suggestion(values) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([picture(9, 20), picture(12, 20)], "pictures, 9 to 12 wide and 20 high"),
        ([sound(0.5, 8000), sound(1.5, 8000)], "sounds of 0.5 to 1.5 s, 8,000 samples per second"),
        (["one two three", "four five six!"], "texts, 3 to 4 words and signs"),
    ],
    ids=["image", "audio", "text"],
)
def test_what_values_are_taken_for_is_said(values: list[Any], expected: str) -> None:
    found = suggestion(values)
    assert found is not None
    assert found.seen == expected
