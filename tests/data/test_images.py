from __future__ import annotations

import io
import random
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pydantic import ValidationError

from blossom_ray.data.modalities import image
from blossom_ray.data.modalities.base import UndecodableError
from blossom_ray.data.modalities.image import ImageModality


def written(pixels: np.ndarray | Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format_, **options)
    return file.getvalue()


def decoded(content: bytes, **options: Any) -> np.ndarray:
    decoder = ImageModality.model_validate({"kind": "image", **options}).decoder()
    sample = decoder(content)
    assert sample.shape == decoder.shape
    assert sample.dtype == np.uint8
    assert sample.flags.c_contiguous
    return sample


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "GIF"])
def test_a_picture_of_the_size_passes_unchanged(format_: str) -> None:
    gray = noise(28, 28)
    content = written(gray, format_, **({"lossless": True} if format_ == "WEBP" else {}))
    assert (decoded(content, size=28, channels=1)[0] == gray).all()
    assert (decoded(content, size=[28, 28]) == gray).all()


def test_channels_stand_first() -> None:
    assert (decoded(written(noise(5, 7, 3)), size=[5, 7]) == noise(5, 7, 3).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        # Two columns in the middle, as they are.
        ("crop", [[60, 90], [60, 90]]),
        # The filter's triangle is as wide as four old pixels: of three in it the weights are 3, 3 and 1 sevenths.
        ("stretch", [[round((3 * 0 + 3 * 60 + 90) / 7), round((60 + 3 * 90 + 3 * 230) / 7)]] * 2),
        ("pad", [[39, 146], [0, 0]]),
    ],
)
def test_fits_by_hand(fit: str, expected: list[list[int]]) -> None:
    rows = np.array([[0, 60, 90, 230]] * 2, np.uint8)
    assert decoded(written(rows), size=2, channels=1, fit=fit)[0].tolist() == expected
    on_its_side = decoded(written(rows.T), size=2, channels=1, fit=fit)[0]
    assert on_its_side.tolist() == np.array(expected).T.tolist()


def plain_loop(content: bytes, size: tuple[int, int], mode: str, fit: str) -> np.ndarray:
    """The same by Pillow alone, in the order of its manual."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if picture.has_transparency_data:
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture.convert("RGBA"), mask=picture.convert("RGBA"))
        picture = ground
    picture, (height, width) = picture.convert("RGB").convert(mode), size
    if fit == "stretch":
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    else:
        fitted = ImageOps.fit if fit == "crop" else ImageOps.pad
        picture = fitted(picture, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if mode == "L" else np.moveaxis(pixels, 2, 0)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_all_modes_are_what_a_plain_loop_makes_of_them(fit: Any, channels: int) -> None:
    size = (8, 10)
    rng = random.Random(f"{fit} {channels}")
    pictures = [Image.fromarray(noise(rng.randint(3, 30), rng.randint(3, 30), 3, seed=seed)) for seed in range(6)]
    contents = [written(picture, rng.choice(["PNG", "JPEG", "WEBP"])) for picture in pictures]
    contents += [written(picture.convert(mode)) for picture in pictures[:2] for mode in ("1", "L", "P", "RGBA", "LA")]
    contents += [written(pictures[0].convert("CMYK"), "JPEG")]
    clear = Image.fromarray(noise(9, 12, 4))
    contents += [written(clear), written(clear, "WEBP", lossless=True), written(clear.convert("LA"))]
    contents += [written(pictures[0].convert("P"), transparency=3), written(pictures[0].convert("L"), transparency=70)]
    for content in contents:
        expected = plain_loop(content, size, "L" if channels == 1 else "RGB", fit)
        assert (decoded(content, size=size, channels=channels, fit=fit) == expected).all()


@pytest.mark.parametrize("flag", range(1, 9))
def test_orientation_flags_are_respected(flag: int) -> None:
    upright = Image.fromarray(noise(40, 30, 3) // 8 + np.indices((40, 30))[0][..., None].astype(np.uint8) * 5)
    undo = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_270][flag - 1]  # fmt: skip
    turned = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = flag
    found = decoded(written(turned, exif=exif), size=[40, 30])
    assert (found == np.asarray(upright).transpose(2, 0, 1)).all()
    # Decoded at an eighth, a JPEG is turned in the same way.
    large = turned.resize((turned.width * 16, turned.height * 16))
    small = decoded(written(large, "JPEG", exif=exif), size=[40, 30])
    assert np.abs(small.astype(int) - np.asarray(upright).transpose(2, 0, 1)).mean() < 6


@pytest.mark.parametrize("flag", [0, 9, 77])
def test_a_flag_that_means_nothing_counts_for_nothing(flag: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = flag
    assert (decoded(written(noise(4, 6), exif=exif), size=[4, 6], channels=1)[0] == noise(4, 6)).all()
    assert (decoded(written(noise(4, 6), exif=b"Exif\0\0broken"), size=[4, 6], channels=1)[0] == noise(4, 6)).all()


def test_of_16_bits_the_upper_8_count() -> None:
    gray = noise(6, 6).astype(np.uint16) * 256 + 255
    assert (decoded(written(gray), size=6, channels=1)[0] == gray >> 8).all()
    assert (decoded(written(gray), size=6) == gray >> 8).all()
    chunk = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in gray)
    assert (decoded(png(6, 6, depth=16, color=2, data=zlib.compress(chunk)), size=6) == gray >> 8).all()


def test_what_is_transparent_is_white() -> None:
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    clear[1, 1] = (0, 0, 0, 51)
    assert decoded(written(clear), size=2)[:, 0, 0].tolist() == [10, 20, 30]
    assert decoded(written(clear), size=2)[0].tolist() == [[10, 255], [255, 204]]


def test_a_large_jpeg_is_close_to_what_full_decoding_gives() -> None:
    small = Image.fromarray(noise(12, 16, 3))
    content = written(small.resize((1600, 1200), Image.Resampling.BICUBIC), "JPEG", quality=95)
    expected = plain_loop(content, (48, 64), "RGB", "crop")
    assert np.abs(decoded(content, size=[48, 64]).astype(int) - expected).mean() < 1


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.fromarray(np.full((4, 4), frame % 256, np.uint8)) for frame in range(3)]
    content = written(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert not decoded(content, size=4).any()
    # Ten thousand frames are not looked at: what stands behind the first may be anything.
    assert not decoded(content[: content.index(b"\x3b", -1)] + 10_000 * content[-40:-1], size=4).any()


def png(width: int, height: int, *, depth: int = 8, color: int = 0, data: bytes = b"") -> bytes:
    """A PNG with any header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no picture (is empty); expected PNG, JPEG, WebP, GIF or BMP"),
        (b"#!/bin/sh\nrm -rf ~", "is no picture (begins with b'#!/bin'); expected PNG"),
        (b"<html><script>alert(1)</script>", "is no picture (begins with b'<html>'); expected PNG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is no picture (begins with b'<svg x'); expected PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no picture (is a pointer of Git LFS"),
        (b"/annex/objects/MD5-s1\n", "is no picture (is a pointer of git-annex"),
        (written(noise(4, 4), "TIFF"), "is no picture (begins with"),
        (written(noise(4, 4), "PPM"), "is no picture (begins with"),
        (written(noise(4, 4, 3), "PDF"), "is no picture (begins with b'%PDF-1')"),
        (png(100_000, 100_000), "announces many more pixels; expected at most 67,108,864"),
        (png(10_000, 10_000), "pixels; expected at most 67,108,864"),
        (png(9_000, 9_000), "announces 9000 x 9000 pixels; expected at most 67,108,864"),
        (png(0, 5), "is no picture"),
        (png(4, 4, data=b"junk"), "is a damaged picture"),
        (written(noise(30, 30))[:-200], "is a damaged picture (image file is truncated"),
        (written(noise(30, 30, 3), "JPEG")[:-200], "is a damaged picture (image file is truncated"),
        (written(noise(30, 30, 3), "WEBP")[:-200], "is "),
        (b"GIF89a\xff\xff\xff\xff", "is "),
        (b"BM" + 60 * b"\xff", "is "),
        (b"\xff\xd8\xff" + 60 * b"\xff", "is "),
    ],
    ids=range(20),
)
def test_what_is_no_picture_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(UndecodableError) as refused:
        decoded(content)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "0x" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")  # as `decoded` does
@pytest.mark.parametrize("format_", image.FORMATS)
def test_any_damage_is_refused_or_decoded(format_: str) -> None:
    whole, draw = written(noise(20, 20, 3), format_), random.Random(format_)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        with suppress(UndecodableError):
            decoded(bytes(content[: draw.randint(1, len(content))]), size=4)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": [4]}, {"size": [4, 4, 3]}, {"size": 5000}, {"channels": 2}, {"fit": "zoom"},
                {"on_error": "skip"}, {"column": ["a", "b"]}],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageModality.model_validate({"kind": "image", **options})
