"""The folded batch axis: which of its rows belong to which client of a stack.

A stacked model computes on (K * B, ...) tensors, K clients of B rows each, one after the other. Whatever treats rows
alike (activations, pooling, fusions) needs no other code for that than the code of one client; the layers with
parameters, statistics or randomness unfold the axis with the help of `Lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blossom_ray.clients.stacked.batches import StackedBatch
from blossom_ray.clients.stacked.descent import Descent


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
