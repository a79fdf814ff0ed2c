"""Training and evaluation of a chunk of clients at once.

The results are those of `train_locally` and `evaluate_locally`, client by client, but for the order of sums inside
float32 kernels. They do not depend on who else is in the chunk, but for the same; the same chunk gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.local_training import LocalResult, on_device
from blossom_ray.clients.options import Training
from blossom_ray.clients.phases import Phase
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.clients.scoring import Scored
from blossom_ray.clients.stacked.batches import StackedBatch, stacked_batches
from blossom_ray.clients.stacked.descent import descent_of
from blossom_ray.clients.stacked.optimizer import ProximalTerm, StackOptimizer
from blossom_ray.clients.stacked.stack import DeviceMemory, Stack, StackSize, memory_of
from blossom_ray.clients.stacked.support import can_vectorize
from blossom_ray.clients.weighting import entropies
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.core.sums import Vector
from blossom_ray.data.dataset import IntArray
from blossom_ray.tasks.base import TaskRules

_MAX_VALUES = 2**26
"""The most values (256 MiB) in the shards of one stack, which are copied into one tensor, and in its blocks. A client
that has more gets a stack of its own."""


Result = TypeVar("Result")


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a chunk.

    Attributes:
        client: The client's id; with seed and round it fixes batches and dropout.
        blocks: Values of all blocks that it holds, (size,) float32. May be read-only.
        inputs: Modality to (n, *shape) float32 for the client's modalities. May be read-only.
        labels: (n,) int64, or (n, outputs) float32, as the task has them.
        local_state: Its normalisation state; empty for the initial one.
        optimizer_state: State of its optimizer to start from; empty for a new one. Not used in evaluation.
    """

    client: int
    blocks: Mapping[str, Vector]
    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray
    local_state: LocalState = field(default_factory=dict)
    optimizer_state: OptimizerState = field(default_factory=dict)


class VectorizedEngine:
    """Trains and scores clients of one modality set on stacks.

    Args:
        workspace: What the clients' model looks like, and which of its blocks are trained. It is not changed.
        capacity: The most clients in a stack. More share the cost of a step's Python code; fewer leave their
            parameters and activations in the processor's caches. On a GPU only what the first stack is tried with.
        max_rows: The most samples of a stack that go through the model at once; it bounds the memory of activations.
            Not on a GPU, whose memory is watched.
        memory: Of the device, None where it is not watched; left out: as the device has it.

    Raises:
        ValueError: The model cannot be stacked (see `can_vectorize`).
    """

    def __init__(
        self, workspace: Workspace, *, capacity: int = 64, max_rows: int = 2048, memory: DeviceMemory | None = None
    ) -> None:
        obstacle = can_vectorize(workspace)
        if obstacle:
            raise ValueError(f"the model cannot be stacked: {obstacle}; expected one that can_vectorize accepts")
        self._workspace, self._device = workspace, workspace.device
        memory = memory or memory_of(self._device)
        self._max_rows = max_rows if memory is None else None
        block_values = sum(flat.size for flat in workspace.flat.values())
        self._size = StackSize(min(capacity, max(1, _MAX_VALUES // block_values)), memory)
        self._stack = Stack(workspace, 1)

    def train(
        self,
        tasks: Sequence[ClientTask],
        section: Training,
        *,
        learning_rate: float,
        phases: Sequence[Phase] | None = None,
        purpose: Purpose = Purpose.TRAINING,
        seed: int,
        round_index: int,
    ) -> list[LocalResult]:
        """Train each client on its shard, as `train_locally` does.

        Args:
            tasks: The clients.
            section: The scenario's `training` section, without what `training_obstacle` names.
            learning_rate: The round's learning rate.
            phases: What is trained and for how long; None: all blocks for `section.local_epochs` epochs.
            purpose: What the training is for.
            seed: The scenario's seed.
            round_index: The round.

        Returns:
            One result per task, in their order.
        """
        names = frozenset(self._workspace.trained)
        phases = phases or (Phase(section.local_epochs, names, anchored=names),)
        draws = _Draws(seed, purpose, round_index)

        def train(members: Sequence[ClientTask]) -> list[LocalResult]:
            self._size.watch()
            trained = self._train_stack(members, section, learning_rate, phases, draws)
            self._size.learn(len(members))
            return trained

        return self._in_stacks(tasks, section.batch_size, train)

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int) -> list[Scored]:
        """Score each client on its samples, as `evaluate_locally` does.

        Args:
            tasks: The clients.
            batch_size: Samples of a client per forward pass.

        Returns:
            One result per task, in their order.
        """
        return self._in_stacks(tasks, batch_size, lambda members: self._score_stack(members, batch_size))

    def mean_entropies(self, tasks: Sequence[ClientTask], batch_size: int) -> list[float]:
        """The mean entropy of each client's predictions on its samples, as `weighting.mean_entropy` has it.

        Args:
            tasks: The clients.
            batch_size: Samples of a client per forward pass.

        Returns:
            One number per task, in their order, in nats.
        """

        def entropy(members: Sequence[ClientTask]) -> list[float]:
            sums = torch.zeros(len(members), dtype=torch.float64, device=self._device)
            for batch, logits, _ in self._outputs(members, batch_size):
                rows = self._stack.lanes.unfold(entropies(logits)).double()
                sums[: len(batch.counts)] += (rows if batch.mask is None else rows * batch.mask).sum(dim=1)
            return [total / len(task.labels) for total, task in zip(sums.tolist(), members, strict=True)]

        return self._in_stacks(tasks, batch_size, entropy)

    def _in_stacks(
        self, tasks: Sequence[ClientTask], batch_size: int, compute: Callable[[Sequence[ClientTask]], list[Result]]
    ) -> list[Result]:
        """The results of all tasks, in their order, stack by stack; a stack that does not fit is tried in halves.

        Raises:
            torch.OutOfMemoryError: One client alone does not fit.
        """
        results: dict[int, Result] = {}
        # In falling order of their number of samples, and so of steps.
        waiting = sorted(range(len(tasks)), key=lambda p: len(tasks[p].labels), reverse=True)
        while waiting:
            positions = waiting[: self._num_fitting([tasks[position] for position in waiting], batch_size)]
            try:
                found = compute([tasks[position] for position in positions])
            except torch.OutOfMemoryError:
                if len(positions) == 1:
                    raise
            else:
                results.update(zip(positions, found, strict=True))
                waiting = waiting[len(positions) :]
                continue
            # Here the exception is gone, and with it the frames that held on to tensors.
            self._stack = Stack(self._workspace, 1)
            self._size.halve(len(positions))
        return [results[position] for position in range(len(tasks))]

    def _num_fitting(self, tasks: Sequence[ClientTask], batch_size: int) -> int:
        """How many of these clients go into one stack: at least one."""
        num_values = num_rows = 0
        for count, task in enumerate(tasks[: self._size.limit]):
            num_values += sum(array.size for array in task.inputs.values())
            num_rows += min(batch_size, len(task.labels))
            if count > 0 and (num_values > _MAX_VALUES or (self._max_rows is not None and num_rows > self._max_rows)):
                return count
        return min(len(tasks), self._size.limit)

    def _load(self, tasks: Sequence[ClientTask]) -> Stack:
        """A stack with these clients; it is made anew only when there are more of them than ever before."""
        if len(tasks) > self._stack.capacity:
            self._stack = Stack(self._workspace, len(tasks))
        self._stack.load([task.blocks for task in tasks], [task.local_state for task in tasks])
        return self._stack

    def _train_stack(
        self,
        tasks: Sequence[ClientTask],
        section: Training,
        learning_rate: float,
        phases: Sequence[Phase],
        draws: _Draws,
    ) -> list[LocalResult]:
        stack = self._load(tasks)
        stack.lanes.descent = descent = descent_of(section, learning_rate)
        stack.lanes.generators = draws.dropout(tasks, self._device) if stack.has_dropout else []
        orders = [draws.order(task) for task in tasks]
        shards = _Shards(tasks, self._device)
        loss_sums = torch.zeros(len(tasks), dtype=torch.float64, device=self._device)
        num_steps = np.zeros(len(tasks), dtype=np.int64)
        optimizer_states: list[OptimizerState] = [{} for _ in tasks]
        for phase in phases:
            stack.train_only(phase.blocks)
            states = [task.optimizer_state for task in tasks]
            optimizer = StackOptimizer(section.optimizer, stack, learning_rate, states)
            proximal = ProximalTerm(stack, section.proximal_mu, phase.anchored, [task.blocks for task in tasks])
            epochs = [[next(order) for _ in range(phase.num_epochs)] for order in orders]
            for batch in stacked_batches(epochs, section.batch_size, self._device):
                stack.enter(batch)
                num_active = len(batch.counts)
                inputs, targets = shards.gather(batch)
                losses = _mean_losses(self._workspace.rules, stack.model(inputs), targets, batch)
                # A modality that no client of the stack owns leaves parameters of the fusion without a gradient.
                gradients = torch.autograd.grad(
                    losses.sum(), stack.parameters, allow_unused=True, materialize_grads=descent is None
                )
                if descent is None:
                    optimizer.step(stack.parameters, proximal.added(stack.parameters, gradients))
                else:
                    optimizer.step(*descent.left(stack.parameters, gradients))
                loss_sums[:num_active] += losses.detach() * batch.row_counts
                num_steps[:num_active] += 1
            if section.keep_optimizer_state:
                for own, new in zip(optimizer_states, optimizer.states(), strict=True):
                    own.update(new)

        blocks, local_states = stack.read(len(tasks))
        drifts = stack.distances([task.blocks for task in tasks])
        num_epochs = sum(phase.num_epochs for phase in phases)
        num_examples = [len(task.labels) * num_epochs for task in tasks]
        return [
            LocalResult(
                blocks=blocks[k],
                local_state=local_states[k],
                optimizer_state=optimizer_states[k],
                num_examples=num_examples[k],
                num_steps=int(num_steps[k]),
                loss=loss_sum / num_examples[k],
                drift=drifts[k],
            )
            for k, (task, loss_sum) in enumerate(zip(tasks, loss_sums.tolist(), strict=True))
        ]

    def _score_stack(self, tasks: Sequence[ClientTask], batch_size: int) -> list[Scored]:
        rules = self._workspace.rules
        loss_sums = torch.zeros(len(tasks), dtype=torch.float64, device=self._device)
        steps: list[tuple[Tensor, tuple[int, ...]]] = []
        for batch, outputs, targets in self._outputs(tasks, batch_size):
            loss_sums[: len(batch.counts)] += _mean_losses(rules, outputs, targets, batch) * batch.row_counts
            steps.append((self._stack.lanes.unfold(rules.predict(outputs)), batch.counts))
        predictions: list[list[np.ndarray]] = [[] for _ in tasks]
        for predicted, counts in steps:
            for own, row, count in zip(predictions, predicted.cpu().numpy(), counts, strict=False):
                own.append(row[:count])
        return [
            Scored(rules.tally(task.labels, np.concatenate(own), self._workspace.num_outputs), loss_sum)
            for task, own, loss_sum in zip(tasks, predictions, loss_sums.tolist(), strict=True)
        ]

    @torch.no_grad()
    def _outputs(self, tasks: Sequence[ClientTask], batch_size: int) -> Iterator[tuple[StackedBatch, Tensor, Tensor]]:
        """Batch by batch, in evaluation mode: the batch, its outputs (K * B, O) and its targets."""
        stack = self._load(tasks)
        stack.evaluate()
        shards = _Shards(tasks, self._device)
        for batch in stacked_batches([[np.arange(len(task.labels))] for task in tasks], batch_size, self._device):
            stack.enter(batch)
            inputs, targets = shards.gather(batch)
            yield batch, stack.model(inputs), targets


class _Shards:
    """The shards of a stack's clients, one after the other in one tensor per modality."""

    def __init__(self, tasks: Sequence[ClientTask], device: torch.device) -> None:
        self._inputs = {
            modality: on_device(np.concatenate([task.inputs[modality] for task in tasks]), device)
            for modality in tasks[0].inputs
        }
        self._labels = on_device(np.concatenate([task.labels for task in tasks]), device)

    def gather(self, batch: StackedBatch) -> tuple[dict[str, Tensor], Tensor]:
        """The batch's inputs (K * B, *shape) by modality, and its labels, (K * B,) or (K * B, outputs)."""
        inputs = {modality: values.index_select(0, batch.rows) for modality, values in self._inputs.items()}
        return inputs, self._labels.index_select(0, batch.rows)


@dataclass(frozen=True)
class _Draws:
    """Where the clients' random numbers come from; drawn as `train_locally` draws them."""

    seed: int
    purpose: Purpose
    round_index: int

    def order(self, task: ClientTask) -> Iterator[IntArray]:
        """The order of the client's samples in each of its epochs."""
        order_generator = generator(self.seed, self.purpose, self.round_index, task.client)
        while True:
            yield order_generator.permutation(len(task.labels))

    def dropout(self, tasks: Sequence[ClientTask], device: torch.device) -> list[torch.Generator]:
        """Each client's source of dropout masks."""
        seeds = (torch_seed(self.seed, self.purpose, self.round_index, task.client) for task in tasks)
        return [torch.Generator(device).manual_seed(number) for number in seeds]


def _mean_losses(rules: TaskRules, outputs: Tensor, targets: Tensor, batch: StackedBatch) -> Tensor:
    """Mean loss of each client over its real rows, (K,)."""
    losses = rules.loss(outputs, targets, reduction="none").view(len(batch.counts), -1)
    if batch.mask is None:
        return losses.mean(dim=1)
    return (losses * batch.mask).sum(dim=1) / batch.row_counts
