"""Server optimizers: from the average of the clients' blocks to the new global block.

Each block instance has a state of its own. `init` and `step` are pure: state in, state out, inputs untouched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from blossom_ray.algorithms.options import (
    CustomServerOptimizer,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
)
from blossom_ray.core.factories import resolve_factory
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, RunError, shown_error

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


Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
OptimizerState = Mapping[str, Float64Array]
"""What a server optimizer remembers of one block instance: arrays by name."""

_WHERE = "server.optimizer"


class ServerRule(Protocol):
    """What the factory of `server.optimizer: {kind: custom}` returns.

    It is made anew for each step, so all that it remembers is the state, which is what a checkpoint holds.
    """

    def init(self, num_parameters: int) -> OptimizerState:
        """The state of a block instance before its first step.

        Args:
            num_parameters: Length n of the block's vector.

        Returns:
            float64 arrays of any shape by name (letters, digits, underscores); may be empty.
        """

    def step(
        self, state: OptimizerState, current: Float32Array, average: Float64Array
    ) -> tuple[npt.NDArray[np.floating[Any]], OptimizerState]:
        """One step from the current block towards the clients' average.

        Args:
            state: From `init` or the step before. Read-only arrays.
            current: (n,) float32, the block before this round. Read-only.
            average: (n,) float64, the weighted average of the clients' copies. Read-only.

        Returns:
            The new block, (n,) floating, finite, and the new state with the names and shapes of `init`.
        """


def custom_init(section: CustomServerOptimizer, num_parameters: int) -> OptimizerState:
    """The state before the first step, from the user's `init`.

    Raises:
        InputError: The code cannot be found, raised, or returned something else than float64 arrays by name.
    """
    try:
        state = _rule(section).init(num_parameters)
    except BlossomError:
        raise
    except OWN_CODE_RAISES as error:
        raise InputError(f"{_WHERE}: init raised {shown_error(error)}; expected a dict of float64 arrays") from error
    problem = _state_problem(state)
    if problem:
        raise InputError(f"{_WHERE}: init gave {problem}; expected a dict of float64 arrays by name")
    return {name: array.copy() for name, array in state.items()}


def custom_step(
    section: CustomServerOptimizer, state: OptimizerState, current: Float32Array, average: Float64Array
) -> tuple[Float32Array, OptimizerState]:
    """The user's step, its results checked and copied.

    Raises:
        RunError: It raised, or returned a block or a state of another shape or type, or a value that is not finite.
    """
    try:
        returned = _rule(section).step(
            {name: _read_only(array) for name, array in state.items()}, _read_only(current), _read_only(average)
        )
    except BlossomError:
        raise
    except OWN_CODE_RAISES as error:
        raise RunError(f"{_WHERE}: step raised {shown_error(error)}") from error
    if not isinstance(returned, tuple) or len(returned) != 2:
        _refuse(f"gave {type(returned).__name__}", "a tuple of the new block and the new state")
    block, new_state = returned
    if not isinstance(block, np.ndarray) or block.shape != current.shape or block.dtype.kind != "f":
        _refuse(f"gave {_described(block)} as the new block", f"a floating array of shape {current.shape}")
    with np.errstate(over="ignore"):
        rounded = block.astype(np.float32)
    if not np.isfinite(rounded).all():
        _refuse("gave a block that is not finite in float32", "finite values")
    problem = _state_problem(new_state) or _changed(state, new_state)
    if problem:
        _refuse(f"gave {problem} as the new state", "the names and shapes that init gave, as float64 arrays")
    return rounded, {name: array.copy() for name, array in new_state.items()}


def _rule(section: CustomServerOptimizer) -> ServerRule:
    factory = resolve_factory(section.factory, f"{_WHERE}.factory")
    rule: ServerRule = factory(**section.options)
    missing = [name for name in ("init", "step") if not callable(getattr(rule, name, None))]
    if missing:
        raise InputError(
            f"{_WHERE}.factory gave {type(rule).__name__} without {' and '.join(missing)}; "
            "expected an object with the methods init and step"
        )
    return rule


def _read_only(array: np.ndarray) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def _state_problem(state: object) -> str | None:
    if not isinstance(state, Mapping):
        return _described(state)
    for name, array in state.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name, re.ASCII):
            return f"the name {name!r}"
        if not isinstance(array, np.ndarray) or array.dtype != np.float64:
            return f"{_described(array)} under {name!r}"
    return None


def _changed(before: OptimizerState, after: OptimizerState) -> str | None:
    if before.keys() != after.keys():
        return f"the names {sorted(after)}"
    return next(
        (f"{_described(after[name])} under {name!r}" for name in before if before[name].shape != after[name].shape),
        None,
    )


def _described(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _refuse(found: str, expected: str) -> NoReturn:
    raise RunError(f"{_WHERE}: step {found}; expected {expected}")
