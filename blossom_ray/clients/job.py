"""What an engine is given for clients of one kind, and what it gives back for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from blossom_ray.clients.options import FineTune, Training
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.core.blocks import FUSION, HEAD, Block, BlockInstance
from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.core.sums import Vector
from blossom_ray.tasks.base import Tally


@dataclass(frozen=True)
class Phase:
    """Some epochs of local training in which some blocks are trained.

    The others stand still as frozen blocks do: no gradients, evaluation mode.

    Attributes:
        num_epochs: Passes over the training split.
        blocks: Names of the blocks that are trained.
        anchored: Those of them that the proximal term holds near the values that the client received.
    """

    num_epochs: int
    blocks: frozenset[str]
    anchored: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LocalJob:
    """How the clients of a chunk train: what is the same for all of them.

    Attributes:
        training: The scenario's `training` section.
        learning_rate: The learning rate, in place of the section's own.
        phases: What is trained and for how long, one after the other. At least one.
        seed: The scenario's seed.
        round_index: The round.
        purpose: What the training is for; with seed, round and client it fixes batches and dropout.
    """

    training: Training
    learning_rate: float
    phases: tuple[Phase, ...]
    seed: int
    round_index: int
    purpose: Purpose = Purpose.TRAINING

    def order_generator(self, client: int) -> np.random.Generator:
        """What the order of a client's samples is drawn from, epoch by epoch."""
        return generator(self.seed, self.purpose, self.round_index, client)

    def dropout_seed(self, client: int) -> int:
        """The seed of a client's dropout masks."""
        return torch_seed(self.seed, self.purpose, self.round_index, client)


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a chunk: what differs from client to client.

    Attributes:
        client: The client's id.
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

    def after(self, result: LocalResult) -> ClientTask:
        """The same with the blocks and the normalisation state that training left."""
        return replace(self, blocks={**self.blocks, **result.blocks}, local_state=result.local_state)


@dataclass(frozen=True)
class LocalResult:
    """What local training leaves.

    Attributes:
        blocks: New values of the trained blocks, (size,) float32, fresh arrays.
        local_state: New normalisation state of the client.
        optimizer_state: State of the client's optimizer by block and name.
        num_examples: Training samples seen, over all epochs of all phases.
        num_steps: Optimizer steps.
        loss: Mean training loss over the samples seen, each measured before its step, without the proximal term.
        drift: L2 norm of new minus old parameters by block.
        seconds: Wall time that it took; of clients that are computed together each one's part.
    """

    blocks: dict[str, Vector]
    local_state: LocalState
    optimizer_state: OptimizerState
    num_examples: int
    num_steps: int
    loss: float
    drift: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Scored:
    """What scoring one client's model gives.

    Attributes:
        tally: What its scores follow from.
        loss_sum: Sum of the loss over the samples.
        seconds: Wall time that it took; of clients that are computed together each one's part.
    """

    tally: Tally
    loss_sum: float
    seconds: float


def training_phases(section: Training, trained: Mapping[Block, BlockInstance]) -> tuple[Phase, ...]:
    """How a client trains in a round.

    Args:
        section: The scenario's `training` section.
        trained: The block instances that the client trains or measures, by block name.

    Returns:
        One phase with all blocks, or, with `alternate`, one with the private blocks and one with the others; a phase
        without blocks is left out. Blocks that are not private are anchored.

    Source: Collins et al. 2021 (arXiv:2102.07078), algorithm 1, for `alternate`; Li et al. 2020 (arXiv:1812.06127),
    algorithm 2, for the proximal term.
    """
    private = frozenset(name for name, instance in trained.items() if instance.is_private)
    shared = _stepped(trained) - private
    if section.alternate is None:
        return (Phase(section.local_epochs, private | shared, anchored=shared),)
    phases = (
        Phase(section.alternate.private_epochs, private),
        Phase(section.alternate.shared_epochs, shared, anchored=shared),
    )
    return tuple(phase for phase in phases if phase.blocks)


def tuning_phase(section: FineTune, trained: Mapping[Block, BlockInstance]) -> Phase:
    """How a client tunes its copy before it is scored; nothing is anchored.

    Args:
        section: The scenario's `evaluation.fine_tune` section.
        trained: The block instances that the client trains or measures, by block name.
    """
    names = {"all": _stepped(trained), "fusion-head": frozenset({FUSION, HEAD}), "head": frozenset({HEAD})}
    return Phase(section.epochs, names[section.blocks] & _stepped(trained))


def _stepped(trained: Mapping[Block, BlockInstance]) -> frozenset[str]:
    """The blocks that an optimizer steps; prototypes are measured afterwards."""
    return frozenset(name for name in trained if name.kind != "prototype")
