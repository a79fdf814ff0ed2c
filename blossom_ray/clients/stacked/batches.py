"""The batches of several clients, step by step: each client its own, padded to a common number of rows.

A stacked model computes on (K * B, ...) tensors, K clients of B rows each, one after the other. Whatever treats rows
alike (activations, pooling, fusions) needs no other code for that than the code of one client; the layers with
parameters, statistics or randomness unfold the axis with the help of `Lanes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.stacked.descent import Descent
from blossom_ray.data.dataset import IntArray


@dataclass(frozen=True)
class StackedBatch:
    """One step's batches of the first K clients of a stack, padded to B rows each.

    Attributes:
        rows: (K * B,) int64, row numbers in the clients' concatenated shards. Padding repeats one of the client's own.
        counts: Real rows of each client, 1..B.
        row_counts: The same as a float32 tensor, (K,).
        mask: (K, B) float32, 1 for real rows and 0 for padding; None where all rows are real.
    """

    rows: Tensor
    counts: tuple[int, ...]
    row_counts: Tensor
    mask: Tensor | None

    def unfold(self, values: Tensor) -> Tensor:
        """From (K * B, ...) to (K, B, ...), a view."""
        return torch.unflatten(values, 0, (len(self.counts), -1))


def stacked_batches(
    epochs: Sequence[Sequence[IntArray]], batch_size: int, device: torch.device
) -> Iterator[StackedBatch]:
    """The steps of a stack of clients, until the last client is through.

    Args:
        epochs: For each client the order of its samples, (n,), in each of its epochs. Clients stand in falling order
            of their number of batches, so that those who still have one are always the first.
        batch_size: Samples per batch; the last one of an epoch may be smaller.
        device: Where the tensors are needed.
    """
    sizes = np.array([len(orders[0]) for orders in epochs])
    steps_per_epoch = -(-sizes // batch_size)
    num_steps = steps_per_epoch * len(epochs[0])
    offsets = np.cumsum(sizes) - sizes
    width = min(batch_size, int(sizes.max()))
    rows = np.zeros((num_steps.max(), len(epochs), width), dtype=np.int64)
    counts = np.zeros(rows.shape[:2], dtype=np.int64)
    for client, orders in enumerate(epochs):
        steps = steps_per_epoch[client]
        for epoch, order in enumerate(orders):
            padded = np.full(steps * width, order[0])
            padded[: len(order)] = order
            rows[epoch * steps : (epoch + 1) * steps, client] = padded.reshape(steps, width) + offsets[client]
        batch_sizes = np.full(steps, batch_size)
        batch_sizes[-1] = sizes[client] - (steps - 1) * batch_size
        counts[: num_steps[client], client] = np.tile(batch_sizes, len(orders))

    all_rows, all_counts = torch.from_numpy(rows).to(device), torch.from_numpy(counts).to(device, torch.float32)
    positions = torch.arange(width, device=device)
    for step in range(len(rows)):
        active = int(np.count_nonzero(num_steps > step))
        real = counts[step, :active]
        width = int(real.max())
        row_counts = all_counts[step, :active]
        mask = None if real.min() == width else (positions[:width] < row_counts.unsqueeze(1)).float()
        yield StackedBatch(all_rows[step, :active, :width].reshape(-1), tuple(real.tolist()), row_counts, mask)


@dataclass
class Lanes:
    """The batch that a stacked model computes on now; its layers share this object.

    Attributes:
        num_clients: K, the clients that take part; always the first ones of the stack.
        num_rows: B, the rows of each client.
        counts: Real rows of each client; the rest of its rows is padding.
        row_counts: The same as a float32 tensor, (K,).
        mask: (K, B) float32, 1 for real rows and 0 for padding; None where all rows are real.
        generators: Source of each client's dropout masks.
        descent: The steps that layers take in the backward pass; None where they take none.
    """

    num_clients: int = 0
    num_rows: int = 0
    counts: tuple[int, ...] = ()
    row_counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    mask: Tensor | None = None
    generators: Sequence[torch.Generator] = ()
    descent: Descent | None = None

    def enter(self, batch: StackedBatch) -> None:
        """Make `batch` the current one."""
        self.num_clients, self.counts = len(batch.counts), batch.counts
        self.num_rows = len(batch.rows) // self.num_clients
        self.row_counts, self.mask = batch.row_counts, batch.mask
        if self.descent is not None:
            self.descent.begin()

    def unfold(self, values: Tensor) -> Tensor:
        """From (K * B, ...) to (K, B, ...), a view."""
        return torch.unflatten(values, 0, (self.num_clients, -1))
