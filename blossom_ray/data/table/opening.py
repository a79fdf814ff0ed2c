"""The files of a table, whatever it is: one file, a folder of them, of pictures and sounds, or what libraries save.

Of a folder every file is read, or known to hold no rows, or refused by its name: a part of the data is no data set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from blossom_ray.data.table.arrow_files import FORMATS, ArrowFile, arrow_kind
from blossom_ray.data.table.columns import ColumnFile, PlacedFile, words_for
from blossom_ray.data.table.csv_files import CsvFile
from blossom_ray.data.table.hugging_face import saved_files
from blossom_ray.data.table.json_files import read_json
from blossom_ray.data.table.listing import WITHOUT_ROWS, Entry, files_below
from blossom_ray.data.table.media_folder import METADATA, kind_of, media_files
from blossom_ray.data.table.npz_files import NpzFile
from blossom_ray.data.table.places import FILE_SPLIT, values_of_places
from blossom_ray.errors import DataError

_ARROW_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
_READERS: dict[str, Callable[[Path, str], ColumnFile]] = {
    **dict.fromkeys(_ARROW_SUFFIXES, ArrowFile),
    **dict.fromkeys((".csv", ".tsv"), CsvFile),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), read_json),
    ".npz": NpzFile,
}
_COPY = re.compile(r"\..*|.*(~|\.(bak|backup|old|orig|tmp|temp|part|partial|swp|crdownload))", re.IGNORECASE)
"""Names of files that are hidden, kept beside another one, or not finished."""
_EXPECTED = f"{FORMATS}, CSV, JSON lines or .npz"


class TableFiles(NamedTuple):
    """The files of a table in order, and words for what lies beside them and is not read."""

    files: Sequence[ColumnFile]
    notes: tuple[str, ...] = ()


def open_column_files(path: str | Path) -> TableFiles:
    """The file at a path, or the files in a folder, in the order of their paths.

    A folder has tables, in itself or in folders that say something of them (`key=value`, splits); or it is one of
    `save_to_disk`; or one of pictures, sounds and texts.

    Args:
        path: A file, or a folder of files, told by their content or their suffix.

    Raises:
        DataError: There is nothing of the kind; a file cannot be read, or a folder has more than can be read: other
            files, a link to nothing, one file twice. What is hidden is left out, and what is known to hold no rows.
    """
    try:
        top = Path(path).expanduser()
        if top.is_file():
            return TableFiles([_opened(top, top.name)])
        entries = files_below(top)
        if (saved := saved_files(top, entries)) is not None:
            return TableFiles(saved)
        if _is_media(entries):
            return TableFiles(*media_files(top, entries))
        return TableFiles(_tables(top, entries))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected {_EXPECTED}, or a folder of them") from error


def _reader(path: Path) -> Callable[[Path, str], ColumnFile] | None:
    """What reads a file, by its content or its suffix."""
    return ArrowFile if arrow_kind(path) is not None else _READERS.get(path.suffix.lower())


def _opened(path: Path, name: str) -> ColumnFile:
    reader = _reader(path)
    if reader is None or (reader is ArrowFile and arrow_kind(path) is None):
        raise DataError(f"{name} {words_for(path)}; expected {_EXPECTED}")
    return reader(path, name)


def _is_media(entries: Sequence[Entry]) -> bool:
    """Whether samples lie in files of their own: pictures or sounds, or texts in folders, and no tables."""
    kinds = {kind_of(entry) for entry in entries if kind_of(entry) != "text" or len(entry.parts) > 1} - {None}
    tables = {entry.parts[-1].lower() for entry in entries if entry.path.suffix.lower() in _READERS.keys() - {".json"}}
    if kinds & {"image", "audio"}:
        return not any(name.endswith(_ARROW_SUFFIXES) for name in tables - METADATA.keys())
    return bool(kinds) and not tables


def _tables(top: Path, entries: Sequence[Entry]) -> list[ColumnFile]:
    readers = {entry: reader for entry in entries if (reader := _reader_of(entry)) is not None}
    if not readers:  # beside other tables JSON describes them
        readers = {
            entry: read_json for entry in entries if entry.path.suffix.lower() == ".json" and entry.path.is_file()
        }
    if not readers:
        raise DataError(f"{top} holds no file with rows; expected {_EXPECTED}, at least one")
    main = ArrowFile if ArrowFile in readers.values() else next(iter(readers.values()))
    for entry, reader in readers.items():
        if reader != main:
            raise _foreign(entry)
    below = [entry for entry in readers if len(entry.parts) > 1]
    known: dict[tuple[int, int], Entry] = {}
    for entry in readers:
        facts = entry.path.stat()
        if (first := known.setdefault((facts.st_dev, facts.st_ino), entry)) != entry:
            raise DataError(f"{top} has one file as {first.place} and as {entry.place}; expected it once")
    values = None
    if not below or len(below) == len(readers):
        values = values_of_places(list(readers), FILE_SPLIT if main is ArrowFile and not below else "split")
    if values is None:
        found = f"{top.name} has the file {below[0].place} in a folder below"
        raise DataError(
            f"{found}; expected all files in the folder itself, or the path of the one to read, or all in folders "
            f"key=value or of splits (data/train-0.parquet, train/0.parquet)"
        )
    files = [_opened(entry.path, entry.place) for entry in readers]
    if not values or (FILE_SPLIT in values[0] and any(FILE_SPLIT in file.types for file in files)):
        return files
    return [PlacedFile(file, top, own) for file, own in zip(files, values, strict=True)]


def _reader_of(entry: Entry) -> Callable[[Path, str], ColumnFile] | None:
    """What reads an entry of a folder, or None; a `DataError` where it may hold rows, but cannot be read."""
    name = entry.parts[-1]
    is_hidden = name.startswith(".")
    if WITHOUT_ROWS.fullmatch(name) or (is_hidden and not entry.path.is_file()):
        return None
    if not entry.path.is_file():
        target = os.readlink(entry.path) if entry.path.is_symlink() else ""
        found = f"is a link to {target!r}, where no file is" if target else "is no regular file"
        hint = " (git annex get fetches it)" if "annex" in target else ""
        raise DataError(f"{entry.place} {found}{hint}; expected {_EXPECTED}")
    is_arrow = arrow_kind(entry.path) is not None
    if is_hidden and not is_arrow:
        return None
    if _COPY.fullmatch(name) and is_arrow:
        found = f"{entry.place} has rows, and the name of a hidden file, a copy or a part"
        raise DataError(f"{found}; expected it elsewhere, or under another name")
    reader = _reader(entry.path)
    if reader is None:
        raise _foreign(entry)
    return reader


def _foreign(entry: Entry) -> DataError:
    return DataError(
        f"{entry.place} {words_for(entry.path)}; expected a folder of Parquet, Arrow or Feather files, or of CSV, "
        f"JSON lines or .npz, and notes alone, since rows of other files would be left out; or the path of a table "
        f"that names files"
    )
