"""What a run would take, found out without starting it: actors, memory, bytes per round and, if timed, seconds.

Data are loaded and divided as the run would do it, a model is built per modality set; no actor is started.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blossom_ray.algorithms.selection import Chunk, fraction_of
from blossom_ray.authoring import rows_bytes
from blossom_ray.clients.host import ClientHost
from blossom_ray.clients.local_training import one_thread
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope, Signature
from blossom_ray.data.files.decoded import Kept
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.choice import has_cluster, settle_runtime
from blossom_ray.runtime.loading import decode
from blossom_ray.runtime.measurement import ChunkProbe, choose_engines, has_own_code, uses_gpu
from blossom_ray.runtime.placement import (
    ACTOR_MEMORY_BYTES,
    Room,
    actor_memory_bytes,
    actor_of_client,
    largest_load,
    num_actors,
)
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import initial_server


@dataclass(frozen=True)
class SetPlan:
    """The clients of one modality set that train, how many, with the samples of all of them.

    Attributes:
        chunks: Chunks that they are cut into.
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
class Packing:
    """A value of `execution.clients_per_actor`: the actors that it takes, or why, with numbers, it is refused."""

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
        packings: By value of `execution.clients_per_actor`; empty in the local runtime.
        memory: What the processes hold.
        blocks: By block instance.
        seconds: None where nothing was timed.
        shard_bytes: Of the shards that are written for a run.
        decoded: By the place of a modality that is decoded what is in the cache.
        notes: What is to be known of data and engines, in a line each.
    """

    sets: Mapping[str, SetPlan]
    clients_per_round: int
    actors: int
    most_clients_per_actor: int
    room: Room
    most_actors: int
    packings: Mapping[str, Packing]
    memory: Memory
    blocks: Mapping[BlockInstance, BlockTraffic]
    seconds: RoundSeconds | None
    shard_bytes: int
    decoded: Mapping[str, tuple[Kept, ...]]
    notes: tuple[str, ...]


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
    scenario, choice = settle_runtime(scenario, has_cluster=has_cluster())
    execution, on_ray = scenario.execution, scenario.execution.runtime == "ray"
    num_cores = max(1, math.floor(room.num_cpus)) if on_ray else 1
    kept = decode(scenario)
    preparation = choose_engines(prepare(scenario, folder), num_cores)
    probes = {name: ChunkProbe(preparation, name) for name in scenario.modality_sets}
    is_timed = not uses_gpu(scenario) and (probe if probe is not None else not has_own_code(scenario))
    if is_timed:
        times = {name: {e: found.training_seconds(e) for e in found.engines} for name, found in probes.items()}
        preparation = replace(preparation, seconds_per_sample=times)
    population, stacked = preparation.population, preparation.stacked_chunks()
    num_clients, stacks = len(population.profiles), bool(stacked)
    actors, actor_of = 0, (0,) * num_clients
    if on_ray:
        actors = num_actors(execution, num_clients, room, whole_chunks=stacks)
        actor_of = actor_of_client(execution, population.chunks, preparation.costs(), actors, stacked=stacked)
    kinds = (*population.representatives(), *population.unseen_representatives())
    workspaces = {_model_of(profile): client_workspace(preparation.plan, profile) for profile in kinds}
    # Tasks differ in their heads: the largest model of a set counts.
    parameters: dict[str, int] = {}
    for (name, _), found in workspaces.items():
        own = sum(flat.num_parameters for flat in found.flat.values())
        parameters[name] = max(own, parameters.get(name, 0))
    notes = [
        *filter(None, (choice,)),
        *preparation.notes,
        *_kept_notes(preparation, parameters),
        *_unseen_notes(preparation),
    ]
    if is_timed and preparation.plan.author is not None:
        notes.append(f"seconds are of plain training: what algorithm {scenario.algorithm.kind} adds is not in them")
    return Plan(
        sets={name: _set_plan(preparation, name, parameters[name]) for name in scenario.modality_sets},
        clients_per_round=population.cohort_size,
        actors=actors,
        most_clients_per_actor=max(Counter(actor_of).values()),
        room=room,
        most_actors=room.num_actors(execution.client_resources),
        packings=_packings(scenario, room, stacks=stacks) if on_ray else {},
        memory=memory(preparation, workspaces, actor_of, {place.partition(".modalities.")[2] for place in kept}),
        blocks=block_traffic(preparation, workspaces),
        seconds=_seconds(preparation, probes, actor_of, num_cores) if is_timed else None,
        shard_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        decoded=kept,
        notes=tuple(notes),
    )


def _unseen_notes(preparation: Preparation) -> list[str]:
    """The clients that never train, with their samples; all else in a plan but its scoring is of those that do."""
    if not (members := [profile.index for profile in preparation.population.unseen]):
        return []
    train, test = (int(counts[members].sum()) for counts in (preparation.shards.num_train, preparation.shards.num_test))
    return [f"{len(members)} unseen clients besides, with {train:,} samples to fine-tune on and {test:,} to test on"]


def _model_of(profile: ClientProfile) -> tuple[str, str]:
    """What the model of a client follows from: modality set and task."""
    return profile.modality_set, profile.task_set


def _kept_notes(preparation: Preparation, parameters: Mapping[str, int]) -> list[str]:
    """What clients keep of an algorithm from round to round, by modality set, where they keep something."""
    notes = {}
    for profile in preparation.population.representatives():
        parts = preparation.plan.extra_parts(profile)
        kept = sum(part.size for part in parts if part.instance.is_private)
        if kept:
            share = kept / parameters[profile.modality_set]
            notes[profile.modality_set] = (
                f"{profile.modality_set}: a client that has trained keeps {kept:,} values of the algorithm, "
                f"{share:.2g} times its model"
            )
    return [*notes.values()]


def _set_plan(preparation: Preparation, modality_set: str, num_parameters: int) -> SetPlan:
    population, shards = preparation.population, preparation.shards
    members = [profile.index for profile in population.trained if profile.modality_set == modality_set]
    own = frozenset(members)
    return SetPlan(
        clients=len(members),
        chunks=sum(chunk.clients[0] in own for chunk in population.chunks),
        train_samples=int(shards.num_train[members].sum()),
        validation_samples=int(shards.num_validation[members].sum()),
        test_samples=int(shards.num_test[members].sum()),
        parameters=num_parameters,
        engine=preparation.plan.engines[modality_set],
        seconds_per_sample={str(e): s for e, s in preparation.seconds_per_sample.get(modality_set, {}).items()},
    )


def _packings(scenario: Scenario, room: Room, *, stacks: bool) -> dict[str, Packing]:
    """An actor per client, the smallest number per actor that fits, `auto`, and what the scenario says."""
    execution, num_clients = scenario.execution, scenario.num_clients
    fewest = math.ceil(num_clients / max(1, room.num_actors(execution.client_resources)))
    found: dict[str, Packing] = {}
    for value in dict.fromkeys([1, fewest, "auto", execution.clients_per_actor]):
        tried = execution.model_copy(update={"clients_per_actor": value})
        try:
            if value == 1 and stacks:
                raise InputError(
                    "execution.clients_per_actor is 1, while training.engine stacks clients, which keeps them together"
                )
            found[str(value)] = Packing(num_actors(tried, num_clients, room, whole_chunks=stacks))
        except InputError as error:
            found[str(value)] = Packing(None, str(error))
    return found


def _seconds(
    preparation: Preparation, probes: Mapping[str, ChunkProbe], actor_of: Sequence[int], num_cores: int
) -> RoundSeconds:
    scenario, population = preparation.scenario, preparation.population
    training, num_clients = scenario.training, len(population.trained)

    def busiest(costs: list[float]) -> float:
        return max(largest_load(actor_of, costs), sum(costs) / num_cores)

    part = population.cohort_size / num_clients
    scoring = {name: probe.evaluation_seconds(preparation.plan.engines[name]) for name, probe in probes.items()}
    shards, reads_test = preparation.shards, scenario.evaluation.split == "test"
    num_scored = (shards.num_validation + reads_test * shards.num_test).tolist()
    times = {profile.index: scoring[profile.modality_set] for profile in population.profiles}
    parts = [scenario.evaluation.clients] * num_clients + [float(reads_test)] * len(population.unseen)
    scores = [num_scored[client] * times[client] * own for client, own in enumerate(parts)]
    costs = [*preparation.costs()[:num_clients], *[0.0] * len(population.unseen)]
    return RoundSeconds(
        train=busiest(costs) * training.local_epochs * part,
        evaluate=busiest(scores) / scenario.evaluation.every,
    )


_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class BlockTraffic:
    """One block instance, or all private copies of a block together.

    Attributes:
        holders: Clients that hold it.
        values: Values of one copy.
        bytes_down: Bytes of it sent to clients in an average round; `bytes_up` are sent back.
    """

    scope: str
    holders: int
    values: int
    bytes_down: float
    bytes_up: float


@dataclass(frozen=True)
class Memory:
    """Bytes, without activations and without shards, which are mapped files that the system can let go of.

    Attributes:
        largest_actor: Process, models with gradients and optimizer state, private blocks of its clients twice, since a
            new state waits until the round goes on.
        driver: Process, data set while it is divided (decoded samples stay on disk), shared blocks with the server
            optimizer's state and the sums.
        object_store: Shared blocks, and the sums of all chunks of a round, should all of them wait to be added.
        total: All actors, the driver and the object store.
    """

    largest_actor: int
    driver: int
    object_store: int
    total: int


def block_traffic(
    preparation: Preparation, workspaces: Mapping[tuple[str, str], Workspace]
) -> dict[BlockInstance, BlockTraffic]:
    """Holders, size and traffic of every block instance, in sorted order.

    A client is sent a version once. A block changes in every round, so in an average one the cohort fetches it, unless
    the evaluation before has brought it, and so do the clients that score it, those that never train among them.
    """
    plan, population, evaluation = preparation.plan, preparation.population, preparation.scenario.evaluation
    num_clients = len(population.trained)
    trained_part = population.cohort_size / num_clients
    scored_part = fraction_of(evaluation.clients, num_clients) / num_clients / evaluation.every
    down_part = trained_part * (1 - scored_part) + scored_part
    holders: Counter[BlockInstance] = Counter()
    trainers: Counter[BlockInstance] = Counter()
    values: dict[BlockInstance, int] = {}
    extras: dict[BlockInstance, BlockTraffic] = {}
    sent = _first_updates(preparation) if plan.author is not None else {}
    for signature, members in population.signatures.items():
        profile = population.profiles[members[0]]
        workspace, returned = workspaces[_model_of(profile)], set(plan.returned_blocks(profile))
        blocks = [instance for instance in plan.sent_blocks(profile) if not instance.copy]
        held = plan.cut(blocks, workspace.initial_blocks, workspace.num_parameters)
        for name, instance in plan.held_blocks(profile).items():
            if instance.is_private:
                held[BlockInstance(name, Scope.PRIVATE)] = workspace.initial_blocks[name]
        for instance, vector in held.items():
            holders[instance] += len(members)
            trainers[instance] += len(members) if instance in returned else 0
            values[instance] = vector.size
        for part in plan.extra_parts(profile):
            if part.instance.scope is Scope.DRAWN:
                continue
            instance, size = part.instance.together, _FLOAT32 * part.size
            down = size * (down_part if instance.copy in plan.scored_copies else trained_part) * part.is_sent
            up = sent[signature].get(instance, 0) * trained_part
            before = extras.get(instance, BlockTraffic(str(instance.scope), 0, part.size, 0.0, 0.0))
            extras[instance] = replace(
                before,
                holders=before.holders + len(members),
                bytes_down=before.bytes_down + down * len(members),
                bytes_up=before.bytes_up + up * len(members),
            )
    unseen_part = (evaluation.split == "test") / evaluation.every
    unseen = Counter(i for one in population.unseen for i in plan.sent_blocks(one, scored=True))
    traffic = {}
    for instance in sorted(holders):
        size = 0 if instance.is_private or not trainers[instance] else _FLOAT32 * values[instance]
        down, up = holders[instance] * size * down_part, trainers[instance] * size * trained_part
        down += unseen[instance] * size * unseen_part
        if plan.author is not None:
            clients = {kind: len(members) for kind, members in population.signatures.items()}
            up = trained_part * sum(sent[kind].get(instance, 0) * number for kind, number in clients.items())
        traffic[instance] = BlockTraffic(str(instance.scope), holders[instance], values[instance], down, up)
    for profile in population.unseen_representatives():
        members = population.signatures.get(profile.signature, ())
        for name, instance in plan.private_averages(profile).items():
            size = workspaces[_model_of(profile)].initial_blocks[name].size
            down, up = (number * _FLOAT32 * size * unseen_part for number in (unseen[instance], len(members)))
            traffic[instance] = BlockTraffic(str(instance.scope), unseen[instance], size, down, up)
    for instance, before in extras.items():
        more = unseen[instance] * _FLOAT32 * before.values * unseen_part
        extras[instance] = replace(before, bytes_down=before.bytes_down + more)
    return {instance: (traffic | extras)[instance] for instance in sorted(traffic | extras)}


def _first_updates(preparation: Preparation) -> dict[Signature, Mapping[BlockInstance, int]]:
    """The bytes that a client of each kind sends back in the first round: what an algorithm sends, it alone knows.

    Raises:
        RunError: The algorithm does not work.
    """
    plan, population = preparation.plan, preparation.population
    server = initial_server(plan, preparation.profiles_on_server(), preparation.scenario.server.optimizer)
    found: dict[Signature, Mapping[BlockInstance, int]] = {}
    with one_thread(), preparation.open_shards() as shards:
        for signature, members in population.signatures.items():
            profile = population.profiles[members[0]]
            host = ClientHost(plan, [profile], shards)
            update = host.train(
                Chunk(0, (profile.index,)),
                server.sent,
                round_index=1,
                learning_rate=plan.training.optimizer.lr,
                whole=True,
            )
            found[signature] = {instance.together: size for instance, size in update.bytes_up.items()}
    return found


def memory(
    preparation: Preparation,
    workspaces: Mapping[tuple[str, str], Workspace],
    actors: Sequence[int],
    on_disk: Collection[str] = (),
) -> Memory:
    """What the processes hold, by the actor of each client; in the local runtime one stands for the process itself.

    Samples of the modalities `on_disk` are never in memory all at once.
    """
    plan, population, server = preparation.plan, preparation.population, preparation.scenario.server
    shared: dict[BlockInstance, int] = {}
    sums = num_own = 0
    execution = preparation.scenario.execution
    own_bytes = ACTOR_MEMORY_BYTES if execution.runtime == "local" else actor_memory_bytes(execution.client_resources)
    loads: defaultdict[int, int] = defaultdict(lambda: own_bytes)
    has_model: set[tuple[int, tuple[str, str]]] = set()
    for chunk in population.chunks:
        profile = population.profiles[chunk.clients[0]]
        workspace = workspaces[_model_of(profile)]
        sizes = {name: flat.size for name, flat in workspace.flat.items()}
        blocks = [instance for instance in plan.sent_blocks(profile) if not instance.copy]
        sent = plan.cut(blocks, workspace.initial_blocks, workspace.num_parameters)
        parts = plan.extra_parts(profile)
        on_server = {part.instance: part.size for part in parts if part.is_on_server}
        shared |= {instance: vector.size for instance, vector in sent.items()} | on_server
        if not profile.is_unseen:
            sums += sum(sent[instance].size for instance in plan.returned_blocks(profile) if not instance.copy)
            sums += sum(on_server.values())
        private = sum(sizes[name] for name, instance in plan.held_blocks(profile).items() if instance.is_private)
        private += sum(part.size for part in parts if part.instance.is_private)
        own = sum(part.size for part in parts if part.instance.scope is Scope.CLIENT)
        num_own += own * (len(chunk.clients) - 1)
        for client in chunk.clients:
            actor = actors[client]
            loads[actor] += 0 if profile.is_unseen else 2 * _FLOAT32 * private
            if (actor, _model_of(profile)) not in has_model:
                has_model.add((actor, _model_of(profile)))
                loads[actor] += _model_bytes(preparation, profile, sizes, sum(part.size for part in parts))
    shapes = [plan.shapes(profile).items() for profile in population.profiles]
    widths = [sum(math.prod(shape) for name, shape in own if name not in on_disk) for own in shapes]
    data = _FLOAT32 * int((preparation.shards.num_samples * np.array(widths)).sum())
    num_shared = sum(shared.values()) + num_own
    # Vectors as long as a block that the server optimizer keeps of it; a user's own may keep other lengths, too.
    num_states = sum(array.size for array in server.optimizer.init(1).values())
    driver = ACTOR_MEMORY_BYTES + data + num_shared * (_FLOAT32 + _FLOAT64 * (1 + num_states))
    driver += sum(rows_bytes(plan, population).values())
    if execution.runtime == "local":
        own = driver + sum(loads.values()) - ACTOR_MEMORY_BYTES
        return Memory(largest_actor=0, driver=own, object_store=0, total=own)
    store = _FLOAT32 * num_shared + _FLOAT64 * sums
    return Memory(max(loads.values()), driver, store, sum(loads.values()) + driver + store)


def _model_bytes(preparation: Preparation, profile: ClientProfile, sizes: Mapping[str, int], num_extra: int) -> int:
    """Values, gradients and optimizer state of the models that a modality set needs in a process.

    And what an algorithm adds, before a round and after.
    """
    optimizer = preparation.plan.training.optimizer
    stacked = preparation.plan.engines[profile.modality_set] != "sequential"
    num_models = 1 + (preparation.scenario.execution.chunk_size if stacked else 0)
    num_values = sum(size * (2 + len(optimizer.of(name).moments)) for name, size in sizes.items())
    num_values += 2 * num_extra
    return num_models * _FLOAT32 * num_values
