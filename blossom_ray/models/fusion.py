"""Fusions: from the embeddings of the present modalities to one representation (B, F).

A fusion knows all modalities of the federation, in sorted order. `forward` gets the embeddings (B, E_m) of the
present ones: an absent one reads as zeros where embeddings are concatenated, and takes no part, neither
projection nor bias nor weight, where they are summed. Who passes zeros for it instead makes it present.
Shape suffixes: B batch, M modalities, P present modalities, E embedding (S: summed over modalities), F fused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from blossom_ray.models.encoders import FeatureNorm, dropout_layer, feature_norm


class AttentionFusion(nn.Module):
    """One weight per modality from a softmax over all embeddings; the weighted sum of their projections.

    a = softmax(W [e_1; ...; e_M] + b) over the present modalities, z = sum_m a_m (P_m e_m + c_m).

    Args:
        embedding_dims: Width of the embedding by modality, for all modalities of the federation.
        dim: Width of the fused representation.
        norm: Its normalisation.

    Source: the attention fusion of BLOSSOM (arXiv:2603.27552); the softmax over what is present is ours.
    """

    def __init__(self, embedding_dims: Mapping[str, int], dim: int, norm: FeatureNorm = "none") -> None:
        super().__init__()
        self.embedding_dims = dict(sorted(embedding_dims.items()))
        self.scores = nn.Linear(sum(self.embedding_dims.values()), len(self.embedding_dims))
        self.projections = _projections(self.embedding_dims, dim)
        self.norm = feature_norm(norm, dim)

    def weights(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """The weights (B, P) of the present modalities, in sorted order; each row sums to 1.

        Raises:
            ValueError: Nothing is present, or a modality is unknown.
        """
        scores_BM = self.scores(_concatenate(embeddings, self.embedding_dims))
        if len(embeddings) < len(self.embedding_dims):
            # Leaving a column out is what a logit of minus infinity does.
            present = (index for index, name in enumerate(self.embedding_dims) if name in embeddings)
            scores_BM = torch.stack([scores_BM[:, index] for index in present], dim=1)
        return torch.softmax(scores_BM, dim=1)

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Fuse the embeddings of the present modalities into (B, F)."""
        weights_BP = self.weights(embeddings)
        projected = _project(self.projections, embeddings, self.embedding_dims)
        weighted = [weights_BP[:, i : i + 1] * projected_BF for i, projected_BF in enumerate(projected)]
        fused_BF: Tensor = self.norm(_sum(weighted))
        return fused_BF


class ConcatFusion(nn.Module):
    """A linear layer over the concatenated embeddings; an absent one is zeros.

    Args:
        embedding_dims: Width of the embedding by modality, for all modalities of the federation.
        dim: Width of the fused representation.
        norm: Its normalisation.
    """

    def __init__(self, embedding_dims: Mapping[str, int], dim: int, norm: FeatureNorm = "none") -> None:
        super().__init__()
        self.embedding_dims = dict(sorted(embedding_dims.items()))
        self.projection = nn.Linear(sum(self.embedding_dims.values()), dim)
        self.norm = feature_norm(norm, dim)

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Fuse the embeddings of the present modalities into (B, F)."""
        fused_BF: Tensor = self.norm(self.projection(_concatenate(embeddings, self.embedding_dims)))
        return fused_BF


class MeanFusion(nn.Module):
    """The mean of the present embeddings' projections.

    Args:
        embedding_dims: Width of the embedding by modality, for all modalities of the federation.
        dim: Width of the fused representation.
        norm: Its normalisation.
    """

    def __init__(self, embedding_dims: Mapping[str, int], dim: int, norm: FeatureNorm = "none") -> None:
        super().__init__()
        self.embedding_dims = dict(sorted(embedding_dims.items()))
        self.projections = _projections(self.embedding_dims, dim)
        self.norm = feature_norm(norm, dim)

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Fuse the embeddings of the present modalities into (B, F)."""
        _check_present(embeddings, self.embedding_dims)
        projected = _project(self.projections, embeddings, self.embedding_dims)
        fused_BF: Tensor = self.norm(_sum(projected) / len(projected))
        return fused_BF


class GatedFusion(nn.Module):
    """Gated multimodal units: a sigmoid gate per modality and unit, from all embeddings.

    z = sum_m sigmoid(G_m [e_1; ...; e_M] + g_m) * tanh(P_m e_m + c_m).

    Args:
        embedding_dims: Width of the embedding by modality, for all modalities of the federation.
        dim: Width of the fused representation.
        norm: Its normalisation.

    Source: Arevalo et al. 2017 (arXiv:1702.01992), the form for any number of modalities, with biases.
    """

    def __init__(self, embedding_dims: Mapping[str, int], dim: int, norm: FeatureNorm = "none") -> None:
        super().__init__()
        self.embedding_dims = dict(sorted(embedding_dims.items()))
        width = sum(self.embedding_dims.values())
        self.gates = nn.ModuleList(nn.Linear(width, dim) for _ in self.embedding_dims)
        self.projections = _projections(self.embedding_dims, dim)
        self.norm = feature_norm(norm, dim)

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Fuse the embeddings of the present modalities into (B, F)."""
        concatenated_BS = _concatenate(embeddings, self.embedding_dims)
        gates = [
            torch.sigmoid(gate(concatenated_BS))
            for gate, name in zip(self.gates, self.embedding_dims, strict=True)
            if name in embeddings
        ]
        projected = _project(self.projections, embeddings, self.embedding_dims)
        fused_BF: Tensor = self.norm(_sum([g * torch.tanh(p) for g, p in zip(gates, projected, strict=True)]))
        return fused_BF


def _projections(embedding_dims: Mapping[str, int], dim: int) -> nn.ModuleList:
    # A list in sorted order: nn.ModuleDict refuses names with a dot, and some words such as "values".
    return nn.ModuleList(nn.Linear(embedding_dim, dim) for embedding_dim in embedding_dims.values())


def _project(
    projections: nn.ModuleList, embeddings: Mapping[str, Tensor], embedding_dims: Mapping[str, int]
) -> list[Tensor]:
    return [
        projection(embeddings[name])
        for projection, name in zip(projections, embedding_dims, strict=True)
        if name in embeddings
    ]


def _concatenate(embeddings: Mapping[str, Tensor], embedding_dims: Mapping[str, int]) -> Tensor:
    _check_present(embeddings, embedding_dims)
    any_BE = next(iter(embeddings.values()))
    return torch.cat(
        [
            embeddings[name] if name in embeddings else any_BE.new_zeros(len(any_BE), dim)
            for name, dim in embedding_dims.items()
        ],
        dim=1,
    )


def _check_present(embeddings: Mapping[str, Tensor], embedding_dims: Mapping[str, int]) -> None:
    if not embeddings or not embeddings.keys() <= embedding_dims.keys():
        found, known = ", ".join(embeddings) or "none", ", ".join(embedding_dims)
        raise ValueError(f"embeddings of {found}; expected one or more of {known}")


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


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
