"""What a table has of modalities: the rows that there are for them, the samples of a row, gaps, values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from blossom_ray.data.dataset import LeftOut
from blossom_ray.data.files.decoded import Kept
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.media_rows import MediaRows
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.modalities.features import model_files
from blossom_ray.data.modalities.numbers import NumbersModality
from blossom_ray.data.modalities.options import AnyModality
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.series_rows import samples_by_row
from blossom_ray.data.stored import Rows, StoredRows
from blossom_ray.data.table.rows import TableRows
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import DataError


@dataclass(frozen=True)
class TableInputs:
    """The modalities of a table. They are read one after the other, some rows at a time.

    Attributes:
        path: The file or folder, on this machine.
        sections: By name of a modality how it stands in the table.
    """

    path: str
    sections: Mapping[str, AnyModality]

    @cached_property
    def rows(self) -> TableRows:
        """The rows of all files, but those with a value that cannot be decoded and is to be dropped."""
        return self._all_rows if self._dropped is None else self._all_rows.without(self._dropped)

    @cached_property
    def media(self) -> dict[str, Media]:
        """The modalities that are decoded."""
        return {name: section for name, section in self.sections.items() if isinstance(section, Media)}

    @cached_property
    def cut(self) -> dict[str, SeriesModality]:
        """The modalities that are cut into windows."""
        series = {name: section for name, section in self.sections.items() if isinstance(section, SeriesModality)}
        return {name: section for name, section in series.items() if section.windows is not None}

    def check(self) -> None:
        """Refuse a column that is missing, or by its type."""
        for name, section in self.sections.items():
            for column in section.columns(name):
                self.rows.check_column(column)
                if isinstance(section, Media):
                    self.rows.check_media(column, section)
                    if section.features is not None:
                        model_files(section.features, f"data.modalities.{name}.features")
                elif isinstance(section, NumbersModality):
                    self.rows.check_numeric(column)
            if isinstance(section, SeriesModality):
                self.rows.check_series(section.columns(name))

    @cached_property
    def num_samples(self) -> IntArray:
        """How many samples each row makes: more than one where a series of it is cut into windows."""
        lengths = {name: self.rows.series_lengths(section.columns(name)) for name, section in self.cut.items()}
        places = {name: self.rows.place(section.columns(name)[0]) for name, section in self.cut.items()}
        return samples_by_row(lengths, self.cut, self.rows.num_rows, lambda name, row: places[name](row))

    @cached_property
    def gaps(self) -> dict[str, tuple[BoolArray, int]]:
        """As `TableRows.gaps`, by modality."""
        found = {}
        for name, section in self.sections.items():
            columns = section.columns(name)
            if isinstance(section, Media):
                found[name] = self.rows.media_gaps(columns[0]), 0
            else:
                nan_is_gap = isinstance(section, NumbersModality) and section.nan == "unobserved"
                found[name] = self.rows.gaps(columns, nan_is_gap=nan_is_gap)
        return found

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The rows that are dropped."""
        return tuple(entry for name, found in self._dropping.items() for entry in found.left_out(name))

    @property
    def notes(self) -> Iterator[str]:
        """What counts as not observed, though something stands there; and what windows make of rows."""
        for name, (_, num_torn) in self.gaps.items():
            if num_torn:
                columns = " or ".join(map(repr, self.sections[name].columns(name)))
                yield f"{name}: not observed in {num_torn:,} rows in which {columns} is null or NaN in part"
        if self.cut:
            number = int(self.num_samples.sum())
            yield f"{len(self.num_samples):,} rows make {number:,} samples, as {' and '.join(self.cut)} have windows"

    def decode(self) -> dict[str, tuple[Kept, ...]]:
        """Decode what is to be decoded; by modality what is in the cache then.

        Raises:
            DataError: A value is refused; or a table, a file or the cache cannot be used.
        """
        return {name: (self._dropping.get(name) or self._decoded(name)).kept for name in self.media}

    def samples(self, name: str, is_held_out: BoolArray, gap: float) -> tuple[Rows, Rows]:
        """A modality's values in the samples that clients share, and in the held-out ones, as `Dataset` has them.

        Args:
            name: Of the modality.
            is_held_out: (N,): whether each row is held out.
            gap: What a sample that clients share is where it has no value: 0 or NaN. A held-out one is 0.
        """
        section, columns = self.sections[name], self.sections[name].columns(name)
        row_of = np.repeat(np.arange(self.rows.num_rows), self.num_samples)
        shared, others = row_of[~is_held_out[row_of]], row_of[is_held_out[row_of]]
        if isinstance(section, Media):
            found = self._dropping.get(name) or self._decoded(name)
            samples = found.samples if self._dropped is None else found.samples.chosen(~self._dropped)
            return replace(samples.chosen(shared), fill=gap), samples.chosen(others)
        if isinstance(section, SeriesModality):
            samples = self.rows.series(columns, section, self.num_samples)
            is_other = is_held_out[row_of]
            return replace(samples.chosen(~is_other), fill=gap), samples.chosen(is_other)
        assert isinstance(section, NumbersModality), "all others are decoded"
        nan_is_gap = section.nan == "unobserved"
        parts = self.rows.divided(columns, section.shape, is_held_out, gap, nan_is_gap=nan_is_gap)
        if not self.cut:
            return parts
        stored = []
        for part, own, fill in zip(parts, (shared, others), (gap, 0.0), strict=True):
            repeated = StoredRows.of(part).chosen(np.unique(own, return_inverse=True)[1])
            stored.append(repeated.without(self.gaps[name][0][own], fill))
        return stored[0], stored[1]

    @cached_property
    def _all_rows(self) -> TableRows:
        return TableRows(self.path)

    @cached_property
    def _dropping(self) -> dict[str, MediaRows]:
        """The modalities of which it takes decoding to know the rows that the table has."""
        return {name: self._decoded(name) for name, media in self.media.items() if media.on_error == "drop"}

    @cached_property
    def _dropped(self) -> BoolArray | None:
        """Whether each row of all files has a value that is dropped; None: no row has."""
        wrong = [found.is_wrong for found in self._dropping.values()]
        dropped: BoolArray = np.logical_or.reduce(wrong) if wrong else np.zeros(1, np.bool_)
        if dropped.all():
            place, error = next(first for found in self._dropping.values() for first in found.errors.items())
            raise DataError(f"{self.path} has no row that can be decoded: {place} {error}")
        return dropped if dropped.any() else None

    def _decoded(self, name: str) -> MediaRows:
        """A modality's samples in all rows of all files."""
        (column,) = self.media[name].columns(name)
        self._all_rows.check_column(column)
        self._all_rows.check_media(column, self.media[name])
        return self._all_rows.decoded(column, self.media[name], name)
