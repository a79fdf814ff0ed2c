"""The batches of several clients, step by step: each client its own, padded to a common number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.local_training import read_only_tensor
from blossom_ray.data.dataset import FloatArray, IntArray
from blossom_ray.models.flat import Entry


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
        counts[: num_steps[client], client] = np.tile(_batch_sizes(len(orders[0]), steps, batch_size), len(orders))

    all_rows, all_counts = torch.from_numpy(rows).to(device), torch.from_numpy(counts).to(device, torch.float32)
    positions = torch.arange(width, device=device)
    for step in range(len(rows)):
        active = int(np.count_nonzero(num_steps > step))
        real = counts[step, :active]
        width = int(real.max())
        row_counts = all_counts[step, :active]
        mask = None if real.min() == width else (positions[:width] < row_counts.unsqueeze(1)).float()
        yield StackedBatch(all_rows[step, :active, :width].reshape(-1), tuple(real.tolist()), row_counts, mask)


def _batch_sizes(num_samples: int, num_batches: int, batch_size: int) -> IntArray:
    sizes = np.full(num_batches, batch_size)
    sizes[-1] = num_samples - (num_batches - 1) * batch_size
    return sizes


class BlockRows:
    """One block of several clients, or what goes with its parameters: an optimizer's moments.

    A tensor per entry, and not one matrix with a vector in each row: batched products and the optimizers' kernels
    are faster on matrices that follow each other without gaps.

    Args:
        entries: Part of the block's layout, without gaps.
        capacity: Number of rows.
        device: Where the tensors lie.

    Attributes:
        tensors: (capacity, *shape) float32 by name of the entry, zeros at first.
    """

    def __init__(self, entries: Sequence[Entry], capacity: int, device: torch.device) -> None:
        self._entries, self._device = tuple(entries), device
        self.tensors = {entry.name: torch.zeros(capacity, *entry.shape, device=device) for entry in entries}

    def write(self, vectors: FloatArray, *, first_row: int = 0, num_rows: int | None = None) -> None:
        """Copy vectors (K, size) into the rows from `first_row` on, or one vector (1, size) into `num_rows` of them."""
        values = read_only_tensor(vectors).to(self._device)
        rows = slice(first_row, first_row + (len(vectors) if num_rows is None else num_rows))
        start = self._entries[0].offset if self._entries else 0
        for entry in self._entries:
            part = values[:, entry.offset - start : entry.end - start]
            self.tensors[entry.name][rows] = part.reshape(len(vectors), *entry.shape)

    def distances(self, vectors: FloatArray, num_clients: int, num_values: int) -> Tensor:
        """L2 distances of the first rows from other vectors, (num_clients,) float64.

        Args:
            vectors: (K, size), or (1, size): the same for all rows.
            num_clients: K.
            num_values: Of each row the first ones count, up to the end of an entry: those that are parameters.
        """
        values = read_only_tensor(vectors).to(self._device)
        parts = [
            torch.linalg.vector_norm(
                self.tensors[entry.name][:num_clients].reshape(num_clients, -1) - values[:, entry.offset : entry.end],
                dim=1,
                dtype=torch.float64,
            )
            for entry in self._entries
            if entry.end <= num_values
        ]
        if not parts:
            return torch.zeros(num_clients, dtype=torch.float64)
        distances: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return distances

    def read(self, num_clients: int) -> FloatArray:
        """A copy of the first rows as vectors (K, size)."""
        parts = [tensor[:num_clients].reshape(num_clients, -1) for tensor in self.tensors.values()]
        if not parts:
            return np.zeros((num_clients, 0), np.float32)
        copy: FloatArray = torch.cat(parts, dim=1).cpu().numpy()
        return copy
