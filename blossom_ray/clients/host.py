"""The host that keeps clients, and what a client does in a round.

A `ClientHost` holds one client or many and knows nothing of where it runs: the local runtime loops over one, a Ray
actor is a shell around another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.clients.authored import Authored
from blossom_ray.clients.contributions import client_weights, with_prototypes
from blossom_ray.clients.engines import Engine, check_finite, make_engine
from blossom_ray.clients.job import ClientTask, LocalJob, LocalResult, Scored, training_passes, tuning_pass
from blossom_ray.clients.outcomes import Outcome
from blossom_ray.clients.plan import ChunkEvaluation, ChunkTraining, ClientPlan, ClientState, SentBlock
from blossom_ray.clients.state_files import INITIAL_STATE, ClientStates, read_clients, state_problem
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import Block, BlockInstance, ClientProfile, Scope, Signature
from blossom_ray.core.evaluations import ClientEvaluation, EvaluationColumns, SetScores
from blossom_ray.core.records import ClientTraining, Scoring, Traffic
from blossom_ray.core.seeding import Purpose
from blossom_ray.core.sums import Contributions, PartialSum, Vector, weighted_sum
from blossom_ray.data.shards import Samples, ShardReader
from blossom_ray.errors import RunFolderError
from blossom_ray.tasks.base import Tally, TaskRules
from blossom_ray.tasks.summary import total


@dataclass(frozen=True)
class _Turn:
    """A client that has received its blocks: what its engine needs, and its state by then."""

    task: ClientTask
    state: ClientState


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
        self._workspaces: dict[tuple[tuple[str, ...], tuple[str, ...]], Workspace] = {}
        self._engines: dict[tuple[tuple[str, ...], tuple[str, ...]], Engine] = {}
        self._authored: dict[tuple[Signature, bool], Authored] = {}
        self._states = ClientStates()

    @property
    def clients(self) -> tuple[int, ...]:
        """Ids of the clients that live here, ascending."""
        return tuple(sorted(self._profiles))

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Lines on what of stacked clients was computed for one after the other, and why."""
        of_authors = {line for authored in self._authored.values() for line in authored.obstacles}
        return tuple(sorted(of_authors | {line for engine in self._engines.values() for line in engine.obstacles}))

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
            chunk: Clients of one kind, all of which live here.
            blocks: The current value of every block instance that they hold and that is not private.
            round_index: The round. Training the same round again starts from the same state.
            learning_rate: The round's learning rate, of clients whose task has none of its own.
            whole: Whether these are all clients that the chunk has in this round. Then their sum is sent; where
                another host has client 6 of the chunk 4, 5, 6, each client's own values are, and whoever has them all
                adds them up in client order.

        Raises:
            ClientError: A client's own code raised, or its update is not finite.
        """
        plan, profile = self._plan, self._profiles[chunk.clients[0]]
        learning_rate = plan.learning_rate(profile, learning_rate, round_index)
        engine, workspace, batch_size = self._engine(profile), self._workspace(profile), plan.evaluation_batch_size
        down, up = Traffic(), Traffic()
        turns = self._receive(chunk, blocks, down, standing=round_index - 1)
        tasks = [turn.task for turn in turns]
        trained = plan.trained_blocks(profile)
        authored = self._author(profile)
        authored_round = authored and authored.begin(tasks, engine, round_index, learning_rate)
        if authored_round:
            tasks, passes = authored_round.tasks, authored_round.passes
        else:
            passes = training_passes(plan.training, trained)
        job = LocalJob(plan.training, learning_rate, passes, plan.seed, round_index, author=plan.author)
        results = engine.train(tasks, job)
        if modalities := plan.measured_prototypes(profile):
            results = [
                with_prototypes(workspace, task, result, modalities, batch_size=batch_size)
                for task, result in zip(tasks, results, strict=True)
            ]
        for task, result in zip(tasks, results, strict=True):
            check_finite(task.client, round_index, result, "training.optimizer.lr")
        weights = client_weights(plan.weighting, engine, tasks, results, batch_size=batch_size, round_index=round_index)
        private = [name for name, instance in trained.items() if instance.is_private]
        returned, num_parameters = plan.returned_blocks(profile), workspace.num_parameters
        observed = [
            {name: task.num_observed(name) for name in plan.sparse_in_training if name in task.inputs} for task in tasks
        ]
        if authored_round:
            outcomes = authored_round.finish(results, weights, observed)
        else:
            parts = zip(results, weights, observed, strict=True)
            outcomes = [_averaged(plan, returned, num_parameters, *part) for part in parts]
        records = []
        for turn, result, weight, num_observed, outcome in zip(
            turns, results, weights, observed, outcomes, strict=True
        ):
            client, state = turn.task.client, _state_after(turn.state, result, private, outcome)
            self._states.stage(client, round_index, state)
            for instance, (_, values) in outcome.sent.items():
                up.count(client, _on_server(instance, client), values.nbytes)
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
                    seconds=result.seconds,
                    rounds_trained=state.rounds_trained,
                    num_observed=num_observed,
                    by_task=result.by_task,
                )
            )
        clients = [turn.task.client for turn in turns]
        # What clients count in the sums of single tasks is known to the server.
        is_even = all(record.part_of(task) == 1 for record in records for task in profile.tasks)
        whole = whole and (is_even or plan.author is not None)
        sent = {
            instance: _combined(clients, outcomes, instance, is_summed=whole and not plan.keeps_rows(instance))
            for instance in returned
        }
        return ChunkTraining(tuple(records), sent, dict(down.by_instance), dict(up.by_instance))

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
            chunk: Clients of one kind, all of which live here.
            blocks: The current value of every block instance that they hold and that is not private.
            round_index: The round that has just been averaged; its private blocks become final.
            scoring: On which samples, which each of them has, and whether after local fine-tuning, of which nothing
                is kept.

        Raises:
            ClientError: A client's own code raised.
        """
        plan, profile, down = self._plan, self._profiles[chunk.clients[0]], Traffic()
        engine, learned = self._engine(profile), self._workspace(profile).learned
        turns = self._receive(chunk, blocks, down, standing=round_index, scoring=scoring)
        tasks = [turn.task for turn in turns]
        if (authored := self._author(profile)) and scoring is not Scoring.PLAIN:
            tasks = authored.scored(tasks)
        tuning_seconds = [0.0] * len(tasks)
        if scoring.is_fine_tuned:
            tasks, tuning_seconds = self._fine_tune(tasks, engine, round_index)
        scores = engine.evaluate(tasks, plan.evaluation_batch_size, round_index=round_index)
        if (columns := _in_columns(turns, scores, tuning_seconds, down)) is not None:
            for turn in turns:
                self._states.put(turn.task.client, turn.state)
            return columns
        records = []
        has_gaps = any(task.observed for task in tasks)
        tallies, by_set = dict[str, list[Tally]](), dict[str, dict[str, list[Tally]]]()
        for turn, scored, seconds in zip(turns, scores, tuning_seconds, strict=True):
            client, is_first, by_task = turn.task.client, True, scored.by_task
            self._states.put(client, turn.state)
            for part in learned.parts:
                if (own := by_task.get(part.name)) is None:
                    continue
                tallies.setdefault(part.name, []).append(own.tally)
                sets = (own.by_set or {profile.modality_set: (own.tally, own.loss)}) if has_gaps else {}
                for name, (tally, _) in sets.items():
                    by_set.setdefault(part.name, {}).setdefault(name, []).append(tally)
                records.append(
                    ClientEvaluation(
                        client=client,
                        **_scores(part.rules, own.tally, own.loss),
                        bytes_down=down.by_client[client] if is_first else 0,
                        seconds=scored.seconds + seconds if is_first else 0.0,
                        rounds_trained=turn.state.rounds_trained,
                        by_set={name: SetScores(**_scores(part.rules, *found)) for name, found in sets.items()},
                        task=part.name,
                    )
                )
                is_first = False
        return ChunkEvaluation(
            tuple(records),
            {task: total(own) for task, own in tallies.items()},
            dict(down.by_instance),
            {task: {name: total(own) for name, own in sets.items()} for task, sets in by_set.items()},
        )

    def private_sums(self, chunk: Chunk, *, round_index: int, whole: bool) -> dict[Block, PartialSum | Contributions]:
        """The private blocks of clients after a round by name, weighing as their training samples do.

        Args:
            chunk: Clients of one kind, all of which live here. Who never trained adds nothing.
            round_index: The round.
            whole: As in `train`: whether they are added up here.
        """
        states = {client: self._states.settle(client, standing=round_index) for client in chunk.clients}
        clients = tuple(client for client, state in states.items() if state.private)
        weights = tuple(float(self._shards.shard(client).num_train) for client in clients)
        found: dict[Block, PartialSum | Contributions] = {}
        for name, instance in self._plan.trained_blocks(self._profiles[chunk.clients[0]]).items():
            if instance.is_private and clients:
                part = Contributions(clients, weights, np.stack([states[client].private[name] for client in clients]))
                found[name] = (whole and part.summed()) or part
        return found

    def private_digest(self) -> dict[int, str]:
        """SHA-256 (hex) of each client's private blocks and local state: proof of equality that reveals nothing.

        Clients that never train keep none.
        """
        trained = (client for client in self.clients if not self._profiles[client].is_unseen)
        return {client: self._states.digest(client) for client in trained}

    def replay_evaluation(self, chunk: Chunk, blocks: Mapping[BlockInstance, SentBlock], *, round_index: int) -> None:
        """Bring clients into the state in which scoring them would leave them, without scoring."""
        for client in chunk.clients:
            sent = self._plan.sent_blocks(self._profiles[client], scored=True)
            versions = {instance: blocks[instance].version for instance in sent}
            state = self._states.settle(client, standing=round_index)
            self._states.put(client, replace(state, versions={**state.versions, **versions}))

    def begin_checkpoint(self, path: Path, *, round_index: int) -> None:
        """Write all clients' states after a round into a file, in the background."""
        self._states.begin_writing(path, standing=round_index)

    def finish_checkpoint(self) -> None:
        """Wait until the file is on disk.

        Raises:
            StorageError: The disk is full.
            RunFolderError: The file cannot be written.
        """
        self._states.finish_writing()

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
        self._states.replace(states)

    def close(self) -> None:
        """Unmap the shards."""
        self._states.close()
        self._shards.close()

    def _receive(
        self,
        chunk: Chunk,
        blocks: Mapping[BlockInstance, SentBlock],
        down: Traffic,
        *,
        standing: int,
        scoring: Scoring | None = None,
    ) -> list[_Turn]:
        """The chunk's clients once they have received these blocks.

        Args:
            chunk: The clients.
            blocks: The current value of every block instance that they hold and that is not private.
            down: Where it is noted what had to be sent to them.
            standing: The last round whose training stands, as `ClientStates` has it.
            scoring: The samples that are scored; None: those of the training split. No others are read.
        """
        profile, is_scored = self._profiles[chunk.clients[0]], scoring is not None
        authored = self._author(profile)
        sent = {instance: blocks[instance] for instance in self._plan.sent_blocks(profile, scored=is_scored)}
        joined, initial = self._plan.joined(profile, sent), self._workspace(profile).initial_blocks
        private = [name for name in self._plan.held_blocks(profile) if name not in joined]
        # Clients that were sent the same share one map of versions: with ten thousand of them it is most of a state.
        same: dict[tuple[tuple[BlockInstance, int], ...], dict[BlockInstance, int]] = {}
        turns = []
        for client in chunk.clients:
            state = self._states.settle(client, standing=standing)
            if authored and authored.has_own_instances:
                own = self._plan.sent_blocks(self._profiles[client], scored=is_scored)
                sent = {instance: blocks[instance] for instance in own}
            versions, changed = state.versions, dict[BlockInstance, int]()
            for instance, block in sent.items():
                if versions.get(instance) != block.version:
                    changed[instance] = block.version
                    down.count(client, instance, block.values.nbytes)
            if changed:
                versions = {**versions, **changed}
                state = replace(state, versions=same.setdefault(tuple(versions.items()), versions))
            values: dict[str, Vector] = {**joined, **{name: state.private.get(name, initial[name]) for name in private}}
            inputs, labels, observed = self._samples(client, scoring)
            task = ClientTask(
                client, values, inputs, labels, state.local_state, state.optimizer_state, observed=observed
            )
            if authored and authored.has_extras:
                extras = authored.extras(self._profiles[client], values, state, sent, standing + 1)
                task = replace(task, extras=extras)
            turns.append(_Turn(task, state))
        return turns

    def _samples(self, client: int, scoring: Scoring | None) -> Samples:
        if scoring is Scoring.HELD_OUT:
            held_out = self._shards.held_out(client)
            assert held_out is not None, "the loop asks for a held-out set only where there is one"
            return held_out.test()
        shard = self._shards.shard(client)
        if scoring is None:
            return shard.train()
        return shard.validation() if scoring.is_validation else shard.test()

    def _fine_tune(
        self, tasks: Sequence[ClientTask], engine: Engine, round_index: int
    ) -> tuple[list[ClientTask], list[float]]:
        """The tasks with the blocks that the clients have after fine-tuning, and the seconds that each one's took.

        The optimizer starts anew, without a proximal term and modality dropout.

        Raises:
            ClientError: A client's own code raised, or its blocks are not finite afterwards.
        """
        plan, section, profile = self._plan, self._plan.fine_tune, self._profiles[tasks[0].client]
        assert section is not None, "the loop asks for fine-tuning only where the scenario has it"
        job = LocalJob(
            plan.training.model_copy(update={"keep_optimizer_state": False, "modality_dropout": 0.0}),
            section.lr or plan.task_lr(profile) or plan.training.optimizer.lr,
            (tuning_pass(section, plan.trained_blocks(profile)),),
            plan.seed,
            round_index,
            Purpose.FINE_TUNING,
        )
        samples = (self._samples(task.client, None)._asdict() for task in tasks)
        to_train = [replace(task, optimizer_state={}, **own) for task, own in zip(tasks, samples, strict=True)]
        results = engine.train(to_train, job)
        for task, result in zip(tasks, results, strict=True):
            check_finite(task.client, round_index, result, "evaluation.fine_tune.lr")
        tuned = [task.after(result) for task, result in zip(tasks, results, strict=True)]
        return tuned, [result.seconds for result in results]

    def _author(self, profile: ClientProfile) -> Authored | None:
        if self._plan.author is None:
            return None
        kind = profile.signature, profile.is_unseen
        if kind not in self._authored:
            is_mapped = self._plan.engines[profile.modality_set] != "sequential"
            self._authored[kind] = Authored(self._plan, self._workspace(profile), profile, is_mapped=is_mapped)
        return self._authored[kind]

    def _engine(self, profile: ClientProfile) -> Engine:
        kind = profile.modalities, profile.tasks
        if kind not in self._engines:
            self._engines[kind] = make_engine(self._plan.engines[profile.modality_set], self._workspace(profile))
        return self._engines[kind]

    def _workspace(self, profile: ClientProfile) -> Workspace:
        kind = profile.modalities, profile.tasks
        if kind not in self._workspaces:
            self._workspaces[kind] = client_workspace(self._plan, profile, self._device)
        return self._workspaces[kind]


def _averaged(
    plan: ClientPlan,
    returned: Sequence[BlockInstance],
    num_parameters: Mapping[str, int],
    result: LocalResult,
    weight: float,
    num_observed: Mapping[str, int],
) -> Outcome:
    """What a client sends in federated averaging: what it trained."""
    update = plan.cut(returned, result.blocks, num_parameters)
    sent = {
        instance: (plan.block_weight(instance, weight, num_observed), values) for instance, values in update.items()
    }
    return Outcome({}, sent)


def _scores(rules: TaskRules, tally: Tally, loss: float) -> dict[str, Any]:
    return {"num_examples": tally.num_examples, "loss": loss, "scores": rules.scores(tally)}


def _in_columns(
    turns: Sequence[_Turn], scores: Sequence[Scored], tuning_seconds: Sequence[float], down: Traffic
) -> ChunkEvaluation | None:
    """What scoring gave, of all clients at once; None where that is not so: several tasks, gaps, other rules."""
    parts = scores[0].learned.parts
    if len(parts) > 1 or parts[0].place is not None:
        return None
    if any(turn.task.observed or not len(turn.task.labels) for turn in turns):
        return None
    labels, predictions = [turn.task.labels for turn in turns], [scored.predictions[0] for scored in scores]
    found = parts[0].rules.tally_all(labels, predictions, parts[0].num_outputs)
    if found is None:
        return None
    tally, columns = found
    clients, num_examples = [turn.task.client for turn in turns], np.array([*map(len, labels)], np.int64)
    known = (turn.state.rounds_trained for turn in turns)
    records = EvaluationColumns(
        client=np.array(clients, np.int64),
        num_examples=num_examples,
        loss=np.array([scored.loss_sums[0] for scored in scores]) / num_examples,
        scores=columns,
        bytes_down=np.array([down.by_client[client] for client in clients], np.int64),
        seconds=np.array([own.seconds + more for own, more in zip(scores, tuning_seconds, strict=True)]),
        rounds_trained=np.array([-1 if number is None else number for number in known], np.int64),
        task=parts[0].name,
    )
    return ChunkEvaluation(records, {parts[0].name: tally}, dict(down.by_instance))


def _on_server(instance: BlockInstance, client: int) -> BlockInstance:
    return instance._replace(key=str(client)) if instance.scope is Scope.CLIENT else instance


def _state_after(state: ClientState, result: LocalResult, private: Iterable[str], outcome: Outcome) -> ClientState:
    """What a client keeps of a round in which it trained; `private` are the blocks that it does not send back."""
    before = state.rounds_trained
    return replace(
        state,
        # Copies: where clients were stacked, these are rows of a matrix that is as long as the stack.
        private={name: result.blocks[name].copy() for name in private},
        local_state=result.local_state or INITIAL_STATE.local_state,
        optimizer_state=result.optimizer_state or INITIAL_STATE.optimizer_state,
        rounds_trained=None if before is None else before + 1,
        extras={**state.extras, **outcome.extras} if outcome.extras else state.extras,
    )


def _combined(
    clients: Sequence[int], outcomes: Sequence[Outcome], instance: BlockInstance, *, is_summed: bool
) -> PartialSum | Contributions:
    """What the clients of a chunk send back for one block instance, as `ChunkTraining.sent` has it."""
    held = [
        (client, *own.sent[instance]) for client, own in zip(clients, outcomes, strict=True) if instance in own.sent
    ]
    if is_summed and len(held) > 1:
        return weighted_sum((weight, values) for _, weight, values in held)
    if not held:
        return Contributions.joined(())
    own, weights, values = zip(*held, strict=True)
    return Contributions(own, weights, np.stack(values))
