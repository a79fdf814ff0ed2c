"""Means of vectors by class, as sums that add up over samples and clients: what prototypes are made of."""

from __future__ import annotations

from typing import Any

import numpy as np


def class_sums(vectors: Any, targets: Any, num_classes: int) -> Any:
    """Each sample's vector and a one, in the row of its class.

    Args:
        vectors: (B, E).
        targets: (B,) int64, classes.
        num_classes: Number of classes, C.

    Returns:
        (B, C, E + 1), zero in all other rows.
    """
    import torch
    from torch.nn.functional import one_hot

    counted = torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=-1)
    return one_hot(targets, num_classes).to(vectors).unsqueeze(-1) * counted.unsqueeze(-2)


def class_means(current: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Means by class and a 1 behind each; a class that nobody had keeps what it has been, at first zeros.

    Args:
        current: (C, E + 1) means and ones so far.
        total: (C, E + 1) sums and counts.
    """
    counts = total[:, -1:]
    return np.where(counts > 0, total / np.maximum(counts, 1), current)
