"""The Free Spoken Digit Dataset: recordings of the digits 0..9 by name, speaker and index.

Source: Z. Jackson and contributors, "Free Spoken Digit Dataset (FSDD)".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blossom_ray.data.archives import Archive, open_archive
from blossom_ray.data.content import check_content
from blossom_ray.errors import DataError

_FOLDER = "recordings"
_LANDMARK = f"{_FOLDER}/0_jackson_0.wav"  # in every release: the first speaker's first recording
_NAME = re.compile(_FOLDER + r"/(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]{1,6})\.wav")
_OFFICIAL = (300,) * 10
_NUM_TEST = 5
"""Recordings 0 to 4 of each speaker and digit are the official test part."""


@dataclass(frozen=True, order=True)
class Recording:
    """One spoken digit.

    Attributes:
        digit: 0..9.
        speaker: First name, such as `jackson`.
        index: Number among the recordings of this digit by this speaker, from 0.
    """

    digit: int
    speaker: str
    index: int

    @property
    def member(self) -> str:
        """Its path inside the archive."""
        return f"{_FOLDER}/{self.digit}_{self.speaker}_{self.index}.wav"

    @property
    def is_test(self) -> bool:
        """Whether it belongs to the official test part."""
        return self.index < _NUM_TEST


@contextmanager
def open_spoken_digits(folder: Path) -> Iterator[Archive]:
    """Open the recordings, wherever they lie in a folder: a zip of any name, a folder, or `recordings` itself.

    Raises:
        DataError: They are not there.
    """
    with open_archive(_holder(folder), landmark=_LANDMARK) as archive:
        yield archive


def list_recordings(archive: Archive) -> list[Recording]:
    """All recordings by digit, speaker and index; other files are passed over.

    Raises:
        DataError: There are as many as in the official files, and not as many of each digit.
    """
    found = (_NAME.fullmatch(member) for member in archive.members())
    recordings = sorted(
        Recording(int(match["digit"]), match["speaker"], int(match["index"])) for match in found if match is not None
    )
    digits = np.array([recording.digit for recording in recordings], np.int64)
    check_content(archive.name, digits, _OFFICIAL, [str(digit) for digit in range(len(_OFFICIAL))])
    return recordings


def _holder(folder: Path) -> Path:
    """The folder, or the zip in it, that holds the recordings."""
    for candidate in (folder, *sorted(folder.glob("*.zip"))):
        try:
            with open_archive(candidate, landmark=_LANDMARK):
                return candidate
        except DataError:
            continue
    raise DataError(
        f"{folder} holds no {_LANDMARK}; expected the Free Spoken Digit Dataset there, as a zip or a folder"
    )
