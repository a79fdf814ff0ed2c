"""Local training of the clients of a stack, all at once: what `Trainer` does for one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.seam import has
from blossom_ray.clients.batch import LiveForwards, one_per_sample
from blossom_ray.clients.copies import label_of, optimizer_state_of
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.losses import Losses, task_means
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.clients.samples import joined, on_device
from blossom_ray.clients.stacked.batches import StackedBatch, stacked_batches
from blossom_ray.clients.stacked.copies import AuthorsFunction, ComposedPass, StackedCopies
from blossom_ray.clients.stacked.masks import masks_of
from blossom_ray.clients.stacked.optimizer import AffineTerm, StackOptimizer, descent_of
from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.late_fusion import EVERYWHERE, Presence


class StackTrainer:
    """Takes optimizer steps with the models of a stack, and adds up what they saw.

    Args:
        workspace: A model of this kind of clients.
        stack: Holds the clients' blocks as they were received; they are trained in place.
        spare: Gives further stacks of so many clients, each under a name of its own.
        tasks: The clients, in falling order of their number of batches.
        job: How they train.
    """

    def __init__(
        self,
        workspace: Workspace,
        stack: Stack,
        spare: Callable[[str], Stack],
        tasks: Sequence[ClientTask],
        job: LocalJob,
    ) -> None:
        self._started = time.perf_counter()
        self._workspace, self._stack, self._tasks, self._job, device = workspace, stack, tasks, job, stack.device
        self._objective, self._shards = workspace.objective, Shards(tasks, device)
        learned = workspace.learned
        self._known = learned.known_samples(self._shards.labels) if learned.has_rows else None
        known = None if self._known is None or not learned.has_several else self._known.cpu().numpy() > 0
        self._labelled = {part.name: known[:, at] for at, part in enumerate(learned.parts) if known is not None}
        self._class_weights = self._objective.weights([task.labels for task in tasks])
        clients = [task.client for task in tasks]
        transform_seeds = job.transform_seeds(clients) if workspace.transforms else []
        self._masks = masks_of(job.dropout_seeds(clients), device) if stack.has_dropout else None
        self._transforms = [torch.Generator(device).manual_seed(seed) for seed in transform_seeds]
        self._orders = job.order_generators(clients)
        has_loss = has(job.author, "loss")
        self._added = AuthorsFunction(job.author.loss, "loss", workspace) if has_loss else None
        self._copies = StackedCopies(stack, tasks, spare) if tasks[0].extras or has_loss else None
        self._loss_sums = torch.zeros(len(tasks), dtype=torch.float64, device=device)
        self._num_steps = np.zeros(len(tasks), dtype=np.int64)
        self._task_sums = torch.zeros(len(tasks), len(workspace.learned.parts), dtype=torch.float64, device=device)
        self._task_counts = torch.zeros_like(self._task_sums)
        self._steps: list[Counter[str]] = [Counter() for _ in tasks]
        self._optimizer_states: list[OptimizerState] = [{} for _ in tasks]

    def train(self) -> list[LocalResult]:
        """Train the clients; their results, in the order of the tasks."""
        for number, each in enumerate(self._job.passes):
            epochs = [
                [draw.permutation(len(task.labels)) for _ in range(each.num_epochs)]
                for draw, task in zip(self._orders, self._tasks, strict=True)
            ]
            is_composed = each.model is not None or len(each.copies) > 1
            train = self._train_composed if is_composed else self._train_pass
            before = self._num_steps.copy()
            stepped = train(number, each, epochs)
            for counter, taken in zip(self._steps, (self._num_steps - before).tolist(), strict=True):
                counter.update(dict.fromkeys(stepped, taken))
        return self._results()

    def _train_pass(self, number: int, each: LocalPass, epochs: Sequence[Sequence[Any]]) -> Sequence[str]:
        """Train one copy in its stack; returns the blocks that were stepped."""
        stack, section, tasks, copy = self._stack, self._job.training, self._tasks, each.copies[0]
        own, rate = [task.own(number) for task in tasks], self._job.learning_rate * each.rates.get(copy, 1.0)
        if self._copies is not None:
            self._copies.enter(copy)
        extras = {} if self._copies is None else self._copies.extras()
        stack.start([part.start for part in own])
        stack.train_only(each.blocks)
        term = AffineTerm(stack, each, own, [task.blocks for task in tasks])
        descent = descent_of(section, stack.parameter_blocks, stack.parameters, rate, term)
        stack.train_with(masks=self._masks, descent=descent)
        states = [optimizer_state_of(copy, task.optimizer_state) for task in tasks]
        optimizers = [
            StackOptimizer(optimizer, stack, names, own_rate, states)
            for optimizer, own_rate, names in section.optimizer.alike(stack.trained_blocks, rate)
        ]
        for batch in self._batches(epochs):
            resting = {} if each.has_offset else batch.resting
            if descent is not None:
                descent.begin(resting)
            losses, by_task = self._losses(batch, extras)
            # A modality that no client of the stack owns leaves parameters of the fusion without a gradient.
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                losses.sum(), stack.parameters, allow_unused=True, materialize_grads=descent is None
            )
            left = gradients if descent is None else descent.left(stack.parameters, gradients)
            left = term.added(stack.parameters, left)
            for optimizer in optimizers:
                optimizer.step(stack.parameters, left, resting)
            self._record(each, batch, losses, by_task)
        for optimizer in optimizers if section.keep_optimizer_state else ():
            for kept, new in zip(self._optimizer_states, optimizer.states(), strict=True):
                kept.update({label_of(copy, name): state for name, state in new.items()})
        return tuple(each.blocks)

    def _train_composed(self, number: int, each: LocalPass, epochs: Sequence[Sequence[Any]]) -> Sequence[str]:
        """Train several copies, or those that blocks are made of; returns the blocks that compute."""
        stack, section, copies = self._stack, self._job.training, self._copies
        assert copies is not None, "there are copies"
        own = [task.own(number) for task in self._tasks]
        copies.enter(each.copies[0], with_parameters=False)
        optimizer, rate = section.optimizer, self._job.learning_rate
        composed = ComposedPass(stack, self._workspace, copies, each, own, optimizer, rate)
        stack.train_only(composed.composed)
        stack.train_with(masks=self._masks, descent=None)
        for batch in self._batches(epochs):
            resting = {} if each.has_offset else batch.resting
            values, leaves = composed.values(len(batch.counts))
            composed.compose(values)
            losses, by_task = self._losses(batch, values)
            composed.take_step(losses.sum(), leaves, resting)
            self._record(each, batch, losses, by_task)
        composed.end()
        return composed.composed

    def _batches(self, epochs: Sequence[Sequence[Any]]) -> Iterator[StackedBatch]:
        """The steps of a pass, each of them entered."""
        stack, batch_size = self._stack, self._job.training.batch_size
        for batch in stacked_batches(epochs, batch_size, stack.device, self._shards.observed, self._labelled):
            stack.enter(batch)
            yield batch

    def _losses(self, batch: StackedBatch, extras: Mapping[str, Any]) -> Losses:
        """The loss that each client of a batch makes small, (K,), and what is of each task in it, (K, T)."""
        stack, objective = self._stack, self._objective
        inputs, present, targets = self._shards.gather(batch)
        for name, change in self._workspace.transforms.items():
            seen = batch.seen_by(name)
            for values, count, draw in zip(
                seen.unfold(inputs[name]) if seen else (), seen.counts if seen else (), self._transforms, strict=False
            ):
                if count:
                    values[:count] = change(values[:count], draw)
        if self._added is None:
            outputs = stack.model(inputs, present)
            found = objective.each(outputs, targets, self._class_weights, batch.counts)
            return Losses(means(found.total, batch), None if found.by_task is None else means(found.by_task, batch))
        assert self._copies is not None, "there are copies"
        self._copies.batch = batch
        own = partial(stack.model.traced, inputs, present)
        live = LiveForwards(own, stack.model, inputs, present, self._copies.model_of)
        outputs = live.forward(("", None)).outputs
        added = one_per_sample(self._added(live, self._tasks[0].inputs, targets, batch, extras).flatten(), len(outputs))
        if batch.mask is not None:
            added = torch.where(batch.mask.flatten() > 0, added, 0.0)
        found = objective.each(outputs, targets, self._class_weights, batch.counts)
        by_task = None if found.by_task is None else means(found.by_task, batch)
        return Losses(means(found.total + added, batch), by_task)

    def _record(self, each: LocalPass, batch: StackedBatch, losses: Tensor, by_task: Tensor | None) -> None:
        if not each.is_recorded:
            return
        self._loss_sums[: len(batch.counts)] += losses.detach() * batch.row_counts
        self._num_steps[: len(batch.counts)] += 1
        if by_task is not None:
            counts = batch.row_counts.unsqueeze(1)
            self._task_sums[: len(batch.counts)] += by_task.detach() * counts
            if self._known is not None:
                known = batch.unfold(self._known.index_select(0, batch.rows))
                counts = (known if batch.mask is None else known * batch.mask.unsqueeze(2)).sum(dim=1)
            self._task_counts[: len(batch.counts)] += counts

    def _results(self) -> list[LocalResult]:
        tasks, count = self._tasks, len(self._tasks)
        extras: list[dict[str, dict[str, Any]]] = [{} for _ in tasks]
        states: list[LocalState] = [{} for _ in tasks]
        if self._copies is not None:
            extras, states = self._copies.leave()
        blocks, local_states = self._stack.read(count)
        drifts = self._stack.distances([task.blocks for task in tasks])
        num_epochs = sum(each.num_epochs for each in self._job.passes if each.is_recorded)
        num_examples = [len(task.labels) * num_epochs for task in tasks]
        task_sums, task_counts = self._task_sums.tolist(), self._task_counts.long().tolist()
        seconds = (time.perf_counter() - self._started) / count
        return [
            LocalResult(
                blocks=blocks[k],
                local_state={**local_states[k], **states[k]},
                optimizer_state=self._optimizer_states[k],
                num_examples=num_examples[k],
                num_steps=int(self._num_steps[k]),
                loss=loss_sum / num_examples[k],
                by_task=task_means(self._workspace.learned, task_sums[k], task_counts[k]),
                drift=drifts[k],
                seconds=seconds,
                steps=self._steps[k],
                extras=extras[k],
            )
            for k, loss_sum in enumerate(self._loss_sums.tolist())
        ]


class Shards:
    """The shards of a stack's clients, one after the other in one tensor per modality.

    Attributes:
        observed: Of the modalities that some sample lacks: which samples have it, (n,) bool.
        labels: Their labels, one client's after the other's.
    """

    def __init__(self, tasks: Sequence[ClientTask], device: torch.device) -> None:
        self._inputs = {
            modality: joined([task.inputs[modality] for task in tasks], device) for modality in tasks[0].inputs
        }
        self.labels = on_device(np.concatenate([task.labels for task in tasks]), device)
        self.observed = {
            modality: np.concatenate([task.observed.get(modality, np.ones(len(task.labels), bool)) for task in tasks])
            for modality in tasks[0].inputs
            if any(modality in task.observed for task in tasks)
        }

    def gather(self, batch: StackedBatch) -> tuple[dict[str, Tensor], Mapping[str, Presence], Tensor]:
        """A batch of a stack.

        Returns:
            By modality what its encoder sees, (K * B, *shape) or fewer rows, and nothing where no client has any; of
            those that some rows lack, which have it; and the labels, (K * B,) or (K * B, outputs).
        """
        seen = {modality: batch.seen_by(modality) for modality in self._inputs}
        inputs = {name: self._inputs[name].index_select(0, own.rows) for name, own in seen.items() if own is not None}
        present = {name: own.presence for name, own in batch.encoded.items() if own.presence is not None}
        return inputs, present or EVERYWHERE, self.labels.index_select(0, batch.rows)


def means(losses: Tensor, batch: StackedBatch) -> Tensor:
    """Mean loss of each client over its real rows, (K,) or (K, T), from those of all rows, (K * B,) or (K * B, T)."""
    by_client = batch.unfold(losses)
    if batch.mask is None:
        return by_client.mean(dim=1)
    if losses.ndim > 1:
        return (by_client * batch.mask.unsqueeze(2)).sum(dim=1) / batch.row_counts.unsqueeze(1)
    return (by_client * batch.mask).sum(dim=1) / batch.row_counts
