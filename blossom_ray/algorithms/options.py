"""The `server` section: who takes part in a round, and how averages become new blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.section import Custom, Fraction, Positive, Probability, Rate, Section


class FedAvg(Section):
    """New value = old + lr (average - old) (McMahan et al. 2017 for lr = 1)."""

    kind: Literal["fedavg"]
    lr: Rate = 1.0
    """Server learning rate; 1 takes the average itself."""


class FedAvgM(Section):
    """Server momentum (Hsu et al. 2019)."""

    kind: Literal["fedavgm"]
    lr: Rate = 1.0
    """Server learning rate."""
    momentum: Probability = 0.9
    """Server momentum."""


class FedAdagrad(Section):
    """FedAdagrad (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadagrad"]
    lr: Rate = 0.01
    """Server learning rate (eta)."""
    beta1: Probability = 0.0
    """Decay of the first moment."""
    tau: Rate = 1e-3
    """Degree of adaptivity, added to the denominator; the second moment starts at tau^2."""


class _FedAdamLike(Section):
    lr: Rate = 0.01
    """Server learning rate (eta)."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.99
    """Decay of the second moment."""
    tau: Rate = 1e-3
    """Degree of adaptivity, added to the denominator; the second moment starts at tau^2."""


class FedAdam(_FedAdamLike):
    """FedAdam (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadam"]


class FedYogi(_FedAdamLike):
    """FedYogi (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedyogi"]


class CustomServerOptimizer(Custom):
    """Own server optimizer: `factory(**options)` gives an object with `init` and `step`."""


ServerOptimizer = Annotated[
    FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi | CustomServerOptimizer, Field(discriminator="kind")
]

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
