"""FedRep: private blocks first, then the others."""

from __future__ import annotations

from typing import Literal

from blossom_ray.algorithms.seam import Client, Pass
from blossom_ray.core.section import Positive, Section


class FedRep(Section):
    """FedRep (Collins et al. 2021): private blocks are trained first, then the others; the rest stands still.

    What is private is up to `sharing`. The same as `training.alternate`.
    """

    kind: Literal["fedrep"]
    private_epochs: Positive = 1
    """Epochs in which the private blocks are trained."""
    shared_epochs: Positive = 1
    """Epochs in which all other blocks are trained."""

    # Source: arXiv:2102.07078, algorithm 1.
    def passes(self, k: Client) -> list[Pass]:
        private, shared = k.layout.private, k.layout.averaged
        return [Pass(blocks=private, epochs=self.private_epochs), Pass(blocks=shared, epochs=self.shared_epochs)]
