"""Server optimizers: from the average of the clients' blocks to the new global block.

Each block instance has a state of its own. `init` and `step` are pure: state in, state out, inputs untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blossom_ray.scenario.sections import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OptimizerState:
    """What a server optimizer remembers of one block instance.

    Attributes:
        momentum: (n,) float64, the running first moment, or None where the optimizer has none.
        second_moment: (n,) float64, the running second moment, or None where the optimizer has none.
    """

    momentum: Float64Array | None = None
    second_moment: Float64Array | None = None

    def arrays(self) -> dict[str, Float64Array]:
        """The state as plain arrays by name, for checkpoints. Not copied."""
        arrays = {"momentum": self.momentum, "second_moment": self.second_moment}
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float64Array]) -> OptimizerState:
        """The state back from `arrays()`."""
        return cls(arrays.get("momentum"), arrays.get("second_moment"))


def init(section: ServerOptimizer, num_parameters: int) -> OptimizerState:
    """The state before the first step.

    Args:
        section: The scenario's `server.optimizer`.
        num_parameters: Length n of the block's vector.

    Returns:
        Momentum 0 and, for the adaptive optimizers, second moment tau^2: the smallest start that algorithm 2
        of Reddi et al. 2021 (arXiv:2003.00295) allows, v_{-1} >= tau^2.
    """
    match section:
        case FedAvg():
            return OptimizerState()
        case FedAvgM():
            return OptimizerState(np.zeros(num_parameters))
        case FedAdagrad() | FedAdam() | FedYogi():
            return OptimizerState(np.zeros(num_parameters), np.full(num_parameters, section.tau**2))


def step(
    section: ServerOptimizer, state: OptimizerState, current: Float32Array, average: Float64Array
) -> tuple[Float32Array, OptimizerState]:
    """One step from the current block towards (or past) the clients' average.

    With delta = average - current, in float64 and rounded to float32 once, at the end:

        fedavg      x + lr delta; lr = 1 gives the average itself, without a rounding error of its own
        fedavgm     m = momentum m + delta;                x + lr m
        adaptive    m = beta1 m + (1 - beta1) delta;       x + lr m / (sqrt(v) + tau)
        fedadagrad  v = v + delta^2
        fedadam     v = beta2 v + (1 - beta2) delta^2
        fedyogi     v = v - (1 - beta2) delta^2 sign(v - delta^2)

    There is no bias correction.

    Args:
        section: The scenario's `server.optimizer`.
        state: The block instance's state, from `init` or the step before. Not modified.
        current: (n,) float32, the block before this round. Not modified.
        average: (n,) float64, the weighted average of the clients' copies. Not modified.

    Returns:
        The new block, (n,) float32, and the new state.

    Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1; Hsu et al. 2019 (arXiv:1909.06335), server
    momentum; Reddi et al. 2021 (arXiv:2003.00295), algorithm 2.
    """
    delta = average - current
    match section:
        case FedAvg():
            target = average if section.lr == 1 else current + section.lr * delta
            return target.astype(np.float32), state
        case FedAvgM():
            assert state.momentum is not None, "the state belongs to another optimizer"
            momentum = section.momentum * state.momentum + delta
            return (current + section.lr * momentum).astype(np.float32), OptimizerState(momentum)
        case FedAdagrad() | FedAdam() | FedYogi():
            assert state.momentum is not None, "the state belongs to another optimizer"
            assert state.second_moment is not None, "the state belongs to another optimizer"
            momentum = section.beta1 * state.momentum + (1 - section.beta1) * delta
            second_moment = _second_moment(section, state.second_moment, delta**2)
            target = current + section.lr * momentum / (np.sqrt(second_moment) + section.tau)
            return target.astype(np.float32), OptimizerState(momentum, second_moment)


def _second_moment(
    section: FedAdagrad | FedAdam | FedYogi, previous: Float64Array, squared: Float64Array
) -> Float64Array:
    match section:
        case FedAdagrad():
            return previous + squared
        case FedAdam():
            return section.beta2 * previous + (1 - section.beta2) * squared
        case FedYogi():
            return previous - (1 - section.beta2) * squared * np.sign(previous - squared)
