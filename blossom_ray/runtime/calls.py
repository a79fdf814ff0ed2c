"""Calls of client actors, and what it takes to repeat them in another actor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.core.records import ActorRound, ClientEvaluation, ClientTraining


@dataclass(eq=False)
class Slot:
    """An actor, and what it takes to put another in its place.

    Attributes:
        number: Position among the actors.
        actor: The handle.
        clients: Clients that live here.
        log: Calls since the last checkpoint, in order: repeated, they lead to the same state.
        open: Those of them whose results are still to be fetched, in order.
        seconds: Time spent on clients since `take_round`.
        memory_bytes: Resident set after the last training, None before.
        times_replaced: How often another actor took this place since `take_round`.
    """

    number: int
    actor: Any
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
    """One `train` or `evaluate` of one actor, and its results so far.

    Attributes:
        slot: Where the actor is.
        method: `train` or `evaluate`.
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
        method = getattr(self.slot.actor, self.method).options(num_returns=self.num_returns)
        refs = method.remote(self.part, *self.arguments)
        self.refs = refs if isinstance(refs, list) else [refs]
        self.has_ended = False

    def replay(self) -> None:
        """Call the actor for the effect on its clients' states."""
        self.slot.actor.replay.remote(self.method, self.part, *self.arguments)
