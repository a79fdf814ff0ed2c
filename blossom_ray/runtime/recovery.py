"""What is done about failures: the scenario's policy decides, `runtime/actors.py` acts, and each event is noted.

No Ray here: an actor that is lost comes as an `ActorLostError` or `ActorTimeoutError` whose cause is a phrase that
follows the actor's name, such as "died: its process ended unexpectedly".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import ActorRound, ClientTraining, Failure
from blossom_ray.errors import ActorLostError, ActorTimeoutError, ClientError, RunError
from blossom_ray.runtime.placement import Room
from blossom_ray.runtime.resting import Caller
from blossom_ray.scenario.sections import ClientResources, Failures

Lost = ActorLostError | ActorTimeoutError
_PHASES = {"train": "training", "evaluate": "evaluation", "private_sums": "evaluation"}


class Recovery:
    """Decides about lost work and failed clients, and remembers what happened.

    Args:
        policy: The scenario's `failures` section.
    """

    def __init__(self, policy: Failures) -> None:
        self._policy = policy
        self._failures: list[Failure] = []

    def take(self) -> tuple[Failure, ...]:
        """What went wrong since the last call, in the order in which it was noticed."""
        failures, self._failures = tuple(self._failures), []
        return failures

    def must_drop(self, call: Call, lost: Lost) -> bool:
        """Note that an actor was lost over a call; whether its clients are left out of the round.

        With `max_retries: 2` the first and the second loss have it repeated in another actor (False). At the third its
        clients are dropped with `on_failure: drop` (True), if it trains and none of its results is in the averages;
        else the run ends.

        Raises:
            ActorLostError: It was repeated often enough, and the run is to stop.
            ActorTimeoutError: The same, where the actor hangs.
        """
        call.attempts += 1
        phase = _PHASES[call.method]
        is_dropped = call.attempts > self._policy.max_retries
        if is_dropped and not (phase == "training" and self._may_drop(call)):
            raise self._ending(call.slot, call.part.clients, f"round {call.round_index}, {phase}", call.attempts, lost)
        self._note(phase, call.part.clients, call.slot, lost.cause, "dropped" if is_dropped else "repeated")
        return is_dropped

    def must_repeat(self, slot: Slot, phase: str, attempts: int, lost: Lost) -> None:
        """Note an actor that was lost outside of training and evaluation; its work is to be repeated in another.

        Args:
            slot: Where the actor was.
            phase: `set-up`, `checkpoint` or `end`.
            attempts: How often actors were lost over this.
            lost: What happened.

        Raises:
            ActorLostError: It was repeated often enough.
            ActorTimeoutError: The same, where the actor hangs.
        """
        if attempts > self._policy.max_retries:
            raise self._ending(slot, slot.clients, phase, attempts, lost)
        self._note(phase, slot.clients, slot, lost.cause, "repeated")

    def drop_client(self, call: Call, error: ClientError) -> None:
        """Note that a client whose own code failed is left out of the round.

        Raises:
            ClientError: The run is to stop, or the client failed in evaluation.
        """
        if call.method != "train" or not self._may_drop(call):
            raise error
        self._note("training", (error.client,), call.slot, error.cause, "dropped")

    def _may_drop(self, call: Call) -> bool:
        # Once a part of its results is in the averages, the rest must be, too.
        return self._policy.on_failure == "drop" and not call.is_reported

    def _note(self, phase: str, clients: Sequence[int], slot: Slot, cause: str, action: str) -> None:
        self._failures.append(Failure(phase, tuple(clients), slot.number, cause, action))

    @staticmethod
    def _ending(slot: Slot, clients: Sequence[int], when: str, attempts: int, lost: Lost) -> Lost:
        times = "once" if attempts == 1 else f"{attempts} times, the last time"
        return type(lost)(
            f"{when}: actor {slot.number} with {_clients(clients)} was lost {times} because it {lost.cause}", lost.hint
        )


def check_room(room: Room, resources: ClientResources, wanted: int) -> None:
    """Find out whether actors can still be replaced after nodes were lost.

    Args:
        room: What is left of the cluster.
        resources: What an actor reserves.
        wanted: Actors of the run.

    Raises:
        RunError: They do not fit any more.
    """
    fitting = room.num_actors(resources)
    if fitting < wanted:
        raise RunError(
            f"the cluster has become too small: {fitting} of this run's {wanted} client actors fit into {room}",
            "bring the lost node back, or go on with what is left: "
            "blossom-ray resume RUN --set execution.clients_per_actor=auto (RUN is the run folder)",
        )


def _clients(clients: Sequence[int]) -> str:
    first, *others = clients
    return f"client {first}" + (f" and {len(others)} others" if others else "")


@dataclass(eq=False)
class Slot:
    """A place for an actor, with what it takes to put another one there.

    Say that clients 3 and 4 live in slot 1, the last checkpoint is of round 6, and the actor dies while client 4 is
    trained in round 8. The next actor gets both clients, their states of round 6 from the checkpoint, and all calls of
    the log again: those of round 7 for their effect alone, the `open` ones of round 8 for their results, too.

    Attributes:
        number: Position among the actors.
        actor: What calls it.
        clients: Clients that live here.
        log: Calls since the last checkpoint, in order: repeated, they lead to the same state.
        open: Those of them whose results are still to be fetched, in order.
        seconds: Time spent on clients since `take_round`.
        memory_bytes: Resident set after the last training, None before.
        times_replaced: How often another actor took this place since `take_round`.
    """

    number: int
    actor: Caller
    clients: list[int]
    log: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)
    seconds: float = 0.0
    memory_bytes: int | None = None
    times_replaced: int = 0

    def worked(self, records: Iterable[ClientTraining | ClientEvaluation]) -> None:
        """Take note of the time that clients took."""
        self.seconds += sum(record.seconds for record in records)

    def take_round(self) -> ActorRound:
        """What happened here since the last call."""
        taken = ActorRound(self.number, len(self.clients), self.seconds, self.memory_bytes, self.times_replaced)
        self.seconds, self.times_replaced = 0.0, 0
        return taken


@dataclass(eq=False)
class Call:
    """One `train`, `evaluate` or `private_sums` of one actor, and its results so far.

    Attributes:
        slot: Where the actor is.
        method: `train`, `evaluate` or `private_sums`.
        part: The chunk, or the part of it that lives there.
        round_index: The round.
        arguments: What the method gets besides.
        num_returns: Number of results.
        refs: References to them; None for those that were fetched.
        has_ended: Whether the actor is done with it.
        is_dropped: Whether its clients were left out of the round.
        is_reported: Whether a result of it was fetched.
        attempts: How often an actor was lost over it.
    """

    slot: Slot
    method: str
    part: Chunk
    round_index: int
    arguments: tuple[Any, ...]
    num_returns: int = 1
    refs: list[Any] = field(default_factory=list)
    has_ended: bool = False
    is_dropped: bool = False
    is_reported: bool = False
    attempts: int = 0

    def submit(self) -> None:
        """Call the actor; results fetched before are not fetched again."""
        refs = self.slot.actor.call(self.method, self.part, *self.arguments, num_returns=self.num_returns)
        self.refs = refs if isinstance(refs, list) else [refs]
        self.has_ended = False

    def replay(self) -> None:
        """Call the actor for the effect on its clients' states."""
        self.slot.actor.call("replay", self.method, self.part, *self.arguments)
