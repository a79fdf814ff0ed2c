"""The loop and the clients on Ray: the driver actor, and the runtime that calls client actors.

With `cluster.py` this is the only module that imports ray. Blocks travel as NumPy arrays, one object per block
instance and version, as top-level arguments; updates come back one object per block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from blossom_ray.aggregation import PartialSum
from blossom_ray.blocks import BlockInstance
from blossom_ray.checkpoint import Checkpoint, Session
from blossom_ray.client import ChunkEvaluation, SentBlock
from blossom_ray.errors import ActorLostError, ActorTimeoutError, ClientError, DriverLostError, RunError
from blossom_ray.preparation import Preparation
from blossom_ray.records import Failure, Scoring
from blossom_ray.runtime.base import ChunkUpdate, Runtime, chunk_sum
from blossom_ray.runtime.calls import Call, Slot
from blossom_ray.runtime.client_actor import ClientActor, Manifest, TrainingReport
from blossom_ray.runtime.cluster import LOST, first_line, get, has_succeeded, num_nodes, offered_room, ray_errors
from blossom_ray.runtime.cluster import session as session_of_ray
from blossom_ray.runtime.placement import actor_of_client, num_actors
from blossom_ray.sampling import Chunk
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.sections import Execution

Loop = Callable[[Scenario, Session, Callable[[Preparation], Runtime], Callable[[], bool], int], Iterator[Any]]
# Processes that Ray may be starting at once, per CPU core: all at once would make it give up on the last ones.
_STARTING_PER_CORE = 4
_START_TIMEOUT_S = 300.0
# Items of the event stream that may wait for whoever watches: the loop does not run far ahead of the run folder.
_EVENTS_AHEAD = 2


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
        actors = spawn_clients(self._scenario)

        def start(preparation: Preparation) -> Runtime:
            # With `training.engine: auto` it shows only now whether clients are stacked, or may have an actor each.
            actors.extend(spawn_clients(preparation.scenario, num_started=len(actors)))
            return ActorRuntime(preparation, actors)

        at_once = min(len(actors), max(1, int(offered_room().num_cpus)))
        yield from self._loop(self._scenario, self._session, start, lambda: self._is_stopping, at_once)

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
    with session_of_ray():
        driver_type: Any = ray.remote(num_cpus=0, max_restarts=0)(DriverActor)
        # A second thread answers `stop` while the first one runs the loop.
        driver = driver_type.options(max_concurrency=2).remote(scenario, session, loop)
        try:
            with ray_errors("the driver actor", DriverLostError):
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
        self._costs = preparation.costs()
        self._actor_of = actor_of_client(
            self._execution,
            self._population.chunks,
            self._costs,
            len(actors),
            stacked=preparation.stacked_chunks(),
        )
        self._preparation, self._shared = preparation, ray.put(preparation)
        members: list[list[int]] = [[] for _ in actors]
        for client, number in enumerate(self._actor_of):
            members[number].append(client)
        self._slots = [Slot(number, actor, members[number]) for number, actor in enumerate(actors)]
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

        def make(slot: Slot, part: Chunk, whole: bool) -> Call:
            manifest, refs = self._arguments(part)
            returned = len(self._plan.returned_blocks(self._population.profiles[part.clients[0]]))
            arguments = (manifest, round_index, learning_rate, whole, *refs)
            return Call(slot, "train", part, round_index, arguments, num_returns=1 + returned)

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
        scoring: Scoring,
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks, in the state and on the samples that `scoring` names."""
        self._send(blocks)

        def make(slot: Slot, part: Chunk, _whole: bool) -> Call:
            manifest, refs = self._arguments(part)
            return Call(slot, "evaluate", part, round_index, (manifest, round_index, scoring, *refs))

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
                get(slot.actor.finish_checkpoint.remote(), self._execution.timeout_s)
            except (*LOST, ActorLostError) as error:
                self._replace(slot, first_line(error))
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
            get(ref, self._execution.timeout_s)

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

    def _set_up(self, slot: Slot) -> Any:
        buffers = self._preparation.pack_shards(slot.clients) if self._ships_shards() else None
        return slot.actor.setup.remote(self._shared, slot.clients, buffers)

    def _ships_shards(self) -> bool:
        if self._execution.shards == "auto":
            return num_nodes() > 1
        return self._execution.shards == "object-store"

    def _await_set_up(self, slot: Slot, ready: Any) -> None:
        """Wait until an actor holds its clients; one that dies over it is replaced."""
        for _ in range(self._policy.max_retries):
            try:
                ray.get(ready, timeout=_START_TIMEOUT_S)
            except LOST as error:
                self._failures.append(
                    Failure("set-up", tuple(slot.clients), slot.number, first_line(error), "repeated")
                )
                slot.actor = _client_actor(self._execution)
                ready = self._set_up(slot)
            else:
                return
        get(ready, _START_TIMEOUT_S)

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
        self, chunks: Sequence[Chunk], make: Callable[[Slot, Chunk, bool], Call]
    ) -> Iterator[tuple[Chunk, list[Call]]]:
        """Submit all chunks, the longest first; yield each in its turn with its calls, one per actor that holds it."""
        calls: dict[int, list[Call]] = {}
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

    def _update(self, chunk: Chunk, reports: Sequence[tuple[Call, TrainingReport]]) -> ChunkUpdate:
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

    def _fetch(self, call: Call, position: int) -> Any:
        """One of a call's results; None where its clients were dropped. What was lost on the way is done again."""
        while not call.is_dropped:
            try:
                self._await_turn(call)
                result = ray.get(call.refs[position])
            except LOST as error:
                self._lose(call.slot, first_line(error))
            except ray.exceptions.RayTaskError as error:
                self._drop_client(call, error)
            else:
                call.refs[position] = None
                if position == call.num_returns - 1:
                    call.slot.open.remove(call)
                return result
        return None

    def _await_turn(self, call: Call) -> None:
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

    def _drop_client(self, call: Call, error: ray.exceptions.RayTaskError) -> None:
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

    def _lose(self, slot: Slot, cause: str) -> None:
        """An actor died or hung: blame the call that it was at, and repeat or drop that as the scenario says."""
        culprit = next(
            (call for call in slot.open if call.refs[0] is not None and not has_succeeded(call.refs[0])), None
        )
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

    def _replace(self, slot: Slot, cause: str) -> None:
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

    def _forget(self, call: Call) -> None:
        call.is_dropped = True
        call.slot.log.remove(call)
        call.slot.open.remove(call)

    def _ask(self, method: str) -> list[Any]:
        refs = [getattr(slot.actor, method).remote() for slot in self._slots]
        answers = []
        for slot, ref in zip(self._slots, refs, strict=True):
            try:
                answers.append(ray.get(ref, timeout=self._execution.timeout_s))
            except LOST as error:
                self._replace(slot, first_line(error))
                answers.append(get(getattr(slot.actor, method).remote(), self._execution.timeout_s))
        return answers


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


def spawn_clients(scenario: Scenario, num_started: int = 0) -> list[Any]:
    """Start the actors that will hold the clients, a few at a time; the last ones may still be starting.

    Args:
        scenario: The scenario. Where an engine is still to be chosen, as many are started as are needed in any case.
        num_started: Actors that are there already.
    """
    room = offered_room()
    actors: list[Any] = []
    starting: list[Any] = []
    execution = scenario.execution
    wanted = num_actors(execution, scenario.num_clients, room, whole_chunks=scenario.training.may_stack)
    for _ in range(wanted - num_started):
        if len(starting) >= _STARTING_PER_CORE * max(1.0, room.num_cpus):
            done, starting = ray.wait(starting, num_returns=1, timeout=_START_TIMEOUT_S)
            if not done:
                raise ActorTimeoutError(f"no client actor came up within {_START_TIMEOUT_S:g} s")
        actors.append(_client_actor(execution))
        starting.append(actors[-1].ready.remote())
    return actors
