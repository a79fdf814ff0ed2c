"""Evaluation: a model and a test split in, a tally and a loss out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from blossom_ray.clients.local_training import read_only_tensor
from blossom_ray.clients.workspace import Workspace
from blossom_ray.tasks.base import Tally


@dataclass(frozen=True)
class Scored:
    """What scoring one model on one test split gives.

    Attributes:
        tally: What its scores follow from.
        loss_sum: Sum of the loss over the samples.
    """

    tally: Tally
    loss_sum: float

    @property
    def num_examples(self) -> int:
        """Samples scored."""
        return self.tally.num_examples


def evaluate_locally(
    workspace: Workspace, inputs: Mapping[str, np.ndarray], labels: np.ndarray, batch_size: int
) -> Scored:
    """Score the model that `workspace` holds.

    Args:
        workspace: Holds the client's blocks. Not changed.
        inputs: Modality to (n, *shape) float32 for the client's modalities. May be read-only.
        labels: (n,) int64, or (n, outputs) float32, as the task has them.
        batch_size: Samples per forward pass.
    """
    device, model, rules = workspace.device, workspace.model, workspace.rules
    tensors = {modality: read_only_tensor(values) for modality, values in inputs.items()}
    targets = read_only_tensor(labels)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    predictions = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            # A copy: a module that works in place must not reach the memory that clients share.
            batch = {name: values[rows].to(device, copy=True) for name, values in tensors.items()}
            outputs = model(batch)
            loss_sum += rules.loss(outputs, targets[rows].to(device), reduction="sum")
            predictions.append(rules.predict(outputs).cpu())
    return Scored(rules.tally(labels, torch.cat(predictions).numpy(), workspace.num_outputs), float(loss_sum))
