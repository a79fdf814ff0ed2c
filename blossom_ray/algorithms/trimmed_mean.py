"""The mean of the clients' values without the largest and the smallest of each parameter."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from blossom_ray.algorithms.seam import ServerView, Tree
from blossom_ray.core.section import Section


class TrimmedMean(Section):
    """Each parameter is the mean of its values without the largest and the smallest of them (Yin et al. 2018)."""

    kind: Literal["trimmed-mean"]
    fraction: Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)] = 0.1
    """Of the contributors on each side, rounded down: beta."""
    rows: ClassVar = ("model",)

    # Source: arXiv:1803.01498, algorithm 1, option II, with models instead of gradients. Weights do not count.
    def server(self, s: ServerView) -> dict[str, Tree]:
        def trimmed(rows: np.ndarray) -> np.ndarray:
            cut = int(self.fraction * len(rows))
            mean: np.ndarray = np.sort(rows.astype(np.float64), axis=0)[cut : len(rows) - cut].mean(axis=0)
            return mean

        return {"model": s.rows["model"].map(trimmed)}
