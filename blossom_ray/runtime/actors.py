"""Clients and loop as Ray actors. This is the only module that imports ray.

`ClientActor` is a shell around a `ClientHost`, `DriverActor` around the loop. Blocks travel as NumPy arrays, one
object per block instance and version, as top-level arguments; updates come back one object per block.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.exceptions

from blossom_ray.aggregation import PartialSum
from blossom_ray.blocks import BlockInstance
from blossom_ray.checkpoint import Checkpoint, Session
from blossom_ray.client import ChunkEvaluation, SentBlock
from blossom_ray.errors import ActorLostError, ActorTimeoutError, ClientError, DriverLostError, RunError
from blossom_ray.preparation import Preparation
from blossom_ray.records import ClientTraining, Failure
from blossom_ray.runtime.base import ChunkUpdate, Runtime, chunk_sum
from blossom_ray.runtime.placement import Room, actor_of_client, num_actors
from blossom_ray.sampling import Chunk
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.sections import Execution

if TYPE_CHECKING:
    from blossom_ray.client_host import ClientHost

Loop = Callable[[Scenario, Session, Callable[[Preparation], Runtime], Callable[[], bool]], Iterator[Any]]
Buffers = Mapping[str, np.ndarray]
# Block instances with their versions; their values follow as arguments of their own, in this order.
Manifest = tuple[tuple[BlockInstance, int], ...]
# Processes that Ray may be starting at once, per CPU core: all at once would make it give up on the last ones.
_STARTING_PER_CORE = 4
_START_TIMEOUT_S = 300.0
# Items of the event stream that may wait for whoever watches: the loop does not run far ahead of the run folder.
_EVENTS_AHEAD = 2
_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


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
        blocks = _blocks(manifest, values)
        part = self._here.train(chunk, blocks, round_index=round_index, learning_rate=learning_rate, whole=whole)
        report = _TrainingReport(part.records, tuple(part.blocks), part.bytes_down, part.bytes_up)
        return (report, *part.blocks.values()) if part.blocks else report

    def evaluate(
        self, chunk: Chunk, manifest: Manifest, round_index: int, held_out: bool, *values: np.ndarray
    ) -> ChunkEvaluation:
        """Score clients."""
        return self._here.evaluate(chunk, _blocks(manifest, values), round_index=round_index, held_out=held_out)

    def replay(self, method: str, chunk: Chunk, manifest: Manifest, round_index: int, *arguments: Any) -> None:
        """Do what `train` or `evaluate` does to the clients' states, for its effect alone."""
        if method == "train":
            self.train(chunk, manifest, round_index, *arguments)
        else:
            self._here.replay_evaluation(chunk, _blocks(manifest, arguments[1:]), round_index=round_index)

    def begin_checkpoint(self, path: Path, round_index: int) -> None:
        """Write the clients' states after a round into a file, in the background."""
        self._here.begin_checkpoint(path, round_index=round_index)

    def finish_checkpoint(self) -> None:
        """Wait until the file is on disk."""
        self._here.finish_checkpoint()

    def restore(self, paths: Sequence[Path]) -> None:
        """Take the clients' states from a checkpoint's files."""
        self._here.restore(paths)

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
        session: Folders, and where to go on from.
        loop: `simulation.run`.
    """

    def __init__(self, scenario: Scenario, session: Session, loop: Loop) -> None:
        self._scenario, self._session, self._loop = scenario, session, loop
        self._is_stopping = False

    def events(self) -> Iterator[Any]:
        """Run to the end, or until `stop`."""
        actors = _spawn_clients(self._scenario.execution, self._scenario.num_clients)

        def start(preparation: Preparation) -> Runtime:
            return ActorRuntime(preparation, actors)

        yield from self._loop(self._scenario, self._session, start, lambda: self._is_stopping)

    def stop(self) -> None:
        """Have the run end after the round in progress. Answered while `events` runs, in a thread of its own."""
        self._is_stopping = True


def stream(
    scenario: Scenario, session: Session, loop: Loop, stopping: Callable[[], bool] = lambda: False
) -> Iterator[Any]:
    """Run a loop in a driver actor and yield what it yields.

    Joins the Ray session that this process already has, or the cluster that `RAY_ADDRESS` names, or starts one on
    this machine and stops it at the end. Closing the generator kills the run's actors.

    Args:
        scenario: The scenario.
        session: Folders, seen by all nodes unless shards go through the object store, and where to go on from.
        loop: `simulation.run`.
        stopping: Asked every second or so; True ends the run after the round in progress.

    Raises:
        RunError: A client, an actor or Ray failed.
        BlossomError: What the loop raises.
    """
    with _session():
        driver_type: Any = ray.remote(num_cpus=0, max_restarts=0)(DriverActor)
        # A second thread answers `stop` while the first one runs the loop.
        driver = driver_type.options(max_concurrency=2).remote(scenario, session, loop)
        try:
            with _ray_errors("the driver actor", DriverLostError):
                method = driver.events.options(
                    num_returns="streaming", _generator_backpressure_num_objects=_EVENTS_AHEAD
                )
                items, told = method.remote(), False
                while True:
                    ready, _ = ray.wait([items], timeout=1.0, fetch_local=False)
                    if stopping() and not told:
                        driver.stop.remote()
                        told = True
                    if ready:
                        try:
                            item = next(items)
                        except StopIteration:
                            break
                        yield ray.get(item)
        finally:
            # Its client actors go with it: an actor does not outlive its owner.
            ray.kill(driver)


class ActorRuntime:
    """A `Runtime` whose clients live in actors.

    An actor that is lost is replaced: its clients are restored from the last checkpoint, what they did since is
    repeated in the same order, and results that are still needed come from the repetition, with the same bits.

    Args:
        preparation: The prepared federation.
        actors: Handles of the actors, which may still be starting.
    """

    def __init__(self, preparation: Preparation, actors: Sequence[Any]) -> None:
        scenario = preparation.scenario
        self._plan, self._population = preparation.plan, preparation.population
        self._execution, self._policy = scenario.execution, scenario.failures
        self._costs = [
            float(count) * len(profile.modalities)
            for count, profile in zip(preparation.shards.num_train, self._population.profiles, strict=True)
        ]
        self._actor_of = actor_of_client(self._execution, self._population.chunks, self._costs, len(actors))
        self._preparation, self._shared = preparation, ray.put(preparation)
        members: list[list[int]] = [[] for _ in actors]
        for client, number in enumerate(self._actor_of):
            members[number].append(client)
        self._slots = [_Slot(number, actor, members[number]) for number, actor in enumerate(actors)]
        self._sent: dict[BlockInstance, tuple[int, Any]] = {}
        self._checkpoint_files: tuple[Path, ...] = ()
        self._checkpointing: list[Any] = []
        self._failures: list[Failure] = []
        for slot, ready in [(slot, self._set_up(slot)) for slot in self._slots]:
            self._await_set_up(slot, ready)

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

        def make(slot: _Slot, part: Chunk, whole: bool) -> _Call:
            manifest, refs = self._arguments(part)
            returned = len(self._plan.returned_blocks(self._population.profiles[part.clients[0]]))
            arguments = (manifest, round_index, learning_rate, whole, *refs)
            return _Call(slot, "train", part, round_index, arguments, num_returns=1 + returned)

        for chunk, calls in self._run(chunks, make):
            fetched = [(call, self._fetch(call, 0)) for call in calls]
            reports = [(call, report) for call, report in fetched if report is not None]
            if reports:
                yield self._update(chunk, reports)

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

        def make(slot: _Slot, part: Chunk, _whole: bool) -> _Call:
            manifest, refs = self._arguments(part)
            return _Call(slot, "evaluate", part, round_index, (manifest, round_index, held_out, *refs))

        for _, calls in self._run(chunks, make):
            for call in calls:
                scores = self._fetch(call, 0)
                if scores is not None:
                    yield scores

    def take_failures(self) -> tuple[Failure, ...]:
        """What went wrong since the last call."""
        failures, self._failures = tuple(self._failures), []
        return failures

    def begin_checkpoint(self, folder: Path, round_index: int) -> None:
        """Have every actor write its clients' states after this round into `folder`, in the background."""
        self._checkpointing = [
            slot.actor.begin_checkpoint.remote(folder / f"clients-{slot.number}.safetensors", round_index)
            for slot in self._slots
        ]

    def finish_checkpoint(self) -> bool:
        """Wait until the states are on disk; False if an actor was lost over it."""
        begun, self._checkpointing = self._checkpointing, []
        whole = True
        for slot, ref in zip(self._slots, begun, strict=True):
            try:
                ray.get(ref)
                _get(slot.actor.finish_checkpoint.remote(), self._execution.timeout_s)
            except (*_LOST, ActorLostError) as error:
                self._replace(slot, _first_line(error))
                whole = False
        return whole

    def committed(self, checkpoint: Checkpoint) -> None:
        """Repeat work from this checkpoint on, if it has to be repeated."""
        self._checkpoint_files = checkpoint.client_files
        for slot in self._slots:
            slot.log = [call for call in slot.log if call.round_index > checkpoint.round_index]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give every client the state that it has in a checkpoint."""
        self._checkpoint_files = checkpoint.client_files
        for ref in [slot.actor.restore.remote(self._checkpoint_files) for slot in self._slots]:
            _get(ref, self._execution.timeout_s)

    def private_digests(self) -> dict[int, str]:
        """SHA-256 (hex) of every client's private state, by client."""
        digests: dict[int, str] = {}
        for part in self._ask("private_digests"):
            digests.update(part)
        return dict(sorted(digests.items()))

    def describe(self) -> dict[str, object]:
        """What the run's manifest says about execution."""
        peak = max(self._ask("peak_memory_bytes"))
        return {"runtime": "ray", "actors": len(self._slots), "peak_actor_memory_bytes": peak}

    def close(self) -> None:
        """End the actors."""
        self._sent.clear()
        while self._slots:
            ray.kill(self._slots.pop().actor)

    def _set_up(self, slot: _Slot) -> Any:
        buffers = self._preparation.pack_shards(slot.clients) if _ships_shards(self._execution) else None
        return slot.actor.setup.remote(self._shared, slot.clients, buffers)

    def _await_set_up(self, slot: _Slot, ready: Any) -> None:
        """Wait until an actor holds its clients; one that dies over it is replaced."""
        for _ in range(self._policy.max_retries):
            try:
                ray.get(ready, timeout=_START_TIMEOUT_S)
            except _LOST as error:
                self._failures.append(
                    Failure("set-up", tuple(slot.clients), slot.number, _first_line(error), "repeated")
                )
                slot.actor = _client_actor(self._execution)
                ready = self._set_up(slot)
            else:
                return
        _get(ready, _START_TIMEOUT_S)

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
        self, chunks: Sequence[Chunk], make: Callable[[_Slot, Chunk, bool], _Call]
    ) -> Iterator[tuple[Chunk, list[_Call]]]:
        """Submit all chunks, the longest first; yield each in its turn with its calls, one per actor that holds it."""
        calls: dict[int, list[_Call]] = {}
        for chunk in sorted(chunks, key=lambda chunk: -sum(self._costs[c] for c in chunk.clients)):
            by_slot: dict[int, list[int]] = {}
            for client in chunk.clients:
                by_slot.setdefault(self._actor_of[client], []).append(client)
            for number, clients in by_slot.items():
                call = make(self._slots[number], Chunk(chunk.index, tuple(clients)), len(by_slot) == 1)
                call.submit()
                call.slot.log.append(call)
                call.slot.open.append(call)
                calls.setdefault(chunk.index, []).append(call)
        for chunk in chunks:
            yield chunk, calls.pop(chunk.index)

    def _update(self, chunk: Chunk, reports: Sequence[tuple[_Call, _TrainingReport]]) -> ChunkUpdate:
        def sums() -> Iterator[tuple[BlockInstance, PartialSum]]:
            for position, instance in enumerate(reports[0][1].instances, start=1):
                yield instance, chunk_sum([(report.records, self._fetch(call, position)) for call, report in reports])

        return ChunkUpdate(
            chunk,
            tuple(sorted((r for _, report in reports for r in report.records), key=lambda record: record.client)),
            sums(),
            _total(report.bytes_down for _, report in reports),
            _total(report.bytes_up for _, report in reports),
        )

    def _fetch(self, call: _Call, position: int) -> Any:
        """One of a call's results; None where its clients were dropped. What was lost on the way is done again."""
        while not call.is_dropped:
            try:
                self._await_turn(call)
                result = ray.get(call.refs[position])
            except _LOST as error:
                self._lose(call.slot, _first_line(error))
            except ray.exceptions.RayTaskError as error:
                self._drop_client(call, error)
            else:
                call.refs[position] = None
                if position == call.num_returns - 1:
                    call.slot.open.remove(call)
                return result
        return None

    def _await_turn(self, call: _Call) -> None:
        """Wait until a call has ended, giving each call before it on the same actor its own time."""
        for earlier in [*call.slot.open]:
            if not earlier.has_ended:
                done, _ = ray.wait([earlier.refs[0]], timeout=self._execution.timeout_s, fetch_local=False)
                if not done:
                    seconds = f"{self._execution.timeout_s:g} s"
                    self._lose(call.slot, f"gave no result for {seconds} (execution.timeout_s)")
                    return self._await_turn(call) if not call.is_dropped else None
                earlier.has_ended = True
            if earlier is call:
                return None
        return None

    def _drop_client(self, call: _Call, error: ray.exceptions.RayTaskError) -> None:
        """Do a call again without the client whose own code failed, or stop, as the scenario says."""
        cause = error.cause
        if call.method == "train" and isinstance(cause, ClientError) and self._policy.on_failure == "drop":
            self._failures.append(Failure("training", (cause.client,), call.slot.number, cause.cause, "dropped"))
            call.part = call.part.without(cause.client)
            if call.part.clients:
                call.submit()
            else:
                self._forget(call)
            return
        raise cause if isinstance(cause, Exception) else RunError(f"a client actor failed: {error}") from None

    def _lose(self, slot: _Slot, cause: str) -> None:
        """An actor died or hung: blame the call that it was at, and repeat or drop that as the scenario says."""
        culprit = next((call for call in slot.open if not call.succeeded()), None)
        if culprit is not None:
            culprit.attempts += 1
            dropped = culprit.attempts > self._policy.max_retries
            phase = "training" if culprit.method == "train" else "evaluation"
            if dropped and (self._policy.on_failure == "stop" or phase == "evaluation"):
                error = ActorTimeoutError if "execution.timeout_s" in cause else ActorLostError
                raise error(
                    f"round {culprit.round_index}, {phase}: actor {slot.number} with {_clients(culprit.part)} was lost "
                    f"{culprit.attempts} times, the last time because it {cause}"
                )
            action = "dropped" if dropped else "repeated"
            self._failures.append(Failure(phase, culprit.part.clients, slot.number, cause, action))
            if dropped:
                self._forget(culprit)
        self._replace(slot, cause)

    def _replace(self, slot: _Slot, cause: str) -> None:
        """Start a new actor in place of a lost one, and bring its clients to where they were."""
        logging.getLogger(__name__).info("actor %d is replaced: %s", slot.number, cause)
        ray.kill(slot.actor)
        slot.actor = _client_actor(self._execution)
        self._await_set_up(slot, self._set_up(slot))
        if self._checkpoint_files:
            slot.actor.restore.remote(self._checkpoint_files)
        for call in slot.log:
            if call in slot.open:
                call.submit()
            else:
                call.replay()

    def _forget(self, call: _Call) -> None:
        call.is_dropped = True
        call.slot.log.remove(call)
        call.slot.open.remove(call)

    def _ask(self, method: str) -> list[Any]:
        refs = [getattr(slot.actor, method).remote() for slot in self._slots]
        answers = []
        for slot, ref in zip(self._slots, refs, strict=True):
            try:
                answers.append(ray.get(ref, timeout=self._execution.timeout_s))
            except _LOST as error:
                self._replace(slot, _first_line(error))
                answers.append(_get(getattr(slot.actor, method).remote(), self._execution.timeout_s))
        return answers


@dataclass(eq=False)
class _Slot:
    """An actor, and what it takes to put another in its place.

    Attributes:
        number: Position among the actors.
        actor: The handle.
        clients: Clients that live here.
        log: Calls since the last checkpoint, in order: repeated, they lead to the same state.
        open: Those of them whose results are still to be fetched, in order.
    """

    number: int
    actor: Any
    clients: list[int]
    log: list[_Call] = field(default_factory=list)
    open: list[_Call] = field(default_factory=list)


@dataclass(eq=False)
class _Call:
    """One `train` or `evaluate` of one actor, and its results so far."""

    slot: _Slot
    method: str
    part: Chunk
    round_index: int
    arguments: tuple[Any, ...]
    num_returns: int = 1
    refs: list[Any] = field(default_factory=list)
    has_ended: bool = False
    is_dropped: bool = False
    attempts: int = 0

    def submit(self) -> None:
        """Call the actor; results fetched before are not fetched again."""
        method = getattr(self.slot.actor, self.method).options(num_returns=self.num_returns)
        refs = method.remote(self.part, *self.arguments)
        self.refs = refs if isinstance(refs, list) else [refs]
        self.has_ended = False

    def replay(self) -> None:
        """Call the actor for the effect on its clients' states."""
        self.slot.actor.replay.remote(self.method, self.part, *self.arguments)

    def succeeded(self) -> bool:
        """Whether the first result is there, or was fetched already."""
        if self.refs[0] is None:
            return True
        try:
            ray.get(self.refs[0], timeout=0)
        except ray.exceptions.RayError:
            return False
        return True


@dataclass(frozen=True)
class _TrainingReport:
    """What comes back of a part of a chunk besides its blocks."""

    records: tuple[ClientTraining, ...]
    instances: tuple[BlockInstance, ...]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]


def _blocks(manifest: Manifest, values: Sequence[np.ndarray]) -> dict[BlockInstance, SentBlock]:
    return {instance: SentBlock(version, array) for (instance, version), array in zip(manifest, values, strict=True)}


def _total(counts: Iterable[Mapping[BlockInstance, int]]) -> dict[BlockInstance, int]:
    total: dict[BlockInstance, int] = {}
    for part in counts:
        for instance, count in part.items():
            total[instance] = total.get(instance, 0) + count
    return total


def _clients(part: Chunk) -> str:
    first, *others = part.clients
    return f"client {first}" + (f" and {len(others)} others" if others else "")


def _client_actor(execution: Execution) -> Any:
    resources = execution.client_resources
    actor_type: Any = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0)(ClientActor)
    return actor_type.remote(resources.num_gpus)


def _spawn_clients(execution: Execution, num_clients: int) -> list[Any]:
    """Start the actors that will hold the clients, a few at a time; the last ones may still be starting."""
    offered = ray.cluster_resources()
    room = Room(offered.get("CPU", 0.0), offered.get("GPU", 0.0), offered.get("memory", 0.0))
    actors: list[Any] = []
    starting: list[Any] = []
    for _ in range(num_actors(execution, num_clients, room)):
        if len(starting) >= _STARTING_PER_CORE * max(1.0, room.num_cpus):
            done, starting = ray.wait(starting, num_returns=1, timeout=_START_TIMEOUT_S)
            if not done:
                raise ActorTimeoutError(f"no client actor came up within {_START_TIMEOUT_S:g} s")
        actors.append(_client_actor(execution))
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
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError, OSError, ValueError, ray.exceptions.RayError) as error:
        raise RunError(
            f"Ray did not start: {error}\nhint: RAY_TMPDIR names the folder of its sockets and logs; it needs a short "
            "path with free space"
        ) from error
    if in_main_thread and before is not None:
        # Ray takes SIGTERM over; whoever handled it before knows how to end a run.
        signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ray_errors(who: str, lost: type[ActorLostError] = ActorLostError) -> Iterator[None]:
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
        raise lost(f"{who} {_first_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"{who} failed: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """One cause in one line, as a phrase after the name of what failed."""
    text = str(error)
    if "OOM" in text or isinstance(error, ray.exceptions.OutOfMemoryError):
        return "was killed because the machine ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError):
        return "died: its process ended unexpectedly" if "worker process" in text else "died"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return f"failed: {type(error).__name__}: {lines[0] if lines else 'no message'}"
