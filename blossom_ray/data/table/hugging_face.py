"""What Hugging Face's `datasets` writes: folders of `save_to_disk`, and what it says of columns in a file's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blossom_ray.data.table.arrow_files import ArrowFile
from blossom_ray.data.table.columns import ColumnFile, PlacedFile, damage_told
from blossom_ray.data.table.listing import WITHOUT_ROWS, Entry
from blossom_ray.data.table.places import split_of
from blossom_ray.errors import DataError
from blossom_ray.storage import read_file

_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_EXPECTED = "a folder as save_to_disk of Hugging Face's datasets writes it"
_FEATURES_KEY = b"huggingface"
"""Of a file's metadata, for its features as JSON."""
_CACHE = ("cache-", "tmp")
"""What names of files begin with that `datasets` leaves there when such a folder is worked on."""


def saved_files(top: Path, entries: Sequence[Entry]) -> list[ColumnFile] | None:
    """The files of such a folder, with a column `split` where it has splits; None for another folder.

    Args:
        top: The folder.
        entries: All files below it.

    Raises:
        DataError: A file is missing, damaged, or there beside those that are named; or rows are chosen by indices.
    """
    here = {entry.place: entry.path for entry in entries}
    if _SPLITS in here:
        splits = _json(top, _SPLITS).get("splits")
        if not (isinstance(splits, list) and splits and all(_is_plain(split) for split in splits)):
            raise DataError(f"{_SPLITS} names no splits; expected {_EXPECTED}")
        folders = {split: f"{split}/" for split in splits}
    elif _STATE in here and _INFO in here and _is_state(here[_STATE]):
        folders = {None: ""}
    else:
        return None
    files: list[ColumnFile] = []
    known = set()
    for split, folder in folders.items():
        state = _json(top, f"{folder}{_STATE}")
        if any(state.get(key) for key in ("_indices_files", "_indices_data_files")):
            raise DataError(f"{folder}{_STATE} chooses rows by indices; expected flatten_indices() before save_to_disk")
        named = state.get("_data_files")
        names = [each.get("filename") if isinstance(each, dict) else None for each in named or ()]
        features = _json(top, f"{folder}{_INFO}").get("features")
        for name in names:
            if not (_is_plain(name) and f"{folder}{name}" in here and here[f"{folder}{name}"].is_file()):
                raise DataError(
                    f"{folder}{_STATE} names the file {name!r}, which is not beside it; expected {_EXPECTED}"
                )
            place = f"{folder}{name}"
            known.add(place)
            values = {} if split is None else {"split": split_of(split) or split}
            metadata = {_FEATURES_KEY: json.dumps({"info": {"features": features}}).encode()}
            files.append(PlacedFile(ArrowFile(here[place], place), top, values, metadata))
    for entry in entries:
        name = entry.parts[-1]
        if not (entry.place in known or WITHOUT_ROWS.fullmatch(name) or name.startswith((".", *_CACHE))):
            raise DataError(f"{entry.place} is named by no {_STATE}; expected {_EXPECTED}, and notes alone")
    return files


def features_of(metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """Feature by column, such as `{"_type": "ClassLabel", "names": [...]}`; none where nothing is said."""
    try:
        found = json.loads(metadata[_FEATURES_KEY])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):  # what stands there is a hint, and the types are known
        return {}
    return found if isinstance(found, dict) else {}


def class_labels(feature: Any) -> tuple[str, ...] | None:
    """Names of the classes that a column's numbers, or those in its lists, count from 0; None where it says none."""
    while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    return tuple(names)


def _json(top: Path, place: str) -> dict[str, Any]:
    with damage_told(place, _EXPECTED):
        found = json.loads(read_file(top / place))
    if not isinstance(found, dict):
        raise DataError(f"{place} holds no object; expected {_EXPECTED}")
    return found


def _is_plain(name: Any) -> bool:
    """Whether a name that stands in a file is that of a file or folder beside it."""
    return isinstance(name, str) and name not in ("", ".", "..") and len(name) < 256 and not set(name) & set("/\\\0")


def _is_state(path: Path) -> bool:
    """Whether a file of that name is one of Hugging Face's."""
    try:
        return "_data_files" in json.loads(read_file(path))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
