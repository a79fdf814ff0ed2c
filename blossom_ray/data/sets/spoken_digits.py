"""The Free Spoken Digit Dataset: recordings of the digits 0..9 by name, speaker and index.

Source: Z. Jackson and contributors, "Free Spoken Digit Dataset (FSDD)".
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from blossom_ray.data.dataset import LeftOut, left_out
from blossom_ray.data.files.archives import Archive, holds, open_archive
from blossom_ray.data.sets.base import check_content
from blossom_ray.errors import DataError

_FOLDER = "recordings"
_LANDMARK = f"{_FOLDER}/0_jackson_0.wav"  # in every release: the first speaker's first recording
_NAME = re.compile(_FOLDER + r"/(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]{1,6})\.(?:wav|WAV)")
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
    return open_archive(_holder(folder), landmark=_LANDMARK)


def list_recordings(archive: Archive) -> tuple[list[Recording], tuple[LeftOut, ...]]:
    """All recordings by digit, speaker and index, and what of the data set is not among them.

    Raises:
        DataError: Two files are the same recording, or there are as many as in the official files, and not as many of
            each digit.
    """
    members = [member for member in archive.members() if member.startswith(f"{_FOLDER}/")]
    matches = [_NAME.fullmatch(member) for member in members]
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
    lacking = check_content(archive.name, "recordings", digits, _OFFICIAL, [*map(str, range(len(_OFFICIAL)))])
    unknown = [member for member, match in zip(members, matches, strict=True) if match is None]
    what = "files whose names are no recording's, as <digit>_<speaker>_<index>.wav"
    return recordings, (*left_out(what, unknown), *lacking)


def _holder(folder: Path) -> Path:
    """The folder, or the one zip in it, that holds the recordings; unpacked ones come before a zip."""
    if holds(folder, _LANDMARK):
        return folder
    zips = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".zip" and holds(file, _LANDMARK)]
    if not zips:
        raise DataError(
            f"{folder} holds no {_LANDMARK}; expected the Free Spoken Digit Dataset there, as a zip or a folder"
        )
    if len(zips) > 1:
        raise DataError(f"{folder} has recordings in {zips[0].name} and in {zips[1].name}; expected one of them")
    return zips[0]
