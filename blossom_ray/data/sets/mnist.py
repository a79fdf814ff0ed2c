"""MNIST's idx files: images of handwritten digits and their labels.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", with the description of the format.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import FloatArray, IntArray, LeftOut
from blossom_ray.data.files.archives import open_archive
from blossom_ray.data.sets.base import check_content
from blossom_ray.errors import DataError

NUM_DIGITS = 10

_FOLDERS = ("", "MNIST/", "MNIST/raw/")  # the last is where torchvision puts them
_TRAIN_LABELS = ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte")
LANDMARKS = tuple(f"{folder}{name}{packed}" for folder in _FOLDERS for name in _TRAIN_LABELS for packed in ("", ".gz"))
"""Where the labels of the training part may lie below a folder with MNIST."""

_PREFIXES = {"train": "train", "test": "t10k"}
_OFFICIAL = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
_SIDE = 28
_MEAN, _DEVIATION = 0.1307, 0.3081
_LARGEST_BYTES = 100_000_000
_UNSIGNED_BYTES = b"\x00\x00\x08"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class MnistPart:
    """The training or the test part.

    Attributes:
        pixels: (N, 28, 28) uint8, 0 is background.
        labels: (N,) int64, 0..9.
        left_out: What of the official part is not in it.
    """

    pixels: npt.NDArray[np.uint8]
    labels: IntArray
    left_out: tuple[LeftOut, ...]


def mnist_folder(path: Path) -> Path:
    """The folder that has MNIST in it: the path itself or one directly below.

    Raises:
        DataError: None has.
    """
    try:
        candidates = (path, *sorted(child for child in path.iterdir() if child.is_dir()))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a folder") from error
    for candidate in candidates:
        if any((candidate / landmark).is_file() for landmark in LANDMARKS):
            return candidate
    raise DataError(f"{path} holds no {_TRAIN_LABELS[0]}.gz; expected the four files of MNIST, compressed or not")


def read_mnist(folder: Path, part: str) -> MnistPart:
    """Read a part from its two idx files, compressed by gzip or not.

    Args:
        folder: Where the files lie, or a folder with one called `MNIST` or `MNIST/raw`.
        part: `train` or `test`.

    Raises:
        DataError: A file is missing, damaged or not of the announced shape, or a label is no digit.
    """
    pixels, name = _idx(folder, f"{_PREFIXES[part]}-images", 3)
    if pixels.shape[1:] != (_SIDE, _SIDE):
        raise DataError(f"{name} has images of {pixels.shape[1]} x {pixels.shape[2]}; expected {_SIDE} x {_SIDE}")
    return MnistPart(pixels, *_labels(folder, part, len(pixels)))


def read_mnist_labels(folder: Path, part: str) -> IntArray:
    """The labels of a part, (N,) int64; arguments and errors are those of `read_mnist`."""
    return _labels(folder, part, None)[0]


def normalised(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """Images (N, 1, 28, 28) float32: pixels as 0..1, minus 0.1307, divided by 0.3081.

    These are mean and deviation over the training part, as the paper uses them.
    """
    return ((pixels[:, None] / np.float32(255) - np.float32(_MEAN)) / np.float32(_DEVIATION)).astype(np.float32)


def _labels(folder: Path, part: str, num_images: int | None) -> tuple[IntArray, tuple[LeftOut, ...]]:
    found, name = _idx(folder, f"{_PREFIXES[part]}-labels", 1)
    labels = found.astype(np.int64)
    if labels.max() >= NUM_DIGITS:
        row = int(labels.argmax())
        raise DataError(f"{name}, row {row + 1}: label {labels[row]}; expected 0 to {NUM_DIGITS - 1}")
    classes = [str(digit) for digit in range(NUM_DIGITS)]
    lacking = check_content(name, f"images of the {part} part", labels, _OFFICIAL[part], classes)
    if num_images is not None and len(labels) != num_images:
        raise DataError(f"{name} has {len(labels)} labels; expected {num_images}, as many as images")
    return labels, lacking


def _idx(folder: Path, stem: str, num_dimensions: int) -> tuple[npt.NDArray[np.uint8], str]:
    content, name = _found(folder, f"{stem}-idx{num_dimensions}-ubyte", f"{stem}.idx{num_dimensions}-ubyte")
    header = 4 + 4 * num_dimensions
    if content[:4] != _UNSIGNED_BYTES + bytes([num_dimensions]) or len(content) < header:
        raise DataError(f"{name} is no idx file of bytes in {num_dimensions} dimensions; download it again")
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if math.prod(shape) == 0 or len(content) != header + math.prod(shape):
        announced, found = f"{math.prod(shape):,}", f"{len(content) - header:,}"
        raise DataError(f"{name} announces {announced} values and has {found}; download it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape), name


def _found(folder: Path, *stems: str) -> tuple[bytes, str]:
    """The unpacked content of the first of these files that is there, and what messages call it."""
    names = [name for stem in stems for name in (stem, f"{stem}.gz")]
    for place in _FOLDERS:
        for name in names:
            if (folder / place / name).is_file():
                with open_archive(folder / place, landmark=name, largest_bytes=_LARGEST_BYTES) as archive:
                    return _unpacked(archive.read(name), name), name
    raise DataError(f"{folder} holds no {stems[0]}.gz; expected the four files of MNIST, compressed or not")


def _unpacked(content: bytes, name: str) -> bytes:
    if not content.startswith(_GZIP):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(_LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged ({error}); download it again") from error
    if len(unpacked) > _LARGEST_BYTES:
        raise DataError(f"{name} unpacks to more than {_LARGEST_BYTES:,} bytes; expected a file of MNIST")
    return unpacked
