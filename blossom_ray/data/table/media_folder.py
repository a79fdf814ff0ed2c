"""A folder of pictures, sounds and texts as a table: a row per name of a file, or per row of `metadata.csv`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from blossom_ray.data.files.below import file_below
from blossom_ray.data.table.arrow_files import ArrowFile
from blossom_ray.data.table.columns import Batches, ColumnFile, TableInMemory, is_text, words_for
from blossom_ray.data.table.csv_files import CsvFile
from blossom_ray.data.table.json_files import read_json
from blossom_ray.data.table.listing import WITHOUT_ROWS, Entry
from blossom_ray.data.table.places import split_of
from blossom_ray.errors import DataError
from blossom_ray.storage import read_file
from blossom_ray.text import brief

_KINDS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), "audio"),
    ".txt": "text",
}
"""By a file's suffix its kind: the column that has its path or, of a text, what stands in it."""
METADATA: dict[str, Callable[[Path, str], ColumnFile]] = {
    "metadata.csv": CsvFile,
    "metadata.jsonl": read_json,
    "metadata.parquet": ArrowFile,
}
"""What says more of files beside and below it, as Hugging Face's `imagefolder` and `audiofolder` have it."""
_FILE_NAME = "file_name"
_LARGEST_METADATA, _LARGEST_TEXT = 2**28, 2**22
_TEXTS_AT_ONCE = 64
_EXPECTED = f"pictures, sounds and texts ({', '.join(_KINDS)}), or {' or '.join(METADATA)} for what is known of them"


class _Media(NamedTuple):
    """The files of a folder that are samples.

    Attributes:
        kinds: Kind of each by its path below the folder.
        keys: What those have in common that make up a row: the folders and the name without its suffix.
        beside: By key the file of each kind.
        splits: By key the split that a folder's name says, where all do.
        labels: By key the folder that says the class, where folders do.
    """

    kinds: dict[str, str]
    keys: dict[str, tuple[str, ...]]
    beside: dict[tuple[str, ...], dict[str, str]]
    splits: dict[tuple[str, ...], str]
    labels: dict[tuple[str, ...], str]


def kind_of(entry: Entry) -> str | None:
    """`image`, `audio` or `text` for the file of a sample, by its suffix."""
    stem, suffix = os.path.splitext(entry.parts[-1])
    kind = _KINDS.get(suffix.lower())
    return None if entry.parts[-1].startswith(".") or (kind == "text" and WITHOUT_ROWS.fullmatch(stem)) else kind


def media_files(top: Path, entries: Sequence[Entry]) -> tuple[list[ColumnFile], tuple[str, ...]]:
    """The folder's rows, in the order of names or of the metadata, and words for what is not read.

    Columns: `image`, `audio` and `text`, as far as there are such files, null where a row has none; `label` and `split`
    from the names of folders; and what the metadata have.

    Args:
        top: The folder.
        entries: All files below it.

    Raises:
        DataError: A file is of another kind, or none; two files stand for one value; folders say neither class nor
            split; the metadata name what is not there.
    """
    samples, metadata, unread = [], [], []
    for entry in entries:
        name = entry.parts[-1]
        if name.startswith("."):
            continue
        is_note = WITHOUT_ROWS.fullmatch(name)
        if kind_of(entry) is not None or name in METADATA or not is_note:
            _check_file(top, entry)
        if kind_of(entry) is not None:
            samples.append(entry)
        elif name in METADATA:
            metadata.append(entry)
        elif not is_note:
            is_table = os.path.splitext(name)[1].lower() in (".csv", ".tsv", ".jsonl")
            found = "is a table beside files" if is_table else words_for(entry.path)
            raise DataError(f"{entry.place} {found}; expected {_EXPECTED}{', or its path as data.path' * is_table}")
        elif not (WITHOUT_ROWS.fullmatch(os.path.splitext(name)[0]) or name.lower().endswith((".db", ".ini"))):
            unread.append(entry.place)
    media = _grouped(samples, may_be_deeper=bool(metadata))
    notes = [_counted(unread, "not read")] if unread else []
    if not metadata:
        return [_by_name(top, media)], tuple(notes)
    used = Counter[str]()
    files = [_by_metadata(top, entry, media, used) for entry in metadata]
    if left := sorted(media.kinds.keys() - used):
        notes.append(_counted(left, "named by no metadata, and so left out"))
    if several := sorted(place for place, number in used.items() if number > 1):
        notes.append(_counted(several, "in several rows, which may stand in training and in testing"))
    return list(files), tuple(notes)


class MediaRows:
    """As `ColumnFile`: paths and what is known of them in memory, texts read as they are asked for.

    Args:
        name: What messages call it.
        top: The folder from which paths count.
        columns: Its columns, as Arrow has them, or paths and other text.
        texts: Those of paths in whose place the texts of the files stand.
    """

    def __init__(self, name: str, top: Path, columns: Mapping[str, Any], texts: Collection[str]) -> None:
        made = {name: pa.array(own, pa.string()) if isinstance(own, list) else own for name, own in columns.items()}
        self._rows, self._texts = TableInMemory(name, top, pa.table(made)), frozenset(texts)
        self.name, self.folder, self.num_rows, self.types = name, top, self._rows.num_rows, self._rows.types
        self.index_columns: frozenset[str] = frozenset()
        self.metadata: Mapping[bytes, bytes] = {}

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`."""
        return self._rows.may_have_nulls(column)

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`.

        Raises:
            DataError: A text is not UTF-8, too long, or no longer there.
        """
        for first_row, arrays in self._rows.batches(columns):
            if self._texts.isdisjoint(columns):
                yield first_row, arrays
                continue
            for start in range(0, len(arrays[columns[0]]), _TEXTS_AT_ONCE):
                found = {name: array.slice(start, _TEXTS_AT_ONCE) for name, array in arrays.items()}
                for name in self._texts & found.keys():
                    place = f"{self.name}, column {name!r}, row"
                    texts = (
                        None if path is None else self._text(path, f"{place} {first_row + start + number}")
                        for number, path in enumerate(found[name].to_pylist())
                    )
                    found[name] = pa.array(texts, pa.string())
                yield first_row + start, found

    def _text(self, path: str, place: str) -> str:
        try:
            return read_file(file_below(self.folder, path), _LARGEST_TEXT).decode("utf-8-sig")
        except (DataError, OSError, UnicodeDecodeError) as error:
            found = str(error).partition("; expected ")[0]
            expected = f"text in UTF-8 of at most {_LARGEST_TEXT:,} bytes"
            raise DataError(f"{place}: {path} cannot be read ({found}); expected {expected}") from error


def _check_file(top: Path, entry: Entry) -> None:
    if not entry.path.is_file():
        raise DataError(f"{entry.place} is no regular file, or a link to none; expected {_EXPECTED}")
    if entry.path.is_symlink():
        try:
            file_below(top, entry.place)
        except DataError as error:
            raise DataError(f"a name in the folder {error}") from error


def _grouped(samples: Sequence[Entry], *, may_be_deeper: bool) -> _Media:
    has_splits = all(len(entry.parts) > 1 and split_of(entry.parts[0]) for entry in samples)
    kinds = {entry.place: kind_of(entry) or "" for entry in samples}
    folders = {entry.place: entry.parts[has_splits:-1] for entry in samples}
    if all(folders.values()):
        pairs = {(own[0], kinds[place]) for place, own in folders.items()}
        if 1 < len(pairs) == len({folder for folder, _ in pairs}) == len({kind for _, kind in pairs}):
            folders = {place: own[1:] for place, own in folders.items()}  # one of pictures, one of sounds
    depths = {len(own) for own in folders.values()}
    if not may_be_deeper and (len(depths) > 1 or max(depths, default=0) > 1):
        place = next(place for place, own in folders.items() if len(own) != 1)
        raise DataError(
            f"{place} lies elsewhere; expected all files as name, class/name or split/class/name, or metadata.csv"
        )
    names_classes = depths == {1} and len(set(folders.values())) > 1
    media = _Media(kinds, {}, {}, {}, {})
    for entry in samples:
        split, own = entry.parts[:has_splits], folders[entry.place]
        key = (*split, *own, os.path.splitext(entry.parts[-1])[0])
        known = media.beside.setdefault(key, {})
        kind = kinds[entry.place]
        if kind in known:
            raise DataError(f"{known[kind]} and {entry.place} stand for one value; expected one {kind} of a name")
        known[kind] = entry.place
        media.keys[entry.place] = key
        if split:
            media.splits[key] = split_of(split[0]) or split[0]
        if names_classes:
            media.labels[key] = own[0]
    return media


def _by_name(top: Path, media: _Media) -> MediaRows:
    keys = sorted(media.beside)
    columns = {kind: [media.beside[key].get(kind) for key in keys] for kind in sorted(set(media.kinds.values()))}
    return MediaRows(top.name, top, columns | _from_folders(media, keys), columns.keys() & {"text"})


def _by_metadata(top: Path, entry: Entry, media: _Media, used: Counter[str]) -> MediaRows:
    """The rows of one file of metadata; `used` counts the files that they have."""
    if (size := entry.path.stat().st_size) > _LARGEST_METADATA:
        raise DataError(f"{entry.place} has {size:,} bytes; expected at most {_LARGEST_METADATA:,}, or a Parquet file")
    rows = METADATA[entry.parts[-1]](entry.path, entry.place)
    named = [column for column in rows.types if column == _FILE_NAME or column.endswith(f"_{_FILE_NAME}")]
    if not named or not all(is_text(rows.types[column]) for column in named):
        found = ", ".join(map(repr, rows.types))
        raise DataError(
            f"{entry.place} has no column {_FILE_NAME!r} of text (its columns: {brief(found)}); expected one"
        )
    columns: dict[str, Any] = {name: [] for name in rows.types if name not in named}
    paths: dict[str, list[str | None]] = {name: [] for name in named}
    for _, batch in rows.batches(list(rows.types)):
        for name in columns:
            is_coded = pa.types.is_dictionary(batch[name].type) and not pa.types.is_dictionary(rows.types[name])
            columns[name].append(batch[name].dictionary_decode() if is_coded else batch[name])
        for name in named:
            paths[name].extend(batch[name].to_pylist())
    columns = {name: pa.chunked_array(parts, rows.types[name]) for name, parts in columns.items()}
    places = {
        name: [_named(top, entry, name, row, path, media) for row, path in enumerate(own)]
        for name, own in paths.items()
    }
    texts = []
    made: dict[str, list[str | None]] = {}
    for name, own in places.items():
        if name != _FILE_NAME:
            column = name.removesuffix(f"_{_FILE_NAME}")
            made[column] = own
            kinds = {media.kinds[place] for place in own if place is not None}
            if len(kinds) > 1:
                raise DataError(
                    f"{entry.place}, column {name!r} names {' and '.join(sorted(kinds))}; expected one kind"
                )
            texts += [column] * ("text" in kinds)
    keys = [media.keys[place] if place is not None else () for place in places.get(_FILE_NAME, [])]
    if keys:
        beside = [media.beside.get(key, {}) for key in keys]
        made |= {kind: [own.get(kind) for own in beside] for kind in sorted({kind for own in beside for kind in own})}
        texts += ["text"] * ("text" in made)
        made |= {name: own for name, own in _from_folders(media, keys).items() if name not in columns}
    if double := sorted(made.keys() & columns.keys()):
        found = f"{entry.place} has a column {double[0]!r}, which files beside it are, too"
        raise DataError(f"{found}; expected one of them")
    used.update(place for own in made.values() for place in own if place in media.kinds)
    return MediaRows(entry.place, top, made | columns, texts)


def _named(top: Path, metadata: Entry, column: str, row: int, path: str | None, media: _Media) -> str | None:
    """The place of a file that a row names."""
    if path is None:
        return None
    place = os.path.normpath(os.path.join(*metadata.parts[:-1], path))
    if place in media.kinds and not path.startswith("/") and ".." not in path.split("/"):
        return place
    where = f"{metadata.place}, column {column!r}, row {row}"
    try:
        file_below(top.joinpath(*metadata.parts[:-1]), path)
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    raise DataError(f"{where} is {brief(path)!r}; expected a picture, sound or text ({', '.join(_KINDS)})")


def _from_folders(media: _Media, keys: Sequence[tuple[str, ...]]) -> dict[str, list[str | None]]:
    """The columns of what folders say."""
    said = {"label": media.labels, "split": media.splits}
    return {name: [values.get(key) for key in keys] for name, values in said.items() if values}


def _counted(places: Sequence[str], words: str) -> str:
    return f"files that are {words}: {len(places):,}, such as {brief(places[0])}"
