"""Local training and scoring, one client after the other.

Pure in the sense that matters: a result follows from the arguments alone. The workspace is scratch memory, the arrays
that are given are not modified, torch's global generator is left as it was.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.seam import MODEL
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult, Scored
from blossom_ray.clients.optimizers import BlockOptimizer
from blossom_ray.clients.options import Training
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.clients.transforms import transformed
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.core.sums import Vector
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, ClientError, shown_error
from blossom_ray.models.flat import FlatBlock

Result = TypeVar("Result")


class SequentialEngine:
    """An `Engine` that computes one client after the other, in one model.

    Args:
        workspace: The model's memory.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def train(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        """Train each client on its shard."""
        return self._in_turn(tasks, job.round_index, lambda task: self._train(task, job))

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[Scored]:
        """Score each client's model on its samples."""
        return self._in_turn(tasks, round_index, lambda task: self._score(task, batch_size))

    def mean_over_samples(
        self,
        tasks: Sequence[ClientTask],
        function: Callable[[Tensor], Tensor],
        batch_size: int,
        *,
        round_index: int,
    ) -> list[float]:
        """The mean of a function of the model's outputs over each client's samples."""

        def mean(task: ClientTask) -> float:
            total = torch.zeros((), dtype=torch.float64, device=self._workspace.device)
            for _, outputs in evaluation_outputs(self._workspace, task.inputs, batch_size, self._workspace.model):
                total += function(outputs).sum(dtype=torch.float64)
            return float(total) / len(task.labels)

        return self._in_turn(tasks, round_index, mean)

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
        workspace, section = self._workspace, job.training
        tensors = {modality: on_device(values, workspace.device) for modality, values in task.inputs.items()}
        targets = on_device(task.labels, workspace.device)
        trainer = Trainer(workspace, job, task.labels, task)
        order_generator = job.order_generator(task.client)
        drops_generator = generator(job.seed, Purpose.MODALITY_DROPOUT, job.round_index, task.client)
        transform_generator = torch.Generator(workspace.device).manual_seed(job.transform_seed(task.client))
        with seeded_dropout(job.dropout_seed(task.client), workspace.device):
            for number, step in enumerate(job.passes):
                trainer.enter(step, task.own(number))
                for _ in range(step.num_epochs):
                    order = torch.from_numpy(order_generator.permutation(len(targets))).to(workspace.device)
                    for batch in cut(order, section):
                        present = kept_modalities(workspace.model.owned, section.modality_dropout, drops_generator)
                        inputs = {name: tensors[name].index_select(0, batch) for name in present}
                        inputs = transformed(workspace.transforms, inputs, transform_generator)
                        trainer.step(inputs, targets.index_select(0, batch))
        return trainer.result()

    def _score(self, task: ClientTask, batch_size: int) -> Scored:
        started, workspace = time.perf_counter(), self._workspace
        rules, targets = workspace.rules, read_only_tensor(task.labels)
        loss_sum = torch.zeros((), dtype=torch.float64, device=workspace.device)
        predictions = []
        for rows, outputs in evaluation_outputs(workspace, task.inputs, batch_size, workspace.model):
            loss_sum += rules.loss(outputs, targets[rows].to(workspace.device), reduction="sum")
            predictions.append(rules.predict(outputs).cpu())
        tally = rules.tally(task.labels, torch.cat(predictions).numpy(), workspace.num_outputs)
        return Scored(tally, float(loss_sum), time.perf_counter() - started)


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
        self._received = {name: _parameters(flat).clone() for name, flat in self._trained.items()}
        self._earlier_state: OptimizerState = {} if task is None else task.optimizer_state
        self._copies = CopySwitch(workspace, task) if task is not None and task.extras else None
        self._class_weights = workspace.objective.weights([labels])
        self._active: dict[str, FlatBlock] = {}
        self._anchors: dict[str, Tensor] = {}
        self._offsets: dict[str, Tensor] = {}
        self._steps = Counter[str]()
        self._optimizers: list[BlockOptimizer] = []
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=workspace.device)
        self._num_examples = self._num_steps = 0

    def enter(self, step: LocalPass, own: Affine) -> None:
        """Train the blocks of a pass from now on, with an optimizer of their own.

        Args:
            step: The pass.
            own: What of it is this client's own.
        """
        self._pass = step
        if self._copies is not None:
            self._copies.enter(step.copies[0])
        self._workspace.train_only(step.blocks)
        self._active = {name: flat for name, flat in self._trained.items() if name in step.blocks}
        for name, values in own.start.items():
            _parameters(self._trained[name]).copy_(read_only_tensor(values))
        anchors = {name: on_device(values, self._workspace.device) for name, values in own.anchor.items()}
        self._anchors = {
            name: anchors.get(name, self._received[name]) for name in self._active if name in step.anchored
        }
        self._offsets = {name: on_device(values, self._workspace.device) for name, values in own.offset.items()}
        state = self._earlier_state or None
        self._optimizers.append(BlockOptimizer(self._section.optimizer, self._active, self._learning_rate, state))

    def step(self, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """One step on one batch.

        Args:
            inputs: Modality to (B, *shape) float32; an encoder whose modality is not here takes no step.
            targets: (B,) int64, or (B, outputs) float32, as the task has them.
        """
        model = self._workspace.model
        model.training_mode(batch_size=len(targets))
        for flat in self._active.values():
            flat.zero_gradient()
        loss = self._workspace.objective.mean(model(inputs), targets, self._class_weights)
        if self._active:  # a model all of which came frozen has nothing to train
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, anchor in self._anchors.items():
            flat = self._active[name]
            flat.gradient.add_(_parameters(flat) - anchor, alpha=self._pass.mu)
        for name, offset in self._offsets.items():
            self._active[name].gradient.add_(offset)
        resting = set[str]()
        if not self._pass.has_offset:
            resting = {Block("encoder", modality) for modality in model.owned if modality not in inputs}
        self._optimizers[-1].step(resting)
        if self._pass.is_recorded:
            self._loss_sum += loss.detach() * len(targets)
            self._num_examples += len(targets)
            self._num_steps += 1
            self._steps.update(self._active.keys() - resting)

    def result(self) -> LocalResult:
        """What the steps have led to; the workspace trains all of its blocks again."""
        extras, copies_state = ({}, {}) if self._copies is None else self._copies.leave()
        self._workspace.train_only(frozenset(self._trained))
        states = [optimizer.state() for optimizer in self._optimizers] if self._section.keep_optimizer_state else []
        return LocalResult(
            blocks={name: flat.read() for name, flat in self._trained.items()},
            local_state={**self._workspace.local_state(), **copies_state},
            optimizer_state={name: state for part in states for name, state in part.items()},
            num_examples=self._num_examples,
            num_steps=self._num_steps,
            loss=float(self._loss_sum) / self._num_examples,
            drift={name: _distance(_parameters(flat), self._received[name]) for name, flat in self._trained.items()},
            seconds=time.perf_counter() - self._started,
            steps=self._steps,
            extras=extras,
        )


class CopySwitch:
    """Puts one of a client's copies at a time into a workspace: the model, or in its place what an algorithm adds.

    Blocks that a copy lacks stay the client's own. Running statistics go with the copy: a copy that has never been
    trained begins with those that the client had at the start, and keeps its own from then on, beside the client's
    normalisation state.

    Args:
        workspace: Holds the client's model.
        task: Gives its copies.
    """

    def __init__(self, workspace: Workspace, task: ClientTask) -> None:
        self._workspace, self._extras = workspace, task.extras
        self._kept = {name: state for name, state in task.local_state.items() if ":" in name}
        self._initial = {name: self._statistics(name) for name in workspace.flat}
        self._trained: dict[str, dict[str, Vector]] = {}
        self._statistics_of: dict[str, dict[str, np.ndarray]] = {}
        self._model: dict[str, tuple[Tensor, dict[str, np.ndarray]]] = {}
        self._current = MODEL

    def enter(self, copy: str) -> None:
        """Have the workspace hold a copy."""
        if copy == self._current:
            return
        self._put_back()
        self._current = copy
        if copy == MODEL:
            return
        held = self._trained.get(copy) or self._extras[copy]
        for name, values in held.items():
            flat = self._workspace.flat[name]
            self._model[name] = flat.values.clone(), self._statistics(name)
            _parameters(flat).copy_(read_only_tensor(values))
            label = f"{copy}:{name}"
            self._load_statistics(name, self._statistics_of.get(label) or self._kept.get(label) or self._initial[name])

    def leave(self) -> tuple[dict[str, dict[str, Vector]], LocalState]:
        """Have the workspace hold the model again.

        Returns:
            The copies that it held, parameters by block, and running statistics of all of the client's copies.
        """
        self.enter(MODEL)
        return self._trained, {**self._kept, **self._statistics_of}

    def _put_back(self) -> None:
        own: dict[str, Vector] = {}
        for name, (values, statistics) in self._model.items():
            flat = self._workspace.flat[name]
            own[name] = _parameters(flat).cpu().numpy().copy()
            if found := self._statistics(name):
                self._statistics_of[f"{self._current}:{name}"] = found
            flat.values.copy_(values)
            self._load_statistics(name, statistics)
        if self._current != MODEL:
            self._trained[self._current] = own
        self._model = {}

    def _statistics(self, name: str) -> dict[str, np.ndarray]:
        """The block's running statistics and counters; "" stands for those that are averaged with it."""
        flat = self._workspace.flat[name]
        averaged = (
            {"": flat.values[flat.num_parameters :].cpu().numpy().copy()} if flat.size > flat.num_parameters else {}
        )
        return {**averaged, **flat.local_state()}

    def _load_statistics(self, name: str, statistics: Mapping[str, np.ndarray]) -> None:
        flat = self._workspace.flat[name]
        if "" in statistics:
            flat.values[flat.num_parameters :] = torch.from_numpy(statistics[""].copy()).to(flat.values.device)
        flat.load_local_state({key: values for key, values in statistics.items() if key})


def cut(order: Tensor, section: Training) -> Sequence[Tensor]:
    """The batches of an epoch, without those of fewer than `min_batch_size` samples, unless there is just one.

    Args:
        order: (n,) int64, the rows in the order in which they are used.
        section: The scenario's `training` section.
    """
    batches = torch.split(order, section.batch_size)
    is_left_out = len(batches) > 1 and len(batches[-1]) < section.min_batch_size
    return batches[:-1] if is_left_out else batches


def kept_modalities(owned: Sequence[str], probability: float, draw: np.random.Generator) -> tuple[str, ...]:
    """The modalities that a batch keeps: each is dropped with this probability; if all were, one at random stays.

    Args:
        owned: The client's modalities. With one of them, or probability 0, nothing is drawn.
        probability: 0..1, 1 not included.
        draw: Where the numbers come from.

    Source: ModDrop, Neverova et al. 2015 (arXiv:1501.00102), by batch instead of by sample; FLISM
    (arXiv:2405.11828) drops by round.
    """
    if probability == 0 or len(owned) == 1:
        return tuple(owned)
    kept = tuple(name for name, number in zip(owned, draw.random(len(owned)), strict=True) if number >= probability)
    return kept or (owned[int(draw.integers(len(owned)))],)


@torch.inference_mode()
def evaluation_outputs(
    workspace: Workspace,
    inputs: Mapping[str, np.ndarray],
    batch_size: int,
    compute: Callable[[Mapping[str, Tensor]], Tensor],
) -> Iterator[tuple[slice, Tensor]]:
    """What a part of the model gives in evaluation mode and without gradients, batch by batch.

    Args:
        workspace: Holds the client's blocks. Not changed.
        inputs: Modality to (n, *shape) float32. May be read-only.
        batch_size: Samples per batch.
        compute: The model, or a part of it, of a batch.

    Yields:
        The rows of a batch, and what `compute` gives for them.
    """
    tensors = {modality: read_only_tensor(values) for modality, values in inputs.items()}
    workspace.model.eval()
    for start in range(0, len(next(iter(tensors.values()))), batch_size):
        rows = slice(start, start + batch_size)
        # A copy: a module that works in place must not reach the memory that clients share.
        yield rows, compute({name: values[rows].to(workspace.device, copy=True) for name, values in tensors.items()})


def read_only_tensor(values: np.ndarray) -> Tensor:
    """A tensor on the memory of an array that may be read-only. It must never be written to.

    Shards are views of memory that clients share; batches are gathered from them into fresh memory before any module
    sees them, so torch's warning about read-only arrays does not apply.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A tensor with these values where a model computes; on a CPU it is the memory of the array itself.

    To a GPU they go through page-locked memory, which the GPU reads by itself while this process goes on.
    """
    tensor = read_only_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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


def _parameters(flat: FlatBlock) -> Tensor:
    """The block's parameters, without its averaged buffers; a view."""
    return flat.values[: flat.num_parameters]


def _distance(new: Tensor, old: Tensor) -> float:
    return float(torch.linalg.vector_norm((new - old).double()))
