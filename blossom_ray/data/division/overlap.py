"""How much of a federation's test windows stands in training windows, too, where neighbours overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blossom_ray.data.dataset import IntArray, Pieces

_NOBODY = -1


@dataclass(frozen=True)
class Overlap:
    """Test windows of all clients that have a part in common with a training window.

    Attributes:
        of_any: Share of those that have it with one of some client, 0 to 1.
        of_own: Share of those that have it with one of their own client.
        part: The part of a window that neighbours have in common.
    """

    of_any: float
    of_own: float
    part: float

    def __str__(self) -> str:
        part = "half" if self.part == 0.5 else f"{100 * self.part:.0f} %"
        return (
            f"{100 * self.of_any:.0f} % of test windows have {part} of their steps in common with a training window of "
            f"some client ({100 * self.of_own:.0f} % with one of their own client), so test scores are optimistic; "
            "data.split: recording or common-subject keeps them apart"
        )


def overlap(pieces: Pieces, train: Sequence[IntArray], test: Sequence[IntArray]) -> Overlap | None:
    """The overlap of clients' test windows with their training windows; None where there is none.

    Args:
        pieces: The recordings of all samples of the data set; consecutive rows of one recording are neighbours.
        train: Of each client its training rows in the data set.
        test: Of each client its test rows.
    """
    if pieces.overlap == 0:
        return None
    trained_by = np.full(len(pieces.recordings), _NOBODY)
    for client, rows in enumerate(train):
        trained_by[rows] = client
    windows = np.concatenate(test)
    owners = np.repeat(np.arange(len(test)), [len(rows) for rows in test])
    by_any, by_own = (np.zeros(len(windows), np.bool_) for _ in range(2))
    for step in (-1, 1):
        # A window at an end of the data set has itself in the place of a neighbour: no training window.
        neighbours = np.clip(windows + step, 0, len(trained_by) - 1)
        is_neighbour = pieces.recordings[neighbours] == pieces.recordings[windows]
        by_any |= is_neighbour & (trained_by[neighbours] != _NOBODY)
        by_own |= is_neighbour & (trained_by[neighbours] == owners)
    return Overlap(float(by_any.mean()), float(by_own.mean()), pieces.overlap) if by_any.any() else None
