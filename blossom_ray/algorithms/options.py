"""The sections `algorithm` and `server`: what is added to averaging, who takes part, how averages become new blocks."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from blossom_ray.algorithms.ditto import Ditto
from blossom_ray.algorithms.feddyn import FedDyn
from blossom_ray.algorithms.fedmsplit import FedMSplit
from blossom_ray.algorithms.fednova import FedNova
from blossom_ray.algorithms.fedproto import FedProto
from blossom_ray.algorithms.fedprox import FedProx
from blossom_ray.algorithms.fedrep import FedRep
from blossom_ray.algorithms.flism import Flism
from blossom_ray.algorithms.harmony import Harmony
from blossom_ray.algorithms.ifca import Ifca
from blossom_ray.algorithms.low_rank import LowRank
from blossom_ray.algorithms.median import Median
from blossom_ray.algorithms.mfedmc import MFedMC
from blossom_ray.algorithms.mixed import Mixed
from blossom_ray.algorithms.moon import Moon
from blossom_ray.algorithms.oort import Oort
from blossom_ray.algorithms.pfedme import PFedMe
from blossom_ray.algorithms.pmcmfl import PmcmFL
from blossom_ray.algorithms.random_sparsification import RandomSparsification
from blossom_ray.algorithms.scaffold import Scaffold
from blossom_ray.algorithms.seam import METHODS, has
from blossom_ray.algorithms.server_optimizers import FedAvg, ServerOptimizer
from blossom_ray.algorithms.trimmed_mean import TrimmedMean
from blossom_ray.core.factories import call_factory
from blossom_ray.core.scores import TaskName
from blossom_ray.core.section import Custom, Fraction, Positive, Section
from blossom_ray.errors import InputError

Weighting = Literal["samples", "observed", "uniform", "entropy"]
TaskWeights = Literal["samples", "equal"]


class FederatedAveraging(Section):
    """Federated averaging, block by block, with what `training` and `server` say: the base of all others."""

    kind: Literal["fedavg"]


class CustomAlgorithm(Custom):
    """Own algorithm: `factory(**options)` gives an object with methods of `blossom_ray.algorithms.seam.Algorithm`."""

    def build(self) -> Any:
        """The user's object.

        Raises:
            InputError: The code cannot be found, raised, or gave no algorithm.
        """
        made = call_factory(self, "algorithm")
        if not any(has(made, method) for method in METHODS):
            expected = f"an object with some of {', '.join(METHODS)}"
            raise InputError(f"algorithm.factory gave {type(made).__name__} with no such method; expected {expected}")
        return made


AlgorithmOption = Annotated[
    FederatedAveraging
    | FedProx
    | Scaffold
    | FedDyn
    | FedNova
    | Moon
    | Ditto
    | PFedMe
    | Mixed
    | FedRep
    | LowRank
    | FedProto
    | PmcmFL
    | Flism
    | MFedMC
    | Harmony
    | FedMSplit
    | Ifca
    | Oort
    | Median
    | TrimmedMean
    | RandomSparsification
    | CustomAlgorithm,
    Field(discriminator="kind"),
]


OF_CLASSES = ("fedproto", "pmcmfl", "flism", "mfedmc")
"""Kinds that take a sample's label for the number of its class."""

OF_PLAIN_STEPS = ("scaffold", "fednova")
"""Kinds that take a step for the learning rate times a gradient."""


def given_section(given: Any) -> Any:
    """What the key `algorithm` is given, as what a section is made of: an author's own object as its class and options.

    Options are the arguments of the class by name, which the object has as attributes of these names: what it was made
    with, so that every process can make it again, and a file can hold it.

    Args:
        given: A section, a mapping of its keys, or an object with methods of `Algorithm`.

    Raises:
        ValueError: It cannot be made again from its attributes.
    """
    if type(given) in _SECTIONS or not any(has(given, method) for method in METHODS):
        return given
    if isinstance(given, type):
        return {"kind": "custom", "factory": given}
    made = type(given)
    names = [name for name, each in signature(made).parameters.items() if each.kind not in _CATCH_ALL]
    lacking = [name for name in names if not hasattr(given, name)]
    if lacking:
        raise ValueError(f"an attribute {lacking[0]} of {made.__qualname__} that holds its argument {lacking[0]}")
    options = {name: getattr(given, name) for name in names}
    if _attributes(made(**options)) != _attributes(given):
        raise ValueError(f"{made.__qualname__} with the attributes that its arguments give it, and no others")
    return {"kind": "custom", "factory": made, "options": options}


_SECTIONS = get_args(get_args(AlgorithmOption)[0])
_CATCH_ALL = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _attributes(given: object) -> str:
    return repr(getattr(given, "__dict__", {}))


def algorithm_of(section: AlgorithmOption) -> Any:
    """The algorithm as an object, an `algorithms.seam.Algorithm`; those built in are their own sections."""
    return section.build() if isinstance(section, CustomAlgorithm) else section


class Server(Section):
    """Who takes part in a round, and how averages become new blocks."""

    optimizer: ServerOptimizer = FedAvg(kind="fedavg")
    """The server optimizer; each block instance has its own state."""
    clients_per_round: Fraction | Positive | dict[TaskName, Fraction | Positive] = 1.0
    """Clients drawn for each round: a fraction (written with a point: 0.1, 1.0) or a number of clients (10); with
    `tasks` also one of them for each task, of whose clients so many are drawn."""
    weighting: Weighting = "samples"
    """A client's weight in the averages: the training `samples` that it saw, the same for all (`uniform`), or one over
    the mean `entropy` of its predictions on its training split after local training (FLISM). `observed`: as `samples`,
    but an encoder weighs by the training samples that have its modality."""
    task_weights: TaskWeights = "samples"
    """What tasks count in the average of a block that they share: what their clients weigh (`samples`), or `equal`, the
    mean over tasks of the averages over their own clients."""
