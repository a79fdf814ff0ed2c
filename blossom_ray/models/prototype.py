"""The prototype of a modality: the embedding that stands for it where it is missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Prototype(nn.Module):
    """The mean embedding of a modality over the training samples of clients that own it; zeros at first.

    Nothing is trained here: the server averages the means that the owners send, as it does normalisation statistics.

    Args:
        dim: Width of the embedding.
    """

    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, num_rows: int) -> Tensor:
        """The same embedding for each row, (B, E)."""
        return self.mean.expand(num_rows, -1)
