"""A client's weight in the averages of its blocks, and the entropy that one of the rules needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blossom_ray.algorithms.options import Weighting
from blossom_ray.clients.local_training import read_only_tensor
from blossom_ray.clients.workspace import Workspace

LOWEST_ENTROPY = 1e-6
"""Nats. A client that is surer than this of all its predictions weighs no more for it: 1/H would have no bound."""


def client_weight(rule: Weighting, num_examples: int, entropy: float | None) -> float:
    """The weight of one client's update.

    Args:
        rule: The scenario's `server.weighting`.
        num_examples: n_k, the training samples that it saw.
        entropy: H_k, the mean entropy of its predictions on its training split, in nats; None where not needed.

    Returns:
        `samples`: n_k. `uniform`: 1. `entropy`: 1 / H_k.

    Source: McMahan et al. 2017 (arXiv:1602.05629) for `samples`; FLISM (arXiv:2405.11828), its quality-aware
    aggregation, for `entropy`.
    """
    match rule:
        case "samples":
            return float(num_examples)
        case "uniform":
            return 1.0
        case "entropy":
            assert entropy is not None, "the host measures it where the scenario asks for it"
            return 1 / max(entropy, LOWEST_ENTROPY)
        case _:
            assert_never(rule)


def mean_entropy(workspace: Workspace, inputs: Mapping[str, np.ndarray], batch_size: int) -> float:
    """The mean entropy of the class probabilities that the model in `workspace` gives, in nats.

    Args:
        workspace: Holds the client's blocks. Not changed.
        inputs: Modality to (n, *shape) float32 for the client's modalities. May be read-only.
        batch_size: Samples per forward pass.
    """
    tensors = {modality: read_only_tensor(values) for modality, values in inputs.items()}
    num_samples = len(next(iter(tensors.values())))
    total = torch.zeros((), dtype=torch.float64, device=workspace.device)
    workspace.model.eval()
    with torch.inference_mode():
        for start in range(0, num_samples, batch_size):
            rows = slice(start, start + batch_size)
            # A copy: a module that works in place must not reach the memory that clients share.
            batch = {name: values[rows].to(workspace.device, copy=True) for name, values in tensors.items()}
            total += entropies(workspace.model(batch)).sum(dtype=torch.float64)
    return float(total) / num_samples


def entropies(logits: Tensor) -> Tensor:
    """The entropy of each row's softmax, in nats.

    Args:
        logits: (B, C) float32.

    Returns:
        (B,) float32, 0 to log C.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)
