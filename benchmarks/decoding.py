"""Files decoded per second of a core, beside a plain loop over Pillow or soundfile that does no more than decode.

    taskset -c 0 python benchmarks/decoding.py

Both sides must give the same numbers first (of large JPEG, which are decoded at a part of their size, nearly the same).
Then they take turns, so that noise falls on both. `first` has reading, hashing, decoding and writing the cache in it,
`again` what a later run takes that finds it there, and `ratio` is the median over rounds of the loop's time by that of
`first`: above 1, the package is faster. Times are those of the processor, so that waiting for the disk is not in them.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image, ImageOps

from blossom_ray.data.files.decoded import FilePath, decoded
from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.modalities.image import ImageModality

LARGEST_MEAN_DIFFERENCE = 1.0
"""Of 255, where a JPEG is decoded at a part of its size."""


class Case(NamedTuple):
    """Files of one sort, what decodes them, and a loop that does the same; `part` of the files that are asked for."""

    name: str
    media: Media
    loop: Callable[[Sequence[Path], Any], np.ndarray]
    make: Callable[[np.random.Generator], bytes]
    part: float = 1.0
    is_exact: bool = True


def pictures(paths: Sequence[Path], media: Any) -> np.ndarray:
    """(N, channels, size, size) uint8, as the manual of Pillow has it."""
    found = []
    for path in paths:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("L" if media.channels == 1 else "RGB")
        if picture.size != (media.size, media.size):
            picture = ImageOps.fit(picture, (media.size, media.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        found.append(pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    return np.stack(found)


def waveforms(paths: Sequence[Path], media: Any) -> np.ndarray:
    """(N, samples, 1) float32, at the rate that the files have."""
    found = np.zeros((len(paths), media.num_samples, 1), np.float32)
    for row, path in enumerate(paths):
        signal, _ = soundfile.read(path, media.num_samples, always_2d=True)
        found[row, : len(signal), 0] = signal.mean(axis=1)
    return found


def picture(draw: np.random.Generator, format_: str, width: int, height: int, channels: int = 3) -> bytes:
    """A picture of soft noise."""
    shape = (max(1, height // 8), max(1, width // 8), 3)[: 2 + (channels == 3)]
    file = io.BytesIO()
    small = Image.fromarray(draw.integers(0, 256, shape, np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, format_)
    return file.getvalue()


def sound(draw: np.random.Generator, format_: str, rate: int, seconds: float) -> bytes:
    """Two channels of noise."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * draw.normal(size=(round(rate * seconds), 2)), rate, format=format_)
    return file.getvalue()


def image(size: int, channels: int = 3) -> ImageModality:
    """What decodes pictures."""
    return ImageModality(kind="image", size=size, channels=1 if channels == 1 else 3)


def audio(rate: int, seconds: float) -> AudioModality:
    """What decodes sounds."""
    return AudioModality(kind="audio", form="raw", rate=rate, seconds=seconds)


CASES = (
    Case("PNG 28x28, gray", image(28, 1), pictures, lambda draw: picture(draw, "PNG", 28, 28, 1)),
    Case("JPEG 96x96 to 32", image(32), pictures, lambda draw: picture(draw, "JPEG", 96, 96), 0.5),
    Case("WebP 96x96 to 32", image(32), pictures, lambda draw: picture(draw, "WEBP", 96, 96), 0.5),
    Case("PNG 640x480 to 64", image(64), pictures, lambda draw: picture(draw, "PNG", 640, 480), 0.05),
    Case("JPEG 2000x1500 to 224", image(224), pictures, lambda draw: picture(draw, "JPEG", 2000, 1500), 0.02, False),
    Case("WAV 1 s, 16 kHz", audio(16_000, 1), waveforms, lambda draw: sound(draw, "WAV", 16_000, 1), 0.5),
    Case("FLAC 5 s, 16 kHz", audio(16_000, 5), waveforms, lambda draw: sound(draw, "FLAC", 16_000, 5), 0.1),
)  # fmt: skip


def measured(case: Case, num_files: int, rounds: int, folder: Path) -> Iterator[str]:
    """The cells of a row."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{number}" for number in range(max(1, round(num_files * case.part)))]
    contents = [case.make(draw) for _ in paths[:16]]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    values = [FilePath(str(path)) for path in paths]
    seconds: dict[str, list[float]] = {"loop": [], "first": [], "again": []}
    for number in range(rounds):
        started = time.process_time()
        expected = case.loop(paths, case.media)
        looped = time.process_time()
        found = decoded(case.media, values, "files", len(values), folder=folder / f"cache {number}")
        first = time.process_time()
        decoded(case.media, values, "files", len(values), folder=folder / f"cache {number}")
        again = time.process_time()
        for name, taken in (("loop", looped - started), ("first", first - looped), ("again", again - first)):
            seconds[name].append(taken)
        samples = np.concatenate(found.parts)
        difference = np.abs(samples.astype(np.float64) - expected)
        assert not found.errors, found.errors
        assert difference.max() == 0 if case.is_exact else difference.mean() < LARGEST_MEAN_DIFFERENCE, case.name
    yield case.name
    yield f"{len(paths):,}"
    yield from (f"{len(paths) / median(each):,.0f}" for each in seconds.values())
    yield f"{median(a / b for a, b in zip(seconds['loop'], seconds['first'], strict=True)):.2f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4000, help="the smallest ones; of larger ones there are fewer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"cores: {len(os.sched_getaffinity(0))}")
    print("| files | number | loop/s | first/s | again/s | ratio |\n|---|---|---|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(measured(case, options.files, options.rounds, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
