"""The coordinate-wise median of the clients' values."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from blossom_ray.algorithms.seam import ServerView, Tree
from blossom_ray.core.section import Section


class Median(Section):
    """Each parameter is the median of its values (Yin et al. 2018): up to half of the clients may send anything."""

    kind: Literal["median"]
    rows: ClassVar = ("model",)

    # Source: arXiv:1803.01498, algorithm 1, option I, with models instead of gradients. Weights do not count.
    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"model": s.rows["model"].map(lambda rows: np.median(rows.astype(np.float64), axis=0))}
