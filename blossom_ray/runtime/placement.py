"""Which client lives in which actor: a pure function of the scenario, the costs and what the cluster has room for.

Placement decides how fast a run is, never what it computes.
"""

from __future__ import annotations

import heapq
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import psutil

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.errors import InputError
from blossom_ray.runtime import forks
from blossom_ray.scenario.sections import ClientResources, Execution

# Memory of one actor process once torch is imported, without models and shards (measured: 173 MiB unique).
ACTOR_MEMORY_BYTES = 175 * 2**20
# The same where the process is forked from a warm one (measured: 27 MiB less free memory with each).
_FORKED_MEMORY_BYTES = 30 * 2**20
# An uneven division is mended by splitting chunks when the fullest actor has this much more than its fair share.
_TOLERATED_IMBALANCE = 1.05
_OBJECT_STORE_PART = 0.3


@dataclass(frozen=True)
class Room:
    """What a cluster or a machine offers.

    Attributes:
        num_cpus: CPU cores.
        num_gpus: GPUs.
        memory_bytes: Memory for actors.
    """

    num_cpus: float
    num_gpus: float
    memory_bytes: float

    def num_actors(self, resources: ClientResources) -> int:
        """How many actors fit that each reserve `resources`."""
        limits = [self.num_cpus / resources.num_cpus, self.memory_bytes / actor_memory_bytes(resources)]
        if resources.num_gpus > 0:
            # A fraction of a GPU cannot straddle two of them.
            limits.append(math.floor(self.num_gpus) * math.floor(1 / resources.num_gpus + 1e-9))
        return math.floor(min(limits) + 1e-9)

    def on_ray(self) -> Room:
        """What Ray offers of this: it keeps 30 % of the free memory for objects, and leaves the rest to actors."""
        return replace(self, memory_bytes=(1 - _OBJECT_STORE_PART) * self.memory_bytes)

    def __str__(self) -> str:
        return f"{self.num_cpus:g} CPU cores, {self.num_gpus:g} GPUs and {self.memory_bytes / 2**30:.1f} GiB of memory"


def actor_memory_bytes(resources: ClientResources) -> int:
    """Memory of an actor process that reserves `resources`, without models and shards."""
    is_forked = forks.are_on() and resources.num_gpus == 0
    return _FORKED_MEMORY_BYTES if is_forked else ACTOR_MEMORY_BYTES


def this_machine(root: Path = Path("/")) -> Room:
    """What this process may use of its machine now: whole cores, GPUs that PyTorch finds, and free memory.

    Memory stays within the limits of its control groups (version 1 or 2), as a container or a batch system sets them.

    Args:
        root: Where the system's folders `dev`, `proc` and `sys` are.
    """
    free = [float(psutil.virtual_memory().available), *map(_unused_memory, _control_groups(root))]
    return Room(float(allowed_cpus(root)), _num_gpus(root), min(free))


def allowed_cpus(root: Path = Path("/")) -> int:
    """Cores that this process may run on (a cpuset, `taskset`), within its control groups' quota; at least one."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([own, *map(_quota, _control_groups(root))])))


def _num_gpus(root: Path) -> float:
    # Importing torch takes seconds: not where there is no driver of NVIDIA, WSL or AMD to be asked.
    if not any((root / "dev" / device).exists() for device in ("nvidiactl", "dxg", "kfd")):
        return 0.0
    from torch import cuda

    return float(cuda.device_count())


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of all above them, whose limits hold as well."""
    for line in _words(root / "proc/self/cgroup", "\n"):
        _, controllers, path = line.split(":", 2)
        # Version 2 names no controllers. A container may see itself at the top, whatever it is called outside.
        mount, group = root / "sys/fs/cgroup" / controllers, PurePosixPath(path)
        if ".." in group.parts:
            yield mount
        else:
            yield from (mount / each.relative_to("/") for each in (group, *group.parents))


def _quota(group: Path) -> float:
    """Cores' worth of time that a control group gets."""
    match _words(group / "cpu.max") or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]:
        case [quota, period] if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


def _unused_memory(group: Path) -> float:
    """Bytes that a control group may still take; what it holds of files that nobody uses is given back on demand."""
    limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
    used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
    if not limit or not used or limit == ["max"]:
        return math.inf
    kinds = dict(line.split(" ", 1) for line in _words(group / "memory.stat", "\n"))
    unused_files = int(kinds.get("total_inactive_file") or kinds.get("inactive_file") or 0)
    return max(0, int(limit[0]) - int(used[0]) + unused_files)


def _words(path: Path, separator: str | None = None) -> list[str]:
    """What a file of the kernel says; nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().split(separator)
    except OSError:
        return []


def num_actors(execution: Execution, num_clients: int, room: Room, *, whole_chunks: bool = False) -> int:
    """How many actors hold the clients.

    Args:
        execution: The scenario's `execution` section. `clients_per_actor: auto` gives each client its own actor
            while there is room, else packs them, one actor per core (or per fraction of a GPU).
        num_clients: Number of registered clients.
        room: What the cluster offers.
        whole_chunks: Whether a chunk must stay in one actor, so that an actor per client is no choice.

    Raises:
        InputError: The actors asked for do not fit.
    """
    resources, setting = execution.client_resources, execution.clients_per_actor
    fitting = room.num_actors(resources)
    if fitting < 1:
        raise InputError(
            f"execution.client_resources asks for {_describe(resources)} per actor; not one fits into {room}"
        )
    if setting == "auto":
        if num_clients <= fitting and not whole_chunks:
            return num_clients
        return fitting if resources.num_gpus > 0 else min(fitting, max(1, math.floor(room.num_cpus)))
    wanted = math.ceil(num_clients / setting)
    if wanted > fitting:
        raise InputError(
            f"execution.clients_per_actor is {setting}, which takes {wanted} actors for {num_clients} clients; "
            f"{fitting} with {_describe(resources)} and {actor_memory_bytes(resources) // 2**20} MiB each fit into "
            f"{room}; "
            f"expected at least {math.ceil(num_clients / fitting)}, or auto"
        )
    return wanted


def actor_of_client(
    execution: Execution,
    chunks: Sequence[Chunk],
    costs: Sequence[float],
    num_actors: int,
    *,
    stacked: Collection[int] = (),
) -> tuple[int, ...]:
    """The actor of each client.

    Args:
        execution: The scenario's `execution` section.
        chunks: All chunks of all clients.
        costs: Cost of one round by client, in any unit.
        num_actors: From `num_actors`.
        stacked: Indices of chunks that must stay in one actor. Some actors may then hold no client.
    """
    if num_actors == len(costs) and not stacked:
        return tuple(range(num_actors))
    if execution.clients_per_actor == "auto" or stacked:
        return _balanced(chunks, costs, num_actors, stacked)
    actors = [0] * len(costs)
    for position, client in enumerate(client for chunk in chunks for client in chunk.clients):
        actors[client] = position // execution.clients_per_actor
    return tuple(actors)


def _balanced(
    chunks: Sequence[Chunk], costs: Sequence[float], num_actors: int, stacked: Collection[int]
) -> tuple[int, ...]:
    """Whole chunks where that divides the work evenly enough, single clients where it does not and they may part."""
    by_chunk, fullest = _longest_first([chunk.clients for chunk in chunks], costs, num_actors)
    if fullest <= _TOLERATED_IMBALANCE * sum(costs) / num_actors:
        return by_chunk
    pieces = [
        piece
        for chunk in chunks
        for piece in ([chunk.clients] if chunk.index in stacked else [(client,) for client in chunk.clients])
    ]
    return _longest_first(pieces, costs, num_actors)[0]


def _longest_first(
    pieces: Sequence[tuple[int, ...]], costs: Sequence[float], num_actors: int
) -> tuple[tuple[int, ...], float]:
    """Give the most expensive piece left to the actor with the least work; the actors and the largest load."""
    loads = [(0.0, actor) for actor in range(num_actors)]
    actors = [0] * len(costs)
    for piece in sorted(pieces, key=lambda clients: -sum(costs[client] for client in clients)):
        load, actor = heapq.heappop(loads)
        heapq.heappush(loads, (load + sum(costs[client] for client in piece), actor))
        for client in piece:
            actors[client] = actor
    return tuple(actors), max(load for load, _ in loads)


def largest_load(actors: Sequence[int], costs: Sequence[float]) -> float:
    """The cost of the actor that has most to do: what a round with all clients takes at least."""
    loads: defaultdict[int, float] = defaultdict(float)
    for actor, cost in zip(actors, costs, strict=True):
        loads[actor] += cost
    return max(loads.values())


def _describe(resources: ClientResources) -> str:
    gpus = f" and {resources.num_gpus:g} GPUs" if resources.num_gpus else ""
    return f"{resources.num_cpus:g} CPU cores{gpus}"
