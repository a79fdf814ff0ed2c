"""The pooled reference: one model, of all tasks or of one, trained on its clients' training splits together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.clients.engines import check_finite
from blossom_ray.clients.job import NO_AFFINE, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.local_training import Trainer, one_thread, seeded_dropout
from blossom_ray.clients.options import Training
from blossom_ray.clients.plan import ChunkUpdate, ClientPlan, SentBlocks
from blossom_ray.clients.samples import StoredSamples, cut, gathered, joined, kept_modalities
from blossom_ray.clients.transforms import transformed
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.label_rows import label_rows
from blossom_ray.core.records import ClientTraining, TaskTraining
from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.core.sums import PartialSum
from blossom_ray.data.shards import Samples, ShardIndex, ShardReader
from blossom_ray.data.stored import Rows, StoredRows
from blossom_ray.data.targets import Labels
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, ClientError, RunError, shown_error


class CentralModel:
    """One model that is trained on all data, in this process.

    A batch holds samples of one kind of clients, since each sample has the modalities and the tasks of the client that
    it belongs to. What is of other tasks alone rests in it.

    Args:
        plan: What every client goes by.
        profiles: All clients.
        tasks: Those that it learns; clients with others are none of its.
        shards: Where the clients' shards lie.
    """

    def __init__(
        self, plan: ClientPlan, profiles: Sequence[ClientProfile], tasks: tuple[str, ...], shards: ShardIndex
    ) -> None:
        self._plan, self._shards = plan, shards
        self._profiles = {profile.index: profile for profile in profiles if {*profile.tasks} <= {*tasks}}
        modalities = sorted({name for profile in self._profiles.values() for name in profile.modalities})
        self._owner = ClientProfile(0, tuple(modalities), tasks=tasks)

    def train(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, learning_rate: float
    ) -> Iterator[ChunkUpdate]:
        """Train on everybody's samples, as `Runtime.train` does; one update, which is the new model itself.

        The steps of a record are those of that one model, the same in each of them.
        """
        started = time.perf_counter()
        with one_thread():
            try:
                result = self._trained(blocks, round_index, learning_rate)
            except BlossomError:
                raise
            except OWN_CODE_RAISES as error:
                cause = shown_error(error).splitlines()[0]
                raise RunError(f"round {round_index}, the central model: {cause}") from error
        seconds = time.perf_counter() - started
        clients = sorted(client for chunk in chunks for client in chunk.clients if client in self._profiles)
        num_train, num_epochs = self._shards.num_train, self._plan.training.local_epochs
        records = []
        for client in clients:
            count = int(num_train[client]) * num_epochs
            by_task = {
                task: TaskTraining(number * num_epochs, result.by_task[task].loss)
                for task, number in self._num_labelled.get(client, {}).items()
            }
            weighted = [self._plan.tasks[task].loss_weight * own.loss for task, own in by_task.items()]
            records.append(
                ClientTraining(
                    client=client,
                    num_examples=count,
                    weight=float(count),
                    num_steps=result.num_steps,
                    loss=sum(weighted) if by_task else result.loss,
                    drift={},
                    bytes_down=0,
                    bytes_up=0,
                    seconds=seconds * count / (num_epochs * int(num_train[clients].sum())),
                    rounds_trained=0,
                    by_task=by_task,
                )
            )
        held = self._plan.held_blocks(self._owner)
        sent = (
            (instance, PartialSum(result.blocks[instance.name].astype(np.float64), 1.0))
            for instance in blocks
            if instance.name in result.blocks and held[instance.name] == instance
        )
        yield ChunkUpdate(tuple(records), sent, {}, {})

    def _trained(self, blocks: SentBlocks, round_index: int, learning_rate: float) -> LocalResult:
        section, seed = self._plan.training, self._plan.seed
        workspace = self._workspace
        held = self._plan.held_blocks(self._owner).items()
        workspace.load({name: blocks[instance].values for name, instance in held}, workspace.initial_state)
        step = LocalPass(section.local_epochs, frozenset(workspace.trained))
        learning_rate = self._plan.learning_rate(self._owner, learning_rate, round_index)
        job = LocalJob(section, learning_rate, (step,), seed, round_index)
        trainer = Trainer(workspace, job, np.concatenate([pool.targets.numpy() for pool in self._pools]))
        trainer.enter(step, NO_AFFINE)
        order_generator = generator(seed, Purpose.CENTRAL_TRAINING, round_index)
        drops_generator = generator(seed, Purpose.MODALITY_DROPOUT, round_index)
        transform_generator = torch.Generator(workspace.device).manual_seed(job.transform_seeds([0])[0])
        with seeded_dropout(torch_seed(seed, Purpose.CENTRAL_TRAINING, round_index), workspace.device):
            for _ in range(section.local_epochs):
                for pool, rows in _batches(self._pools, section, order_generator):
                    kept = kept_modalities(tuple(pool.inputs), section.modality_dropout, drops_generator)
                    inputs, present = gathered({name: pool.inputs[name] for name in kept}, pool.observed, rows)
                    inputs = transformed(workspace.transforms, inputs, transform_generator)
                    trainer.step(inputs, pool.targets.index_select(0, rows), present)
        result = trainer.result()
        try:
            check_finite(0, round_index, result, "training.optimizer.lr")
        except ClientError as error:  # of no client: the model is everybody's
            raise RunError(
                f"round {round_index}, the central model: {error.cause}",
                "a smaller training.optimizer.lr than clients have, whose steps this one model takes one after another",
            ) from None
        return result

    @cached_property
    def _workspace(self) -> Workspace:
        return client_workspace(self._plan, self._owner)

    @cached_property
    def _pools(self) -> list[_Pool]:
        """The training samples of all clients, by modality set and tasks, brought together once."""
        with ShardReader(self._shards) as shards:
            pools: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Samples]] = {}
            for profile in self._profiles.values():
                pools.setdefault((profile.modalities, profile.tasks), []).append(shards.shard(profile.index).train())
            return [
                _Pool(
                    {name: _together([part.inputs[name] for part in parts]) for name in owned},
                    torch.from_numpy(self._labels(np.concatenate([part.labels for part in parts]), tasks)),
                    {
                        name: torch.from_numpy(
                            np.concatenate([part.observed.get(name, np.ones(len(part.labels), bool)) for part in parts])
                        )
                        for name in owned
                        if any(name in part.observed for part in parts)
                    },
                )
                for (owned, tasks), parts in sorted(pools.items())
            ]

    @cached_property
    def _num_labelled(self) -> dict[int, dict[str, int]]:
        """By client and task its training samples with a label of it; empty where the loss is the only task's."""
        found: dict[int, dict[str, int]] = {}
        with ShardReader(self._shards) as shards:
            for profile in () if self._workspace.learned.is_plain else self._profiles.values():
                labels = shards.shard(profile.index).train().labels
                parts = self._plan.learned(profile).parts
                known = {part.name: part.known_rows(labels)[1] for part in parts}
                found[profile.index] = {
                    name: len(labels) if own is None else int(own.reshape(len(labels), -1).any(axis=1).sum())
                    for name, own in known.items()
                }
        return {client: {name: count for name, count in own.items() if count} for client, own in found.items()}

    def _labels(self, labels: Labels, tasks: tuple[str, ...]) -> Labels:
        """Labels of some clients as the model has them, whose other tasks nothing is known of."""
        learned = self._workspace.learned
        if not learned.has_rows or tasks == self._owner.tasks:
            return labels
        own = {part.name: part for part in self._plan.learned(replace(self._owner, tasks=tasks)).parts}
        columns = []
        for part in learned.parts:
            width = () if part.kind == "classification" else (part.num_outputs,)
            nothing = np.zeros((len(labels), *width), np.float32)
            columns.append(own[part.name].known_rows(labels) if part.name in own else (nothing, nothing > 0))
        return label_rows(columns)


@dataclass(frozen=True)
class _Pool:
    """All training samples of one kind of clients: modality to (n, *shape), targets, and as `ClientTask.observed`."""

    inputs: dict[str, Tensor | StoredSamples]
    targets: Tensor
    observed: dict[str, Tensor]


def _together(parts: Sequence[Rows]) -> Tensor | StoredSamples:
    """The samples of several clients, one after the other; on disk where they are many."""
    rows, cpu = StoredRows.of(*parts), torch.device("cpu")
    return joined(parts if any(isinstance(part, StoredRows) for part in parts) else [rows.in_one_piece()], cpu)


def _batches(pools: Sequence[_Pool], section: Training, draw: np.random.Generator) -> list[tuple[_Pool, Tensor]]:
    """One epoch: each pool's rows in random order, cut into batches, and the batches of all pools in random order."""
    batches = [
        (pool, rows) for pool in pools for rows in cut(torch.from_numpy(draw.permutation(len(pool.targets))), section)
    ]
    return [batches[position] for position in draw.permutation(len(batches))]
