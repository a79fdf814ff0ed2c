"""Bytes of a run before it starts: what a round sends of each block, and what the processes hold."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blossom_ray.algorithms.options import ServerOptimizer
from blossom_ray.algorithms.selection import cohort_size
from blossom_ray.algorithms.server_optimizers import init
from blossom_ray.clients.options import ClientOptimizer, Sgd
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope
from blossom_ray.runtime.placement import ACTOR_MEMORY_BYTES
from blossom_ray.runtime.preparation import Preparation

_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class BlockTraffic:
    """One block instance, or all private copies of a block together.

    Attributes:
        scope: Its scope.
        holders: Clients that hold it.
        values: Values of one copy.
        bytes_down: Bytes of it sent to clients in an average round.
        bytes_up: Bytes of it sent back in an average round.
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
        driver: Process, data set while it is divided, shared blocks with the server optimizer's state and the sums.
        object_store: Shared blocks, and the sums of all chunks of a round, should all of them wait to be added.
        total: All actors, the driver and the object store.
    """

    largest_actor: int
    driver: int
    object_store: int
    total: int


def block_traffic(preparation: Preparation, workspaces: Mapping[str, Workspace]) -> dict[BlockInstance, BlockTraffic]:
    """Holders, size and traffic of every block instance, in sorted order.

    A client is sent a version once. A block changes in every round, so in an average one the cohort fetches it, unless
    the evaluation before has brought it, and so do the clients that score it.

    Args:
        preparation: The prepared federation.
        workspaces: By modality set.
    """
    plan, population, evaluation = preparation.plan, preparation.population, preparation.scenario.evaluation
    num_clients = len(population.profiles)
    trained_part = cohort_size(preparation.scenario.server.clients_per_round, num_clients) / num_clients
    scored_part = max(1, math.floor(evaluation.clients * num_clients + 1e-9)) / num_clients / evaluation.every
    down_part = trained_part * (1 - scored_part) + scored_part
    holders: Counter[BlockInstance] = Counter()
    trainers: Counter[BlockInstance] = Counter()
    values: dict[BlockInstance, int] = {}
    for members in population.signatures.values():
        profile = population.profiles[members[0]]
        workspace, returned = workspaces[profile.modality_set], set(plan.returned_blocks(profile))
        held = plan.cut(plan.sent_blocks(profile), workspace.initial_blocks, workspace.num_parameters)
        for name, instance in plan.held_blocks(profile).items():
            if instance.is_private:
                held[BlockInstance(name, Scope.PRIVATE)] = workspace.initial_blocks[name]
        for instance, vector in held.items():
            holders[instance] += len(members)
            trainers[instance] += len(members) if instance in returned else 0
            values[instance] = vector.size
    traffic = {}
    for instance in sorted(holders):
        size = 0 if instance.is_private or not trainers[instance] else _FLOAT32 * values[instance]
        down, up = holders[instance] * size * down_part, trainers[instance] * size * trained_part
        traffic[instance] = BlockTraffic(str(instance.scope), holders[instance], values[instance], down, up)
    return traffic


def memory(preparation: Preparation, workspaces: Mapping[str, Workspace], actors: Sequence[int]) -> Memory:
    """What the processes hold.

    Args:
        preparation: The prepared federation.
        workspaces: By modality set.
        actors: The actor of each client; in the local runtime one stands for the process itself.
    """
    plan, population, server = preparation.plan, preparation.population, preparation.scenario.server
    shared: dict[BlockInstance, int] = {}
    sums = 0
    loads: defaultdict[int, int] = defaultdict(lambda: ACTOR_MEMORY_BYTES)
    has_model: set[tuple[int, str]] = set()
    for chunk in population.chunks:
        profile = population.profiles[chunk.clients[0]]
        workspace = workspaces[profile.modality_set]
        sizes = {name: flat.size for name, flat in workspace.flat.items()}
        sent = plan.cut(plan.sent_blocks(profile), workspace.initial_blocks, workspace.num_parameters)
        shared |= {instance: vector.size for instance, vector in sent.items()}
        sums += sum(sent[instance].size for instance in plan.returned_blocks(profile))
        private = sum(sizes[name] for name, instance in plan.held_blocks(profile).items() if instance.is_private)
        for client in chunk.clients:
            actor = actors[client]
            loads[actor] += 2 * _FLOAT32 * private
            if (actor, profile.modality_set) not in has_model:
                has_model.add((actor, profile.modality_set))
                loads[actor] += _model_bytes(preparation, profile, sum(sizes.values()))
    samples = int(preparation.shards.num_samples.sum())
    data = _FLOAT32 * samples * sum(math.prod(shape) for shape in plan.input_shapes.values())
    num_shared = sum(shared.values())
    driver = ACTOR_MEMORY_BYTES + data + num_shared * (_FLOAT32 + _FLOAT64 * (1 + _server_states(server.optimizer)))
    if preparation.scenario.execution.runtime == "local":
        own = driver + sum(loads.values()) - ACTOR_MEMORY_BYTES
        return Memory(largest_actor=0, driver=own, object_store=0, total=own)
    store = _FLOAT32 * num_shared + _FLOAT64 * sums
    return Memory(max(loads.values()), driver, store, sum(loads.values()) + driver + store)


def _model_bytes(preparation: Preparation, profile: ClientProfile, num_values: int) -> int:
    """Values, gradients and optimizer state of the models that a modality set needs in a process."""
    training = preparation.plan.training
    stacked = training.engine_of(profile.modality_set) == "vectorized"
    num_models = 1 + (preparation.scenario.execution.chunk_size if stacked else 0)
    return num_models * _FLOAT32 * num_values * (2 + _client_states(training.optimizer))


def _client_states(optimizer: ClientOptimizer) -> int:
    return int(optimizer.momentum > 0) if isinstance(optimizer, Sgd) else 2


def _server_states(optimizer: ServerOptimizer) -> int:
    """Vectors as long as a block that the server optimizer keeps of it; a user's own may keep other lengths, too."""
    return sum(array.size for array in init(optimizer, 1).values())
