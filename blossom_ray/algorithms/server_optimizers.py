"""Server optimizers: from the average of the clients' blocks to the new global block.

Each block instance has a state of its own. `init` and `step` are pure: state in, state out, inputs untouched.
"""

from __future__ import annotations

import numpy as np

from blossom_ray.algorithms.custom_server_optimizer import (
    Float32Array,
    Float64Array,
    OptimizerState,
    custom_init,
    custom_step,
)
from blossom_ray.algorithms.options import (
    CustomServerOptimizer,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
)

_MOMENTUM, _SECOND_MOMENT = "momentum", "second_moment"


def init(section: ServerOptimizer, num_parameters: int) -> OptimizerState:
    """The state before the first step.

    Args:
        section: The scenario's `server.optimizer`.
        num_parameters: Length n of the block's vector.

    Returns:
        (n,) float64 arrays: `momentum` 0 and, for the adaptive optimizers, `second_moment` tau^2, the smallest start
        that algorithm 2 of Reddi et al. 2021 (arXiv:2003.00295) allows, v_{-1} >= tau^2.

    Raises:
        InputError: Own code cannot be found, raised, or returned something else than float64 arrays by name.
    """
    match section:
        case FedAvg():
            return {}
        case FedAvgM():
            return {_MOMENTUM: np.zeros(num_parameters)}
        case FedAdagrad() | FedAdam() | FedYogi():
            return {_MOMENTUM: np.zeros(num_parameters), _SECOND_MOMENT: np.full(num_parameters, section.tau**2)}
        case CustomServerOptimizer():
            return custom_init(section, num_parameters)


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

    Raises:
        RunError: Own code raised, or returned another shape or type or values that are not finite.

    Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1; Hsu et al. 2019 (arXiv:1909.06335), server
    momentum; Reddi et al. 2021 (arXiv:2003.00295), algorithm 2.
    """
    match section:
        case FedAvg():
            target = average if section.lr == 1 else current + section.lr * (average - current)
            return target.astype(np.float32), state
        case FedAvgM():
            momentum = section.momentum * state[_MOMENTUM] + (average - current)
            return (current + section.lr * momentum).astype(np.float32), {_MOMENTUM: momentum}
        case FedAdagrad() | FedAdam() | FedYogi():
            delta = average - current
            momentum = section.beta1 * state[_MOMENTUM] + (1 - section.beta1) * delta
            second_moment = _second_moment(section, state[_SECOND_MOMENT], delta**2)
            target = current + section.lr * momentum / (np.sqrt(second_moment) + section.tau)
            return target.astype(np.float32), {_MOMENTUM: momentum, _SECOND_MOMENT: second_moment}
        case CustomServerOptimizer():
            return custom_step(section, state, current, average)


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
