"""Local training: a client's blocks and shard in, its new blocks out.

Pure in the sense that matters: the result follows from the arguments alone. The workspace is scratch memory, the
arrays that are given are not modified, torch's global generator is left as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.optimizers import BlockOptimizer
from blossom_ray.clients.options import Training
from blossom_ray.clients.phases import Phase
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.core.sums import Vector
from blossom_ray.models.flat import FlatBlock


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
    """

    blocks: dict[str, Vector]
    local_state: LocalState
    optimizer_state: OptimizerState
    num_examples: int
    num_steps: int
    loss: float
    drift: dict[str, float]


def train_locally(
    workspace: Workspace,
    inputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    section: Training,
    *,
    learning_rate: float,
    optimizer_state: OptimizerState | None = None,
    phases: Sequence[Phase] | None = None,
    purpose: Purpose = Purpose.TRAINING,
    seed: int,
    round_index: int,
    client: int,
) -> LocalResult:
    """Train the model that `workspace` holds on one shard.

    Args:
        workspace: Holds the client's blocks; afterwards it holds the new ones.
        inputs: Modality to (n, *shape) float32 for the client's modalities. May be read-only.
        labels: (n,) int64, or (n, outputs) float32, as the task has them.
        section: The scenario's `training` section.
        learning_rate: The round's learning rate.
        optimizer_state: State to start from, or None for a new one.
        phases: What is trained and for how long; None: all blocks for `section.local_epochs` epochs.
        purpose: What the training is for; with seed, round and client it fixes batches and dropout.
        seed: The scenario's seed.
        round_index: The round.
        client: The client.

    Every sample counts, unless `min_batch_size` leaves small batches out: the last batch of an epoch may be smaller,
    and in a batch of one sample normalisation layers use their running statistics.
    """
    device = workspace.device
    tensors = {modality: on_device(values, device) for modality, values in inputs.items()}
    targets = on_device(labels, device)
    names = frozenset(workspace.trained)
    trainer = Trainer(workspace, section, learning_rate, optimizer_state)
    order_generator = generator(seed, purpose, round_index, client)
    drops_generator = generator(seed, Purpose.MODALITY_DROPOUT, round_index, client)
    with seeded_dropout(torch_seed(seed, purpose, round_index, client), device):
        for phase in phases or (Phase(section.local_epochs, names, anchored=names),):
            trainer.enter(phase)
            for _ in range(phase.num_epochs):
                order = torch.from_numpy(order_generator.permutation(len(labels))).to(device)
                for batch in cut(order, section):
                    present = kept_modalities(workspace.model.owned, section.modality_dropout, drops_generator)
                    batch_inputs = {name: tensors[name].index_select(0, batch) for name in present}
                    trainer.step(batch_inputs, targets.index_select(0, batch))
    return trainer.result()


class Trainer:
    """Takes optimizer steps with the model that a workspace holds, and adds up what it saw.

    Args:
        workspace: Holds the blocks as they were received; they are trained in place.
        section: The scenario's `training` section.
        learning_rate: The learning rate.
        optimizer_state: State to start from, by block; None for a new one.
    """

    def __init__(
        self,
        workspace: Workspace,
        section: Training,
        learning_rate: float,
        optimizer_state: OptimizerState | None = None,
    ) -> None:
        self._workspace, self._section, self._learning_rate = workspace, section, learning_rate
        self._trained = workspace.trained
        self._received = {name: _parameters(flat).clone() for name, flat in self._trained.items()}
        self._earlier_state = optimizer_state
        self._active: dict[str, FlatBlock] = {}
        self._anchored: dict[str, FlatBlock] = {}
        self._optimizers: list[BlockOptimizer] = []
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=workspace.device)
        self._num_examples = self._num_steps = 0

    def enter(self, phase: Phase) -> None:
        """Train the blocks of a phase from now on, with an optimizer of their own."""
        self._workspace.train_only(phase.blocks)
        self._active = {name: flat for name, flat in self._trained.items() if name in phase.blocks}
        self._anchored = {
            name: flat for name, flat in self._active.items() if name in phase.anchored and self._section.proximal_mu
        }
        self._optimizers.append(
            BlockOptimizer(self._section.optimizer, self._active, self._learning_rate, self._earlier_state)
        )

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
        loss = self._workspace.rules.loss(model(inputs), targets, reduction="mean")
        if self._active:  # a model all of which came frozen has nothing to train
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, flat in self._anchored.items():
            flat.gradient.add_(_parameters(flat) - self._received[name], alpha=self._section.proximal_mu)
        resting = {Block("encoder", modality) for modality in model.owned if modality not in inputs}
        self._optimizers[-1].step(resting)
        self._loss_sum += loss.detach() * len(targets)
        self._num_examples += len(targets)
        self._num_steps += 1

    def result(self) -> LocalResult:
        """What the steps have led to; the workspace trains all of its blocks again."""
        self._workspace.train_only(frozenset(self._trained))
        states = [optimizer.state() for optimizer in self._optimizers] if self._section.keep_optimizer_state else []
        return LocalResult(
            blocks={name: flat.read() for name, flat in self._trained.items()},
            local_state=self._workspace.local_state(),
            optimizer_state={name: state for part in states for name, state in part.items()},
            num_examples=self._num_examples,
            num_steps=self._num_steps,
            loss=float(self._loss_sum) / self._num_examples,
            drift={name: _distance(_parameters(flat), self._received[name]) for name, flat in self._trained.items()},
        )


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
