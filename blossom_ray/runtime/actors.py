"""The runtime on Ray: the driver actor's side of the client actors, which it starts, calls and replaces.

Blocks travel as NumPy arrays, one object per block instance and version, as top-level arguments; updates come back one
object per block.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.checkpoint import Checkpoint
from blossom_ray.clients.plan import ChunkEvaluation, ChunkUpdate, SentBlocks
from blossom_ray.core.blocks import Block, BlockInstance
from blossom_ray.core.records import Scoring
from blossom_ray.core.sums import Contributions, PartialSum, summed
from blossom_ray.errors import ActorLostError, ActorTimeoutError, ClientError, RunError, RunFolderError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.base import Description, Pending, RuntimeRound
from blossom_ray.runtime.client_actor import ClientActor, TrainingReport, Versions
from blossom_ray.runtime.cluster import client_environment, get, has_succeeded, is_own_session, offered_room, overdue
from blossom_ray.runtime.joining import num_nodes
from blossom_ray.runtime.placement import Room, actor_of_client, num_actors
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.runtime.recovery import Call, Lost, Recovery, Slot, check_room
from blossom_ray.runtime.resting import Caller, Turns
from blossom_ray.scenario.sections import Execution

# Processes that Ray may be starting at once, per CPU core: all at once would make it give up on the last ones.
_STARTING_PER_CORE = 4
_START_TIMEOUT_S = 300.0
_END_PATIENCE_S = 2.0
"""How long an actor that could be stopped may take to end before others are ended, too."""
_FIRST_PATIENCE_S = 120.0
"""How long an actor may take to hold its clients before another one is tried: Ray can lose a call to one that is up.
Also how long actors that wait for their turn stand back for calls of which none ends."""
# Between two looks at whether there is still room for an actor that does not come up.
_LOOK_S = 2.0
# Actors that may wait as Ray has them wait, per CPU core: together they take a twentieth of it.
_WAITING_PER_CORE = 10
# Where there are more: actors that work at a time, per CPU core, so that each finds the next one's work there.
_WORKING_PER_CORE = 4


class ActorRuntime:
    """A `Runtime` whose clients live in actors.

    An actor that is lost is replaced: its clients are restored from the last checkpoint, what they did since is
    repeated in the same order, and results that are still needed come from the repetition, with the same bits.

    Args:
        preparation: The prepared federation.
        actors: The actors, which may still be starting.
    """

    def __init__(self, preparation: Preparation, actors: Sequence[Caller]) -> None:
        scenario = preparation.scenario
        self._plan, self._population = preparation.plan, preparation.population
        self._execution, self._recovery = scenario.execution, Recovery(scenario.failures)
        self._keeps_best = scenario.stop is not None
        self._costs = preparation.costs()
        self._actor_of = actor_of_client(
            self._execution,
            self._population.chunks,
            self._costs,
            len(actors),
            stacked=preparation.stacked_chunks(),
        )
        self._environment = client_environment(self._execution.client_resources)
        room = offered_room()
        self._most_awake = most = _WORKING_PER_CORE * max(1, int(room.num_cpus))
        self._turns = Turns(most, _some_done) if _are_many(len(actors), room) else None
        self._rests = _may_rest(len(actors), room)
        for actor in actors:
            actor.turns = self._turns
        self._preparation, self._shared = preparation, ray.put(preparation)
        members: list[list[int]] = [[] for _ in actors]
        for client, number in enumerate(self._actor_of):
            members[number].append(client)
        self._slots = [Slot(number, actor, members[number]) for number, actor in enumerate(actors)]
        self._sent: dict[BlockInstance, tuple[int, Any]] = {}
        self._checkpoint_files: tuple[Path, ...] = ()
        for slot, ready in [(slot, self._set_up(slot)) for slot in self._slots]:
            self._await_set_up(slot, ready)

    def train(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, learning_rate: float
    ) -> Iterator[ChunkUpdate]:
        """Train the chunks' clients on these blocks."""
        self._send(blocks)

        def make(slot: Slot, part: Chunk, whole: bool) -> Call:
            versions, refs = self._arguments(part)
            returned = len(self._plan.returned_blocks(self._population.profiles[part.clients[0]]))
            arguments = (versions, round_index, learning_rate, whole, *refs)
            return Call(slot, "train", part, round_index, arguments, num_returns=1 + returned)

        for calls in self._run(chunks, make):
            reports: list[tuple[Call, TrainingReport]] = []
            down, up = Counter[BlockInstance](), Counter[BlockInstance]()
            for call in calls:
                report: TrainingReport | None = self._fetch(call, 0)
                if report is not None:
                    call.slot.worked(report.records)
                    call.slot.memory_bytes = report.memory_bytes
                    down.update(report.bytes_down)
                    up.update(report.bytes_up)
                    reports.append((call, report))
            if reports:
                records = (record for _, report in reports for record in report.records)
                by_client = tuple(sorted(records, key=lambda record: record.client))
                yield ChunkUpdate(by_client, self._parts(reports), down, up)

    def evaluate(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, scoring: Scoring
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks, in the state and on the samples that `scoring` names."""
        self._send(blocks)

        def make(slot: Slot, part: Chunk, _whole: bool) -> Call:
            versions, refs = self._arguments(part, scored=True)
            return Call(slot, "evaluate", part, round_index, (versions, round_index, scoring, *refs))

        for calls in self._run(chunks, make):
            for call in calls:
                scores = self._fetch(call, 0)
                if scores is not None:
                    call.slot.worked(scores.records)
                    yield scores

    def private_sums(self, chunks: Sequence[Chunk], *, round_index: int) -> Iterator[Mapping[Block, PartialSum]]:
        """By chunk the private blocks of its clients after a round, added up."""

        def make(slot: Slot, part: Chunk, whole: bool) -> Call:
            return Call(slot, "private_sums", part, round_index, ((), round_index, whole))

        for calls in self._run(chunks, make):
            yield summed([self._fetch(call, 0) for call in calls])

    def take_round(self) -> RuntimeRound:
        """What went wrong, and what each client actor did, since the last call."""
        return RuntimeRound(self._recovery.take(), tuple(slot.take_round() for slot in self._slots))

    def check_shared(self, folder: Path) -> None:
        """Find out before the first round whether every actor is on a node that sees a folder.

        Raises:
            RunError: One is not, and could not write its part of a checkpoint.
        """
        for slot, sees in zip(self._slots, self._ask("set-up", "sees", folder), strict=True):
            if not sees:
                raise _not_shared(folder, slot, has_stop=self._keeps_best)

    def save(self, folder: Path, round_index: int) -> Pending:
        """Have every actor write its clients' states after this round into `folder`, in the background.

        Waiting for it raises:
            StorageError: The disk is full.
            RunError: An actor is on a node that does not see the loop's folder, or is not seen from there.
        """
        begun = []
        for slot in self._slots:
            path = folder / f"clients-{slot.number}.safetensors"
            begun.append((slot, slot.actor, path, slot.actor.call("begin_checkpoint", path, round_index)))
        return Pending(partial(self._await_saved, begun), self._commit)

    def _await_saved(self, begun: Sequence[tuple[Slot, Caller, Path, Any]]) -> bool:
        whole = True
        for slot, actor, path, ref in begun:
            if slot.actor is not actor:
                whole = False  # lost in the round since then, and replaced already
                continue
            try:
                get(ref, self._execution.timeout_s)
                get(slot.actor.call("finish_checkpoint"), self._execution.timeout_s)
            except (ActorLostError, ActorTimeoutError) as lost:
                self._recovery.must_repeat(slot, "checkpoint", 1, lost)
                self._replace(slot, lost)
                whole = False
            except RunFolderError as error:
                if num_nodes() == 1:
                    raise
                raise _not_shared(path.parent, slot, has_stop=self._keeps_best) from error
            else:
                if not path.exists():
                    raise _not_shared(path.parent, slot, has_stop=self._keeps_best)
        return whole

    def _commit(self, checkpoint: Checkpoint) -> None:
        """Repeat work from this checkpoint on, if it has to be repeated."""
        self._checkpoint_files = checkpoint.client_files
        for slot in self._slots:
            slot.log = [call for call in slot.log if call.round_index > checkpoint.round_index]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give every client the state that it has in a checkpoint."""
        self._checkpoint_files = checkpoint.client_files
        for slot in self._slots:
            slot.log.clear()  # what was done since need not be repeated in another actor
        self._ask("set-up", "restore", self._checkpoint_files)

    def describe(self) -> Description:
        """What there is to say of the actors and of the state of their clients."""
        peaks, digests, kernels, obstacles = zip(*self._ask("end", "describe"), strict=True)
        return Description(
            {"runtime": "ray", "actors": len(self._slots), "peak_actor_memory_bytes": max(peaks)},
            dict(sorted(item for part in digests for item in part.items())),
            kernels,
            sorted({line for lines in obstacles for line in lines}),
        )

    def close(self) -> None:
        """End the actors, a few at a time where they are many: each is awake while it ends."""
        self._sent.clear()
        patience_s = _END_PATIENCE_S
        while self._slots:
            ending = [self._slots.pop().actor for _ in range(min(self._most_awake, len(self._slots)))]
            for actor in ending:
                actor.wake()
                ray.kill(actor.handle)
            for actor in ending:
                if not actor.close(patience_s):
                    patience_s = 0.0  # Ray does not get to it: no other one is waited for

    def _start_actor(self) -> Caller:
        actor = _client_actor(self._execution, self._environment)
        actor.turns = self._turns
        return actor

    def _set_up(self, slot: Slot) -> Any:
        buffers = self._preparation.pack_shards(slot.clients) if self._ships_shards() else None
        return slot.actor.call("setup", self._shared, slot.clients, buffers, self._checkpoint_files)

    def _ships_shards(self) -> bool:
        if self._execution.shards == "auto":
            return num_nodes() > 1
        return self._execution.shards == "object-store"

    def _await_set_up(self, slot: Slot, ready: Any) -> None:
        """Wait until an actor holds its clients; one that dies over it, or does not answer, is replaced."""
        attempts = 0
        while True:
            try:
                process = self._await_ready(ready, _START_TIMEOUT_S if attempts else _FIRST_PATIENCE_S)
                if self._rests:
                    slot.actor.runs_in(process)
                return
            except (ActorLostError, ActorTimeoutError) as lost:
                attempts += 1
                self._recovery.must_repeat(slot, "set-up", attempts, lost)
                _kill(slot.actor)
                slot.actor = self._start_actor()
                slot.times_replaced += 1
                ready = self._set_up(slot)

    def _await_ready(self, ready: Any, patience_s: float) -> int:
        """Wait for an actor to come up, as long as the cluster has room for it; its process."""
        give_up = time.monotonic() + patience_s
        while not ray.wait([ready], timeout=_LOOK_S, fetch_local=False)[0]:
            check_room(offered_room(), self._execution.client_resources, len(self._slots))
            if time.monotonic() > give_up:
                raise ActorTimeoutError(
                    f"was not up within {patience_s:g} s",
                    "fewer actors (a larger execution.clients_per_actor), or a machine with less load",
                )
        process: int = get(ready)
        return process

    def _send(self, blocks: SentBlocks) -> None:
        """Put each new version of a block into the object store, once, and let go of the one before it."""
        for instance, block in blocks.items():
            if instance not in self._sent or self._sent[instance][0] != block.version:
                self._sent[instance] = (block.version, ray.put(block.values))

    def _arguments(self, part: Chunk, *, scored: bool = False) -> tuple[Versions, list[Any]]:
        profiles = [self._population.profiles[client] for client in part.clients]
        instances = self._plan.sent_together(profiles, scored=scored)
        versions = tuple((instance, self._sent[instance][0]) for instance in instances)
        return versions, [self._sent[instance][1] for instance in instances]

    def _run(self, chunks: Sequence[Chunk], make: Callable[[Slot, Chunk, bool], Call]) -> Iterator[list[Call]]:
        """Submit all chunks, the longest first; yield the calls of each in its turn, one per actor that holds it."""
        calls: dict[int, list[Call]] = {}
        costs = [-sum(self._costs[client] for client in chunk.clients) for chunk in chunks]
        for place in sorted(range(len(chunks)), key=costs.__getitem__):
            chunk = chunks[place]
            by_slot: dict[int, list[int]] = {}
            for client in chunk.clients:
                by_slot.setdefault(self._actor_of[client], []).append(client)
            for number, clients in by_slot.items():
                call = make(self._slots[number], Chunk(chunk.index, tuple(clients)), len(by_slot) == 1)
                call.submit()
                call.slot.log.append(call)
                call.slot.open.append(call)
                calls.setdefault(place, []).append(call)
        for place in range(len(chunks)):
            yield calls.pop(place)

    def _parts(
        self, reports: Sequence[tuple[Call, TrainingReport]]
    ) -> Iterator[tuple[BlockInstance, PartialSum | Contributions]]:
        """What the clients of a chunk sent back of each block, fetched one after the other."""
        for position, instance in enumerate(reports[0][1].instances, start=1):
            parts = [self._fetch(call, position) for call, _ in reports]
            yield instance, parts[0] if isinstance(parts[0], PartialSum) else Contributions.joined(parts)

    def _fetch(self, call: Call, position: int) -> Any:
        """One of a call's results; None where its clients were dropped. What was lost on the way is done again."""
        while not call.is_dropped:
            try:
                self._await_turn(call)
                result = get(call.refs[position])
            except (ActorLostError, ActorTimeoutError) as lost:
                self._recover(call, lost)
            except ClientError as error:
                self._recovery.drop_client(call, error)
                call.part = call.part.without(error.client)
                if call.part.clients:
                    call.submit()
                else:
                    self._forget(call)
            else:
                call.refs[position] = None
                call.is_reported = True
                if position == call.num_returns - 1:
                    call.slot.open.remove(call)
                return result
        return None

    def _await_turn(self, call: Call) -> None:
        """Wait until a call has ended, giving each call before it on the same actor its own time.

        Raises:
            ActorTimeoutError: One of them took too long.
        """
        for earlier in [*call.slot.open]:
            if not earlier.has_ended:
                done, _ = ray.wait([earlier.refs[0]], timeout=self._execution.timeout_s, fetch_local=False)
                if not done:
                    raise overdue(self._execution.timeout_s)
                earlier.has_ended = True
            if earlier is call:
                return

    def _recover(self, noticed: Call, lost: Lost) -> None:
        """An actor died or hung: repeat or drop the call that it was at, as the scenario says, in another actor.

        That is the first call without a result; if all have one, the one whose result could not be fetched.
        """
        slot = noticed.slot
        unfinished = (call for call in slot.open if call.refs[0] is not None and not has_succeeded(call.refs[0]))
        culprit = next(unfinished, noticed)
        if self._recovery.must_drop(culprit, lost):
            self._forget(culprit)
        self._replace(slot, lost)

    def _replace(self, slot: Slot, lost: Lost) -> None:
        """Start a new actor in place of a lost one, and bring its clients to where they were."""
        logging.getLogger(__name__).info("actor %d is replaced: it %s", slot.number, lost.cause)
        _kill(slot.actor)
        slot.actor = self._start_actor()
        slot.times_replaced += 1
        self._await_set_up(slot, self._set_up(slot))
        for call in slot.log:
            if call in slot.open:
                call.submit()
            else:
                call.replay()

    def _forget(self, call: Call) -> None:
        call.is_dropped = True
        call.slot.log.remove(call)
        call.slot.open.remove(call)

    def _ask(self, phase: str, method: str, *arguments: Any) -> list[Any]:
        """Every actor's answer to a question; actors that are lost over it are replaced."""
        refs = [slot.actor.call(method, *arguments) for slot in self._slots]
        return [self._answer(slot, ref, phase, method, arguments) for slot, ref in zip(self._slots, refs, strict=True)]

    def _answer(self, slot: Slot, ref: Any, phase: str, method: str, arguments: tuple[Any, ...]) -> Any:
        attempts = 0
        while True:
            try:
                return get(ref, self._execution.timeout_s)
            except (ActorLostError, ActorTimeoutError) as lost:
                attempts += 1
                self._recovery.must_repeat(slot, phase, attempts, lost)
                self._replace(slot, lost)
                ref = slot.actor.call(method, *arguments)


def _are_many(num_actors: int, room: Room) -> bool:
    """Whether so many actors have to work a few at a time."""
    return num_actors > _WAITING_PER_CORE * max(1.0, room.num_cpus)


def _may_rest(num_actors: int, room: Room) -> bool:
    """Whether they also stop between two calls: a cluster that is joined hangs up on those that do."""
    return _are_many(num_actors, room) and is_own_session()


def _some_done(refs: list[Any]) -> list[Any]:
    done: list[Any] = ray.wait(refs, timeout=_FIRST_PATIENCE_S, fetch_local=False)[0]
    return done


def _client_actor(execution: Execution, environment: Mapping[str, str]) -> Caller:
    resources = execution.client_resources
    actor_type: Any = ray.remote(
        num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0, runtime_env={**environment}
    )(ClientActor)
    return Caller(actor_type.remote(resources.num_gpus))


def _kill(actor: Caller) -> None:
    actor.close()
    ray.kill(actor.handle)


def spawn_clients(scenario: Scenario, num_started: int = 0, *, stacks: bool) -> list[Caller]:
    """Start the actors that will hold the clients, a few at a time; the last ones may still be starting.

    Args:
        scenario: The scenario.
        num_started: Actors that are there already.
        stacks: Whether some chunk is stacked, or may be: as many are started as are needed in any case.
    """
    execution = scenario.execution
    environment, room = client_environment(execution.client_resources), offered_room()
    actors: list[Caller] = []
    starting: dict[Any, Caller] = {}
    wanted = num_actors(execution, scenario.num_clients, room, whole_chunks=stacks)
    rests = _may_rest(wanted, room)
    for _ in range(wanted - num_started):
        if len(starting) >= _STARTING_PER_CORE * max(1.0, room.num_cpus):
            done, _ = ray.wait([*starting], num_returns=1, timeout=_START_TIMEOUT_S)
            if not done:
                raise ActorTimeoutError(
                    f"no client actor came up within {_START_TIMEOUT_S:g} s",
                    "fewer actors (a larger execution.clients_per_actor), or a machine with less load",
                )
            actor = starting.pop(done[0])
            if rests and has_succeeded(done[0]):
                actor.runs_in(get(done[0]))
                actor.rest()
        actors.append(_client_actor(execution, environment))
        starting[actors[-1].call("ready")] = actors[-1]
    return actors


def _not_shared(folder: Path, slot: Slot, *, has_stop: bool) -> RunError:
    return RunError(
        f"{folder}: actor {slot.number} is on another node, where this folder is not; checkpoints need it",
        "--out with a folder that all nodes share, or checkpoint.every: 0" + (" and no stop" if has_stop else ""),
    )
