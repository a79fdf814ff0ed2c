"""A page about the rows of clients: how many they have for what, and some of their pictures, sounds and texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from statistics import median
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image  # which Matplotlib brings

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.extras import module_of_extra
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.files.decoded import FilePath, Value
from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.modalities.text import TextModality
from blossom_ray.data.sets.base import DataSource
from blossom_ray.data.sets.table import Table
from blossom_ray.data.summary import ClientShare, label_numbers
from blossom_ray.data.targets import FloatArray
from blossom_ray.studies.reports.page import Picture, ReportSection
from blossom_ray.studies.tables import TextTable
from blossom_ray.text import brief

MOST_CLIENTS = 12
MOST_SHOWN = 24
_MOST_CLASSES = 30
_SIDE = 96
_LONGEST_NAME = 40
_LONGEST_TEXT = 100

_Original = float | tuple[str, str] | FloatArray
"""Seconds of a sound, the number of a text's tokens and how it begins, or numbers of a sample."""


def contact_sheet(
    source: DataSource,
    dataset: Dataset,
    federation: Federation,
    shares: Sequence[ClientShare],
    profiles: Sequence[ClientProfile],
) -> Iterator[ReportSection]:
    """A section for each of the first clients.

    Args:
        source: Of the data set: a table has the values that its samples were decoded from.
        dataset: The data set, with its held-out part where clients have rows of it. Inputs of shape (N, 1 or 3, height,
            width) are pictures: numbers of 0 to 1, or of any other range, which is then brought to that.
        federation: Which client has which rows, and what is observed in them.
        shares: What each client has, in the order of `federation`.
        profiles: What each of them owns.

    Raises:
        DataError: A file of the table cannot be read any more.
    """
    first = [*zip(shares, profiles, strict=True)][:MOST_CLIENTS]
    chosen = {}
    for place, (_, profile) in enumerate(first):
        part, rows = federation.located(dataset, place)
        for modality in profile.modalities:
            places = np.flatnonzero(~part.lacking(modality)[rows])
            chosen[modality, place] = places[np.linspace(0, len(places) - 1, min(MOST_SHOWN, len(places))).astype(int)]
    originals = dict[str, dict[int, _Original]]()
    if isinstance(source, Table):
        for modality, media in source.media.items():
            own_rows = [federation.rows(place)[own] for (name, place), own in chosen.items() if name == modality]
            numbers = np.concatenate([np.zeros(0, np.int64), *own_rows])
            values = _looked_at(media, source.values(modality, numbers))
            originals[modality] = {int(numbers[place]): value for place, value in values}
    for place, (share, profile) in enumerate(first):
        part, rows = federation.located(dataset, place)
        tables, galleries, notes = [_counts(dataset, federation, place, profile)], {}, []
        for modality in profile.modalities:
            own = chosen[modality, place]
            labels = [_label(part, row) for row in rows[own].tolist()]
            found: list[_Original]
            if modality in originals:
                found = [originals[modality][number] for number in federation.rows(place)[own].tolist()]
            else:
                found = [*part.inputs[modality][rows[own]]]
            if seconds := [each for each in found if isinstance(each, float)]:
                lengths = [f"{number:.3g}" for number in (min(seconds), median(seconds), max(seconds))]
                tables.append(TextTable(["seconds", "shortest", "median", "longest"], [[modality, *lengths]]))
            elif texts := [each for each in found if isinstance(each, tuple)]:
                cells = [[label, *text] for label, text in zip(labels, texts, strict=True)]
                tables.append(TextTable(["label", "tokens", "text"], cells, modality))
            elif pictures := [each for each in found if _is_picture(each)]:
                galleries[modality] = [*map(Picture, _pngs(np.stack(pictures)), labels)]
            else:
                continue
            notes.append(f"{modality}: {len(own):,} of {len(rows):,} rows, spread evenly.")
        name = f" ({brief(share.name, _LONGEST_NAME)})" if share.name else ""
        role = ", never trains" if profile.is_unseen else ""
        title = f"Client {share.client}{name}: {profile.modality_set}{role}"
        yield ReportSection(title, tables=tables, notes=notes, galleries=galleries)


def _counts(dataset: Dataset, federation: Federation, place: int, profile: ClientProfile) -> TextTable:
    """A row per split with the client's rows, those that have a modality which some lack, and those by class."""
    part, _ = federation.located(dataset, place)
    before = 0 if part is dataset else dataset.num_samples
    gaps = [name for name in profile.modalities if name in federation.observed]
    classes, rest = part.class_names[:_MOST_CLASSES], len(part.class_names) - _MOST_CLASSES
    cells = []
    for split, own in federation.splits.items():
        rows = own.of(place)
        if len(rows):
            observed = [f"{int(federation.observed[name][rows].sum()):,}" for name in gaps]
            numbers = label_numbers(part, rows - before)
            by_class = [
                f"{numbers[name]:,}" if dataset.task != "regression" else f"{numbers[name]:.4g}" for name in classes
            ]
            cells.append([split, f"{len(rows):,}", *observed, *by_class])
    of_class = "mean of " if dataset.task == "regression" else ""
    titles = [f"{of_class}{brief(name, _LONGEST_NAME)}" for name in classes]
    more = f"the first {_MOST_CLASSES} of {len(part.class_names):,} classes" if rest > 0 else ""
    return TextTable(["split", "rows", *(f"with {name}" for name in gaps), *titles], cells, more)


def _label(part: Dataset, row: int) -> str:
    """What a row is labelled as."""
    label, known = part.labels[row], None if part.known is None else part.known[row]
    if known is not None and not np.all(known):
        return "not known"
    if part.task == "classification":
        text = part.class_names[int(label)]
    elif part.task == "multilabel":
        text = ", ".join(compress(part.class_names, label > 0)) or "none"
    else:
        text = ", ".join(f"{value:.4g}" for value in label)
    return brief(text, _LONGEST_NAME)


def _is_picture(value: _Original) -> TypeGuard[FloatArray]:
    return isinstance(value, np.ndarray) and value.ndim == 3 and len(value) in (1, 3)


def _looked_at(media: Media, values: Iterable[tuple[int, Value]]) -> Iterator[tuple[int, _Original]]:
    """Of each sound the seconds of its file, of a text its tokens and how it begins, of a picture its numbers."""
    decoder = media.decoder()
    for number, value in values:
        content = value.content() if isinstance(value, FilePath) else value
        if isinstance(media, AudioModality) and isinstance(content, bytes):
            with module_of_extra("soundfile", "sounds need soundfile", "audio").SoundFile(io.BytesIO(content)) as sound:
                yield number, sound.frames / sound.samplerate
        elif isinstance(media, TextModality):
            tokens = int(np.count_nonzero(decoder(content)))
            text = content if isinstance(content, str) else content.decode(errors="replace")
            more = " or more" if tokens == media.max_length else ""
            yield number, (f"{tokens:,}{more}", brief(text, _LONGEST_TEXT))
        else:
            yield number, decoder(content) * np.float32(decoder.factor)


def _pngs(pictures: FloatArray) -> Iterator[str]:
    """Small pictures as URIs of the page itself; those of (N, 1 or 3, height, width) may have any range of numbers."""
    low, high = float(pictures.min()), float(pictures.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = np.rint((pictures - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    for picture in scaled:
        yield _png(picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1))


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
