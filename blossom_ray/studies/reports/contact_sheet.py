"""A page about the rows of clients: how many they have for what, and some of their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt
from PIL import Image  # which Matplotlib brings

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.summary import ClientShare, label_numbers
from blossom_ray.data.targets import FloatArray, IntArray
from blossom_ray.studies.reports.page import Picture, ReportSection
from blossom_ray.studies.tables import TextTable
from blossom_ray.text import brief

MOST_CLIENTS = 12
MOST_PICTURES = 24
_MOST_CLASSES = 30
_SIDE = 96
_MOST_CHARACTERS = 40


def contact_sheet(
    dataset: Dataset, federation: Federation, shares: Sequence[ClientShare], profiles: Sequence[ClientProfile]
) -> Iterator[ReportSection]:
    """A section for each of the first clients.

    Args:
        dataset: The data set, with its held-out part where clients have rows of it. Inputs of shape (N, 1 or 3, height,
            width) are pictures: numbers of 0 to 1, or of any other range, which is then brought to that.
        federation: Which client has which rows, and what is observed in them.
        shares: What each client has, in the order of `federation`.
        profiles: What each of them owns.
    """
    for place, (share, profile) in enumerate(list(zip(shares, profiles, strict=True))[:MOST_CLIENTS]):
        part, rows = federation.located(dataset, place)
        galleries, notes = {}, []
        for modality in profile.modalities:
            values = part.inputs[modality]
            if values.ndim != 4 or values.shape[1] not in (1, 3):
                continue
            shown = _spread(rows[~part.lacking(modality)[rows]], MOST_PICTURES)
            galleries[modality] = [
                Picture(png, _label(part, row)) for png, row in zip(_pngs(values[shown]), shown.tolist(), strict=True)
            ]
            notes.append(f"{modality}: {len(shown):,} of {len(rows):,} rows, spread evenly.")
        name = f" ({brief(share.name, _MOST_CHARACTERS)})" if share.name else ""
        role = ", never trains" if profile.is_unseen else ""
        yield ReportSection(
            f"Client {share.client}{name}: {profile.modality_set}{role}",
            tables=[_counts(dataset, federation, place, profile)],
            notes=notes,
            galleries=galleries,
        )


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
    titles = [f"{of_class}{brief(name, _MOST_CHARACTERS)}" for name in classes]
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
    return brief(text, _MOST_CHARACTERS)


def _spread(rows: IntArray, most: int) -> IntArray:
    """At most so many of some rows, at equal distances."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def _pngs(pictures: FloatArray) -> Iterator[str]:
    """Small pictures as URIs of the page itself; those of (N, 1 or 3, height, width) may have any range of numbers."""
    if not len(pictures):
        return
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
