"""What a run would take, found out without starting it: actors, memory, bytes per round and, if timed, seconds.

Data are loaded and divided as the run would do it, a model is built per modality set; no actor is started.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blossom_ray.algorithms.selection import cohort_size
from blossom_ray.clients.workspace import client_workspace
from blossom_ray.core.blocks import BlockInstance
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.measurement import ChunkProbe, has_own_code, measured, uses_gpu
from blossom_ray.runtime.placement import Room, actor_of_client, largest_load, num_actors
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.studies.footprint import BlockTraffic, Memory, block_traffic, memory


@dataclass(frozen=True)
class SetPlan:
    """The clients of one modality set.

    Attributes:
        clients: Number of clients.
        chunks: Chunks that they are cut into.
        train_samples: Training samples of all of them.
        validation_samples: Validation samples of all of them.
        test_samples: Test samples of all of them.
        parameters: Parameters of a client's model.
        engine: How a chunk is computed.
        seconds_per_sample: Seconds per training sample by engine; empty where nothing was timed.
    """

    clients: int
    chunks: int
    train_samples: int
    validation_samples: int
    test_samples: int
    parameters: int
    engine: str
    seconds_per_sample: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """A value of `execution.clients_per_actor`.

    Attributes:
        actors: The actors that it takes; None where it is refused.
        refusal: Why it is refused, with numbers.
    """

    actors: int | None
    refusal: str | None = None


@dataclass(frozen=True)
class RoundSeconds:
    """Arithmetic of an average round: that of the actor with most to do, or of all cores together if that is more.

    Attributes:
        train: Seconds of training.
        evaluate: Seconds of scoring, spread over the rounds between two evaluations; without what the last round adds.
    """

    train: float
    evaluate: float


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        sets: By modality set.
        clients_per_round: Size of a cohort.
        actors: Number of actors; 0 in the local runtime.
        most_clients_per_actor: Clients in the fullest actor.
        room: What the cluster offers.
        most_actors: How many actors fit: the largest number of clients that can have one each.
        settings: By value of `execution.clients_per_actor`; empty in the local runtime.
        memory: What the processes hold.
        blocks: By block instance.
        seconds: None where nothing was timed.
    """

    sets: Mapping[str, SetPlan]
    clients_per_round: int
    actors: int
    most_clients_per_actor: int
    room: Room
    most_actors: int
    settings: Mapping[str, Setting]
    memory: Memory
    blocks: Mapping[BlockInstance, BlockTraffic]
    seconds: RoundSeconds | None


def make_plan(scenario: Scenario, room: Room, folder: Path, *, probe: bool | None = None) -> Plan:
    """Plan a run.

    Args:
        scenario: The scenario.
        room: What the cluster offers.
        folder: An empty folder for the shards.
        probe: Whether to time a few batches of each modality set in this process; None: unless the model has code of
            the user's, which may fail or hang. For `training.engine: auto` that is done in any case. Nothing is timed
            for GPUs.

    Raises:
        InputError: The scenario's own `execution.clients_per_actor` does not fit.
        DataError: The data cannot be read, or cannot be divided as the scenario asks.
    """
    execution, on_ray = scenario.execution, scenario.execution.runtime == "ray"
    num_cores = max(1, math.floor(room.num_cpus)) if on_ray else 1
    preparation = measured(prepare(scenario, folder), num_cores)
    probes = {name: ChunkProbe(preparation, name) for name in scenario.modality_sets}
    is_timed = not uses_gpu(scenario) and (probe if probe is not None else not has_own_code(scenario.model))
    if is_timed:
        times = {name: {e: found.training_seconds(e) for e in found.engines} for name, found in probes.items()}
        preparation = replace(preparation, seconds_per_sample=times)
    population, stacked = preparation.population, preparation.stacked_chunks()
    num_clients, stacks = len(population.profiles), bool(stacked)
    actors, actor_of = 0, (0,) * num_clients
    if on_ray:
        actors = num_actors(execution, num_clients, room, whole_chunks=stacks)
        actor_of = actor_of_client(execution, population.chunks, preparation.costs(), actors, stacked=stacked)
    workspaces = {p.modality_set: client_workspace(preparation.plan, p) for p in population.representatives()}
    parameters = {name: sum(f.num_parameters for f in found.flat.values()) for name, found in workspaces.items()}
    return Plan(
        sets={name: _set_plan(preparation, name, parameters[name]) for name in scenario.modality_sets},
        clients_per_round=cohort_size(scenario.server.clients_per_round, num_clients),
        actors=actors,
        most_clients_per_actor=max(Counter(actor_of).values()),
        room=room,
        most_actors=room.num_actors(execution.client_resources),
        settings=_settings(scenario, room, stacks=stacks) if on_ray else {},
        memory=memory(preparation, workspaces, actor_of),
        blocks=block_traffic(preparation, workspaces),
        seconds=_seconds(preparation, probes, actor_of, num_cores) if is_timed else None,
    )


def _set_plan(preparation: Preparation, modality_set: str, num_parameters: int) -> SetPlan:
    population, shards = preparation.population, preparation.shards
    members = [profile.index for profile in population.profiles if profile.modality_set == modality_set]
    own = frozenset(members)
    return SetPlan(
        clients=len(members),
        chunks=sum(chunk.clients[0] in own for chunk in population.chunks),
        train_samples=int(shards.num_train[members].sum()),
        validation_samples=int(shards.num_validation[members].sum()),
        test_samples=int(shards.num_test[members].sum()),
        parameters=num_parameters,
        engine=preparation.scenario.training.engine_of(modality_set),
        seconds_per_sample={str(e): s for e, s in preparation.seconds_per_sample.get(modality_set, {}).items()},
    )


def _settings(scenario: Scenario, room: Room, *, stacks: bool) -> dict[str, Setting]:
    """An actor per client, the smallest number per actor that fits, `auto`, and what the scenario says."""
    execution, num_clients = scenario.execution, scenario.num_clients
    fewest = math.ceil(num_clients / max(1, room.num_actors(execution.client_resources)))
    found: dict[str, Setting] = {}
    for value in dict.fromkeys([1, fewest, "auto", execution.clients_per_actor]):
        if value == 1 and stacks:
            refusal = (
                "execution.clients_per_actor is 1, while training.engine stacks clients, which keeps them together"
            )
            found[str(value)] = Setting(None, refusal)
            continue
        tried = execution.model_copy(update={"clients_per_actor": value})
        try:
            found[str(value)] = Setting(num_actors(tried, num_clients, room, whole_chunks=stacks))
        except InputError as error:
            found[str(value)] = Setting(None, str(error))
    return found


def _seconds(
    preparation: Preparation, probes: Mapping[str, ChunkProbe], actor_of: Sequence[int], num_cores: int
) -> RoundSeconds:
    scenario, population = preparation.scenario, preparation.population
    training, num_clients = scenario.training, len(population.profiles)

    def busiest(costs: list[float]) -> float:
        return max(largest_load(actor_of, costs), sum(costs) / num_cores)

    part = cohort_size(scenario.server.clients_per_round, num_clients) / num_clients
    scoring = {name: probe.evaluation_seconds(training.engine_of(name)) for name, probe in probes.items()}
    shards, reads_test = preparation.shards, scenario.evaluation.split == "test"
    num_scored = (shards.num_validation + reads_test * shards.num_test).tolist()
    scores = [num_scored[profile.index] * scoring[profile.modality_set] for profile in population.profiles]
    return RoundSeconds(
        train=busiest(preparation.costs()) * training.local_epochs * part,
        evaluate=busiest(scores) * scenario.evaluation.clients / scenario.evaluation.every,
    )
