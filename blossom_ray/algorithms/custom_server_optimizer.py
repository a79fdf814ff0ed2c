"""The server optimizer that a user brings: how it is called, and what it has to give back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from blossom_ray.algorithms.options import CustomServerOptimizer
from blossom_ray.core.factories import resolve_factory
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, RunError, shown_error

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
