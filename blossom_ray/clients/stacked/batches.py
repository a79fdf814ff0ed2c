"""The batches of several clients, step by step: each client its own, padded to a common number of rows.

A stacked model computes on (K * B, ...) tensors, K clients of B rows each, one after the other. Whatever treats rows
alike (activations, pooling, fusions) needs no other code for that than the code of one client; the layers with
parameters, statistics or randomness unfold the axis with the help of `Lanes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.stacked.descent import Descent
from blossom_ray.clients.stacked.masks import Masks
from blossom_ray.core.blocks import Block, BlockKind
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.targets import IntArray
from blossom_ray.models.late_fusion import Presence

Resting = Mapping[str, tuple[int, ...]]
"""By block the clients of a stack that take no step with it."""
_OF_TASK: tuple[BlockKind, ...] = ("fusion", "head")


@dataclass(frozen=True)
class StackedBatch:
    """One step's batches of the first K clients of a stack, padded to B rows each.

    Attributes:
        rows: (K * B,) int64, row numbers in the clients' concatenated shards. Padding repeats one of the client's own.
        counts: Real rows of each client, 1..B; 0..B of those that an encoder sees.
        row_counts: The same as a float32 tensor, (K,).
        mask: (K, B) float32, 1 for real rows and 0 for padding; None where all rows are real.
        encoded: Of the modalities that some real row lacks, what their encoders see.
        idle: By task, of several, the clients of which no real row has a label of it.
    """

    rows: Tensor
    counts: tuple[int, ...]
    row_counts: Tensor
    mask: Tensor | None
    encoded: Mapping[str, Encoded] = field(default_factory=dict)
    idle: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def resting(self) -> Resting:
        """The encoders, heads and fusions of a task, and the clients that have no row for them."""
        clients = {Block("encoder", name): own.resting(len(self.counts)) for name, own in self.encoded.items()}
        clients |= {Block(kind, task): own for task, own in self.idle.items() for kind in _OF_TASK}
        return {name: own for name, own in clients.items() if own}

    def of_task(self, task: str) -> StackedBatch:
        """What head and fusion of a task see: of clients without a label of it no row is real."""
        if not (idle := self.idle.get(task, ())):
            return self
        row_counts = self.row_counts.clone()
        row_counts[list(idle)] = 0
        counts = tuple(0 if client in idle else count for client, count in enumerate(self.counts))
        return replace(self, counts=counts, row_counts=row_counts)

    def seen_by(self, modality: str) -> StackedBatch | None:
        """What the encoder of a modality sees; None where no client has a row for it."""
        return self.encoded[modality].batch if modality in self.encoded else self

    def present(self, modality: str, real: Tensor) -> Tensor:
        """Which rows have a modality, (K, B) of 0 and 1, in the type of `real`; of padding either."""
        own = self.encoded.get(modality)
        if own is None:
            return torch.ones_like(real)
        return torch.zeros_like(real) if own.presence is None else self.unfold(own.presence.mask.squeeze(1)).to(real)

    def unfold(self, values: Tensor) -> Tensor:
        """From (K * B, ...) to (K, B, ...), a view."""
        return torch.unflatten(values, 0, (len(self.counts), -1))


@dataclass(frozen=True)
class Encoded:
    """What an encoder sees of a step: of each client the rows that have its modality, padded as a batch of their own.

    Attributes:
        batch: These rows; None where no client has one.
        presence: Where the embeddings of all rows of the step stand among theirs; None as `batch`.
    """

    batch: StackedBatch | None
    presence: Presence | None

    def resting(self, num_clients: int) -> tuple[int, ...]:
        """The clients, of so many, that have no such row."""
        counts = (0,) * num_clients if self.batch is None else self.batch.counts
        return tuple(client for client, count in enumerate(counts) if not count)


def stacked_batches(
    epochs: Sequence[Sequence[IntArray]],
    batch_size: int,
    device: torch.device,
    observed: Mapping[str, BoolArray] = MappingProxyType({}),
    labelled: Mapping[str, BoolArray] = MappingProxyType({}),
) -> Iterator[StackedBatch]:
    """The steps of a stack of clients, until the last client is through.

    Args:
        epochs: For each client the order of its samples, (n,), in each of its epochs. Clients stand in falling order
            of their number of batches, so that those who still have one are always the first.
        batch_size: Samples per batch; the last one of an epoch may be smaller.
        device: Where the tensors are needed.
        observed: Of the modalities that some sample lacks, which samples of the concatenated shards have it.
        labelled: Of several tasks, which of these samples have a label of it.
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
    sparse = {name: _SparseRows(rows, counts, has, offsets, device) for name, has in observed.items()}
    is_real = np.arange(rows.shape[2]) < counts[:, :, np.newaxis]
    has_label: dict[str, BoolArray] = {
        task: np.asarray((own[rows] & is_real).any(axis=2)) for task, own in labelled.items()
    }
    for step in range(len(rows)):
        active = int(np.count_nonzero(num_steps > step))
        real = counts[step, :active]
        width = int(real.max())
        row_counts = all_counts[step, :active]
        mask = None if real.min() == width else (positions[:width] < row_counts.unsqueeze(1)).float()
        encoded = {name: found for name, own in sparse.items() if (found := own.of(step, active, width)) is not None}
        idle = {task: _without(own[step, :active]) for task, own in has_label.items()}
        own_rows = all_rows[step, :active, :width].reshape(-1)
        yield StackedBatch(own_rows, tuple(real.tolist()), row_counts, mask, encoded, idle)


def _without(has: BoolArray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(~has).tolist())


class _SparseRows:
    """The rows that an encoder sees in each step of a stack, where some samples lack its modality.

    Args:
        rows: (S, K, B), the rows of all steps.
        counts: (S, K), how many of them are real.
        has: Which samples of the concatenated shards have the modality.
        offsets: (K,), where the clients' shards begin.
        device: Where the tensors are needed.
    """

    def __init__(
        self, rows: IntArray, counts: IntArray, has: BoolArray, offsets: IntArray, device: torch.device
    ) -> None:
        positions = np.arange(rows.shape[2])
        seen = has[rows] & (positions < counts[:, :, np.newaxis])
        self._counts, self._seen_by = seen.sum(axis=2), counts
        order = np.argsort(~seen, axis=2, kind="stable")  # those that have it first
        # Padding repeats a row of the client's own, where it has one; its embeddings are used nowhere.
        everywhere = np.flatnonzero(has)
        at = np.searchsorted(everywhere, offsets).clip(max=max(len(everywhere) - 1, 0))
        repeated = everywhere[at] if len(everywhere) else np.zeros_like(offsets)
        first = np.take_along_axis(rows, order, axis=2)
        is_real = positions < self._counts[:, :, np.newaxis]
        padded = np.where(is_real, first, repeated[:, np.newaxis])
        self._rows, self._is_real = torch.from_numpy(padded).to(device), torch.from_numpy(is_real).to(device)
        self._has = torch.from_numpy(seen).to(device)
        self._places = torch.from_numpy((seen.cumsum(axis=2) - 1).clip(min=0)).to(device)
        self._row_counts = torch.from_numpy(self._counts).to(device, torch.float32)
        self._clients = torch.arange(rows.shape[1], device=device).unsqueeze(1)

    def of(self, step: int, active: int, num_rows: int) -> Encoded | None:
        """What the encoder sees of a step of the first clients; None where no real row lacks the modality."""
        real = self._counts[step, :active]
        if (real == self._seen_by[step, :active]).all():
            return None
        width = int(real.max())
        if not width:
            return Encoded(None, None)
        mask = None if real.min() == width else self._is_real[step, :active, :width].float()
        batch = StackedBatch(
            self._rows[step, :active, :width].reshape(-1), tuple(real.tolist()), self._row_counts[step, :active], mask
        )
        places = self._places[step, :active, :num_rows] + width * self._clients[:active]
        return Encoded(batch, Presence(self._has[step, :active, :num_rows].reshape(-1, 1), places.reshape(-1)))


@dataclass
class Lanes:
    """The batch that the layers of a stacked model compute on now: those of an encoder, or all others, share it.

    Attributes:
        num_clients: K, the clients that take part; always the first ones of the stack.
        num_rows: B, the rows of each client.
        counts: Real rows of each client; the rest of its rows is padding.
        row_counts: The same as a float32 tensor, (K,).
        mask: (K, B) float32, 1 for real rows and 0 for padding; None where all rows are real.
        dropout_masks: Source of the clients' dropout masks; None where none are drawn.
        descent: The steps that layers take in the backward pass; None where they take none.
    """

    num_clients: int = 0
    num_rows: int = 0
    counts: tuple[int, ...] = ()
    row_counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    mask: Tensor | None = None
    dropout_masks: Masks | None = None
    descent: Descent | None = None

    def enter(self, batch: StackedBatch) -> None:
        """Make `batch` the current one."""
        self.num_clients, self.counts = len(batch.counts), batch.counts
        self.num_rows = len(batch.rows) // self.num_clients
        self.row_counts, self.mask = batch.row_counts, batch.mask

    def unfold(self, values: Tensor) -> Tensor:
        """From (K * B, ...) to (K, B, ...), a view."""
        return torch.unflatten(values, 0, (self.num_clients, -1))
