"""Evaluation: a model and a test split in, a confusion matrix and a loss out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from blossom_ray.data.dataset import IntArray
from blossom_ray.metrics import confusion_matrix
from blossom_ray.models.workspace import Workspace
from blossom_ray.training import read_only_tensor


@dataclass(frozen=True)
class Scored:
    """Scores of one model on one test split.

    Attributes:
        confusion: (C, C) int64, rows the true classes, columns the predicted ones.
        loss_sum: Sum of the cross-entropy over the samples.
    """

    confusion: IntArray
    loss_sum: float

    @property
    def num_examples(self) -> int:
        """Samples scored."""
        return int(self.confusion.sum())


def evaluate_locally(
    workspace: Workspace, inputs: Mapping[str, np.ndarray], labels: np.ndarray, batch_size: int
) -> Scored:
    """Score the model that `workspace` holds.

    Args:
        workspace: Holds the client's blocks. Not changed.
        inputs: Modality to (n, *shape) float32 for the client's modalities. May be read-only.
        labels: (n,) int64.
        batch_size: Samples per forward pass.
    """
    device, model = workspace.device, workspace.model
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
            loss_sum += F.cross_entropy(outputs, targets[rows].to(device), reduction="sum")
            predictions.append(outputs.argmax(dim=1).cpu())
    confusion = confusion_matrix(labels, torch.cat(predictions).numpy(), workspace.num_outputs)
    return Scored(confusion, float(loss_sum))
