"""The interface between the loop and whatever executes clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.checkpoint import Checkpoint
from blossom_ray.clients.plan import ChunkEvaluation, ChunkUpdate, SentBlocks
from blossom_ray.core.blocks import Block
from blossom_ray.core.records import ActorRound, Failure, Scoring
from blossom_ray.core.sums import PartialSum
from blossom_ray.runtime.kernels import Kernels


@dataclass(frozen=True)
class RuntimeRound:
    """What happened in a runtime since it was last asked.

    Attributes:
        failures: What went wrong, in the order in which it was noticed.
        actors: What each client actor did; none where there are no actors.
    """

    failures: tuple[Failure, ...] = ()
    actors: tuple[ActorRound, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a runtime says of itself.

    Attributes:
        entries: What the run's manifest says about execution.
        private_digests: SHA-256 (hex) of every client's private state, by client, in ascending order.
        kernels: What chooses the CPU kernels of each process that holds clients, unless it is this one.
        obstacles: Lines on what of stacked clients was computed for one after the other until now, and why.
    """

    entries: Mapping[str, object]
    private_digests: Mapping[int, str]
    kernels: Sequence[Kernels] = ()
    obstacles: Sequence[str] = ()


@dataclass(frozen=True)
class Pending:
    """Clients' states on their way to disk, as part of a checkpoint.

    Attributes:
        wait: Waits until they are there; False if a host was lost over it, so that there will be no such checkpoint.
        commit: To be called once the checkpoint is whole: work up to its round need not be repeated any more.
    """

    wait: Callable[[], bool]
    commit: Callable[[Checkpoint], None] = field(default=lambda _: None)


class Runtime(Protocol):
    """Trains and scores chunks. Results come in the order of the chunks, whatever finished first.

    Two runtimes, or two placements of one, give the same bits on the same processor.
    """

    def train(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, learning_rate: float
    ) -> Iterator[ChunkUpdate]:
        """Train the chunks' clients on these blocks."""

    def evaluate(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, scoring: Scoring
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks, in the state and on the samples that `scoring` names."""

    def private_sums(self, chunks: Sequence[Chunk], *, round_index: int) -> Iterator[Mapping[Block, PartialSum]]:
        """By chunk the private blocks of its clients after a round, added up; nothing of clients that never trained."""

    def take_round(self) -> RuntimeRound:
        """What happened since the last call, by whatever call it was noticed."""

    def save(self, folder: Path, round_index: int) -> Pending:
        """Have every host write its clients' states after this round into `folder`, in the background."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give every client the state that it has in a checkpoint."""

    def describe(self) -> Description:
        """What there is to say of the runtime and of the state of its clients."""

    def close(self) -> None:
        """Free everything. May be called twice."""
