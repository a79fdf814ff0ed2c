"""Local training and scoring, one client after the other.

Pure in the sense that matters: a result follows from the arguments alone. The workspace is scratch memory, the arrays
that are given are not modified, torch's global generator is left as it was.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.seam import has
from blossom_ray.clients.batch import Measured, one_per_sample, per_sample
from blossom_ray.clients.common_part import until_own
from blossom_ray.clients.copies import (
    ClientCopies,
    ComposedPass,
    LocalClient,
    authors_batch,
    label_of,
    optimizer_state_of,
)
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult, Scored
from blossom_ray.clients.losses import Losses, TrainingTally
from blossom_ray.clients.optimizers import BlockOptimizer
from blossom_ray.clients.plan import OptimizerState
from blossom_ray.clients.samples import (
    cut,
    evaluation_batches,
    evaluation_outputs,
    gathered,
    joined,
    kept_modalities,
    on_device,
    read_only_tensor,
)
from blossom_ray.clients.transforms import transformed
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, ClientError, RunError, shown_error
from blossom_ray.models.flat import FlatBlock
from blossom_ray.models.late_fusion import EVERYWHERE, BegunForward, Forward, Later, Presence

Result = TypeVar("Result")


class SequentialEngine:
    """An `Engine` that computes one client after the other, in one model.

    Args:
        workspace: The model's memory.
    """

    obstacles: Collection[str] = ()

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def train(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        """Train each client on its shard."""
        return self._in_turn(tasks, job.round_index, lambda task: self._train(task, job))

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[Scored]:
        """Score each client's model on its samples."""
        begun, until = list[tuple[slice, BegunForward]](), until_own(tasks, self._workspace)

        def score(task: ClientTask) -> Scored:
            return self._score(task, self._outputs(task, batch_size, begun, until))

        return self._in_turn(tasks, round_index, score)

    @torch.no_grad()
    def measure(
        self, tasks: Sequence[ClientTask], function: Measured, batch_size: int, *, round_index: int
    ) -> list[dict[str, Tensor]]:
        """Sums of numbers per sample over each client's samples."""
        workspace = self._workspace

        def measured(task: ClientTask) -> dict[str, Tensor]:
            copies, sums = ClientCopies(workspace, task), dict[str, Tensor]()
            targets, extras = read_only_tensor(task.labels), copies.extras()
            workspace.model.eval()
            for rows, inputs, present in evaluation_batches(workspace, task.inputs, task.observed, batch_size):
                own = partial(workspace.model.traced, inputs, present)
                labels = targets[rows].to(workspace.device)
                batch = authors_batch(workspace, own, inputs, present, labels, extras, copies)
                for name, numbers in per_sample(function(batch), len(batch.real)).items():
                    total = numbers.sum(dim=0, dtype=torch.float64)
                    sums[name] = sums[name] + total if name in sums else total
            return sums

        return self._in_turn(tasks, round_index, measured)

    def _in_turn(
        self, tasks: Sequence[ClientTask], round_index: int, compute: Callable[[ClientTask], Result]
    ) -> list[Result]:
        """What `compute` gives for each client, whose blocks the workspace then holds."""
        results = []
        for task in tasks:
            try:
                self._workspace.load(task.blocks, task.local_state or self._workspace.initial_state)
                results.append(compute(task))
            except BlossomError:
                raise
            except OWN_CODE_RAISES as error:
                cause = shown_error(error).splitlines()[0]
                no_room = isinstance(error, torch.OutOfMemoryError)
                hint = "a smaller training.batch_size, or a larger execution.client_resources.num_gpus"
                details = traceback.format_exc()
                raise ClientError(task.client, round_index, cause, hint if no_room else "", details) from error
        return results

    def _train(self, task: ClientTask, job: LocalJob) -> LocalResult:
        workspace, batches = self._workspace, _Batches(self._workspace, task, job)
        with seeded_dropout(job.dropout_seeds([task.client])[0], workspace.device):
            if has(job.author, "local"):
                return self._train_by_author(task, job, batches)
            trainer = Trainer(workspace, job, task.labels, task)
            for number, step in enumerate(job.passes):
                trainer.enter(step, task.own(number))
                for inputs, present, targets in batches.of_epochs(step.num_epochs):
                    trainer.step(inputs, targets, present)
            return trainer.result()

    def _train_by_author(self, task: ClientTask, job: LocalJob, batches: _Batches) -> LocalResult:
        started, workspace = time.perf_counter(), self._workspace
        before = {name: flat.parameters.clone() for name, flat in workspace.trained.items()}
        client = LocalClient(workspace, ClientCopies(workspace, task), job, batches.of_epochs)
        workspace.model.train()
        client.take(job.author.local(client))
        drift = {name: _distance(flat.parameters, before[name]) for name, flat in workspace.trained.items()}
        if not client.num_examples:
            raise RunError("algorithm: local looked at no batch; expected it to go through c.batches()")
        return LocalResult(
            blocks={name: flat.read() for name, flat in workspace.trained.items()},
            local_state=workspace.local_state(),
            optimizer_state={},
            num_examples=client.num_examples,
            num_steps=client.num_batches,
            loss=client.loss_sum / client.num_examples,
            by_task=client.tally.means(),
            drift=drift,
            seconds=time.perf_counter() - started,
            steps=dict.fromkeys(workspace.trained, client.num_batches),
            extras=client.extras,
        )

    @torch.inference_mode()
    def _outputs(
        self, task: ClientTask, batch_size: int, begun: list[tuple[slice, BegunForward]], until: Later | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """What the model gives batch by batch; `begun` is what clients have in common, once the first was here."""
        workspace, model = self._workspace, self._workspace.model
        if until is None:
            yield from evaluation_outputs(workspace, task.inputs, task.observed, batch_size, model)
            return
        if not begun:
            begin = partial(model.begun, until=until)
            begun.extend(evaluation_outputs(workspace, task.inputs, task.observed, batch_size, begin))
        for rows, each in begun:
            yield rows, model.ended(each.repeated(1))

    def _score(self, task: ClientTask, evaluated: Iterator[tuple[slice, Tensor]]) -> Scored:
        started, workspace = time.perf_counter(), self._workspace
        parts, targets = workspace.learned.parts, read_only_tensor(task.labels)
        loss_sums = torch.zeros(len(parts), dtype=torch.float64, device=workspace.device)
        predictions: list[list[Tensor]] = [[] for _ in parts]
        losses = [[torch.zeros(0)] for _ in parts]
        for rows, outputs in evaluated:
            labels = targets[rows].to(workspace.device)
            for at, part in enumerate(parts):
                own, known = (part.outputs_of(outputs), part.targets_of(labels)), part.known_of(labels)
                loss_sums[at] += part.rules.loss(*own, reduction="sum", known=known)
                predictions[at].append(part.rules.predict(own[0]).cpu())
                if task.observed:
                    losses[at].append(part.losses(outputs, labels).cpu())
        return Scored.of(
            task,
            workspace.learned,
            [torch.cat(own).numpy() for own in predictions],
            losses=[torch.cat(each).numpy() for each in losses],
            loss_sums=loss_sums.tolist(),
            seconds=time.perf_counter() - started,
        )


class _Batches:
    """The batches of one client's round, in the order in which its passes take them.

    Args:
        workspace: Where it computes, and what is done to a batch.
        task: The client.
        job: Fixes what is drawn.
    """

    def __init__(self, workspace: Workspace, task: ClientTask, job: LocalJob) -> None:
        self._workspace, self._section = workspace, job.training
        self._inputs = {modality: joined([values], workspace.device) for modality, values in task.inputs.items()}
        self._observed = {modality: on_device(values, workspace.device) for modality, values in task.observed.items()}
        self._targets = on_device(task.labels, workspace.device)
        self._orders = job.order_generators([task.client])[0]
        self._drops = generator(job.seed, Purpose.MODALITY_DROPOUT, job.round_index, task.client)
        self._transforms = torch.Generator(workspace.device).manual_seed(job.transform_seeds([task.client])[0])

    def of_epochs(self, num_epochs: int) -> Iterator[tuple[dict[str, Tensor], Mapping[str, Presence], Tensor]]:
        """The next batches: modality to (B, *shape), without those that are dropped; who has it; and targets."""
        workspace, section = self._workspace, self._section
        for _ in range(num_epochs):
            order = torch.from_numpy(self._orders.permutation(len(self._targets))).to(workspace.device)
            for rows in cut(order, section):
                kept = kept_modalities(workspace.model.owned, section.modality_dropout, self._drops)
                inputs, present = gathered({name: self._inputs[name] for name in kept}, self._observed, rows)
                inputs = transformed(workspace.transforms, inputs, self._transforms)
                yield inputs, present, self._targets.index_select(0, rows)


class Trainer:
    """Takes optimizer steps with the model that a workspace holds, and adds up what it saw.

    Args:
        workspace: Holds the blocks as they were received; they are trained in place.
        job: Gives section and learning rate; its passes are entered by whoever steps.
        labels: Those that are trained with, (n,) int64 or (n, outputs) float32.
        task: Gives the client's copies and its state, where there is a client.
    """

    def __init__(self, workspace: Workspace, job: LocalJob, labels: np.ndarray, task: ClientTask | None = None) -> None:
        self._started = time.perf_counter()
        self._workspace, self._section, self._learning_rate = workspace, job.training, job.learning_rate
        self._trained = workspace.trained
        self._received = {name: flat.parameters.clone() for name, flat in self._trained.items()}
        self._earlier_state: OptimizerState = {} if task is None else task.optimizer_state
        self._has_gaps = task is not None and bool(task.observed)
        self._tally = TrainingTally(workspace.learned)
        self._author = job.author if has(job.author, "loss") else None
        needs_copies = task is not None and (task.extras or self._author is not None)
        self._copies = ClientCopies(workspace, task) if task is not None and needs_copies else None
        self._composed: ComposedPass | None = None
        self._class_weights = workspace.objective.weights([labels])
        self._active: dict[str, FlatBlock] = {}
        self._anchors: dict[str, Tensor] = {}
        self._offsets: dict[str, Tensor] = {}
        self._steps = Counter[str]()
        self._extras: dict[str, Any] = {}
        self._optimizers: list[tuple[str, BlockOptimizer]] = []
        self._states: OptimizerState = {}
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=workspace.device)
        self._num_examples = self._num_steps = 0

    def enter(self, step: LocalPass, own: Affine) -> None:
        """Train the blocks of a pass from now on, with an optimizer of their own.

        Args:
            step: The pass.
            own: What of it is this client's own.
        """
        self._end_composed()
        self._pass, copy = step, step.copies[0]
        is_composed = step.model is not None or len(step.copies) > 1
        if self._copies is not None:
            self._copies.enter(copy, with_parameters=not is_composed)
            self._extras = self._copies.extras()
        section, rate = self._section.optimizer, self._learning_rate
        if is_composed:
            assert self._copies is not None, "there are copies"
            self._composed = ComposedPass(self._workspace, self._copies, step, own, section, rate)
            self._workspace.train_only(frozenset(self._composed.composed) & self._trained.keys())
            return
        self._workspace.train_only(step.blocks)
        self._active = {name: flat for name, flat in self._trained.items() if name in step.blocks}
        for name, values in own.start.items():
            self._trained[name].values[: len(values)].copy_(read_only_tensor(values))
        anchors = {name: on_device(values, self._workspace.device) for name, values in own.anchor.items()}
        self._anchors = {
            name: anchors.get(name, self._received[name]) for name in self._active if name in step.anchored
        }
        self._offsets = {name: on_device(values, self._workspace.device) for name, values in own.offset.items()}
        state = optimizer_state_of(copy, self._earlier_state)
        rate *= step.rates.get(copy, 1.0)
        self._optimizers.append((copy, BlockOptimizer(section, self._active, rate, state or None)))

    def step(self, inputs: Mapping[str, Tensor], targets: Tensor, present: Mapping[str, Presence] = EVERYWHERE) -> None:
        """One step on one batch.

        Args:
            inputs: Modality to (B, *shape) float32; an encoder whose modality is not here takes no step.
            targets: (B,) int64, or (B, outputs) float32, as the task has them.
            present: Of modalities that some samples lack, which have it: `inputs` has those alone.
        """
        model, idle = self._workspace.model, self._workspace.idle_blocks(targets)
        model.training_mode(batch_size=len(targets), inputs=inputs, resting=idle)
        if self._composed is not None:
            losses = self._losses(partial(self._composed.forward, inputs, present), inputs, present, targets)
            resting = self._resting(inputs)
            self._composed.take_step(losses.total, self._without_steps(resting, idle))
            self._record(losses, targets, set(self._composed.composed), resting)
            return
        for flat in self._active.values():
            flat.zero_gradient()
        if self._author is None:
            losses = self._workspace.objective.mean(model(inputs, present), targets, self._class_weights)
        else:
            losses = self._losses(partial(model.traced, inputs, present), inputs, present, targets)
        if self._active:  # a model all of which came frozen has nothing to train
            losses.total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, anchor in self._anchors.items():
            flat = self._active[name]
            flat.gradient.add_(flat.parameters - anchor, alpha=self._pass.mu)
        for name, offset in self._offsets.items():
            self._active[name].gradient.add_(offset)
        resting = self._resting(inputs)
        self._optimizers[-1][1].step(self._without_steps(resting, idle))
        self._record(losses, targets, self._active.keys(), resting)

    def _losses(
        self,
        own: Callable[[], Forward],
        inputs: Mapping[str, Tensor],
        present: Mapping[str, Presence],
        targets: Tensor,
    ) -> Losses:
        """The means over a batch of the losses of `training`, and in their sum of what the algorithm adds to it.

        Args:
            own: The forward pass of what is trained.
            inputs: As in `step`.
            present: As in `step`.
            targets: As in `step`.
        """
        workspace, copies = self._workspace, self._copies
        assert copies is not None, "there are copies"
        extras = self._extras if self._composed is None else self._composed.values()
        batch = authors_batch(workspace, own, inputs, present, targets, extras, copies)
        total, by_task = workspace.objective.each(batch.all_outputs, targets, self._class_weights, (len(targets),))
        if self._author is not None:
            total = total + one_per_sample(self._author.loss(batch), len(targets))
        return Losses(total.mean(), None if by_task is None else by_task.mean(dim=0))

    def _record(self, losses: Losses, targets: Tensor, stepped: Set[str], resting: Set[str]) -> None:
        if self._pass.is_recorded:
            self._loss_sum += losses.total.detach() * len(targets)
            self._num_examples += len(targets)
            self._num_steps += 1
            self._tally.add(losses.by_task, targets)
            # What rests since samples lack its modality follows the gradient of their loss all the same, which is zero.
            self._steps.update(stepped if self._has_gaps else stepped - resting)

    def _without_steps(self, encoders: Set[str], idle: Set[str]) -> Set[str]:
        """The blocks that take no step in a batch."""
        return encoders if self._pass.has_offset else encoders | idle

    def _resting(self, inputs: Mapping[str, Tensor]) -> set[str]:
        if self._pass.has_offset:
            return set()
        return {Block("encoder", modality) for modality in self._workspace.model.owned if modality not in inputs}

    def _end_composed(self) -> None:
        if self._composed is not None:
            self._composed.end()
            self._composed = None

    def result(self) -> LocalResult:
        """What the steps have led to; the workspace trains all of its blocks again."""
        self._end_composed()
        extras, copies_state = ({}, {}) if self._copies is None else self._copies.leave()
        self._workspace.train_only(frozenset(self._trained))
        for copy, optimizer in self._optimizers:
            self._states |= {label_of(copy, name): state for name, state in optimizer.state().items()}
        return LocalResult(
            blocks={name: flat.read() for name, flat in self._trained.items()},
            local_state={**self._workspace.local_state(), **copies_state},
            optimizer_state=self._states if self._section.keep_optimizer_state else {},
            num_examples=self._num_examples,
            num_steps=self._num_steps,
            loss=float(self._loss_sum) / self._num_examples,
            by_task=self._tally.means(),
            drift={name: _distance(flat.parameters, self._received[name]) for name, flat in self._trained.items()},
            seconds=time.perf_counter() - self._started,
            steps=self._steps,
            extras=extras,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as clients do: the number of threads can change the order of sums inside torch."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def seeded_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, the only one that dropout layers use, and put it back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _distance(new: Tensor, old: Tensor) -> float:
    return float(torch.linalg.vector_norm((new - old).double()))
