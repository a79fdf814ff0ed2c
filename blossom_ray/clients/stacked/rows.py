"""Block vectors of several clients, as one tensor per entry of the block's layout, with a row for each client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.local_training import read_only_tensor
from blossom_ray.data.dataset import FloatArray
from blossom_ray.models.flat import Entry


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
