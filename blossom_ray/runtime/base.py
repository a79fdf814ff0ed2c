"""The interface between the loop and whatever executes clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.checkpoint import Checkpoint
from blossom_ray.clients.plan import ChunkEvaluation, SentBlock
from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.records import ActorRound, ClientTraining, Failure, Scoring
from blossom_ray.core.sums import PartialSum, Vector, weighted_sum
from blossom_ray.runtime.kernels import Kernels


@dataclass(frozen=True)
class ChunkUpdate:
    """A trained chunk as the loop sees it.

    Attributes:
        chunk: The chunk.
        records: One per client, in client order.
        sums: The chunk's partial sum of each block instance, fetched as it is iterated; iterate it once.
        bytes_down: Bytes sent to these clients by block instance.
        bytes_up: Bytes that they sent back by block instance.
    """

    chunk: Chunk
    records: tuple[ClientTraining, ...]
    sums: Iterator[tuple[BlockInstance, PartialSum]]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]


class Runtime(Protocol):
    """Trains and scores chunks. Results come in the order of the chunks, whatever finished first.

    Two runtimes, or two placements of one, give the same bits on the same processor.
    """

    def train(
        self,
        chunks: Sequence[Chunk],
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        learning_rate: float,
    ) -> Iterator[ChunkUpdate]:
        """Train the chunks' clients on these blocks."""

    def evaluate(
        self,
        chunks: Sequence[Chunk],
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        scoring: Scoring,
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks, in the state and on the samples that `scoring` names."""

    def take_failures(self) -> tuple[Failure, ...]:
        """What went wrong since the last call."""

    def take_actors(self) -> tuple[ActorRound, ...]:
        """What each client actor did since the last call; nothing where there are no actors."""

    def begin_checkpoint(self, folder: Path, round_index: int) -> None:
        """Have every host write its clients' states after this round into `folder`, in the background."""

    def finish_checkpoint(self) -> bool:
        """Wait until the states of `begin_checkpoint` are on disk; False if a host was lost over it."""

    def committed(self, checkpoint: Checkpoint) -> None:
        """Take note of a checkpoint that is whole: work up to its round need not be repeated any more."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give every client the state that it has in a checkpoint."""

    def private_digests(self) -> dict[int, str]:
        """SHA-256 (hex) of every client's private state, by client."""

    def describe(self) -> dict[str, object]:
        """What the run's manifest says about execution."""

    def kernels(self) -> Sequence[Kernels]:
        """What chooses the CPU kernels of each process that holds clients, unless it is this one."""

    def close(self) -> None:
        """Free everything. May be called twice."""


def chunk_sum(
    pieces: Sequence[tuple[tuple[ClientTraining, ...], PartialSum | np.ndarray]],
) -> PartialSum:
    """A chunk's partial sum of one block from what its hosts sent: the same bits however it was divided.

    Args:
        pieces: Per host its clients' records with the partial sum of the whole chunk (one host), or with their
            values, stacked (clients, size) float32.
    """
    updates: list[tuple[int, float, Vector]] = []
    for records, sent in pieces:
        if isinstance(sent, PartialSum):
            return sent
        updates += [(record.client, record.weight, vector) for record, vector in zip(records, sent, strict=True)]
    updates.sort(key=lambda update: update[0])
    return weighted_sum((weight, vector) for _, weight, vector in updates)
