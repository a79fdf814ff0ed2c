"""Who takes part in a round, and the chunks that a cohort is cut into.

Both follow from the scenario alone, so that placement on processes can never change a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from blossom_ray.core.blocks import ClientProfile, Signature
from blossom_ray.core.seeding import Purpose, generator, stable_number


@dataclass(frozen=True)
class Chunk:
    """Clients of one modality set, group and set of tasks whose updates are summed together.

    Attributes:
        index: Position in the order of all chunks.
        clients: Client ids, ascending.
    """

    index: int
    clients: tuple[int, ...]

    def without(self, client: int) -> Chunk:
        """The chunk without one of its clients."""
        return Chunk(self.index, tuple(other for other in self.clients if other != client))

    def pieces(self, most: int) -> Iterator[Chunk]:
        """The chunk in parts of so many clients."""
        for start in range(0, len(self.clients), most):
            yield Chunk(self.index, self.clients[start : start + most])


class Population:
    """The registered clients and their chunks. Those that never train are the last ones, and have chunks of their own.

    Clients are ordered by (modality set, group, task, id) and cut every `size` clients; a cohort's chunks are the parts
    of these that were drawn. A chunk is what an actor holds, trains and sums, so the cut is made wide enough for
    `chunk_size` clients to be drawn from it on average.

    Args:
        profiles: All clients in the order of their ids; those that never train stand last.
        chunk_size: Clients of one chunk that train in an average round.
        clients_per_round: As in the scenario: a fraction (float) or a number of clients (int), of those that train; or
            one for each task, of its clients.

    Attributes:
        trained: Those that train.
        unseen: Those that never do.
        cohort_size: Clients of a round.
        size_of_task: The same by task, where each has a number of its own; else empty.
    """

    def __init__(
        self,
        profiles: Sequence[ClientProfile],
        chunk_size: int,
        clients_per_round: float | int | Mapping[str, float | int],
    ) -> None:
        self.profiles = tuple(profiles)
        self.trained = tuple(profile for profile in self.profiles if not profile.is_unseen)
        self.unseen = self.profiles[len(self.trained) :]
        self.size_of_task: dict[str, int] = {}
        if isinstance(clients_per_round, Mapping):
            members = Counter(task for profile in self.trained for task in profile.tasks)
            self.size_of_task = {
                task: cohort_size(size, members[task]) for task, size in sorted(clients_per_round.items())
            }
            self.cohort_size = sum(self.size_of_task.values())
        else:
            self.cohort_size = cohort_size(clients_per_round, len(self.trained))
        self._chunk_size = math.ceil(chunk_size * len(self.trained) / self.cohort_size)

    @cached_property
    def signatures(self) -> Mapping[Signature, tuple[int, ...]]:
        """Clients that train by (modality set, group, task), in sorted order of these."""
        return _by_signature(self.trained)

    def representatives(self) -> tuple[ClientProfile, ...]:
        """One client of each signature."""
        return tuple(self.profiles[members[0]] for members in self.signatures.values())

    def unseen_representatives(self) -> tuple[ClientProfile, ...]:
        """One client of each signature of those that never train."""
        return tuple(self.profiles[members[0]] for members in _by_signature(self.unseen).values())

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks of all registered clients; last those of clients that never train."""
        kinds = (*self.signatures.values(), *_by_signature(self.unseen).values())
        parts = [
            clients[start : start + self._chunk_size]
            for clients in kinds
            for start in range(0, len(clients), self._chunk_size)
        ]
        return tuple(Chunk(index, part) for index, part in enumerate(parts))

    def cohort(self, seed: int, round_index: int) -> tuple[int, ...]:
        """The clients of one round, ascending: drawn without replacement, every client that trains equally likely.

        Of tasks with a number of their own, so many of the clients of each.
        """
        if not self.size_of_task:
            return draw_clients(len(self.trained), self.cohort_size, seed, Purpose.COHORT, round_index)
        drawn: list[int] = []
        for task, size in self.size_of_task.items():
            members = [profile.index for profile in self.trained if task in profile.tasks]
            places = draw_clients(len(members), size, seed, Purpose.COHORT, round_index, stable_number(task))
            drawn += [members[place] for place in places]
        return tuple(sorted(drawn))

    def cut(self, clients: Iterable[int]) -> tuple[Chunk, ...]:
        """The chunks of some clients, in the order of all chunks, without the empty ones."""
        drawn = set(clients)
        parts = (Chunk(chunk.index, tuple(c for c in chunk.clients if c in drawn)) for chunk in self.chunks)
        return tuple(part for part in parts if part.clients)


def _by_signature(profiles: Iterable[ClientProfile]) -> dict[Signature, tuple[int, ...]]:
    members: dict[Signature, list[int]] = {}
    for profile in profiles:
        members.setdefault(profile.signature, []).append(profile.index)
    return {signature: tuple(members[signature]) for signature in sorted(members)}


def cohort_size(clients_per_round: float | int, num_clients: int) -> int:
    """Number of clients per round: an int as it is, a fraction of all clients rounded down, at least one."""
    if isinstance(clients_per_round, int):
        return clients_per_round
    return fraction_of(clients_per_round, num_clients)


def fraction_of(fraction: float, number: int) -> int:
    """A fraction of so many, rounded down, at least one: 0.29 of 100 is 29, though 0.29 * 100 is 28.999999999999996."""
    return max(1, math.floor(fraction * number + 1e-9))


def draw_clients(
    num_clients: int, size: int, seed: int, purpose: Purpose, round_index: int, task: int = 0
) -> tuple[int, ...]:
    """`size` of `num_clients` client ids without replacement, ascending; `task` is a number of the task, or 0."""
    if size == num_clients:
        return tuple(range(num_clients))
    drawn = generator(seed, purpose, round_index, task).choice(num_clients, size, replace=False)
    return tuple(int(client) for client in np.sort(drawn))
