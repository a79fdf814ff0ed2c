"""The pooled reference: one model trained on all clients' training splits together, scored as any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.checkpoint import Checkpoint
from blossom_ray.clients.engines import check_finite
from blossom_ray.clients.local_training import LocalResult, Trainer, cut, kept_modalities, seeded_dropout
from blossom_ray.clients.options import Training
from blossom_ray.clients.phases import Phase
from blossom_ray.clients.plan import ChunkEvaluation, SentBlock
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import BlockInstance, ClientProfile
from blossom_ray.core.records import ActorRound, ClientTraining, Failure, Scoring
from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.core.sums import PartialSum
from blossom_ray.errors import ClientError, RunError
from blossom_ray.runtime.base import ChunkUpdate, Runtime
from blossom_ray.runtime.kernels import Kernels
from blossom_ray.runtime.preparation import Preparation


class CentralRuntime:
    """A `Runtime` that trains one model on all data in this process, and leaves scoring to another runtime.

    A batch holds samples of one modality set, since each sample has the modalities of the client that it belongs to.

    Args:
        preparation: The prepared federation.
        clients: Scores the clients, and keeps what they have received.
    """

    def __init__(self, preparation: Preparation, clients: Runtime) -> None:
        self._preparation, self._clients = preparation, clients

    def train(
        self,
        chunks: Sequence[Chunk],
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        learning_rate: float,
    ) -> Iterator[ChunkUpdate]:
        """Train on the samples of the chunks' clients; one update for all of them, which is the new model itself.

        The steps of a record are those of that one model, the same in each of them.
        """
        started = time.perf_counter()
        with _one_thread():
            result = self._trained(blocks, round_index, learning_rate)
        seconds = time.perf_counter() - started
        clients = sorted(client for chunk in chunks for client in chunk.clients)
        num_train, num_epochs = self._preparation.shards.num_train, self._preparation.scenario.training.local_epochs
        records = tuple(
            ClientTraining(
                client=client,
                num_examples=(count := int(num_train[client]) * num_epochs),
                weight=float(count),
                num_steps=result.num_steps,
                loss=result.loss,
                drift={},
                bytes_down=0,
                bytes_up=0,
                seconds=seconds * count / (num_epochs * int(num_train[clients].sum())),
                rounds_trained=0,
            )
            for client in clients
        )
        sums = (
            (instance, PartialSum(result.blocks[instance.name].astype(np.float64), 1.0, self._num_owners(instance)))
            for instance in blocks
            if instance.name in result.blocks
        )
        yield ChunkUpdate(chunks[0], records, sums, {}, {})

    def evaluate(
        self,
        chunks: Sequence[Chunk],
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        scoring: Scoring,
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks, in the state and on the samples that `scoring` names."""
        return self._clients.evaluate(chunks, blocks, round_index=round_index, scoring=scoring)

    def take_failures(self) -> tuple[Failure, ...]:
        """What went wrong since the last call."""
        return self._clients.take_failures()

    def take_actors(self) -> tuple[ActorRound, ...]:
        """What each client actor did since the last call: scoring alone."""
        return self._clients.take_actors()

    def begin_checkpoint(self, folder: Path, round_index: int) -> None:
        """Have every host write its clients' states after this round into `folder`, in the background."""
        self._clients.begin_checkpoint(folder, round_index)

    def finish_checkpoint(self) -> bool:
        """Wait until the states of `begin_checkpoint` are on disk; False if a host was lost over it."""
        return self._clients.finish_checkpoint()

    def committed(self, checkpoint: Checkpoint) -> None:
        """Take note of a checkpoint that is whole."""
        self._clients.committed(checkpoint)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give every client the state that it has in a checkpoint."""
        self._clients.restore(checkpoint)

    def private_digests(self) -> dict[int, str]:
        """SHA-256 (hex) of every client's private state, by client."""
        return self._clients.private_digests()

    def describe(self) -> dict[str, object]:
        """What the run's manifest says about execution."""
        return self._clients.describe()

    def kernels(self) -> Sequence[Kernels]:
        """What chooses the CPU kernels of each process that scores clients, unless it is this one."""
        return self._clients.kernels()

    def close(self) -> None:
        """Free everything."""
        self._clients.close()

    def _trained(
        self, blocks: Mapping[BlockInstance, SentBlock], round_index: int, learning_rate: float
    ) -> LocalResult:
        section, seed = self._preparation.scenario.training, self._preparation.plan.seed
        workspace = self._workspace
        workspace.load({instance.name: sent.values for instance, sent in blocks.items()}, workspace.initial_state)
        trainer = Trainer(workspace, section, learning_rate)
        trainer.enter(Phase(section.local_epochs, frozenset(workspace.trained)))
        order_generator = generator(seed, Purpose.CENTRAL_TRAINING, round_index)
        drops_generator = generator(seed, Purpose.MODALITY_DROPOUT, round_index)
        with seeded_dropout(torch_seed(seed, Purpose.CENTRAL_TRAINING, round_index), workspace.device):
            for _ in range(section.local_epochs):
                for pool, rows in _batches(self._pools, section, order_generator):
                    present = kept_modalities(tuple(pool.inputs), section.modality_dropout, drops_generator)
                    inputs = {name: pool.inputs[name].index_select(0, rows) for name in present}
                    trainer.step(inputs, pool.targets.index_select(0, rows))
        result = trainer.result()
        try:
            check_finite(0, round_index, result, "training.optimizer.lr")
        except ClientError as error:  # of no client: the model is everybody's
            raise RunError(
                f"round {round_index}, the central model: {error.cause}",
                "a smaller training.optimizer.lr than clients have, whose steps this one model takes one after another",
            ) from None
        return result

    def _num_owners(self, instance: BlockInstance) -> int:
        plan = self._preparation.plan
        return sum(
            len(clients)
            for profile, clients in zip(
                self._preparation.population.representatives(),
                self._preparation.population.signatures.values(),
                strict=True,
            )
            if instance.name in plan.trained_blocks(profile)
        )

    @cached_property
    def _workspace(self) -> Workspace:
        return client_workspace(self._preparation.plan, ClientProfile(0, self._preparation.scenario.modalities))

    @cached_property
    def _pools(self) -> list[_Pool]:
        """The training samples of all clients, by modality set, copied into memory once."""
        with self._preparation.open_shards() as shards:
            pools: dict[tuple[str, ...], list[tuple[Mapping[str, np.ndarray], np.ndarray]]] = {}
            for profile in self._preparation.population.profiles:
                pools.setdefault(profile.modalities, []).append(shards.shard(profile.index).train())
            return [
                _Pool(
                    {name: torch.from_numpy(np.concatenate([inputs[name] for inputs, _ in parts])) for name in owned},
                    torch.from_numpy(np.concatenate([labels for _, labels in parts])),
                )
                for owned, parts in sorted(pools.items())
            ]


@dataclass(frozen=True)
class _Pool:
    """All training samples of one modality set: modality to (n, *shape), and targets."""

    inputs: dict[str, Tensor]
    targets: Tensor


def _batches(pools: Sequence[_Pool], section: Training, draw: np.random.Generator) -> list[tuple[_Pool, Tensor]]:
    """One epoch: each pool's rows in random order, cut into batches, and the batches of all pools in random order."""
    batches = [
        (pool, rows) for pool in pools for rows in cut(torch.from_numpy(draw.permutation(len(pool.targets))), section)
    ]
    return [batches[position] for position in draw.permutation(len(batches))]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as clients do: the number of threads can change the order of sums inside torch."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
