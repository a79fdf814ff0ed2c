"""The host that keeps clients: their shards, private blocks and state, and what a round does with them.

A `ClientHost` holds one client or many and knows nothing of where it runs: the local runtime loops over one, a Ray
actor is a shell around another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from blossom_ray.aggregation import PartialSum, Vector, weighted_sum
from blossom_ray.blocks import BlockInstance, ClientProfile
from blossom_ray.checkpoint import read_clients, write_clients
from blossom_ray.client import ChunkEvaluation, ChunkTraining, ClientPlan, ClientState, SentBlock
from blossom_ray.data.shards import ShardReader
from blossom_ray.engine import Engine, make_engine
from blossom_ray.errors import ClientError
from blossom_ray.metrics import classification_scores
from blossom_ray.models.workspace import Workspace
from blossom_ray.records import ClientEvaluation, ClientTraining
from blossom_ray.sampling import Chunk
from blossom_ray.traffic import Traffic
from blossom_ray.training import LocalResult
from blossom_ray.vectorized import ClientTask


class ClientHost:
    """Holds clients: their shards, private blocks and state.

    Args:
        plan: What every client goes by.
        profiles: The clients that live here.
        shards: Reads their shards.
        device: Where they compute.
    """

    def __init__(
        self,
        plan: ClientPlan,
        profiles: Iterable[ClientProfile],
        shards: ShardReader,
        device: torch.device | str = "cpu",
    ) -> None:
        self._plan = plan
        self._profiles = {profile.index: profile for profile in profiles}
        self._shards = shards
        self._device = device
        self._workspaces: dict[tuple[str, ...], Workspace] = {}
        self._engines: dict[tuple[str, ...], Engine] = {}
        self._states: dict[int, ClientState] = {}
        # A client's new state waits here until the round goes on, so that a chunk can be trained again.
        self._staged: dict[int, tuple[int, ClientState]] = {}
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    @property
    def clients(self) -> tuple[int, ...]:
        """Ids of the clients that live here, ascending."""
        return tuple(sorted(self._profiles))

    def train(
        self,
        chunk: Chunk,
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        learning_rate: float,
        whole: bool,
    ) -> ChunkTraining:
        """Train the chunk's clients on the current blocks, each with its own private ones.

        Args:
            chunk: Clients of one modality set and group, all of which live here.
            blocks: The current value of every block instance that they hold and that is not private.
            round_index: The round. Training the same round again starts from the same state.
            learning_rate: The round's learning rate.
            whole: Whether these are all clients of the chunk in this round, so that their sum can be sent.

        Raises:
            ClientError: A client's own code raised, or its update is not finite.
        """
        down, up, plan = Traffic(), Traffic(), self._plan
        tasks, states = self._tasks(chunk, blocks, down, accepted=round_index - 1)
        engine = self._engine(self._profiles[chunk.clients[0]])
        records: list[ClientTraining] = []
        results: list[LocalResult] = []
        for (result, seconds), state in zip(
            engine.train(tasks, plan.training, learning_rate=learning_rate, seed=plan.seed, round_index=round_index),
            states,
            strict=True,
        ):
            client = chunk.clients[len(results)]
            _check_finite(client, round_index, result)
            self._staged[client] = (round_index, self._next_state(client, state, result))
            for name, instance in self._returned(client).items():
                up.count(client, instance, result.blocks[name].nbytes)
            records.append(
                ClientTraining(
                    client=client,
                    num_examples=result.num_examples,
                    num_steps=result.num_steps,
                    loss=result.loss,
                    drift=result.drift,
                    bytes_down=down.by_client[client],
                    bytes_up=up.by_client[client],
                    seconds=seconds,
                )
            )
            results.append(result)
        return ChunkTraining(
            tuple(records),
            self._combine(chunk, results, whole=whole),
            dict(down.by_instance),
            dict(up.by_instance),
        )

    def evaluate(
        self,
        chunk: Chunk,
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        held_out: bool,
    ) -> ChunkEvaluation:
        """Score the current blocks with each client's own private ones.

        Args:
            chunk: Clients of one modality set and group, all of which live here.
            blocks: The current value of every block instance that they hold and that is not private.
            round_index: The round that has just been averaged; its private blocks become final.
            held_out: Whether to score on the held-out global test set instead of each client's own test split.

        Raises:
            ClientError: A client's own code raised.
        """
        down = Traffic()
        tasks, states = self._tasks(chunk, blocks, down, accepted=round_index, test=True, held_out=held_out)
        engine = self._engine(self._profiles[chunk.clients[0]])
        scores = engine.evaluate(tasks, self._plan.evaluation_batch_size, round_index=round_index)
        self._states.update(zip(chunk.clients, states, strict=True))
        records = tuple(
            ClientEvaluation(
                client=client,
                num_examples=scored.num_examples,
                loss=scored.loss_sum / scored.num_examples,
                scores=classification_scores(scored.confusion),
                bytes_down=down.by_client[client],
                seconds=seconds,
            )
            for client, (scored, seconds) in zip(chunk.clients, scores, strict=True)
        )
        confusion = np.sum([scored.confusion for scored, _ in scores], axis=0)
        return ChunkEvaluation(records, confusion, dict(down.by_instance))

    def private_digest(self) -> dict[int, str]:
        """SHA-256 (hex) of each client's private blocks and local state: proof of equality that reveals nothing."""
        return {client: self._digest(client) for client in self.clients}

    def replay_evaluation(self, chunk: Chunk, blocks: Mapping[BlockInstance, SentBlock], *, round_index: int) -> None:
        """Bring clients into the state in which scoring them would leave them, without scoring."""
        for client in chunk.clients:
            self._settle(client, accepted=round_index)
            state = self._states.get(client, ClientState())
            held = self._plan.sent_blocks(self._profiles[client])
            versions = {instance: blocks[instance].version for instance in held}
            self._states[client] = replace(state, versions={**state.versions, **versions})

    def begin_checkpoint(self, path: Path, *, round_index: int) -> None:
        """Write all clients' states after a round into a file, in the background.

        States are never changed in place, so what is trained meanwhile does not touch what is written.
        """
        for client in list(self._staged):
            self._settle(client, accepted=round_index)
        self._writing = self._writer.submit(write_clients, path, dict(self._states))

    def finish_checkpoint(self) -> None:
        """Wait until the file is on disk.

        Raises:
            OSError: It could not be written.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def restore(self, paths: Sequence[Path]) -> None:
        """Take the states of this host's clients from a checkpoint's files."""
        self._states = read_clients(paths, self.clients)
        self._staged.clear()

    def close(self) -> None:
        """Unmap the shards."""
        self._writer.shutdown()
        self._shards.close()

    def _tasks(
        self,
        chunk: Chunk,
        blocks: Mapping[BlockInstance, SentBlock],
        down: Traffic,
        *,
        accepted: int,
        test: bool = False,
        held_out: bool = False,
    ) -> tuple[list[ClientTask], list[ClientState]]:
        """What the engine needs of each client, and the clients' states once they have received these blocks."""
        tasks, states = [], []
        for client in chunk.clients:
            self._settle(client, accepted=accepted)
            state = self._states.get(client, ClientState())
            values, versions = self._receive(client, state, blocks, down)
            own = self._profiles[client].modalities
            shard = self._shards.held_out(own) if held_out else self._shards.shard(client)
            assert shard is not None, "the loop asks for a held-out set only where there is one"
            inputs, labels = shard.test() if test else shard.train()
            tasks.append(ClientTask(client, values, inputs, labels, state.local_state, state.optimizer_state))
            states.append(replace(state, versions=versions))
        return tasks, states

    def _receive(
        self,
        client: int,
        state: ClientState,
        blocks: Mapping[BlockInstance, SentBlock],
        down: Traffic,
    ) -> tuple[dict[str, Vector], dict[BlockInstance, int]]:
        """The values of all blocks that a client holds; what had to be sent to it for that is noted."""
        initial = self._workspace(self._profiles[client]).initial_blocks
        versions = dict(state.versions)
        values: dict[str, Vector] = {}
        for name, instance in self._plan.held_blocks(self._profiles[client]).items():
            if instance.is_private:
                values[name] = state.private.get(name, initial[name])
                continue
            sent = blocks[instance]
            values[name] = sent.values
            if versions.get(instance) != sent.version:
                versions[instance] = sent.version
                down.count(client, instance, sent.values.nbytes)
        return values, versions

    def _next_state(self, client: int, state: ClientState, result: LocalResult) -> ClientState:
        instances = self._plan.trained_blocks(self._profiles[client])
        return replace(
            state,
            private={name: result.blocks[name] for name, instance in instances.items() if instance.is_private},
            local_state=result.local_state,
            optimizer_state=result.optimizer_state,
        )

    def _engine(self, profile: ClientProfile) -> Engine:
        if profile.modalities not in self._engines:
            workspace = self._workspace(profile)
            self._engines[profile.modalities] = make_engine(self._plan.training.engine, workspace)
        return self._engines[profile.modalities]

    def _workspace(self, profile: ClientProfile) -> Workspace:
        if profile.modalities not in self._workspaces:
            plan = self._plan
            frozen = frozenset(name for name, instance in plan.held_blocks(profile).items() if not instance.is_trained)
            self._workspaces[profile.modalities] = Workspace(
                plan.model,
                plan.input_shapes,
                plan.num_outputs,
                owned=profile.modalities,
                frozen=frozen,
                seed=plan.seed,
                device=self._device,
            )
        return self._workspaces[profile.modalities]

    def _returned(self, client: int) -> dict[str, BlockInstance]:
        instances = self._plan.trained_blocks(self._profiles[client])
        return {name: instance for name, instance in instances.items() if not instance.is_private}

    def _combine(
        self, chunk: Chunk, results: Sequence[LocalResult], *, whole: bool
    ) -> dict[BlockInstance, PartialSum | np.ndarray]:
        shared = self._returned(chunk.clients[0])
        if whole and len(results) > 1:
            return {
                instance: weighted_sum((result.num_examples, result.blocks[name]) for result in results)
                for name, instance in shared.items()
            }
        return {instance: np.stack([result.blocks[name] for result in results]) for name, instance in shared.items()}

    def _settle(self, client: int, *, accepted: int) -> None:
        """Make the staged state of a round final once the run has gone past that round; drop it otherwise."""
        if client in self._staged:
            round_index, state = self._staged.pop(client)
            if round_index <= accepted:
                self._states[client] = state

    def _digest(self, client: int) -> str:
        staged = self._staged.get(client)
        state = staged[1] if staged else self._states.get(client, ClientState())
        digest = sha256()
        for name, values in sorted(state.private.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        for name, buffers in sorted(state.local_state.items()):
            for key, values in sorted(buffers.items()):
                digest.update(f"{name}/{key}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


@np.errstate(over="ignore", invalid="ignore")
def _check_finite(client: int, round_index: int, result: LocalResult) -> None:
    for name, values in result.blocks.items():
        # One fast pass in the common case; a sum of squares that overflows says nothing yet.
        if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
            raise ClientError(
                client,
                round_index,
                f"block {name} is not finite after local training (mean loss {result.loss:.4g})",
                hint="a smaller training.optimizer.lr, or inputs of smaller scale",
            )
