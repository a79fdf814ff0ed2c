"""The host that keeps clients: their shards, private blocks and state, and what a round does with them.

A `ClientHost` holds one client or many and knows nothing of where it runs: the local runtime loops over one, a Ray
actor is a shell around another.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.clients.contributions import client_weights, with_prototypes
from blossom_ray.clients.engines import Engine, check_finite, make_engine
from blossom_ray.clients.fine_tuning import fine_tuned
from blossom_ray.clients.local_training import LocalResult
from blossom_ray.clients.phases import training_phases
from blossom_ray.clients.plan import ChunkEvaluation, ChunkTraining, ClientPlan, ClientState, SentBlock
from blossom_ray.clients.stacked import ClientTask
from blossom_ray.clients.state_files import read_clients, state_problem, write_clients
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import BlockInstance, ClientProfile
from blossom_ray.core.records import ClientEvaluation, ClientTraining, Scoring, Traffic
from blossom_ray.core.sums import PartialSum, Vector, weighted_sum
from blossom_ray.data.shards import ShardReader
from blossom_ray.errors import RunFolderError
from blossom_ray.tasks import task_rules

# The state of a client that has done nothing yet; one for all of them.
_INITIAL_STATE = ClientState()


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
        trained = engine.train(
            tasks,
            plan.training,
            learning_rate=learning_rate,
            phases=training_phases(plan.training, plan.trained_blocks(self._profiles[chunk.clients[0]])),
            seed=plan.seed,
            round_index=round_index,
        )
        results = self._with_prototypes(tasks, [result for result, _ in trained])
        for client, result in zip(chunk.clients, results, strict=True):
            check_finite(client, round_index, result, "training.optimizer.lr")
        returned = self._returned(chunk, results)
        weights = client_weights(
            plan.weighting, engine, tasks, results, batch_size=plan.evaluation_batch_size, round_index=round_index
        )
        records: list[ClientTraining] = []
        for client, result, (_, seconds), blocks_back, weight, state in zip(
            chunk.clients, results, trained, returned, weights, states, strict=True
        ):
            new_state = self._next_state(client, state, result)
            self._staged[client] = (round_index, new_state)
            for instance, values in blocks_back.items():
                up.count(client, instance, values.nbytes)
            records.append(
                ClientTraining(
                    client=client,
                    num_examples=result.num_examples,
                    weight=weight,
                    num_steps=result.num_steps,
                    loss=result.loss,
                    drift=result.drift,
                    bytes_down=down.by_client[client],
                    bytes_up=up.by_client[client],
                    seconds=seconds,
                    rounds_trained=new_state.rounds_trained,
                )
            )
        return ChunkTraining(
            tuple(records),
            *_combined(returned, weights, whole=whole),
            dict(down.by_instance),
            dict(up.by_instance),
        )

    def evaluate(
        self,
        chunk: Chunk,
        blocks: Mapping[BlockInstance, SentBlock],
        *,
        round_index: int,
        scoring: Scoring,
    ) -> ChunkEvaluation:
        """Score the current blocks with each client's own private ones.

        Args:
            chunk: Clients of one modality set and group, all of which live here.
            blocks: The current value of every block instance that they hold and that is not private.
            round_index: The round that has just been averaged; its private blocks become final.
            scoring: On which samples, which each of them has, and whether after local fine-tuning, of which nothing
                is kept.

        Raises:
            ClientError: A client's own code raised.
        """
        down = Traffic()
        tasks, states = self._tasks(chunk, blocks, down, accepted=round_index, scoring=scoring)
        engine, rules = self._engine(self._profiles[chunk.clients[0]]), task_rules(self._plan.task, self._plan.metrics)
        tuning_seconds = [0.0] * len(tasks)
        if scoring.is_fine_tuned:
            tasks, tuning_seconds = self._fine_tuned(tasks, engine, round_index)
        scores = engine.evaluate(tasks, self._plan.evaluation_batch_size, round_index=round_index)
        self._states.update(zip(chunk.clients, states, strict=True))
        records = tuple(
            ClientEvaluation(
                client=client,
                num_examples=scored.num_examples,
                loss=scored.loss_sum / scored.num_examples,
                scores=rules.scores(scored.tally),
                bytes_down=down.by_client[client],
                seconds=seconds + tuned,
                rounds_trained=state.rounds_trained,
            )
            for client, (scored, seconds), tuned, state in zip(
                chunk.clients, scores, tuning_seconds, states, strict=True
            )
        )
        tally = reduce(operator.add, (scored.tally for scored, _ in scores))
        return ChunkEvaluation(records, tally, dict(down.by_instance))

    def private_digest(self) -> dict[int, str]:
        """SHA-256 (hex) of each client's private blocks and local state: proof of equality that reveals nothing."""
        return {client: self._digest(client) for client in self.clients}

    def replay_evaluation(self, chunk: Chunk, blocks: Mapping[BlockInstance, SentBlock], *, round_index: int) -> None:
        """Bring clients into the state in which scoring them would leave them, without scoring."""
        for client in chunk.clients:
            self._settle(client, accepted=round_index)
            state = self._states.get(client, _INITIAL_STATE)
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
        """Take the states of this host's clients from a checkpoint's files.

        Raises:
            RunFolderError: A file is damaged, or a client's state has other names or shapes than this run's.
        """
        states = read_clients(paths, self.clients)
        for client, state in states.items():
            profile = self._profiles[client]
            problem = state_problem(state, self._plan, profile, self._workspace(profile))
            if problem:
                raise RunFolderError(f"{paths[0].parent}: is no checkpoint of this run: client {client} has {problem}")
        self._states = states
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
        scoring: Scoring | None = None,
    ) -> tuple[list[ClientTask], list[ClientState]]:
        """What the engine needs of each client, and the clients' states once they have received these blocks.

        With `scoring` the samples are those that are scored, else those of the training split. No others are read.
        """
        tasks, states = [], []
        # Clients that were sent the same share one map of versions: with ten thousand of them it is most of a state.
        same: dict[tuple[tuple[BlockInstance, int], ...], dict[BlockInstance, int]] = {}
        profile = self._profiles[chunk.clients[0]]
        sent = {instance: blocks[instance] for instance in self._plan.sent_blocks(profile)}
        joined = self._plan.joined(profile, sent)
        for client in chunk.clients:
            self._settle(client, accepted=accepted)
            state = self._states.get(client, _INITIAL_STATE)
            versions = _received(client, state, sent, down)
            values = {**joined, **self._private(client, state)}
            inputs, labels = self._samples(client, scoring)
            tasks.append(ClientTask(client, values, inputs, labels, state.local_state, state.optimizer_state))
            states.append(replace(state, versions=same.setdefault(tuple(versions.items()), versions)))
        return tasks, states

    def _samples(self, client: int, scoring: Scoring | None) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        if scoring is Scoring.HELD_OUT:
            held_out = self._shards.held_out(self._profiles[client].modalities)
            assert held_out is not None, "the loop asks for a held-out set only where there is one"
            return held_out.test()
        shard = self._shards.shard(client)
        if scoring is None:
            return shard.train()
        return shard.validation() if scoring.is_validation else shard.test()

    def _with_prototypes(self, tasks: Sequence[ClientTask], results: Sequence[LocalResult]) -> list[LocalResult]:
        """The results with the prototypes that these clients contribute to."""
        profile = self._profiles[tasks[0].client]
        modalities = self._plan.measured_prototypes(profile)
        if not modalities:
            return list(results)
        workspace, batch_size = self._workspace(profile), self._plan.evaluation_batch_size
        return [
            with_prototypes(workspace, task, result, modalities, batch_size=batch_size)
            for task, result in zip(tasks, results, strict=True)
        ]

    def _fine_tuned(
        self, tasks: Sequence[ClientTask], engine: Engine, round_index: int
    ) -> tuple[list[ClientTask], list[float]]:
        plan = self._plan
        assert plan.fine_tune is not None, "the loop asks for fine-tuning only where the scenario has it"
        return fine_tuned(
            engine,
            tasks,
            [self._shards.shard(task.client).train() for task in tasks],
            plan.fine_tune,
            plan.training,
            trained=plan.trained_blocks(self._profiles[tasks[0].client]),
            seed=plan.seed,
            round_index=round_index,
        )

    def _private(self, client: int, state: ClientState) -> dict[str, Vector]:
        """The values of a client's private blocks."""
        initial = self._workspace(self._profiles[client]).initial_blocks
        held = self._plan.held_blocks(self._profiles[client])
        return {name: state.private.get(name, initial[name]) for name, i in held.items() if i.is_private}

    def _next_state(self, client: int, state: ClientState, result: LocalResult) -> ClientState:
        instances = self._plan.trained_blocks(self._profiles[client])
        before = state.rounds_trained
        return replace(
            state,
            # Copies: where clients were stacked, these are rows of a matrix that is as long as the stack.
            private={name: result.blocks[name].copy() for name, instance in instances.items() if instance.is_private},
            local_state=result.local_state or _INITIAL_STATE.local_state,
            optimizer_state=result.optimizer_state or _INITIAL_STATE.optimizer_state,
            rounds_trained=None if before is None else before + 1,
        )

    def _engine(self, profile: ClientProfile) -> Engine:
        if profile.modalities not in self._engines:
            workspace, engine = self._workspace(profile), self._plan.engines[profile.modality_set]
            self._engines[profile.modalities] = make_engine(engine, workspace)
        return self._engines[profile.modalities]

    def _workspace(self, profile: ClientProfile) -> Workspace:
        if profile.modalities not in self._workspaces:
            self._workspaces[profile.modalities] = client_workspace(self._plan, profile, self._device)
        return self._workspaces[profile.modalities]

    def _returned(self, chunk: Chunk, results: Sequence[LocalResult]) -> list[dict[BlockInstance, Vector]]:
        """What each client sends back: of what it trained, all that is not private."""
        profile = self._profiles[chunk.clients[0]]
        instances, num_parameters = self._plan.returned_blocks(profile), self._workspace(profile).num_parameters
        return [self._plan.cut(instances, result.blocks, num_parameters) for result in results]

    def _settle(self, client: int, *, accepted: int) -> None:
        """Make the staged state of a round final once the run has gone past that round; drop it otherwise."""
        if client in self._staged:
            round_index, state = self._staged.pop(client)
            if round_index <= accepted:
                self._states[client] = state

    def _digest(self, client: int) -> str:
        staged = self._staged.get(client)
        state = staged[1] if staged else self._states.get(client, _INITIAL_STATE)
        digest = sha256()
        for name, values in sorted(state.private.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        for name, buffers in sorted(state.local_state.items()):
            for key, values in sorted(buffers.items()):
                digest.update(f"{name}/{key}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _received(
    client: int, state: ClientState, sent: Mapping[BlockInstance, SentBlock], down: Traffic
) -> dict[BlockInstance, int]:
    """The versions that a client has once it has these blocks; what had to be sent to it for that is noted."""
    versions = dict(state.versions)
    for instance, block in sent.items():
        if versions.get(instance) != block.version:
            versions[instance] = block.version
            down.count(client, instance, block.values.nbytes)
    return versions


def _combined(
    returned: Sequence[Mapping[BlockInstance, Vector]], weights: Sequence[float], *, whole: bool
) -> tuple[dict[BlockInstance, PartialSum], dict[BlockInstance, np.ndarray]]:
    """What the clients of a chunk send back, as `ChunkTraining.sums` and `rows` have it."""
    if whole and len(returned) > 1:
        return {
            instance: weighted_sum((weight, own[instance]) for weight, own in zip(weights, returned, strict=True))
            for instance in returned[0]
        }, {}
    return {}, {instance: np.stack([own[instance] for own in returned]) for instance in returned[0]}
