"""What follows the encoders in the `model` section: fusions and heads, and their modules.

PyTorch is imported where a module is built alone. Modules stand in `models/fusion.py` and, of heads, in
`models/encoders.py`; `custom` calls the user's factory instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from blossom_ray.core.section import Custom, Finding, Positive, Probability
from blossom_ray.models.block_options import BuiltIn, FeatureNorm, Pretrained, Widths, normed_alone

if TYPE_CHECKING:
    from torch import nn


class _Fusion(BuiltIn):
    kind: str
    dim: Positive = 256
    """Width of the fused representation."""
    norm: FeatureNorm = "none"
    """Normalisation of the fused representation."""

    def conflicts(self) -> Iterator[Finding]:
        """A single feature that is normalised by itself."""
        yield from normed_alone("dim", self.dim, self.norm)

    def fused_dim(self, embedding_dims: Mapping[str, int]) -> int:  # noqa: ARG002  # own code asks for it
        """Width of the fused representation."""
        return self.dim

    def build(self, embedding_dims: Mapping[str, int]) -> nn.Module:
        """The module from the embeddings (B, E) of present modalities, a dict, to (B, fused_dim).

        Args:
            embedding_dims: Width of the embedding by modality, for all modalities that the model knows.
        """
        return self.module(embedding_dims)()


class AttentionFusion(_Fusion):
    """One weight per modality from a softmax over all embeddings; the weighted sum of their projections."""

    kind: Literal["attention"]

    def _module(self, embedding_dims: Mapping[str, int]) -> partial[Any]:
        from blossom_ray.models.fusion import Attention

        return partial(Attention, dict(embedding_dims), self.dim, self.norm)


class ConcatFusion(_Fusion):
    """A linear layer over the concatenated embeddings."""

    kind: Literal["concat"]

    def _module(self, embedding_dims: Mapping[str, int]) -> partial[Any]:
        from blossom_ray.models.fusion import Concatenation

        return partial(Concatenation, dict(embedding_dims), self.dim, self.norm)


class MeanFusion(_Fusion):
    """The mean of the embeddings' projections."""

    kind: Literal["mean"]

    def _module(self, embedding_dims: Mapping[str, int]) -> partial[Any]:
        from blossom_ray.models.fusion import ProjectedMean

        return partial(ProjectedMean, dict(embedding_dims), self.dim, self.norm)


class GatedFusion(_Fusion):
    """Gated multimodal units (Arevalo et al. 2017): a sigmoid gate per modality and unit, from all embeddings."""

    kind: Literal["gated"]

    def _module(self, embedding_dims: Mapping[str, int]) -> partial[Any]:
        from blossom_ray.models.fusion import GatedUnits

        return partial(GatedUnits, dict(embedding_dims), self.dim, self.norm)


class CustomFusion(Custom, Pretrained):
    """Own fusion: `factory(embedding_dims, **options)` gives a module from a dict of (batch, dim) to (batch, d)."""

    def fused_dim(self, embedding_dims: Mapping[str, int]) -> int:
        """What a module of its own gives for embeddings of zeros; errors as `build_own`."""
        return self._built(embedding_dims, is_trial=True)[1]

    def build(self, embedding_dims: Mapping[str, int]) -> nn.Module:
        """The factory's module, tried on embeddings of zeros; errors as `build_own`."""
        return self._built(embedding_dims)[0]

    def _built(self, embedding_dims: Mapping[str, int], *, is_trial: bool = False) -> tuple[nn.Module, int]:
        from blossom_ray.models.own_code import build_own

        inputs = {name: (dim,) for name, dim in embedding_dims.items()}
        return build_own(self, "model.fusion", (dict(embedding_dims),), inputs=inputs, is_trial=is_trial)


Fusion = Annotated[
    AttentionFusion | ConcatFusion | MeanFusion | GatedFusion | CustomFusion, Field(discriminator="kind")
]


class _Head(BuiltIn):
    def build(self, input_dim: int, num_outputs: int) -> nn.Module:
        """The module from (B, input_dim) to (B, num_outputs)."""
        return self.module(input_dim, num_outputs)()


class MlpHead(_Head):
    """Linear layers with ReLU and dropout, then a linear layer to the classes."""

    kind: Literal["mlp"]
    hidden: Widths = (64,)
    """Widths of the hidden layers."""
    dropout: Probability = 0.1
    """Dropout after each hidden layer."""
    norm: FeatureNorm = "none"
    """Normalisation before the ReLU of each hidden layer: by the batch, or by all features (`layer`) or groups of
    features of each sample."""

    def conflicts(self) -> Iterator[Finding]:
        """A single feature that is normalised by itself."""
        for position, width in enumerate(self.hidden):
            yield from normed_alone(f"hidden.{position}", width, self.norm)

    def _module(self, input_dim: int, num_outputs: int) -> partial[Any]:
        from blossom_ray.models.encoders import Mlp

        return partial(Mlp, input_dim, num_outputs, hidden=self.hidden, dropout=self.dropout, norm=self.norm)


class LinearHead(_Head):
    """One linear layer to the classes."""

    kind: Literal["linear"]

    def _module(self, input_dim: int, num_outputs: int) -> partial[Any]:
        from torch import nn

        return partial(nn.Linear, input_dim, num_outputs)


class CustomHead(Custom, Pretrained):
    """Own head: `factory(input_dim, num_outputs, **options)` gives a module from (batch, d) to (batch, outputs)."""

    def build(self, input_dim: int, num_outputs: int) -> nn.Module:
        """The factory's module, tried on representations of zeros; errors as `build_own`."""
        from blossom_ray.models.own_code import build_own

        arguments = (input_dim, num_outputs)
        return build_own(self, "model.head", arguments, inputs=(input_dim,), width=num_outputs)[0]


Head = Annotated[MlpHead | LinearHead | CustomHead, Field(discriminator="kind")]
