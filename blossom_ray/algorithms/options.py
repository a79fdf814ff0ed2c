"""The `server` section: who takes part in a round, and how averages become new blocks."""

from __future__ import annotations

from typing import Literal

from blossom_ray.algorithms.server_optimizers import FedAvg, ServerOptimizer
from blossom_ray.core.section import Fraction, Positive, Section

Weighting = Literal["samples", "uniform", "entropy"]


class Server(Section):
    """Who takes part in a round, and how averages become new blocks."""

    optimizer: ServerOptimizer = FedAvg(kind="fedavg")
    """The server optimizer; each block instance has its own state."""
    clients_per_round: Fraction | Positive = 1.0
    """Clients drawn for each round: a fraction (written with a point: 0.1, 1.0) or a number of clients (10)."""
    weighting: Weighting = "samples"
    """A client's weight in the averages: the training `samples` that it saw, the same for all (`uniform`), or one over
    the mean `entropy` of its predictions on its training split after local training (FLISM)."""
