"""The server's side of a round: the current value of every shared block instance, and the step to the next one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from blossom_ray.algorithms.options import TaskWeights, Weighting
from blossom_ray.algorithms.server_optimizers import OptimizerState, ServerOptimizer
from blossom_ray.clients.plan import ClientPlan, SentBlock
from blossom_ray.core.blocks import Block, BlockInstance, BlockKind, ClientProfile
from blossom_ray.core.records import ClientTraining
from blossom_ray.core.sums import Contributions, PartialSum, Total
from blossom_ray.errors import RunError


@dataclass(frozen=True)
class ServerBlock:
    """One block instance on the server.

    Attributes:
        sent: Its value and version, as clients receive it.
        num_parameters: How many of its values are parameters; the rest are averaged normalisation statistics.
        optimizer_state: State of the server optimizer for it.
    """

    sent: SentBlock
    num_parameters: int
    optimizer_state: OptimizerState


@dataclass(frozen=True)
class Server:
    """All block instances that are not private, in sorted order."""

    blocks: Mapping[BlockInstance, ServerBlock]

    @property
    def sent(self) -> dict[BlockInstance, SentBlock]:
        """What clients receive."""
        return {instance: block.sent for instance, block in self.blocks.items()}

    def digest(self) -> str:
        """SHA-256 (hex) of all values: equal for runs that gave the same bits."""
        digest = sha256()
        for instance, block in self.blocks.items():
            digest.update(f"{instance}\0".encode() + np.ascontiguousarray(block.sent.values).tobytes())
        return digest.hexdigest()


def initial_server(plan: ClientPlan, profiles: Iterable[ClientProfile], section: ServerOptimizer) -> Server:
    """The untrained server: version 0 of every block instance that some client holds and that is not private.

    Args:
        plan: What every client goes by; the initial values follow from its seed and the blocks' names.
        profiles: The clients, or one of each kind where the server has nothing for each client alone.
        section: The scenario's `server.optimizer` section.
    """
    # torch is needed here only; a process that just watches a run imports this module without it.
    from blossom_ray.clients.authored import first_value
    from blossom_ray.clients.workspace import client_workspace

    blocks: dict[BlockInstance, ServerBlock] = {}
    for profile in profiles:
        instances = [i for i in plan.sent_blocks(profile) if not i.copy and i not in blocks]
        extras = [part for part in plan.extra_parts(profile) if part.is_on_server and part.instance not in blocks]
        if not instances and not extras:
            continue
        workspace = client_workspace(plan, profile)
        initial = plan.cut(instances, workspace.initial_blocks, workspace.num_parameters)
        for instance, values in initial.items():
            num_parameters = workspace.num_parameters.get(instance.name, 0)
            blocks[instance] = ServerBlock(SentBlock(0, values), num_parameters, section.init(num_parameters))
        for part in extras:
            blocks[part.instance] = ServerBlock(SentBlock(0, first_value(part, plan, workspace)), 0, {})
    return Server({instance: blocks[instance] for instance in sorted(blocks)})


def mixed_statistics(server: Server, plan: ClientPlan, profiles: Iterable[ClientProfile]) -> tuple[BlockInstance, ...]:
    """Instances of fusion and head whose statistics are averaged over clients of different modality sets or tasks.

    Such clients are scored with statistics that are nobody's own (docs/results/paper-grid.md). Encoders see one
    modality, whoever holds them; theirs are mixed where clients have it from different data sets.

    Args:
        server: The untrained server.
        plan: What every client goes by.
        profiles: The clients, or one of each kind.
    """
    senders: defaultdict[BlockInstance, set[object]] = defaultdict(set)
    for profile in profiles:
        for instance in plan.returned_blocks(profile):
            is_of_one_modality = instance.name.kind not in ("fusion", "head")
            kind = profile.modalities, _tasks_of(instance, profile)
            senders[instance].add(plan.data_set(profile) if is_of_one_modality else kind)
    together = normalised_together(server, ("fusion", "head", "encoder"))
    return tuple(each for each in together if len(senders[each]) > 1)


def normalised_together(server: Server, kinds: Collection[BlockKind] = ("fusion", "head")) -> tuple[BlockInstance, ...]:
    """Instances of blocks of these kinds with running statistics that are averaged over clients."""
    return tuple(
        instance
        for instance, block in server.blocks.items()
        if instance.name.kind in kinds
        and not instance.copy
        and (
            block.sent.values.size > block.num_parameters
            or instance._replace(name=Block("statistics", instance.name)) in server.blocks
        )
    )


@np.errstate(over="ignore", invalid="ignore")
def server_step(
    server: Server, targets: Mapping[BlockInstance, Total], section: ServerOptimizer
) -> tuple[Server, dict[BlockInstance, float]]:
    """Step every block instance that has a target; all others keep value, version and optimizer state.

    Args:
        server: The server before the round. Not modified.
        targets: By block instance the average A_b, or what an algorithm puts in its place; float64, shape of the block.
        section: The scenario's `server.optimizer` section.

    Returns:
        The new server, and the L2 norm of each step over the block's parameters.

    Normalisation statistics take the average as it is: a server optimizer's step could make a variance negative. So
    does what an algorithm adds to the model.
    """
    blocks, norms = dict(server.blocks), {}
    for instance, average in targets.items():
        block = server.blocks[instance]
        old, split = block.sent.values, block.num_parameters
        new = average.astype(np.float32)
        state = block.optimizer_state
        if instance.copy:
            change = new.astype(np.float64) - old
        else:
            new[:split], state = section.step(state, old[:split], average[:split])
            change = new[:split].astype(np.float64) - old[:split]
        # Not `np.linalg.norm`: its last bit depends on how many threads BLAS has in this process.
        norms[instance] = float(np.sqrt(np.square(change).sum()))
        if not math.isfinite(norms[instance]):
            raise RunError(f"{instance} is not finite after the server's step", "a smaller server.optimizer.lr")
        sent = SentBlock(block.sent.version + 1, new)
        blocks[instance] = replace(block, sent=sent, optimizer_state=state)
    return Server(blocks), norms


def shared_by_tasks(plan: ClientPlan, profiles: Iterable[ClientProfile]) -> frozenset[BlockInstance]:
    """The block instances that clients of several tasks send back.

    Args:
        plan: What every client goes by.
        profiles: The clients, or one of each kind.
    """
    tasks: dict[BlockInstance, set[str]] = {}
    if len(plan.tasks) > 1:
        for profile in profiles:
            for instance in plan.returned_blocks(profile):
                tasks.setdefault(instance, set()).update(_tasks_of(instance, profile))
    return frozenset(instance for instance, own in tasks.items() if len(own) > 1)


def sums_by_task(
    sent: PartialSum | Contributions, records: Sequence[ClientTraining], tasks: Sequence[str], weighting: Weighting
) -> dict[str, PartialSum]:
    """What clients of one kind sent, added up for each of their tasks.

    A client counts in a task with as much of its weight as it has samples with a label of it; with `uniform` weights
    it counts as all others do.

    Args:
        sent: Their sum, or their own values; their own where they have labels of some samples alone.
        records: Of these clients, and maybe others.
        tasks: Their tasks.
        weighting: The scenario's `server.weighting`.
    """
    found = {}
    for task in tasks:
        own = sent
        if isinstance(sent, Contributions):
            parts = {record.client: record.part_of(task) for record in records}
            own = sent if weighting == "uniform" else sent.scaled(parts)
        part = own if isinstance(own, PartialSum) else own.summed()
        if part is not None:
            found[task] = part
    return found


def _tasks_of(instance: BlockInstance, profile: ClientProfile) -> tuple[str, ...]:
    """The tasks of a client that a block instance serves."""
    block = Block.named(instance.name.of) if instance.name.kind == "statistics" else instance.name
    return (block.of,) if block.kind in ("fusion", "head") and block.of else profile.tasks


def mean_of_tasks(sums: Mapping[str, PartialSum]) -> Total:
    """The mean over tasks of the averages over their own clients, float64; sums by task, at least one."""
    averages = [part.average for part in sums.values()]
    total: Total = averages[0].copy()
    for average in averages[1:]:
        total += average
    return total / len(averages)


def weight_shares(sums: Mapping[str, PartialSum], task_weights: TaskWeights) -> dict[str, float]:
    """The part of the weight that each task has in the average of a block, 0 to 1.

    Args:
        sums: What clients sent, added up, by task.
        task_weights: The scenario's `server.task_weights`.
    """
    weights = {task: 1.0 if task_weights == "equal" else part.weight for task, part in sums.items()}
    return {task: weight / math.fsum(weights.values()) for task, weight in weights.items()}


def task_cosines(
    server: Server, by_task: Mapping[BlockInstance, Mapping[str, PartialSum]]
) -> dict[BlockInstance, float]:
    """How far tasks pull each block that they share in the same direction; absent where `task_cosine` has none.

    Args:
        server: The server before its step.
        by_task: What clients sent, added up, by task.
    """
    found = {instance: task_cosine(sums, server.blocks[instance]) for instance, sums in by_task.items()}
    return {instance: cosine for instance, cosine in found.items() if cosine is not None}


def task_cosine(sums: Mapping[str, PartialSum], block: ServerBlock) -> float | None:
    """How far tasks pull a block in the same direction, from -1 to 1.

    The cosine between the steps from its value to the averages over the clients of two tasks, in float64, over its
    parameters; mean over the pairs of tasks. None for one task, or where no two tasks move it.

    Args:
        sums: What clients sent, added up, by task.
        block: The block before the server's step.
    """
    old = block.sent.values[: block.num_parameters].astype(np.float64)
    steps = [part.average[: block.num_parameters] - old for part in sums.values()]
    sizes = [float(np.sqrt(np.square(step).sum())) for step in steps]
    # Not a dot product of BLAS: its last bit depends on how many threads that has.
    cosines = [
        float((steps[i] * steps[j]).sum()) / (sizes[i] * sizes[j])
        for i in range(len(steps))
        for j in range(i)
        if sizes[i] and sizes[j]
    ]
    return math.fsum(cosines) / len(cosines) if cosines else None
