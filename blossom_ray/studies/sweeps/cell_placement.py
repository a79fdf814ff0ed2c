"""How many cells of a sweep run at a time, and where each lives: that decides how fast, never what is computed."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.choice import settle_runtime
from blossom_ray.runtime.placement import ACTOR_MEMORY_BYTES, Room

# A cell takes two processes, one with the loop and one with clients, or both in one with the data in memory.
_CELL_MEMORY_BYTES = 2 * ACTOR_MEMORY_BYTES


def fitting_jobs(scenarios: Sequence[Scenario], room: Room) -> int:
    """How many cells run at a time unless told otherwise: one per core, as far as memory and GPUs go.

    One core each finishes a grid sooner than all cores for one cell after the other (docs/sweeps.md): nothing waits
    for a slower client. Scenarios that say how their clients are placed get what they ask for.
    """
    return max(1, min(math.floor(room.memory_bytes / _CELL_MEMORY_BYTES), *(_fits(each, room) for each in scenarios)))


def choose_jobs(jobs: int | None, scenarios: Sequence[Scenario], room: Room) -> int:
    """The number of cells at a time that was asked for, or `fitting_jobs`.

    Raises:
        InputError: It is below 1, or so many do not fit into Ray's room.
    """
    fitting = fitting_jobs(scenarios, room)
    if jobs is None:
        return fitting
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; expected at least 1")
    on_ray = [scenario for scenario in scenarios if scenario.execution.runtime == "ray"]
    if on_ray and jobs > fitting:
        raise InputError(f"jobs is {jobs}; expected at most {fitting}, since no more cells at a time fit into {room}")
    return jobs


def choose_runtimes(
    scenarios: Sequence[Scenario], jobs: int | None, room: Room, *, has_cluster: bool
) -> list[Scenario]:
    """The cells' scenarios: `without_ray` where no Ray runs and this machine has no more than a core for each cell.

    Else `execution.runtime: auto` becomes what a run of its own would have.
    """
    num_lanes = min(jobs or fitting_jobs(scenarios, room), len(scenarios))
    if not has_cluster and room.num_cpus / num_lanes < 2:
        scenarios = [without_ray(scenario) for scenario in scenarios]
    return [settle_runtime(scenario, has_cluster=has_cluster)[0] for scenario in scenarios]


def place_clients(scenario: Scenario, share: float) -> Scenario:
    """A cell's scenario with its clients packed into one actor per core of its share of CPU cores.

    Where it says how many clients share an actor, or asks for GPUs, nothing is changed.
    """
    if not _is_packed(scenario):
        return scenario
    per_actor = math.ceil(scenario.num_clients / max(1, math.floor(share + 1e-9)))
    cores = {"execution.client_resources.num_cpus": min(1.0, share)}
    return scenario.override({"execution.clients_per_actor": per_actor, **cores})


def without_ray(scenario: Scenario) -> Scenario:
    """A cell's scenario for a process of its own instead of actors, where it leaves its runtime open.

    Numbers do not depend on it, and on one machine it is sooner done: one process per cell, which serves many cells,
    instead of a new driver actor and client actor for each. Where a scenario says `execution.runtime` or how its
    clients are placed, asks for GPUs, or holds own code that only this process has, nothing is changed.
    """
    execution = scenario.execution
    is_said = "runtime" in execution.model_fields_set and execution.runtime != "auto"
    if is_said or not _is_packed(scenario):
        return scenario
    try:
        can_travel = b"__main__" not in pickle.dumps(scenario)
    except (pickle.PicklingError, AttributeError, TypeError):
        can_travel = False
    return scenario.override({"execution.runtime": "local"}) if can_travel else scenario


def _is_packed(scenario: Scenario) -> bool:
    execution = scenario.execution
    is_free = execution.clients_per_actor == "auto" and execution.client_resources.num_gpus == 0
    return execution.runtime != "local" and is_free


def _fits(scenario: Scenario, room: Room) -> int:
    execution = scenario.execution
    if execution.runtime == "local" or _is_packed(scenario):
        return math.floor(room.num_cpus)
    if execution.clients_per_actor == "auto":
        return 1
    num_actors = math.ceil(scenario.num_clients / execution.clients_per_actor)
    return room.num_actors(execution.client_resources) // num_actors
