"""Local training: a client's blocks and shard in, its new blocks out.

Pure in the sense that matters: the result follows from the arguments alone. The workspace is scratch memory, the
arrays that are given are not modified, torch's global generator is left as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blossom_ray.aggregation import Vector
from blossom_ray.client import LocalState, OptimizerState
from blossom_ray.client_optimizer import BlockOptimizer
from blossom_ray.models.workspace import Workspace
from blossom_ray.scenario.sections import Training
from blossom_ray.seeding import Purpose, generator, torch_seed


@dataclass(frozen=True)
class LocalResult:
    """What local training leaves.

    Attributes:
        blocks: New values of the trained blocks, (size,) float32, fresh arrays.
        local_state: New normalisation state of the client.
        optimizer_state: State of the client's optimizer by block and name.
        num_examples: Training samples seen over all epochs.
        num_steps: Optimizer steps.
        loss: Mean training loss over the samples seen, each measured before its step.
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
    seed: int,
    round_index: int,
    client: int,
) -> LocalResult:
    """Train the model that `workspace` holds on one shard for `section.local_epochs` epochs.

    Args:
        workspace: Holds the client's blocks; afterwards it holds the new ones.
        inputs: Modality to (n, *shape) float32 for the client's modalities. May be read-only.
        labels: (n,) int64.
        section: The scenario's `training` section.
        learning_rate: The round's learning rate.
        optimizer_state: State to start from, or None for a new one.
        seed: The scenario's seed.
        round_index: The round.
        client: The client; with seed and round it fixes batches and dropout.

    Every sample counts: the last batch of an epoch may be smaller, and in a batch of one sample normalisation layers
    use their running statistics.
    """
    device, model = workspace.device, workspace.model
    trained = workspace.trained
    before = {name: flat.values[: flat.num_parameters].clone() for name, flat in trained.items()}
    tensors = {modality: read_only_tensor(values).to(device) for modality, values in inputs.items()}
    targets = read_only_tensor(labels).to(device)
    optimizer = BlockOptimizer(section.optimizer, trained, learning_rate, optimizer_state)

    num_samples, num_steps = len(labels), 0
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    order_generator = generator(seed, Purpose.TRAINING, round_index, client)
    with _seeded_dropout(torch_seed(seed, Purpose.TRAINING, round_index, client), device):
        for _ in range(section.local_epochs):
            order = torch.from_numpy(order_generator.permutation(num_samples)).to(device)
            for batch in torch.split(order, section.batch_size):
                model.training_mode(batch_size=len(batch))
                for flat in trained.values():
                    flat.zero_gradient()
                outputs = model({name: values.index_select(0, batch) for name, values in tensors.items()})
                loss = F.cross_entropy(outputs, targets.index_select(0, batch))
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                loss_sum += loss.detach() * len(batch)
                num_steps += 1

    num_examples = num_samples * section.local_epochs
    return LocalResult(
        blocks={name: flat.read() for name, flat in trained.items()},
        local_state=workspace.local_state(),
        optimizer_state=optimizer.state() if section.keep_optimizer_state else {},
        num_examples=num_examples,
        num_steps=num_steps,
        loss=float(loss_sum) / num_examples,
        drift={name: _distance(flat.values[: flat.num_parameters], before[name]) for name, flat in trained.items()},
    )  # fmt: skip


def read_only_tensor(values: np.ndarray) -> Tensor:
    """A tensor on the memory of an array that may be read-only. It must never be written to.

    Shards are views of memory that clients share; batches are gathered from them into fresh memory before any module
    sees them, so torch's warning about read-only arrays does not apply.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


@contextmanager
def _seeded_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, the only one that dropout layers use, and put it back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _distance(new: Tensor, old: Tensor) -> float:
    return float(torch.linalg.vector_norm((new - old).double()))
