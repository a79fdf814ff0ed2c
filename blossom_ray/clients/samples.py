"""How a client's samples come to its model: batches of rows, those of them that have a modality, arrays as tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.options import Training
from blossom_ray.clients.workspace import Workspace
from blossom_ray.data.stored import Rows, StoredRows
from blossom_ray.models.late_fusion import EVERYWHERE, Presence

Output = TypeVar("Output")


@dataclass(frozen=True)
class StoredSamples:
    """Samples that are read when a batch has them; for the rest like a tensor (n, *shape) where a model computes."""

    rows: StoredRows
    device: torch.device

    def index_select(self, _dim: int, rows: Tensor) -> Tensor:
        """Some rows (B, *shape)."""
        return on_device(self.rows[rows.cpu().numpy()], self.device)


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


def gathered(
    inputs: Mapping[str, Tensor | StoredSamples], observed: Mapping[str, Tensor], rows: Tensor
) -> tuple[dict[str, Tensor], Mapping[str, Presence]]:
    """A batch of samples.

    Args:
        inputs: Modality to (n, *shape).
        observed: Of those that some samples lack: (n,) bool.
        rows: (B,) int64.

    Returns:
        Modality to the samples of the batch that have it, without modalities that none has; of those that some of them
        lack, which have it.
    """
    found, present = dict[str, Tensor](), dict[str, Presence]()
    for name, values in inputs.items():
        own = rows
        if name in observed:
            has = observed[name].index_select(0, rows)
            own = rows[has]
            if 0 < len(own) < len(rows):
                present[name] = Presence.of(has)
        if len(own):
            found[name] = values.index_select(0, own)
    return found, present or EVERYWHERE


@torch.inference_mode()
def evaluation_outputs(
    workspace: Workspace,
    inputs: Mapping[str, Rows],
    observed: Mapping[str, np.ndarray],
    batch_size: int,
    compute: Callable[[dict[str, Tensor], Mapping[str, Presence]], Output],
) -> Iterator[tuple[slice, Output]]:
    """What a part of the model gives in evaluation mode and without gradients, batch by batch.

    Args:
        workspace: Holds the client's blocks. Not changed.
        inputs: Modality to (n, *shape) float32, in memory or not. May be read-only.
        observed: Of modalities that some samples lack: (n,) bool.
        batch_size: Samples per batch.
        compute: The model, or a part of it, of a batch.

    Yields:
        The rows of a batch, and what `compute` gives for them.
    """
    workspace.model.eval()
    for rows, batch, present in evaluation_batches(workspace, inputs, observed, batch_size):
        yield rows, compute(batch, present)


def evaluation_batches(
    workspace: Workspace, inputs: Mapping[str, Rows], observed: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[tuple[slice, dict[str, Tensor], Mapping[str, Presence]]]:
    """The samples batch by batch, in their order, where the model computes: rows, and a batch as `gathered` has it."""
    kept = {name: read_only_tensor(own) if isinstance(own, np.ndarray) else own for name, own in inputs.items()}
    has = {modality: on_device(values, workspace.device) for modality, values in observed.items()}
    for start in range(0, len(next(iter(inputs.values()))), batch_size):
        rows, present = slice(start, start + batch_size), EVERYWHERE
        # A copy: a module that works in place must not reach the memory that clients share.
        batch = {name: torch.as_tensor(own[rows]).to(workspace.device, copy=True) for name, own in kept.items()}
        if has:
            own = {name: values[rows] for name, values in has.items()}
            everyone = torch.arange(len(next(iter(own.values()))), device=workspace.device)
            batch, present = gathered(batch, own, everyone)
        yield rows, batch, present


def read_only_tensor(values: np.ndarray) -> Tensor:
    """A tensor on the memory of an array that may be read-only. It must never be written to.

    Shards are views of memory that clients share; batches are gathered from them into fresh memory before any module
    sees them, so torch's warning about read-only arrays does not apply.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def joined(parts: Sequence[Rows], device: torch.device) -> Tensor | StoredSamples:
    """The samples of clients, one after the other, where a model computes; stored ones stay where they are."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) < len(parts):
        return StoredSamples(StoredRows.of(*parts), device)
    return on_device(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), device)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A tensor with these values where a model computes; on a CPU it is the memory of the array itself.

    To a GPU they go through page-locked memory, which the GPU reads by itself while this process goes on.
    """
    tensor = read_only_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
