"""The samples of a modality that is decoded, row by row: which rows have one, and which have a value that is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from blossom_ray.data.dataset import MOST_EXAMPLES, LeftOut
from blossom_ray.data.files.decoded import Kept, Value, decoded
from blossom_ray.data.files.extracted import extracted
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.stored import StoredRows
from blossom_ray.errors import DataError


class MediaRows(NamedTuple):
    """A modality of all rows.

    Attributes:
        samples: A row without a value, or with one that cannot be decoded, has none.
        is_wrong: (N,): whether its value cannot be decoded.
        errors: Of the first of these rows: by its place in words what is wrong.
        kept: What is in the cache.
    """

    samples: StoredRows
    is_wrong: BoolArray
    errors: Mapping[str, str]
    kept: tuple[Kept, ...]

    def left_out(self, name: str) -> tuple[LeftOut, ...]:
        """These rows as what a data set lacks; none where there are none."""
        what, count = f"rows whose {name} cannot be decoded", int(self.is_wrong.sum())
        return (LeftOut(what, count, tuple(self.errors)),) if count else ()


def decoded_rows(
    values: Iterable[Value | None],
    media: Media,
    name: str,
    where: str,
    num_rows: int,
    place: Callable[[int, str], str],
) -> MediaRows:
    """The samples of rows; decoded now, if they are not in the cache.

    Args:
        values: Of the rows in order; None where a row has none.
        media: What decodes them, and says whether a value that cannot be decoded is refused.
        name: Of the modality, for the progress.
        where: What messages call its section.
        num_rows: How many rows there are.
        place: Words for the place of a row, whose value has an error.

    Raises:
        DataError: A value is refused, with its place; or as `decoded`.
    """
    numbers: list[int] = []

    def present() -> Iterator[Value]:
        for row, value in enumerate(values):
            if value is not None:
                numbers.append(row)
                yield value

    def refuse(number: int, error: str) -> None:
        if media.on_error == "refuse":
            raise DataError(f"{place(numbers[number], error)} {error}")

    found = decoded(media, present(), name, num_rows, refuse=refuse)
    stored, is_wrong = np.full(num_rows, -1, np.int64), np.zeros(num_rows, np.bool_)
    has_sample = np.ones(len(numbers), np.bool_)
    if media.features is not None:
        has_sample[list(found.errors)] = False
        found = extracted(found, media, name, where, lambda number: place(numbers[number], ""))
    stored[numbers] = np.cumsum(has_sample) - 1
    wrong = [numbers[number] for number in found.errors]
    is_wrong[wrong], stored[wrong] = True, -1
    first = zip(wrong[:MOST_EXAMPLES], found.errors.values(), strict=False)
    errors = {place(row, error): error for row, error in first}
    return MediaRows(StoredRows(found.parts, stored, found.factor), is_wrong, errors, found.kept)
