"""The sections `algorithm` and `server`: what is added to averaging, who takes part, how averages become new blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from blossom_ray.algorithms.ditto import Ditto
from blossom_ray.algorithms.feddyn import FedDyn
from blossom_ray.algorithms.scaffold import Scaffold
from blossom_ray.algorithms.server_optimizers import FedAvg, ServerOptimizer
from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.section import Custom, Fraction, Positive, Section
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, shown_error

Weighting = Literal["samples", "uniform", "entropy"]


class FederatedAveraging(Section):
    """Federated averaging, block by block, with what `training` and `server` say: the base of all others."""

    kind: Literal["fedavg"]


class CustomAlgorithm(Custom):
    """Own algorithm: `factory(**options)` gives an object with methods of `blossom_ray.algorithms.seam.Algorithm`."""

    def build(self) -> Any:
        """The user's object.

        Raises:
            InputError: The code cannot be found, or raised.
        """
        try:
            return resolve_factory(self.factory, "algorithm.factory")(**self.options)
        except BlossomError:
            raise
        except OWN_CODE_RAISES as error:
            raise InputError(f"algorithm.factory raised {shown_error(error)}; expected an algorithm") from error


AlgorithmOption = Annotated[
    FederatedAveraging | Scaffold | FedDyn | Ditto | CustomAlgorithm, Field(discriminator="kind")
]


def algorithm_of(section: AlgorithmOption) -> Any:
    """The algorithm as an object, an `algorithms.seam.Algorithm`; those built in are their own sections."""
    return section.build() if isinstance(section, CustomAlgorithm) else section


class Server(Section):
    """Who takes part in a round, and how averages become new blocks."""

    optimizer: ServerOptimizer = FedAvg(kind="fedavg")
    """The server optimizer; each block instance has its own state."""
    clients_per_round: Fraction | Positive = 1.0
    """Clients drawn for each round: a fraction (written with a point: 0.1, 1.0) or a number of clients (10)."""
    weighting: Weighting = "samples"
    """A client's weight in the averages: the training `samples` that it saw, the same for all (`uniform`), or one over
    the mean `entropy` of its predictions on its training split after local training (FLISM)."""
