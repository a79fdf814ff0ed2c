"""Training and evaluation of a chunk of clients at once.

The results are those of `SequentialEngine`, client by client, but for the order of sums inside float32 kernels. They do
not depend on who else is in the chunk, but for the same; the same chunk gives the same bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.seam import has
from blossom_ray.clients.batch import LiveForwards, Measured
from blossom_ray.clients.common_part import until_own
from blossom_ray.clients.job import ClientTask, LocalJob, LocalResult, Scored
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.stacked.batches import StackedBatch, stacked_batches
from blossom_ray.clients.stacked.copies import AuthorsFunction, StackedCopies
from blossom_ray.clients.stacked.stack import CudaMemory, Stack, StackSize
from blossom_ray.clients.stacked.training import Shards, StackTrainer, means
from blossom_ray.clients.workspace import Workspace
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, shown_error
from blossom_ray.models.late_fusion import Later, Presence

_MAX_VALUES = 2**26
"""The most values (256 MiB) in the shards of one stack, which are copied into one tensor, and in its blocks. A client
that has more gets a stack of its own."""

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)


class StackedEngine:
    """An `Engine` that computes clients of one modality set together, on stacks.

    Args:
        workspace: What the clients' model looks like, and which of its blocks are trained; it has no
            `trial.stacking_obstacle`.
        capacity: The most clients in a stack. More share the cost of a step's Python code; fewer leave their
            parameters and activations in the processor's caches. On a GPU only what the first stack is tried with.
        max_rows: The most samples of a stack that go through the model at once; it bounds the memory of activations.
            Not on a GPU, whose memory is watched.
        memory: Of the device; left out: that of a GPU, and none for a CPU, where it is not watched.
    """

    def __init__(
        self, workspace: Workspace, *, capacity: int = 128, max_rows: int = 2048, memory: CudaMemory | None = None
    ) -> None:
        self._workspace, self._device = workspace, workspace.device
        if memory is None and self._device.type == "cuda":
            memory = CudaMemory(self._device)
        self._max_rows = max_rows if memory is None else None
        buffers = [values.size for state in workspace.initial_state.values() for values in state.values()]
        block_values = sum(flat.size for flat in workspace.flat.values()) + sum(buffers)
        self._size = StackSize(min(capacity, max(1, _MAX_VALUES // block_values)), memory)
        self._stack: Stack | None = None
        self._spares: dict[str, Stack] = {}
        self._in_turn = SequentialEngine(workspace)
        one_by_one = "is called for one client after the other, so that it sees the samples of one alone"
        self.obstacles = {f"{name} {one_by_one}": None for name in workspace.own_functions}

    def train(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        """Train each client on its shard; `job` has nothing that `training_obstacle` names."""
        if has(job.author, "local"):
            return self._in_turn.train(tasks, job)

        def train(members: Sequence[ClientTask]) -> list[LocalResult]:
            self._size.watch()
            trained = self._train_stack(members, job)
            self._size.learn(len(members))
            return trained

        return self._in_stacks(tasks, job.training.batch_size, train, lambda: self._in_turn.train(tasks, job))

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[Scored]:
        """Score each client's model on its samples."""
        until = until_own(tasks, self._workspace)
        return self._in_stacks(
            tasks,
            batch_size,
            lambda members: self._score_stack(members, batch_size, until),
            lambda: self._in_turn.evaluate(tasks, batch_size, round_index=round_index),
            is_common=until is not None,
        )

    def measure(
        self, tasks: Sequence[ClientTask], function: Measured, batch_size: int, *, round_index: int
    ) -> list[dict[str, Tensor]]:
        """Sums of numbers per sample over each client's samples."""
        mapped = AuthorsFunction(function, "before or after", self._workspace)
        return self._in_stacks(
            tasks,
            batch_size,
            lambda members: self._measure_stack(members, mapped, batch_size),
            lambda: self._in_turn.measure(tasks, function, batch_size, round_index=round_index),
        )

    @torch.no_grad()
    def _measure_stack(
        self, tasks: Sequence[ClientTask], function: AuthorsFunction, batch_size: int
    ) -> list[dict[str, Tensor]]:
        stack = self._load(tasks)
        copies, sums = StackedCopies(stack, tasks, self._spare_of(len(tasks))), dict[str, Tensor]()
        extras = copies.extras()
        for batch, inputs, present, targets in self._entered(stack, tasks, batch_size):
            copies.batch = batch
            own = partial(stack.model.traced, inputs, present)
            live = LiveForwards(own, stack.model, inputs, present, copies.model_of)
            for name, numbers in function(live, tasks[0].inputs, targets, batch, extras).items():
                real = numbers.double()
                if batch.mask is not None:
                    mask = batch.mask.reshape(*batch.mask.shape, *(1,) * (real.ndim - 2))
                    real = torch.where(mask > 0, real, 0.0)
                if name not in sums:
                    sums[name] = real.new_zeros(len(tasks), *real.shape[2:])
                sums[name][: len(batch.counts)] += real.sum(dim=1)
        return [{name: values[k] for name, values in sums.items()} for k in range(len(tasks))]

    def _spare_of(self, num_clients: int) -> Callable[[str], Stack]:
        """Gives further stacks of so many clients, each under a name of its own."""

        def spare(name: str) -> Stack:
            if name not in self._spares or self._spares[name].capacity < num_clients:
                self._spares[name] = Stack(self._workspace, num_clients)
            return self._spares[name]

        return spare

    def _in_stacks(
        self,
        tasks: Sequence[ClientTask],
        batch_size: int,
        compute: Callable[[Sequence[ClientTask]], list[Result]],
        in_turn: Callable[[], list[Result]],
        *,
        is_common: bool = False,
    ) -> list[Result]:
        """The results of all tasks, in their order, stack by stack; a stack that does not fit is tried in halves.

        An error of a stack does not say whose it is. Whatever one raises, `in_turn` then computes all tasks one after
        the other: the client that is to blame is named by its own error, and without one these results count.
        `is_common` is whether all see the same samples, which go through the model once.
        """
        results: dict[int, Result] = {}
        # In falling order of their number of samples, and so of steps.
        waiting = sorted(range(len(tasks)), key=lambda p: len(tasks[p].labels), reverse=True)
        while waiting:
            positions = waiting[: self._num_fitting([tasks[position] for position in waiting], batch_size, is_common)]
            try:
                found = compute([tasks[position] for position in positions])
            except BlossomError:
                raise
            except OWN_CODE_RAISES as error:
                cause = shown_error(error).splitlines()[0]
                can_halve = isinstance(error, torch.OutOfMemoryError) and len(positions) > 1
            else:
                results.update(zip(positions, found, strict=True))
                waiting = waiting[len(positions) :]
                continue
            # Here the exception is gone, and with it the frames that held on to tensors.
            self._stack, self._spares = None, {}
            if not can_halve:
                in_turn_results = in_turn()
                _LOG.info("%d clients were computed one after the other: their stack raised %s", len(tasks), cause)
                owned = "+".join(self._workspace.model.owned)
                self.obstacles[
                    f"clients with {owned} were computed one after the other: their stack raised {cause}"
                ] = None
                return in_turn_results
            self._size.halve(len(positions))
        return [results[position] for position in range(len(tasks))]

    def _num_fitting(self, tasks: Sequence[ClientTask], batch_size: int, is_common: bool) -> int:
        """How many of these clients go into one stack: at least one."""
        num_values = num_rows = 0
        if is_common:
            width = sum(self._workspace.model.embedding_dims.values())
            num_values = min(batch_size, len(tasks[0].labels)) * width
            return min(len(tasks), self._size.limit, max(1, _MAX_VALUES // num_values))
        for count, task in enumerate(tasks[: self._size.limit]):
            num_values += sum(array.size for array in task.inputs.values())
            num_rows += min(batch_size, len(task.labels))
            if count > 0 and (num_values > _MAX_VALUES or (self._max_rows is not None and num_rows > self._max_rows)):
                return count
        return min(len(tasks), self._size.limit)

    def _load(self, tasks: Sequence[ClientTask]) -> Stack:
        """A stack with these clients; it is made anew only when there are more of them than ever before."""
        if self._stack is None or len(tasks) > self._stack.capacity:
            self._stack = Stack(self._workspace, len(tasks))
        self._stack.load([task.blocks for task in tasks], [task.local_state for task in tasks])
        return self._stack

    def _train_stack(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        return StackTrainer(self._workspace, self._load(tasks), self._spare_of(len(tasks)), tasks, job).train()

    def _score_stack(self, tasks: Sequence[ClientTask], batch_size: int, until: Later | None) -> list[Scored]:
        started = time.perf_counter()
        learned = self._workspace.learned
        loss_sums = torch.zeros(len(tasks), len(learned.parts), dtype=torch.float64, device=self._device)
        # Of each step predictions by task, and losses by task where they are asked for sample by sample.
        steps: list[tuple[tuple[int, ...], list[Tensor]]] = []
        has_gaps = any(task.observed for task in tasks)
        for batch, outputs, targets in self._outputs(tasks, batch_size, until):
            losses = [part.losses(outputs, targets) for part in learned.parts]
            for at, own in enumerate(losses):
                loss_sums[: len(batch.counts), at] += means(own, batch) * batch.row_counts
            predicted = [part.rules.predict(part.outputs_of(outputs)) for part in learned.parts]
            steps.append((batch.counts, [*predicted, *(losses if has_gaps else ())]))
        # By task, first predictions and then losses, of each client.
        found: list[list[list[np.ndarray]]] = [[[] for _ in tasks] for _ in steps[0][1]]
        for counts, numbers in steps:
            for of_clients, rows in zip(found, numbers, strict=True):
                by_client = torch.unflatten(rows, 0, (len(counts), -1)).cpu().numpy()
                for own_rows, row, count in zip(of_clients, by_client, counts, strict=False):
                    own_rows.append(row[:count])
        whole = [[np.concatenate(own_rows) for own_rows in of_clients] for of_clients in found]
        num_tasks, seconds = len(learned.parts), (time.perf_counter() - started) / len(tasks)
        return [
            Scored.of(
                task,
                learned,
                [own[k] for own in whole[:num_tasks]],
                losses=[own[k] for own in whole[num_tasks:]] or [np.zeros(0)] * num_tasks,
                loss_sums=sums,
                seconds=seconds,
            )
            for k, (task, sums) in enumerate(zip(tasks, loss_sums.tolist(), strict=True))
        ]

    @torch.no_grad()
    def _outputs(
        self, tasks: Sequence[ClientTask], batch_size: int, until: Later | None
    ) -> Iterator[tuple[StackedBatch, Tensor, Tensor]]:
        """Batch by batch, in evaluation mode: the batch, its outputs (K * B, O) and its targets."""
        stack, number = self._load(tasks), len(tasks)
        for batch, inputs, present, targets in self._entered(stack, tasks if until is None else tasks[:1], batch_size):
            if until is None:
                yield batch, stack.model(inputs, present), targets
                continue
            begun = stack.model.begun(inputs, present, until).repeated(number)
            rows, counts = batch.rows.repeat(number), batch.row_counts.repeat(number)
            of_all = StackedBatch(rows, batch.counts * number, counts, mask=None)
            stack.enter(of_all)
            yield of_all, stack.model.ended(begun), targets.repeat(number, *(1,) * (targets.ndim - 1))

    def _entered(
        self, stack: Stack, tasks: Sequence[ClientTask], batch_size: int
    ) -> Iterator[tuple[StackedBatch, dict[str, Tensor], Mapping[str, Presence], Tensor]]:
        """The clients' samples batch by batch, in their order, as `Shards.gather` gives them, in evaluation mode."""
        stack.model.eval()
        shards, orders = Shards(tasks, self._device), [[np.arange(len(task.labels))] for task in tasks]
        for batch in stacked_batches(orders, batch_size, self._device, shards.observed):
            stack.enter(batch)
            yield batch, *shards.gather(batch)
