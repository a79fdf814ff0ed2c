"""Server optimizers: from the average of the clients' blocks to the new global block; a class per rule and its options.

Each block instance has a state of its own, and one contract holds for the kinds here and for a user's: `ServerRule`.
All are pure: state in, state out, inputs untouched. NumPy is imported where it is needed; a scenario is read without.

With delta = average - current, in float64 and rounded to float32 once, at the end; there is no bias correction:

    fedavg      x + lr delta; lr = 1 gives the average itself, without a rounding error of its own
    fedavgm     m = momentum m + delta;                x + lr m
    adaptive    m = beta1 m + (1 - beta1) delta;       x + lr m / (sqrt(v) + tau)
    fedadagrad  v = v + delta^2
    fedadam     v = beta2 v + (1 - beta2) delta^2
    fedyogi     v = v - (1 - beta2) delta^2 sign(v - delta^2)

Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1; Hsu et al. 2019 (arXiv:1909.06335), server momentum; Reddi
et al. 2021 (arXiv:2003.00295), algorithm 2.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Protocol, TypeAlias

from pydantic import Field

from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.section import Custom, Probability, Rate, Section
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, RunError, shown_error

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Float32Array: TypeAlias = npt.NDArray[np.float32]
    Float64Array: TypeAlias = npt.NDArray[np.float64]

OptimizerState: TypeAlias = "Mapping[str, Float64Array]"
"""What a server optimizer remembers of one block instance: arrays by name."""
Stepped: TypeAlias = "tuple[Float32Array, OptimizerState]"
"""The new block and the new state."""

_WHERE = "server.optimizer"


class ServerRule(Protocol):
    """What every section here is, and what the factory of `server.optimizer: {kind: custom}` returns.

    The latter is made anew for each step, so all that it remembers is the state, which is what a checkpoint holds.
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
        """One step from the current block towards (or past) the clients' average.

        Args:
            state: From `init` or the step before. Not to be modified; a user's rule gets read-only arrays.
            current: (n,) float32, the block before this round. Not to be modified, either.
            average: (n,) float64, the weighted average of the clients' copies. Not to be modified, either.

        Returns:
            The new block, (n,) floating, finite, and the new state with the names and shapes of `init`.
        """


class FedAvg(Section):
    """New value = old + lr (average - old) (McMahan et al. 2017 for lr = 1)."""

    kind: Literal["fedavg"]
    lr: Rate = 1.0
    """Server learning rate; 1 takes the average itself."""

    def init(self, num_parameters: int) -> OptimizerState:  # noqa: ARG002  # as every server optimizer
        """Nothing."""
        return {}

    def step(self, state: OptimizerState, current: Float32Array, average: Float64Array) -> Stepped:
        """As `ServerRule.step`."""
        target = average if self.lr == 1 else current + self.lr * (average - current)
        return target.astype("float32"), state


class FedAvgM(Section):
    """Server momentum (Hsu et al. 2019)."""

    kind: Literal["fedavgm"]
    lr: Rate = 1.0
    """Server learning rate."""
    momentum: Probability = 0.9
    """Server momentum."""

    def init(self, num_parameters: int) -> OptimizerState:
        """`momentum` 0."""
        import numpy as np

        return {"momentum": np.zeros(num_parameters)}

    def step(self, state: OptimizerState, current: Float32Array, average: Float64Array) -> Stepped:
        """As `ServerRule.step`."""
        momentum = self.momentum * state["momentum"] + (average - current)
        return (current + self.lr * momentum).astype("float32"), {"momentum": momentum}


class _Adaptive(Section):
    if TYPE_CHECKING:  # each kind has them at their own places
        lr: float
        beta1: float
        tau: float

    def init(self, num_parameters: int) -> OptimizerState:
        """`momentum` 0 and `second_moment` tau^2, the smallest start that the source allows, v_{-1} >= tau^2."""
        import numpy as np

        return {"momentum": np.zeros(num_parameters), "second_moment": np.full(num_parameters, self.tau**2)}

    def step(self, state: OptimizerState, current: Float32Array, average: Float64Array) -> Stepped:
        """As `ServerRule.step`."""
        import numpy as np

        delta = average - current
        momentum = self.beta1 * state["momentum"] + (1 - self.beta1) * delta
        second_moment = self._second_moment(state["second_moment"], delta**2)
        target = current + self.lr * momentum / (np.sqrt(second_moment) + self.tau)
        return target.astype(np.float32), {"momentum": momentum, "second_moment": second_moment}

    @abstractmethod
    def _second_moment(self, previous: Float64Array, squared: Float64Array) -> Float64Array: ...


class FedAdagrad(_Adaptive):
    """FedAdagrad (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadagrad"]
    lr: Rate = 0.01
    """Server learning rate (eta)."""
    beta1: Probability = 0.0
    """Decay of the first moment."""
    tau: Rate = 1e-3
    """Degree of adaptivity, added to the denominator; the second moment starts at tau^2."""

    def _second_moment(self, previous: Float64Array, squared: Float64Array) -> Float64Array:
        return previous + squared


class _FedAdamLike(_Adaptive):
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

    def _second_moment(self, previous: Float64Array, squared: Float64Array) -> Float64Array:
        return self.beta2 * previous + (1 - self.beta2) * squared


class FedYogi(_FedAdamLike):
    """FedYogi (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedyogi"]

    def _second_moment(self, previous: Float64Array, squared: Float64Array) -> Float64Array:
        import numpy as np

        return previous - (1 - self.beta2) * squared * np.sign(previous - squared)


class CustomServerOptimizer(Custom):
    """Own server optimizer: `factory(**options)` gives an object with `init` and `step`."""

    def init(self, num_parameters: int) -> OptimizerState:
        """The user's state before the first step.

        Raises:
            InputError: The code cannot be found, raised, or returned something else than float64 arrays by name.
        """
        try:
            state = self._rule().init(num_parameters)
        except BlossomError:
            raise
        except OWN_CODE_RAISES as error:
            raise InputError(
                f"{_WHERE}: init raised {shown_error(error)}; expected a dict of float64 arrays"
            ) from error
        problem = _state_problem(state)
        if problem:
            raise InputError(f"{_WHERE}: init gave {problem}; expected a dict of float64 arrays by name")
        return {name: array.copy() for name, array in state.items()}

    def step(self, state: OptimizerState, current: Float32Array, average: Float64Array) -> Stepped:
        """The user's step, its results checked and copied.

        Raises:
            RunError: It raised, or returned a block or a state of another shape or type, or a value that is not finite.
        """
        import numpy as np

        try:
            returned = self._rule().step(
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

    def _rule(self) -> ServerRule:
        rule: ServerRule = resolve_factory(self.factory, f"{_WHERE}.factory")(**self.options)
        missing = [name for name in ("init", "step") if not callable(getattr(rule, name, None))]
        if missing:
            raise InputError(
                f"{_WHERE}.factory gave {type(rule).__name__} without {' and '.join(missing)}; "
                "expected an object with the methods init and step"
            )
        return rule


ServerOptimizer = Annotated[
    FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi | CustomServerOptimizer, Field(discriminator="kind")
]


def _read_only(array: np.ndarray) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def _state_problem(state: object) -> str | None:
    import numpy as np

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
    import numpy as np

    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _refuse(found: str, expected: str) -> NoReturn:
    raise RunError(f"{_WHERE}: step {found}; expected {expected}")
