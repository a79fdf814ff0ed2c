"""Whether a data set that seems whole has what its authors say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blossom_ray.data.dataset import IntArray, LeftOut
from blossom_ray.errors import DataError


def check_content(name: str, labels: IntArray, official: Sequence[int], class_names: Sequence[str]) -> None:
    """Refuse a copy with as many rows as the official one and other labels; smaller cuts pass.

    Args:
        name: What messages call the copy, or its part.
        labels: (N,) int64, from 0.
        official: Rows of each class in the official files.
        class_names: Name of each class.

    Raises:
        DataError: N is the official number of rows, and a class has more or fewer of them.
    """
    counts = np.bincount(labels, minlength=len(official)).tolist()
    if len(labels) != sum(official) or counts == list(official):
        return
    found = next(row for row, pair in enumerate(zip(counts, official, strict=True)) if pair[0] != pair[1])
    raise DataError(
        f"{name} has {counts[found]} rows of class {class_names[found]}; expected {official[found]}, as in the "
        "official files; download it again"
    )


def rows_lacking(what: str, found: int, official: int) -> tuple[LeftOut, ...]:
    """One entry where a copy has fewer rows than the official files, else none.

    Args:
        what: Which rows, such as `windows of the train part`.
        found: Rows of the copy.
        official: Rows of the official files.
    """
    missing = official - found
    return (LeftOut(f"{what} that the official files have and this copy has not", missing),) if missing > 0 else ()
