"""Heads: from the fused representation (B, F) to logits (B, O). A linear head is `torch.nn.Linear` itself.

Shape suffixes: B batch, F fused, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from blossom_ray.models.encoders import FeatureNorm, dropout_layer, feature_norm


class MlpHead(nn.Module):
    """Linear layers with normalisation, ReLU and dropout, then a linear layer to the outputs.

    Args:
        input_dim: Width of the fused representation.
        num_outputs: Number of outputs (classes).
        hidden: Widths of the hidden layers.
        dropout: Probability of dropout after each hidden layer, 0..1.
        norm: Normalisation before the ReLU of each hidden layer.

    Source: the heads of BLOSSOM (arXiv:2603.27552); `norm="batch"` is the one for AV-MNIST.
    """

    def __init__(
        self,
        input_dim: int,
        num_outputs: int,
        *,
        hidden: Sequence[int],
        dropout: float,
        norm: FeatureNorm,
    ) -> None:
        super().__init__()
        widths = (input_dim, *hidden)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [
                nn.Linear(width_in, width_out),
                feature_norm(norm, width_out),
                nn.ReLU(),
                dropout_layer(dropout),
            ]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))

    def forward(self, fused_BF: Tensor) -> Tensor:
        """Logits (B, O) of fused representations (B, F), float32."""
        logits_BO: Tensor = self.layers(fused_BF)
        return logits_BO
