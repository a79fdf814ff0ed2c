"""Modules of fusions: from the embeddings of the present modalities to one representation (B, F).

A fusion knows all modalities of the federation, in sorted order. `forward` gets the embeddings (B, E_m) of the
present ones: an absent one reads as zeros where embeddings are concatenated, and takes no part, neither
projection nor bias nor weight, where they are summed. Who passes zeros for it instead makes it present. The same holds
sample by sample, with masks of the modalities that some samples lack.
Shape suffixes: B batch, M modalities, P present modalities, E embedding (S: summed over modalities), F fused.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from blossom_ray.models.encoders import RowWise, feature_norm

ALL_PRESENT: Mapping[str, Tensor] = {}
"""No sample lacks a modality that others have."""


class _Fusion(nn.Module):
    """A fusion before its normalisation, and that.

    Args:
        embedding_dims: Width of the embedding by modality, for all modalities of the federation.
        dim: Width of the fused representation.
        norm: Its normalisation, as `feature_norm`.
    """

    def __init__(self, embedding_dims: Mapping[str, int], dim: int, norm: str = "none") -> None:
        super().__init__()
        self.embedding_dims = dict(sorted(embedding_dims.items()))
        self._add_layers(sum(self.embedding_dims.values()), dim)
        self.norm = feature_norm(norm, dim)

    def forward(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor] = ALL_PRESENT) -> Tensor:
        """Fuse the embeddings of the present modalities into (B, F).

        Args:
            embeddings: (B, E) by modality.
            masks: Of those of them that some samples lack: (B, 1) bool, which samples have it. The others' are zeros.

        Raises:
            ValueError: Nothing is present, or a modality is unknown.
        """
        if not embeddings or not embeddings.keys() <= self.embedding_dims.keys():
            found, known = ", ".join(embeddings) or "none", ", ".join(self.embedding_dims)
            raise ValueError(f"embeddings of {found}; expected one or more of {known}")
        fused_BF: Tensor = self.norm(self._fused(embeddings, masks))
        return fused_BF

    @abstractmethod
    def _add_layers(self, num_embedded: int, dim: int) -> None:
        """Make the layers; all embeddings together have `num_embedded` values."""

    @abstractmethod
    def _fused(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """What is normalised, (B, F)."""

    def _one_for_each(self, dim: int) -> nn.ModuleList:
        # A list in sorted order: nn.ModuleDict refuses names with a dot, and some words such as "values".
        return nn.ModuleList(nn.Linear(embedding_dim, dim) for embedding_dim in self.embedding_dims.values())

    def _projected(
        self, projections: nn.ModuleList, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """What each layer makes of its modality's embeddings; zeros, and not the bias, for samples that lack it."""
        projected = {
            name: projection(embeddings[name])
            for projection, name in zip(projections, self.embedding_dims, strict=True)
            if name in embeddings
        }
        return [values.masked_fill(~masks[name], 0) if name in masks else values for name, values in projected.items()]

    def _concatenated(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        any_BE = next(iter(embeddings.values()))
        return torch.cat(
            [
                embeddings[name] if name in embeddings else any_BE.new_zeros(len(any_BE), dim)
                for name, dim in self.embedding_dims.items()
            ],
            dim=1,
        )


class Attention(_Fusion, RowWise):
    """One weight per modality from a softmax over all embeddings; the weighted sum of their projections.

    a = softmax(W [e_1; ...; e_M] + b) over the present modalities, z = sum_m a_m (P_m e_m + c_m).

    Source: the attention fusion of BLOSSOM (arXiv:2603.27552); the softmax over what is present is ours.
    """

    def _add_layers(self, num_embedded: int, dim: int) -> None:
        self.scores = nn.Linear(num_embedded, len(self.embedding_dims))
        self.projections = self._one_for_each(dim)

    def weights(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor] = ALL_PRESENT) -> Tensor:
        """The weights (B, P) of the present modalities, in sorted order; each row sums to 1."""
        scores_BM = self.scores(self._concatenated(embeddings))
        if len(embeddings) < len(self.embedding_dims):
            # Leaving a column out is what a logit of minus infinity does.
            present = (index for index, name in enumerate(self.embedding_dims) if name in embeddings)
            scores_BM = torch.stack([scores_BM[:, index] for index in present], dim=1)
        if masks:
            everywhere = torch.ones_like(next(iter(masks.values())))
            kept = [masks.get(name, everywhere) for name in self.embedding_dims if name in embeddings]
            # Never minus infinity: a row without any would not be a number.
            scores_BM = scores_BM.masked_fill(~torch.cat(kept, dim=1), -1e9)
        return torch.softmax(scores_BM, dim=1)

    def _fused(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        weights_BP = self.weights(embeddings, masks)
        projected = self._projected(self.projections, embeddings, masks)
        return _sum([weights_BP[:, i : i + 1] * projected_BF for i, projected_BF in enumerate(projected)])


class Concatenation(_Fusion, RowWise):
    """A linear layer over the concatenated embeddings; an absent one is zeros."""

    def _add_layers(self, num_embedded: int, dim: int) -> None:
        self.projection = nn.Linear(num_embedded, dim)

    def _fused(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002  # zeros
        projected_BF: Tensor = self.projection(self._concatenated(embeddings))
        return projected_BF


class ProjectedMean(_Fusion, RowWise):
    """The mean of the present embeddings' projections."""

    def _add_layers(self, num_embedded: int, dim: int) -> None:  # noqa: ARG002  # as every fusion
        self.projections = self._one_for_each(dim)

    def _fused(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        projected = self._projected(self.projections, embeddings, masks)
        if not masks:
            return _sum(projected) / len(projected)
        num_present_B1 = _sum([mask.to(projected[0].dtype) for mask in masks.values()]) + len(projected) - len(masks)
        return _sum(projected) / num_present_B1.clamp(min=1)


class GatedUnits(_Fusion, RowWise):
    """Gated multimodal units: a sigmoid gate per modality and unit, from all embeddings.

    z = sum_m sigmoid(G_m [e_1; ...; e_M] + g_m) * tanh(P_m e_m + c_m).

    Source: Arevalo et al. 2017 (arXiv:1702.01992), the form for any number of modalities, with biases.
    """

    def _add_layers(self, num_embedded: int, dim: int) -> None:
        self.gates = nn.ModuleList(nn.Linear(num_embedded, dim) for _ in self.embedding_dims)
        self.projections = self._one_for_each(dim)

    def _fused(self, embeddings: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        concatenated_BS = self._concatenated(embeddings)
        gates = [
            torch.sigmoid(gate(concatenated_BS))
            for gate, name in zip(self.gates, self.embedding_dims, strict=True)
            if name in embeddings
        ]
        projected = self._projected(self.projections, embeddings, masks)
        return _sum([g * torch.tanh(p) for g, p in zip(gates, projected, strict=True)])


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


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
