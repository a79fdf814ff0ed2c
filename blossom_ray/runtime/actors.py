"""Clients and loop as Ray actors. This is the only module that imports ray.

`ClientActor` is a shell around a `ClientHost`, `DriverActor` around the loop. Blocks travel as NumPy arrays, one
object per block instance and version, as top-level arguments; updates come back one object per block.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.exceptions

from blossom_ray.aggregation import PartialSum
from blossom_ray.blocks import BlockInstance
from blossom_ray.client import ChunkEvaluation, SentBlock
from blossom_ray.errors import ActorLostError, ActorTimeoutError, RunError
from blossom_ray.preparation import Preparation
from blossom_ray.records import ClientTraining
from blossom_ray.runtime.base import ChunkUpdate, Runtime, chunk_sum
from blossom_ray.runtime.placement import Room, actor_of_client, num_actors
from blossom_ray.sampling import Chunk
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.sections import Execution

if TYPE_CHECKING:
    from blossom_ray.client_host import ClientHost

Loop = Callable[[Scenario, Path, Callable[[Preparation], Runtime]], Iterator[Any]]
Buffers = Mapping[str, np.ndarray]
# Block instances with their versions; their values follow as arguments of their own, in this order.
Manifest = tuple[tuple[BlockInstance, int], ...]
# Processes that Ray may be starting at once, per CPU core: all at once would make it give up on the last ones.
_STARTING_PER_CORE = 4
_START_TIMEOUT_S = 300.0


class ClientActor:
    """One client or several in a process of their own.

    Args:
        num_gpus: Fraction of a GPU that this actor may use, memory included; 0 for the CPU.
    """

    def __init__(self, num_gpus: float) -> None:
        import torch

        # Imported here, so that actors get ready while the data are being prepared elsewhere.
        from blossom_ray.client_host import ClientHost

        torch.set_num_threads(1)
        if 0 < num_gpus < 1:
            torch.cuda.set_per_process_memory_fraction(num_gpus)
        self._device = "cuda" if num_gpus > 0 else "cpu"
        self._host_type = ClientHost
        self._host: ClientHost | None = None

    def ready(self) -> bool:
        """Answers once the process is up."""
        return True

    def setup(self, preparation: Preparation, clients: Sequence[int], buffers: Buffers | None) -> None:
        """Take clients in. Their shards are memory-mapped, or read from `buffers`, Arrow data in the object store."""
        profiles = [preparation.population.profiles[client] for client in clients]
        shards = preparation.open_shards(buffers)
        self._host = self._host_type(preparation.plan, profiles, shards, self._device)

    def train(
        self,
        chunk: Chunk,
        manifest: Manifest,
        round_index: int,
        learning_rate: float,
        whole: bool,
        *values: np.ndarray,
    ) -> Any:
        """Train clients; returns a report and, as objects of their own, what is sent back of each block."""
        part = self._here.train(
            chunk,
            _blocks(manifest, values),
            round_index=round_index,
            learning_rate=learning_rate,
            whole=whole,
        )
        report = _TrainingReport(part.records, tuple(part.blocks), part.bytes_down, part.bytes_up)
        return (report, *part.blocks.values()) if part.blocks else report

    def evaluate(
        self, chunk: Chunk, manifest: Manifest, round_index: int, held_out: bool, *values: np.ndarray
    ) -> ChunkEvaluation:
        """Score clients."""
        return self._here.evaluate(chunk, _blocks(manifest, values), round_index=round_index, held_out=held_out)

    def private_digests(self) -> dict[int, str]:
        """SHA-256 (hex) of each client's private state."""
        return self._here.private_digest()

    def peak_memory_bytes(self) -> int:
        """Largest resident set of this process so far, pages shared with others included."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def _here(self) -> ClientHost:
        assert self._host is not None, "setup comes first"
        return self._host


class DriverActor:
    """Runs the loop on the cluster and streams what it yields.

    Args:
        scenario: The scenario.
        folder: An empty folder for the shards.
        loop: `simulation.run`.
    """

    def __init__(self, scenario: Scenario, folder: Path, loop: Loop) -> None:
        self._scenario, self._folder, self._loop = scenario, folder, loop

    def events(self) -> Iterator[Any]:
        """Run to the end."""
        actors = _spawn_clients(self._scenario.execution, self._scenario.num_clients)
        yield from self._loop(self._scenario, self._folder, lambda preparation: ActorRuntime(preparation, actors))


def stream(scenario: Scenario, folder: Path, loop: Loop) -> Iterator[Any]:
    """Run a loop in a driver actor and yield what it yields.

    Joins the Ray session that this process already has, or the cluster that `RAY_ADDRESS` names, or starts one on
    this machine and stops it at the end. Closing the generator kills the run's actors.

    Args:
        scenario: The scenario.
        folder: An empty folder for the shards, seen by all nodes unless shards go through the object store.
        loop: `simulation.run`.

    Raises:
        RunError: A client, an actor or Ray failed.
        BlossomError: What the loop raises.
    """
    with _session():
        driver_type: Any = ray.remote(num_cpus=0, max_restarts=0)(DriverActor)
        driver = driver_type.remote(scenario, folder, loop)
        try:
            with _ray_errors("the driver actor"):
                for item in driver.events.options(num_returns="streaming").remote():
                    yield ray.get(item)
        finally:
            # Its client actors go with it: an actor does not outlive its owner.
            ray.kill(driver)


class ActorRuntime:
    """A `Runtime` whose clients live in actors.

    Args:
        preparation: The prepared federation.
        actors: Handles of the actors, which may still be starting.
    """

    def __init__(self, preparation: Preparation, actors: Sequence[Any]) -> None:
        execution = preparation.scenario.execution
        self._plan, self._population = preparation.plan, preparation.population
        self._timeout_s = execution.timeout_s
        self._actors = list(actors)
        self._costs = [
            float(count) * len(profile.modalities)
            for count, profile in zip(preparation.shards.num_train, self._population.profiles, strict=True)
        ]
        self._actor_of = actor_of_client(execution, self._population.chunks, self._costs, len(self._actors))
        self._sent: dict[BlockInstance, tuple[int, Any]] = {}
        self._set_up(preparation)

    def train(
        self,
        chunks: Sequence[Chunk],
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        learning_rate: float,
    ) -> Iterator[ChunkUpdate]:
        """Train the chunks' clients on these blocks."""
        self._send(blocks)

        def submit(actor: Any, part: Chunk, whole: bool) -> list[Any]:
            profile = self._population.profiles[part.clients[0]]
            manifest, refs = self._arguments(part)
            num_returns = 1 + len(self._plan.returned_blocks(profile))
            method = actor.train.options(num_returns=num_returns)
            refs = method.remote(part, manifest, round_index, learning_rate, whole, *refs)
            return refs if isinstance(refs, list) else [refs]

        for chunk, parts in self._run(chunks, submit, f"round {round_index}, training"):
            yield self._update(chunk, parts)

    def evaluate(
        self,
        chunks: Sequence[Chunk],
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        held_out: bool,
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks on the clients' test splits, or on the held-out global test set."""
        self._send(blocks)

        def submit(actor: Any, part: Chunk, _whole: bool) -> list[Any]:
            manifest, refs = self._arguments(part)
            return [actor.evaluate.remote(part, manifest, round_index, held_out, *refs)]

        for _, parts in self._run(chunks, submit, f"round {round_index}, evaluation"):
            for (ref,) in parts:
                yield _get(ref)

    def private_digests(self) -> dict[int, str]:
        """SHA-256 (hex) of every client's private state, by client."""
        digests: dict[int, str] = {}
        for part in self._ask("private_digests"):
            digests.update(part)
        return dict(sorted(digests.items()))

    def describe(self) -> dict[str, object]:
        """What the run's manifest says about execution."""
        return {
            "runtime": "ray",
            "actors": len(self._actors),
            "peak_actor_memory_bytes": max(self._ask("peak_memory_bytes")),
        }

    def close(self) -> None:
        """End the actors."""
        self._sent.clear()
        while self._actors:
            ray.kill(self._actors.pop())

    def _set_up(self, preparation: Preparation) -> None:
        through_store = _ships_shards(preparation.scenario.execution)
        shared = ray.put(preparation)
        pending = []
        for number, actor in enumerate(self._actors):
            clients = [client for client, place in enumerate(self._actor_of) if place == number]
            buffers = preparation.pack_shards(clients) if through_store else None
            pending.append(actor.setup.remote(shared, clients, buffers))
        for ref in pending:
            _get(ref, _START_TIMEOUT_S)

    def _send(self, blocks: Mapping[BlockInstance, SentBlock]) -> None:
        """Put each new version of a block into the object store, once, and let go of the one before it."""
        for instance, block in blocks.items():
            if instance not in self._sent or self._sent[instance][0] != block.version:
                self._sent[instance] = (block.version, ray.put(block.values))

    def _arguments(self, part: Chunk) -> tuple[Manifest, list[Any]]:
        instances = self._plan.sent_blocks(self._population.profiles[part.clients[0]])
        manifest = tuple((instance, self._sent[instance][0]) for instance in instances)
        return manifest, [self._sent[instance][1] for instance in instances]

    def _run(
        self, chunks: Sequence[Chunk], submit: Callable[[Any, Chunk, bool], list[Any]], what: str
    ) -> Iterator[tuple[Chunk, list[list[Any]]]]:
        """Submit all chunks, the longest first; yield each in its turn, once all its parts are in."""
        calls: dict[int, list[list[Any]]] = {}
        for chunk in sorted(chunks, key=lambda chunk: -sum(self._costs[c] for c in chunk.clients)):
            parts = self._parts(chunk)
            calls[chunk.index] = [submit(actor, part, len(parts) == 1) for actor, part in parts]
        waiting = {refs[0] for parts in calls.values() for refs in parts}
        for chunk in chunks:
            refs_of_parts = calls.pop(chunk.index)
            while not waiting.isdisjoint({refs[0] for refs in refs_of_parts}):
                done, _ = ray.wait(list(waiting), num_returns=1, timeout=self._timeout_s, fetch_local=False)
                if not done:
                    raise ActorTimeoutError(
                        f"{what}: no actor finished a chunk for {self._timeout_s:g} s (execution.timeout_s)"
                    )
                waiting.difference_update(done)
            yield chunk, refs_of_parts

    def _parts(self, chunk: Chunk) -> list[tuple[Any, Chunk]]:
        """The parts of a chunk by the actor that holds them."""
        by_actor: dict[int, list[int]] = {}
        for client in chunk.clients:
            by_actor.setdefault(self._actor_of[client], []).append(client)
        return [(self._actors[actor], Chunk(chunk.index, tuple(clients))) for actor, clients in by_actor.items()]

    def _update(self, chunk: Chunk, parts: list[list[Any]]) -> ChunkUpdate:
        reports: list[_TrainingReport] = [_get(refs[0]) for refs in parts]

        def sums() -> Iterator[tuple[BlockInstance, PartialSum]]:
            for position, instance in enumerate(reports[0].instances, start=1):
                pieces = [(report.records, _get(refs[position])) for report, refs in zip(reports, parts, strict=True)]
                yield instance, chunk_sum(pieces)
                for refs in parts:
                    refs[position] = None

        records = sorted((r for report in reports for r in report.records), key=lambda record: record.client)
        return ChunkUpdate(
            chunk,
            tuple(records),
            sums(),
            _total(report.bytes_down for report in reports),
            _total(report.bytes_up for report in reports),
        )

    def _ask(self, method: str) -> list[Any]:
        refs = [getattr(actor, method).remote() for actor in self._actors]
        return [_get(ref, self._timeout_s) for ref in refs]


@dataclass(frozen=True)
class _TrainingReport:
    """What comes back of a part of a chunk besides its blocks."""

    records: tuple[ClientTraining, ...]
    instances: tuple[BlockInstance, ...]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]


def _blocks(manifest: Manifest, values: Sequence[np.ndarray]) -> dict[BlockInstance, SentBlock]:
    return {instance: SentBlock(version, array) for (instance, version), array in zip(manifest, values, strict=True)}


def _total(counts: Iterator[Mapping[BlockInstance, int]] | Any) -> dict[BlockInstance, int]:
    total: dict[BlockInstance, int] = {}
    for part in counts:
        for instance, count in part.items():
            total[instance] = total.get(instance, 0) + count
    return total


def _spawn_clients(execution: Execution, num_clients: int) -> list[Any]:
    """Start the actors that will hold the clients, a few at a time; the last ones may still be starting."""
    offered = ray.cluster_resources()
    room = Room(offered.get("CPU", 0.0), offered.get("GPU", 0.0), offered.get("memory", 0.0))
    resources = execution.client_resources
    actor_type: Any = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0)(ClientActor)
    actors: list[Any] = []
    starting: list[Any] = []
    for _ in range(num_actors(execution, num_clients, room)):
        if len(starting) >= _STARTING_PER_CORE * max(1.0, room.num_cpus):
            done, starting = ray.wait(starting, num_returns=1, timeout=_START_TIMEOUT_S)
            if not done:
                raise ActorTimeoutError(f"no client actor came up within {_START_TIMEOUT_S:g} s")
        actors.append(actor_type.remote(resources.num_gpus))
        starting.append(actors[-1].ready.remote())
    return actors


def _ships_shards(execution: Execution) -> bool:
    if execution.shards == "auto":
        return sum(bool(node["Alive"]) for node in ray.nodes()) > 1
    return execution.shards == "object-store"


def _get(ref: Any, timeout_s: float | None = None) -> Any:
    with _ray_errors("a client actor"):
        return ray.get(ref, timeout=timeout_s)


@contextmanager
def _session() -> Iterator[None]:
    """A Ray session: the one that is there, or one that ends with this block."""
    if ray.is_initialized():
        yield
        return
    # No calls home from a simulation; set it to 1 to send Ray's usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise RunError(f"Ray did not start: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ray_errors(who: str) -> Iterator[None]:
    """Turn Ray's exceptions into ours; what our own code raised in an actor comes out as it was."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise RunError(f"{who} failed: {error}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise ActorTimeoutError(f"{who} gave no answer in time") from error
    except ray.exceptions.RayActorError as error:
        reason = str(error).strip().splitlines()[0]
        raise ActorLostError(f"{who} died: {reason}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"{who} failed: {type(error).__name__}: {str(error).splitlines()[0]}") from error
