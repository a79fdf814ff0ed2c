"""The two halves of AV-MNIST as their authors hand them out: MNIST's idx files, and recordings of spoken digits.

Sources: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", with the description of the format;
Z. Jackson and contributors, "Free Spoken Digit Dataset (FSDD)".
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import LeftOut, left_out
from blossom_ray.data.files.archives import Archive, holds, open_archive
from blossom_ray.data.sets.base import check_content
from blossom_ray.data.targets import FloatArray, IntArray
from blossom_ray.errors import DataError

NUM_DIGITS = 10
_DIGITS = tuple(map(str, range(NUM_DIGITS)))

_FOLDERS = ("", "MNIST/", "MNIST/raw/")  # the last is where torchvision puts them
_TRAIN_LABELS = ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte")
LANDMARKS = tuple(f"{folder}{name}{packed}" for folder in _FOLDERS for name in _TRAIN_LABELS for packed in ("", ".gz"))
"""Where the labels of the training part may lie below a folder with MNIST."""

_PREFIXES = {"train": "train", "test": "t10k"}
_OFFICIAL_IMAGES = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
_SIDE = 28
_MEAN, _DEVIATION = 0.1307, 0.3081
_LARGEST_BYTES = 100_000_000
_UNSIGNED_BYTES = b"\x00\x00\x08"
_GZIP = b"\x1f\x8b"

_SOUNDS = "recordings"
_FIRST_RECORDING = f"{_SOUNDS}/0_jackson_0.wav"  # in every release: the first speaker's first recording
_RECORDING = re.compile(_SOUNDS + r"/(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]{1,6})\.(?:wav|WAV)")
_OFFICIAL_RECORDINGS = (300,) * 10
_NUM_TEST = 5
"""Recordings 0 to 4 of each speaker and digit are the official test part."""


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
    lacking = check_content(name, f"images of the {part} part", labels, _OFFICIAL_IMAGES[part], _DIGITS)
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


@dataclass(frozen=True, order=True)
class Recording:
    """One spoken digit.

    Attributes:
        digit: 0..9.
        speaker: First name, such as `jackson`.
        index: Number among the recordings of this digit by this speaker, from 0.
        member: Its path inside the archive.
    """

    digit: int
    speaker: str
    index: int
    member: str

    @property
    def is_test(self) -> bool:
        """Whether it belongs to the official test part."""
        return self.index < _NUM_TEST


def open_spoken_digits(folder: Path) -> AbstractContextManager[Archive]:
    """Open the recordings, wherever they lie in a folder: a zip of any name, a folder, or `recordings` itself.

    Raises:
        DataError: They are not there.
    """
    return open_archive(_holder(folder), landmark=_FIRST_RECORDING)


def list_recordings(archive: Archive) -> tuple[list[Recording], tuple[LeftOut, ...]]:
    """All recordings by digit, speaker and index, and what of the data set is not among them.

    Raises:
        DataError: Two files are the same recording, or there are as many as in the official files, and not as many of
            each digit.
    """
    members = [member for member in archive.members() if member.startswith(f"{_SOUNDS}/")]
    matches = [_RECORDING.fullmatch(member) for member in members]
    recordings = sorted(
        Recording(int(match["digit"]), match["speaker"], int(match["index"]), match.string)
        for match in matches
        if match is not None
    )
    for one, next_one in pairwise(recordings):
        if (one.digit, one.speaker, one.index) == (next_one.digit, next_one.speaker, next_one.index):
            raise DataError(
                f"{archive.name} has {one.member} and {next_one.member}; expected each recording of a digit once"
            )
    digits = [recording.digit for recording in recordings]
    lacking = check_content(archive.name, "recordings", digits, _OFFICIAL_RECORDINGS, _DIGITS)
    unknown = [member for member, match in zip(members, matches, strict=True) if match is None]
    what = "files whose names are no recording's, as <digit>_<speaker>_<index>.wav"
    return recordings, (*left_out(what, unknown), *lacking)


def _holder(folder: Path) -> Path:
    """The folder, or the one zip in it, that holds the recordings; unpacked ones come before a zip."""
    if holds(folder, _FIRST_RECORDING):
        return folder
    zips = [
        file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".zip" and holds(file, _FIRST_RECORDING)
    ]
    if not zips:
        raise DataError(
            f"{folder} holds no {_FIRST_RECORDING}; expected the Free Spoken Digit Dataset there, as a zip or a folder"
        )
    if len(zips) > 1:
        raise DataError(f"{folder} has recordings in {zips[0].name} and in {zips[1].name}; expected one of them")
    return zips[0]
