"""The `model` section: encoders, fusion, head, and what stands for a missing modality."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.section import Custom, ModalityName, Positive, Probability, Section

FeatureNorm = Literal["batch", "group", "layer", "none"]
Widths = Annotated[tuple[Positive, ...], Field(strict=False)]


class MlpEncoder(Section):
    """Flatten, then linear layers with ReLU and dropout. Any shape."""

    kind: Literal["mlp"]
    hidden: Widths = (64,)
    """Widths of the hidden layers."""
    dim: Positive = 64
    """Width of the embedding."""
    dropout: Probability = 0.0
    """Dropout after each hidden layer."""


class Conv1dEncoder(Section):
    """Convolution over time (ReLU, max-pooling by 2, dropout in each layer), mean over time. Sequences."""

    kind: Literal["conv1d"]
    channels: Annotated[Widths, Field(min_length=1)] = (32, 64, 128)
    """Channels of the layers; the time axis is halved by each."""
    kernel_size: Positive = 5
    """Kernel size (odd keeps the length)."""
    dim: Positive | None = None
    """Width of the embedding through a last linear layer; null: the last channels as they are."""
    dropout: Probability = 0.1
    """Dropout after each layer."""


class ConvGruEncoder(Section):
    """Convolution over time as in `conv1d`, then a GRU, mean over time. Sequences. The paper's HAR and ECG encoder."""

    kind: Literal["conv-gru"]
    channels: Annotated[Widths, Field(min_length=1)] = (32, 64, 128)
    """Channels of the layers; the time axis is halved by each."""
    kernel_size: Positive = 5
    """Kernel size (odd keeps the length)."""
    dim: Positive = 128
    """Width of the GRU and of the embedding."""
    dropout: Probability = 0.1
    """Dropout after each convolution."""


class GruEncoder(Section):
    """A GRU, mean over time. Sequences. The paper's text encoder."""

    kind: Literal["gru"]
    dim: Positive = 64
    """Width of the GRU and of the embedding."""


class Conv2dEncoder(Section):
    """Convolution (ReLU, normalisation, optional max-pooling by 2 in each layer), then a linear layer. Images."""

    kind: Literal["conv2d"]
    channels: Annotated[Widths, Field(min_length=1)] = (8, 16, 32)
    """Channels of the layers."""
    kernel_size: Positive | Annotated[tuple[Positive, ...], Field(strict=False)] = 3
    """Kernel size, one for all layers or one for each."""
    stride: Positive = 1
    """Stride of each convolution."""
    max_pool: bool = True
    """Whether each layer ends with max-pooling by 2."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation after the ReLU of each layer."""
    global_pool: bool = False
    """Whether the last map is averaged over space (true) or flattened (false)."""
    dim: Positive = 32
    """Width of the embedding."""
    dropout: Probability = 0.0
    """Dropout after each layer."""


class CustomEncoder(Custom):
    """Own encoder: `factory(input_shape, **options)` gives a module that maps (batch, *input_shape) to (batch, dim)."""


Encoder = Annotated[
    MlpEncoder | Conv1dEncoder | ConvGruEncoder | GruEncoder | Conv2dEncoder | CustomEncoder,
    Field(discriminator="kind"),
]


class AttentionFusion(Section):
    """One weight per modality from a softmax over all embeddings; the weighted sum of their projections."""

    kind: Literal["attention"]
    dim: Positive = 256
    """Width of the fused representation."""
    norm: FeatureNorm = "none"
    """Normalisation of the fused representation."""


class ConcatFusion(Section):
    """A linear layer over the concatenated embeddings."""

    kind: Literal["concat"]
    dim: Positive = 256
    """Width of the fused representation."""
    norm: FeatureNorm = "none"
    """Normalisation of the fused representation."""


class MeanFusion(Section):
    """The mean of the embeddings' projections."""

    kind: Literal["mean"]
    dim: Positive = 256
    """Width of the fused representation."""
    norm: FeatureNorm = "none"
    """Normalisation of the fused representation."""


class GatedFusion(Section):
    """Gated multimodal units (Arevalo et al. 2017): a sigmoid gate per modality and unit, from all embeddings."""

    kind: Literal["gated"]
    dim: Positive = 256
    """Width of the fused representation."""
    norm: FeatureNorm = "none"
    """Normalisation of the fused representation."""


class CustomFusion(Custom):
    """Own fusion: `factory(embedding_dims, **options)` gives a module from a dict of (batch, dim) to (batch, d)."""


Fusion = Annotated[
    AttentionFusion | ConcatFusion | MeanFusion | GatedFusion | CustomFusion, Field(discriminator="kind")
]


class MlpHead(Section):
    """Linear layers with ReLU and dropout, then a linear layer to the classes."""

    kind: Literal["mlp"]
    hidden: Widths = (64,)
    """Widths of the hidden layers."""
    dropout: Probability = 0.1
    """Dropout after each hidden layer."""
    norm: FeatureNorm = "none"
    """Normalisation before the ReLU of each hidden layer: by the batch, or by all features (`layer`) or groups of
    features of each sample."""


class LinearHead(Section):
    """One linear layer to the classes."""

    kind: Literal["linear"]


class CustomHead(Custom):
    """Own head: `factory(input_dim, num_outputs, **options)` gives a module from (batch, d) to (batch, outputs)."""


Head = Annotated[MlpHead | LinearHead | CustomHead, Field(discriminator="kind")]


class Model(Section):
    """A late-fusion model: an encoder per modality, a fusion, a head."""

    encoders: Annotated[dict[ModalityName, Encoder], Field(min_length=1)]
    """Encoder by modality. The modalities here are all that the federation has."""
    fusion: Fusion = AttentionFusion(kind="attention")
    """How embeddings become one representation."""
    head: Head = MlpHead(kind="mlp")
    """From the fused representation to the outputs."""
    missing: Literal["mask", "zero-embedding", "zero-input", "prototype"] = "mask"
    """What stands for a modality that a client does not own, in training and evaluation alike. `mask`: the fusion
    sees only what is there. `zero-embedding`: an embedding of zeros. `zero-input`: an input of zeros through the
    current encoder, which the client then holds without training it. `prototype`: the mean embedding of the clients
    that own the modality, measured after each local training and averaged by the server (PmcmFL, simplified)."""
    norm_statistics: Literal["local", "same-modalities", "shared"] = "shared"
    """Running statistics of normalisation layers: averaged with their block (`shared`), averaged over the clients that
    own exactly the same modalities (`same-modalities`), or kept by each client (`local`)."""
