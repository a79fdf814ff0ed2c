"""FedProx: local training is held near the values received."""

from __future__ import annotations

from typing import Literal

from blossom_ray.algorithms.seam import Client, Pass
from blossom_ray.core.section import NonNegative, Section


class FedProx(Section):
    """FedProx (Li et al. 2020): mu/2 |w - w_received|^2 is added to the loss, but for private blocks.

    The same as `training.proximal_mu`, which also goes with other algorithms that leave local training as it is.
    """

    kind: Literal["fedprox"]
    mu: NonNegative = 0.01
    """Strength of the proximal term."""

    # Source: arXiv:1812.06127, algorithm 2.
    def passes(self, k: Client) -> list[Pass]:
        return [Pass(anchor=k.received, mu=self.mu)]
