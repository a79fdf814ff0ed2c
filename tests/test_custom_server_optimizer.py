"""A user's own server optimizer: the bits of the built-in one that it repeats, resumed or not; what it may return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blossom_ray import Run, Scenario, ScenarioError, simulate
from blossom_ray.algorithms.server_optimizers import CustomServerOptimizer
from blossom_ray.errors import InputError, RunError
from blossom_ray.runs.session import record_run, resume_run


class Momentum:
    """FedAvgM once more."""

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum = momentum

    def init(self, num_parameters: int) -> dict[str, np.ndarray]:
        return {"m": np.zeros(num_parameters)}

    def step(
        self, state: dict[str, np.ndarray], current: np.ndarray, average: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        m = self.momentum * state["m"] + (average - current)
        return current + m, {"m": m}


class Forgetful:
    """Takes the average itself at its first step and nothing later; what it remembers is not in its state."""

    def __init__(self) -> None:
        self.steps = 0

    def init(self, num_parameters: int) -> dict[str, np.ndarray]:
        return {}

    def step(self, state: Any, current: np.ndarray, average: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.steps += 1
        return (average if self.steps == 1 else current), {}


def section(factory: Any, **options: Any) -> CustomServerOptimizer:
    return CustomServerOptimizer(kind="custom", factory=factory, options=options)


def returning(init: Any = None, step: Any = None) -> CustomServerOptimizer:
    """An optimizer whose methods give what they are told to."""

    class Returning:
        def init(self, num_parameters: int) -> Any:
            return {"m": np.zeros(num_parameters)} if init is None else init

        def step(self, state: Any, current: np.ndarray, average: np.ndarray) -> Any:
            return step

    return section(Returning)


def test_by_hand() -> None:
    # m = 2, x = 1 + 2 = 3; then delta = 1 - 3 = -2, m = 0.5 * 2 - 2 = -1, x = 3 - 1 = 2
    own = section(Momentum, momentum=0.5)
    state, current = own.init(1), np.array([1.0], dtype=np.float32)
    current, state = own.step(state, current, np.array([3.0]))
    assert (current.tolist(), state["m"].tolist()) == ([3.0], [2.0])
    current, state = own.step(state, current, np.array([1.0]))
    assert (current.tolist(), state["m"].tolist()) == ([2.0], [-1.0])
    assert current.dtype == np.float32


def test_it_has_the_bits_of_the_built_in_one(small_scenario: Scenario) -> None:
    own = simulate(small_scenario.override({"server.optimizer": {"kind": "custom", "factory": Momentum}}))
    built_in = simulate(small_scenario.override({"server.optimizer": {"kind": "fedavgm"}}))
    plain = simulate(small_scenario)
    assert own.manifest["digest"] == built_in.manifest["digest"] != plain.manifest["digest"]


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(small_scenario: Scenario, tmp_path: Path) -> None:
    changes = {"server.optimizer": {"kind": "custom", "factory": Momentum}, "rounds": 4, "checkpoint.every": 2}
    scenario = small_scenario.override(changes)
    records = record_run(scenario, tmp_path)
    for _ in range(4):
        next(records)
    records.close()
    for _ in resume_run(scenario, tmp_path):
        pass
    run = Run.open(tmp_path)
    assert run.manifest["first_round"] > 0
    assert run.manifest["digest"] == simulate(scenario).manifest["digest"]


def test_what_is_remembered_outside_the_state_is_forgotten(small_scenario: Scenario) -> None:
    own = simulate(small_scenario.override({"server.optimizer": {"kind": "custom", "factory": Forgetful}}))
    assert own.manifest["digest"] == simulate(small_scenario).manifest["digest"]


def test_inputs_are_read_only_and_results_are_copies() -> None:
    kept: dict[str, np.ndarray] = {}

    class Meddling(Momentum):
        def step(self, state: Any, current: np.ndarray, average: np.ndarray) -> Any:
            kept["is_writeable"] = np.array(
                [state["m"].flags.writeable, current.flags.writeable, average.flags.writeable]
            )
            kept["block"] = current.copy()
            return kept["block"], dict(state)

    own, current = section(Meddling), np.ones(2, dtype=np.float32)
    state = own.init(2)
    new, later = own.step(state, current, np.zeros(2))
    assert not kept["is_writeable"].any()
    assert not np.shares_memory(new, kept["block"])
    assert later["m"].flags.writeable
    assert current.flags.writeable


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ([1.0], "server.optimizer: init gave list; expected a dict of float64 arrays by name"),
        ({"m": [0.0]}, "init gave list under 'm'"),
        ({"m": np.zeros(3, dtype=np.float32)}, r"init gave float32\[3\] under 'm'"),
        ({"a/b": np.zeros(3)}, "init gave the name 'a/b'"),
    ],
)
def test_states_that_no_checkpoint_could_hold(init: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        returning(init).init(3)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (None, "server.optimizer: step gave NoneType; expected a tuple of the new block and the new state"),
        ((np.zeros(2), {"m": np.zeros(3)}), r"step gave float64\[2\] as the new block; .* shape \(3,\)"),
        ((np.zeros(3, dtype=int), {"m": np.zeros(3)}), r"step gave int64\[3\] as the new block"),
        ((np.full(3, 1e300), {"m": np.zeros(3)}), "step gave a block that is not finite in float32"),
        ((np.zeros(3), {}), r"step gave the names \[\] as the new state; expected the names and shapes that init gave"),
        ((np.zeros(3), {"m": np.zeros(4)}), r"step gave float64\[4\] under 'm' as the new state"),
    ],
)
def test_steps_that_are_none(step: Any, message: str) -> None:
    own = returning(step=step)
    with pytest.raises(RunError, match=message):
        own.step(own.init(3), np.ones(3, dtype=np.float32), np.ones(3))


def test_an_object_without_the_methods() -> None:
    with pytest.raises(InputError, match=r"server\.optimizer\.factory gave dict without init and step"):
        section(dict).init(3)


def test_errors_of_the_users_code_say_where_they_were_raised(small_scenario: Scenario) -> None:
    class Bad(Momentum):
        def step(self, *_: Any) -> Any:
            raise ValueError("no room for two")

    with pytest.raises(
        RunError, match=r"^server\.optimizer: step raised ValueError: no room for two \(.*\.py:\d+, in step\)$"
    ):
        simulate(small_scenario.override({"server.optimizer": {"kind": "custom", "factory": Bad}}))
    with pytest.raises(InputError, match=r"init raised TypeError: .*unexpected keyword argument 'speed'"):
        section(Momentum, speed=3).init(1)


def test_code_that_cannot_be_found_is_told_before_a_run(small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"server\.optimizer\.factory is 'no_such_module:make'"):
        simulate(small_scenario.override({"server.optimizer": {"kind": "custom", "factory": "no_such_module:make"}}))
    with pytest.raises(ScenarioError, match=r"server\.optimizer is 'custom', while sharing is 'central'"):
        small_scenario.override({"sharing": "central", "server.optimizer": {"kind": "custom", "factory": Momentum}})
