"""What an engine is given for clients of one kind, and what it gives back for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blossom_ray.algorithms.seam import MODEL, Tree
from blossom_ray.clients.options import FineTune, Training
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.core.blocks import Block, BlockInstance
from blossom_ray.core.records import TaskTraining
from blossom_ray.core.seeding import Purpose, generators, torch_seeds
from blossom_ray.core.sums import Vector
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.stored import Rows
from blossom_ray.tasks.base import Tally
from blossom_ray.tasks.learned import Learned


@dataclass(frozen=True)
class LocalPass:
    """Some epochs of local training in which some blocks are trained.

    The others stand still as frozen blocks do: no gradients, evaluation mode. The gradient is that of the loss, plus
    mu (w - anchor) + offset for the blocks that have them.

    Attributes:
        num_epochs: Passes over the training split.
        blocks: Names of the blocks that are trained.
        anchored: Those of them that `mu` holds near an anchor: the task's, or else what the client received.
        mu: How strongly.
        has_offset: Whether the tasks have offsets. Then no block rests: one that a batch does not use steps with a
            gradient of zero, plus the offset.
        copies: What is trained: the model, or in its place a copy of an algorithm, and what else.
        model: From the client's copies to the blocks that compute; None: those of the first copy.
        rates: By copy a factor of the learning rate.
        is_recorded: Whether its samples, steps and loss are those that the round's record tells.
    """

    num_epochs: int
    blocks: frozenset[str]
    anchored: frozenset[str] = frozenset()
    mu: float = 0.0
    has_offset: bool = False
    copies: tuple[str, ...] = (MODEL,)
    model: Callable[[Mapping[str, Any]], Tree] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    is_recorded: bool = True


@dataclass(frozen=True)
class Affine:
    """What of a pass is one client's own; parameters alone, (n,) float32 by block.

    Attributes:
        start: Values to start from.
        offset: Added to the gradient.
        anchor: What the pass holds blocks near.
    """

    start: Mapping[str, Vector] = field(default_factory=dict)
    offset: Mapping[str, Vector] = field(default_factory=dict)
    anchor: Mapping[str, Vector] = field(default_factory=dict)


NO_AFFINE = Affine()


@dataclass(frozen=True)
class LocalJob:
    """How the clients of a chunk train: what is the same for all of them.

    Attributes:
        training: The scenario's `training` section.
        learning_rate: The learning rate, in place of the section's own.
        passes: What is trained and for how long, one after the other. At least one.
        seed: The scenario's seed.
        round_index: The round.
        purpose: What the training is for; with seed, round and client it fixes batches and dropout.
    """

    training: Training
    learning_rate: float
    passes: tuple[LocalPass, ...]
    seed: int
    round_index: int
    purpose: Purpose = Purpose.TRAINING
    author: Any = None

    def order_generators(self, clients: Sequence[int]) -> list[np.random.Generator]:
        """What the order of each client's samples is drawn from, epoch by epoch."""
        return [*generators(self.seed, self.purpose, clients, self.round_index)]

    def dropout_seeds(self, clients: Sequence[int]) -> list[int]:
        """The seed of each client's dropout masks."""
        return torch_seeds(self.seed, self.purpose, clients, self.round_index)

    def transform_seeds(self, clients: Sequence[int]) -> list[int]:
        """The seed of what each client's `training.transform` draws."""
        is_tuning = self.purpose is Purpose.FINE_TUNING
        purpose = Purpose.FINE_TUNING_TRANSFORM if is_tuning else Purpose.TRANSFORM
        return torch_seeds(self.seed, purpose, clients, self.round_index)


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a chunk: what differs from client to client.

    Attributes:
        client: The client's id.
        blocks: Values of all blocks that it holds, (size,) float32. May be read-only.
        inputs: Modality to (n, *shape) float32 for the client's modalities, in memory or not. May be read-only.
        labels: (n,) int64, or (n, outputs) float32, as the task has them; of several tasks, or known in part, rows as
            `core/label_rows.py` has them.
        local_state: Its normalisation state; empty for the initial one.
        optimizer_state: State of its optimizer to start from; empty for a new one. Not used in evaluation.
        extras: What an algorithm adds: by name, parameters by block, or by `NO_BLOCK` the only array.
        affine: What of each pass is this client's own; empty where nothing is.
        received: The blocks before training, where `blocks` are those after it.
        observed: Of its modalities that some samples lack: (n,) bool, which have it. Each sample has at least one of
            all; `inputs` of a modality that it lacks are never looked at.
    """

    client: int
    blocks: Mapping[str, Vector]
    inputs: Mapping[str, Rows]
    labels: np.ndarray
    local_state: LocalState = field(default_factory=dict)
    optimizer_state: OptimizerState = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    affine: tuple[Affine, ...] = ()
    received: Mapping[str, Vector] | None = None
    observed: Mapping[str, BoolArray] = field(default_factory=dict)

    def own(self, number: int) -> Affine:
        """What of a pass is this client's own."""
        return self.affine[number] if self.affine else NO_AFFINE

    def num_observed(self, modality: str) -> int:
        """Samples that have a modality that the client owns."""
        return int(self.observed[modality].sum()) if modality in self.observed else len(self.labels)

    def rows_by_set(self) -> dict[str, np.ndarray]:
        """The rows of the samples that have the same of its modalities, (m,) int64 by these, such as `acc+gyro`."""
        everywhere = np.ones(len(self.labels), bool)
        has = np.stack([self.observed.get(name, everywhere) for name in sorted(self.inputs)], axis=1)
        found = {}
        for pattern in np.unique(has, axis=0):
            name = "+".join(each for each, is_there in zip(sorted(self.inputs), pattern, strict=True) if is_there)
            found[name] = np.flatnonzero((has == pattern).all(axis=1))
        return found

    def after(self, result: LocalResult) -> ClientTask:
        """The same with the blocks and the normalisation state that training left."""
        blocks, extras = {**self.blocks, **result.blocks}, {**self.extras, **result.extras}
        return replace(self, blocks=blocks, local_state=result.local_state, extras=extras, received=self.blocks)


@dataclass(frozen=True)
class LocalResult:
    """What local training leaves.

    Attributes:
        blocks: New values of the trained blocks, (size,) float32, fresh arrays.
        local_state: New normalisation state of the client.
        optimizer_state: State of the client's optimizer by block and name.
        num_examples: Training samples seen, over all epochs of all passes that train the model.
        num_steps: Optimizer steps of these.
        loss: Mean training loss over the samples seen, each measured before its step, without a proximal term.
        by_task: As in `ClientTraining`.
        drift: L2 norm of new minus old parameters by block.
        seconds: Wall time that it took; of clients that are computed together each one's part.
        steps: Optimizer steps of the model by block.
        extras: New values of the copies of an algorithm that were trained, as in `ClientTask`.
    """

    blocks: dict[str, Vector]
    local_state: LocalState
    optimizer_state: OptimizerState
    num_examples: int
    num_steps: int
    loss: float
    drift: dict[str, float]
    seconds: float
    steps: Mapping[str, int] = field(default_factory=dict)
    by_task: Mapping[str, TaskTraining] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScored:
    """What scoring one client's model in one task gives.

    Attributes:
        tally: What its scores follow from.
        loss: Mean loss over the labels that are known.
        by_set: Tally and loss of the samples that have the same modalities, by these; empty where no sample lacks one.
    """

    tally: Tally
    loss: float
    by_set: Mapping[str, tuple[Tally, float]]


@dataclass(frozen=True)
class Scored:
    """What scoring one client's model gives.

    Attributes:
        task: The client.
        learned: Its tasks.
        predictions: Of each of them what its `rules.predict` gave for each sample.
        losses: Of each of them the loss of each sample, (n,); empty where no sample lacks a modality.
        loss_sums: Their sums.
        seconds: Wall time that it took; of clients that are computed together each one's part.
    """

    task: ClientTask
    learned: Learned
    predictions: Sequence[np.ndarray]
    losses: Sequence[np.ndarray]
    loss_sums: Sequence[float]
    seconds: float

    @classmethod
    def of(
        cls,
        task: ClientTask,
        learned: Learned,
        predictions: Sequence[np.ndarray],
        *,
        losses: Sequence[np.ndarray],
        loss_sums: Sequence[float],
        seconds: float,
    ) -> Scored:
        """One of these."""
        return cls(task, learned, predictions, losses, loss_sums, seconds)

    @property
    def by_task(self) -> Mapping[str, TaskScored]:
        """By task what follows from it; without those of which no sample has a label."""
        task = self.task
        sets = task.rows_by_set() if task.observed else {}
        found: dict[str, TaskScored] = {}
        for part, predicted, each, loss_sum in zip(
            self.learned.parts, self.predictions, self.losses, self.loss_sums, strict=True
        ):
            if (whole := part.tally(task.labels, predicted)) is None:
                continue
            by_set = {}
            for name, rows in sets.items():
                if (own := part.tally(task.labels[rows], predicted[rows])) is not None:
                    by_set[name] = own[0], math.fsum(each[rows].tolist()) / own[1]
            found[part.name] = TaskScored(whole[0], loss_sum / whole[1], by_set)
        return found


def training_passes(section: Training, trained: Mapping[Block, BlockInstance]) -> tuple[LocalPass, ...]:
    """How a client trains in a round, where no algorithm says it.

    Args:
        section: The scenario's `training` section.
        trained: The block instances that the client trains or measures, by block name.

    Returns:
        One pass with all blocks, or, with `alternate`, one with the private blocks and one with the others; a pass
        without blocks is left out. Blocks that are not private are anchored.

    Source: Collins et al. 2021 (arXiv:2102.07078), algorithm 1, for `alternate`; Li et al. 2020 (arXiv:1812.06127),
    algorithm 2, for the proximal term.
    """
    private = frozenset(name for name, instance in trained.items() if instance.is_private)
    shared = _stepped(trained) - private
    mu = section.proximal_mu
    anchored = shared if mu else frozenset()
    if section.alternate is None:
        return (LocalPass(section.local_epochs, private | shared, anchored, mu),)
    passes = (
        LocalPass(section.alternate.private_epochs, private),
        LocalPass(section.alternate.shared_epochs, shared, anchored, mu),
    )
    return tuple(each for each in passes if each.blocks)


def tuning_pass(section: FineTune, trained: Mapping[Block, BlockInstance]) -> LocalPass:
    """How a client tunes its copy before it is scored; nothing is anchored.

    Args:
        section: The scenario's `evaluation.fine_tune` section.
        trained: The block instances that the client trains or measures, by block name.
    """
    kinds = ("encoder", "fusion", "head") if section.blocks == "all" else section.blocks.split("-")
    return LocalPass(section.epochs, frozenset(name for name in _stepped(trained) if Block.named(name).kind in kinds))


def _stepped(trained: Mapping[Block, BlockInstance]) -> frozenset[str]:
    """The blocks that an optimizer steps; prototypes are measured afterwards."""
    return frozenset(name for name in trained if name.kind != "prototype")
