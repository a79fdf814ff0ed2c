"""What the place of a file says of all its rows: a split, or the values of columns (`key=value`, as Hive has it)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from blossom_ray.data.clients import HELD_OUT
from blossom_ray.data.table.listing import Entry
from blossom_ray.errors import DataError

Value = str | int | None
FILE_SPLIT = "file_split"
"""The column of the splits that names say of Parquet and Arrow files in the table's folder itself."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    HELD_OUT: (HELD_OUT,),
}
"""Names of splits and what they mean, as Hugging Face's `datasets` has it; the last one is ours."""
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?[1-9][0-9]{0,17}|0")


def split_of(folder: str) -> str | None:
    """The split that the name of a folder says, or None."""
    return _SPLIT_OF.get(folder.lower())


def values_of_places(entries: Sequence[Entry], split_column: str) -> list[dict[str, Value]] | None:
    """The columns that the place of each file makes up: {} where there are none.

    Where all files lie in folders `key=value`, these are columns, as Hive and Spark write them: percent codes are
    undone, and the values of a key are whole numbers where all of them are. Else folders, or words in names of files,
    may say the split: all of them, and more than one split where the files lie in the table's folder itself.

    Args:
        entries: The files, all of them in the table's folder itself or none.
        split_column: What the column of splits is called.

    Returns:
        Column to value for each file; None where they lie in folders that say neither.

    Raises:
        DataError: The files have other keys than each other, or one of them twice.
    """
    if len(entries[0].parts) == 1:
        splits = [_split_in(entry.parts[-1]) for entry in entries]
        return [] if None in splits or len(set(splits)) < 2 else [{split_column: split} for split in splits]
    if all("=" in part for entry in entries for part in entry.parts[:-1]):
        return _of_keys(entries)
    said = [{split_of(part) for part in entry.parts[:-1]} - {None} or {_split_in(entry.parts[-1])} for entry in entries]
    other_folders = {tuple(part for part in entry.parts[:-1] if split_of(part) is None) for entry in entries}
    if len(other_folders) > 1 or not all(len(own) == 1 and None not in own for own in said):
        return None
    return [{split_column: own.pop()} for own in said]


def _split_in(name: str) -> str | None:
    """The split that a word in the name of a file says, such as `train-00000-of-00002.csv`; None for none or two."""
    found = {split_of(word) for word in re.split("[^a-z]+", name.rpartition(".")[0].lower())} - {None}
    return found.pop() if len(found) == 1 else None


def _of_keys(entries: Sequence[Entry]) -> list[dict[str, Value]]:
    texts: list[dict[str, str | None]] = []
    for entry in entries:
        pairs = [tuple(map(unquote, part.split("=", 1))) for part in entry.parts[:-1]]
        texts.append({key: None if value == _NULL else value for key, value in pairs})
        if texts[-1].keys() != texts[0].keys() or len(texts[-1]) < len(pairs):
            expected = f"each once, as in {entries[0].place}"
            raise DataError(f"{entry.place} has other columns in its path; expected {', '.join(texts[0])}, {expected}")
    whole = {key for key in texts[0] if all(_WHOLE.fullmatch(own[key] or "0") for own in texts)}
    return [
        {key: int(value) if value is not None and key in whole else value for key, value in own.items()}
        for own in texts
    ]
