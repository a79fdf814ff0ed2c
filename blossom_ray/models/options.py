"""The `model` section: encoders, fusion, head, and what stands for a missing modality.

Each kind says what it takes, how wide its output is, and builds its module; PyTorch is imported there alone. A kind's
module stands in `models/encoders.py` or `models/fusion.py`; `custom` calls the user's factory instead.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from blossom_ray.core.blocks import FUSION, HEAD, Block
from blossom_ray.core.phrases import one_of, shown
from blossom_ray.core.section import Custom, Finding, ModalityName, Positive, Probability, Section
from blossom_ray.core.structure import Hint
from blossom_ray.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
"""Of one sample, without the batch."""
FeatureNorm = Literal["batch", "group", "layer", "none"]
MissingRule = Literal["mask", "zero-embedding", "zero-input", "prototype"]
NormStatistics = Literal["local", "same-modalities", "shared"]
Precision = Literal["float32", "bfloat16"]
Widths = Annotated[tuple[Positive, ...], Field(strict=False)]

_SAMPLES = {1: "a vector", 2: "a sequence", 3: "an image"}


class Weights(Section):
    """Values from a file, in the place of drawn ones, that a block starts from."""

    path: Annotated[str, Field(min_length=1)]
    """A safetensors file, or a folder that `blossom-ray export` has written. Relative to the working directory."""
    block: str | None = None
    """Which tensors of it: those whose names begin with this and a slash, such as `encoder/acc`. null: those of the
    block of the same name where there are any, else all."""
    frozen: bool = False
    """Whether the block stays so: nobody trains, averages or sends it back, whatever `sharing` says of it."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Checksum of the file, without which it is refused. null: any; the scenario of a run says which it was."""


class Pretrained(Section):
    """Base of the sections of blocks: what each of them can start from."""

    weights: Weights | None = None
    """Pretrained values that the block starts from; null: it starts from drawn ones."""


class BuiltIn(Pretrained):
    """Base of the sections of blocks whose modules come with this package."""

    if TYPE_CHECKING:
        _module: Any  # each kind has its own

    def module(self, *arguments: Any) -> partial[nn.Module]:
        """The module's class with its arguments, all JSON values, before it is built; called with what `build` is."""
        made: partial[nn.Module] = self._module(*arguments)
        return made


class _Encoder(BuiltIn):
    if TYPE_CHECKING:
        dim: Any  # each kind has it at its own place

    kind: str
    num_axes: ClassVar[int | None] = None
    """Axes of the samples that it takes: 1 for vectors, 2 for sequences (time, features), 3 for images (channels,
    height, width); None: any."""

    def misfits(self, shape: Shape, modality: str = "input") -> Iterator[Finding]:
        """Why it does not take samples of this shape; paths begin at the section, as those of `conflicts`."""
        if self.num_axes not in (None, len(shape)):
            sample = _SAMPLES.get(len(shape), "an array")
            found = f"{shown(self.kind)}, while {modality} is {sample} of shape {list(shape)}"
            yield Finding("kind", found, one_of(_kinds_for(shape)))

    def embedding_dim(self, shape: Shape, modality: str = "input") -> int:  # noqa: ARG002  # own code asks for both
        """Width of the embedding; arguments as those of `build`."""
        width: int = self.dim
        return width

    def build(self, shape: Shape, modality: str = "input") -> nn.Module:
        """The module from (B, *shape) to (B, embedding_dim), float32; its values are drawn from torch's generator.

        Args:
            shape: Shape of one sample.
            modality: Its place in the scenario, for messages.

        Raises:
            InputError: It does not take such samples.
        """
        for path, found, expected in (*self.conflicts(), *self.misfits(shape, modality)):
            raise InputError(f"model.encoders.{modality}.{path} {found}; expected {expected}")
        return self.module(shape)()


class MlpEncoder(_Encoder):
    """Flatten, then linear layers with ReLU and dropout. Any shape."""

    kind: Literal["mlp"]
    hidden: Widths = (64,)
    """Widths of the hidden layers."""
    dim: Positive = 64
    """Width of the embedding."""
    dropout: Probability = 0.0
    """Dropout after each hidden layer."""

    def _module(self, shape: Shape) -> partial[Any]:
        from blossom_ray.models.encoders import Mlp

        return partial(Mlp, math.prod(shape), self.dim, hidden=self.hidden, dropout=self.dropout)


class _Convolutions(_Encoder):
    def misfits(self, shape: Shape, modality: str = "input") -> Iterator[Finding]:
        """As for every encoder; and something is left after all layers."""
        yield from super().misfits(shape, modality)
        if len(shape) == self.num_axes and 0 in self.last_map(shape):
            found = f"has so many layers that nothing is left of {modality}'s shape {list(shape)}"
            yield Finding("channels", found, "fewer layers or larger samples")

    @abstractmethod
    def last_map(self, shape: Shape) -> tuple[int, ...]:
        """Length, or height and width, after all layers; 0 where nothing is left."""


class _TimeConvolutions(_Convolutions):
    num_axes: ClassVar[int | None] = 2

    channels: Annotated[Widths, Field(min_length=1)] = (32, 64, 128)
    """Channels of the layers; the time axis is halved by each."""
    kernel_size: Positive = 5
    """Kernel size (odd keeps the length)."""

    def last_map(self, shape: Shape) -> tuple[int, ...]:
        """The length after all layers."""
        return _shrunk(shape[:1], (self.kernel_size,) * len(self.channels), pool=2)


class Conv1dEncoder(_TimeConvolutions):
    """Convolution over time (ReLU, max-pooling by 2, dropout in each layer), mean over time. Sequences."""

    kind: Literal["conv1d"]
    dim: Positive | None = None
    """Width of the embedding through a last linear layer; null: the last channels as they are."""
    dropout: Probability = 0.1
    """Dropout after each layer."""

    def embedding_dim(self, shape: Shape, modality: str = "input") -> int:  # noqa: ARG002  # as every encoder
        """`dim`, or the last channels."""
        return self.dim or self.channels[-1]

    def _module(self, shape: Shape) -> partial[Any]:
        from blossom_ray.models.encoders import TimeConvolutions

        return partial(TimeConvolutions, shape[1], self.channels, self.kernel_size, dropout=self.dropout, dim=self.dim)


class ConvGruEncoder(_TimeConvolutions):
    """Convolution over time as in `conv1d`, then a GRU, mean over time. Sequences. The paper's HAR and ECG encoder."""

    kind: Literal["conv-gru"]
    dim: Positive = 128
    """Width of the GRU and of the embedding."""
    dropout: Probability = 0.1
    """Dropout after each convolution."""

    def _module(self, shape: Shape) -> partial[Any]:
        from blossom_ray.models.encoders import TimeConvolutionsGru

        return partial(
            TimeConvolutionsGru, shape[1], self.channels, self.kernel_size, dropout=self.dropout, dim=self.dim
        )


class GruEncoder(_Encoder):
    """A GRU, mean over time. Sequences. The paper's text encoder."""

    num_axes: ClassVar[int | None] = 2

    kind: Literal["gru"]
    dim: Positive = 64
    """Width of the GRU and of the embedding."""

    def _module(self, shape: Shape) -> partial[Any]:
        from blossom_ray.models.encoders import MeanGru

        return partial(MeanGru, shape[1], self.dim)


class Conv2dEncoder(_Convolutions):
    """Convolution (ReLU, normalisation, optional max-pooling by 2 in each layer), then a linear layer. Images."""

    num_axes: ClassVar[int | None] = 3

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

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """One for each layer."""
        return self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,) * len(self.channels)

    def conflicts(self) -> Iterator[Finding]:
        """Kernel sizes for another number of layers."""
        if len(self.kernel_sizes) != len(self.channels):
            expected = f"one number, or {len(self.channels)} of them, as many as channels"
            yield Finding("kernel_size", shown(self.kernel_size), expected)

    def last_map(self, shape: Shape) -> tuple[int, ...]:
        """Height and width after all layers."""
        return _shrunk(shape[1:], self.kernel_sizes, self.stride, pool=2 if self.max_pool else 1)

    def _module(self, shape: Shape) -> partial[Any]:
        from blossom_ray.models.encoders import ImageConvolutions

        return partial(
            ImageConvolutions,
            shape[0],
            self.channels,
            self.kernel_sizes,
            self.stride,
            max_pool=self.max_pool,
            norm=self.norm,
            dropout=self.dropout,
            map_size=None if self.global_pool else math.prod(self.last_map(shape)),
            dim=self.dim,
        )


class CustomEncoder(Custom, Pretrained):
    """Own encoder: `factory(input_shape, **options)` gives a module that maps (batch, *input_shape) to (batch, dim)."""

    num_axes: ClassVar[int | None] = None

    def misfits(self, *_: object) -> Iterator[Finding]:
        """None that could be seen from outside; `build` tries it."""
        return iter(())

    def embedding_dim(self, shape: Shape, modality: str = "input") -> int:
        """What a module of its own gives for samples of zeros; errors as `build_own`."""
        return self._built(shape, modality, is_trial=True)[1]

    def build(self, shape: Shape, modality: str = "input") -> nn.Module:
        """The factory's module, tried on samples of zeros; errors as `build_own`."""
        return self._built(shape, modality)[0]

    def _built(self, shape: Shape, modality: str, *, is_trial: bool = False) -> tuple[nn.Module, int]:
        from blossom_ray.models.own_code import build_own

        return build_own(self, f"model.encoders.{modality}", (shape,), inputs=shape, is_trial=is_trial)


Encoder = Annotated[
    MlpEncoder | Conv1dEncoder | ConvGruEncoder | GruEncoder | Conv2dEncoder | CustomEncoder,
    Field(discriminator="kind"),
]


def _kinds_for(shape: Shape) -> list[str]:
    """The kinds of encoders that take samples of this shape, those for any shape last."""
    kinds = Hint.of(Encoder).kinds
    return [kind for axes in (len(shape), None) for kind, section in kinds.items() if section.num_axes == axes]


def _shrunk(sides: Shape, kernels: tuple[int, ...], stride: int = 1, *, pool: int) -> tuple[int, ...]:
    """What convolutions, padded by `kernel // 2` and each followed by max-pooling, leave of the sides of a map."""
    for kernel in kernels:
        sides = tuple(max(0, (side + 2 * (kernel // 2) - kernel) // stride + 1) // pool for side in sides)
        if 0 in sides:
            break
    return sides


class _Fusion(BuiltIn):
    kind: str
    dim: Positive = 256
    """Width of the fused representation."""
    norm: FeatureNorm = "none"
    """Normalisation of the fused representation."""

    def conflicts(self) -> Iterator[Finding]:
        """A single feature that is normalised by itself."""
        yield from _normed_alone("dim", self.dim, self.norm)

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
            yield from _normed_alone(f"hidden.{position}", width, self.norm)

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


class Model(Section):
    """A late-fusion model: an encoder per modality, a fusion, a head."""

    encoders: Annotated[dict[ModalityName, Encoder], Field(min_length=1)]
    """Encoder by modality. The modalities here are all that the federation has."""
    fusion: Fusion = AttentionFusion(kind="attention")
    """How embeddings become one representation."""
    head: Head = MlpHead(kind="mlp")
    """From the fused representation to the outputs."""
    missing: MissingRule = "mask"
    """What stands for a modality that a client does not own, in training and evaluation alike. `mask`: the fusion
    sees only what is there. `zero-embedding`: an embedding of zeros. `zero-input`: an input of zeros through the
    current encoder, which the client then holds without training it. `prototype`: the mean embedding of the clients
    that own the modality, measured after each local training and averaged by the server (PmcmFL, simplified)."""
    norm_statistics: NormStatistics = "shared"
    """Running statistics of normalisation layers: averaged with their block (`shared`), averaged over the clients that
    own exactly the same modalities (`same-modalities`), or kept by each client (`local`)."""

    @property
    def pretrained(self) -> dict[Block, Weights]:
        """What blocks start from, where that is not drawn."""
        sections = {Block("encoder", name): section.weights for name, section in self.encoders.items()}
        sections |= {FUSION: self.fusion.weights, HEAD: self.head.weights}
        return {block: weights for block, weights in sections.items() if weights is not None}

    @property
    def frozen_blocks(self) -> tuple[Block, ...]:
        """Blocks whose pretrained values stay as they are."""
        return tuple(block for block, weights in self.pretrained.items() if weights.frozen)

    def embedding_dims(self, input_shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Width of the embedding of each of these modalities, sorted; own encoders are built and tried to find out.

        Raises:
            InputError: An own encoder does not do what it should.
        """
        return {
            name: self.encoders[name].embedding_dim(shape, name)
            for name, shape in sorted(input_shapes.items())
            if name in self.encoders
        }


def place_of(block: Block) -> str:
    """Where a block's section stands in a scenario."""
    return f"model.encoders.{block.of}" if block.kind == "encoder" else f"model.{block.kind}"


def _normed_alone(path: str, width: int, norm: FeatureNorm) -> Iterator[Finding]:
    """One feature normalised by itself is zero, whatever it was."""
    if width == 1 and norm in ("layer", "group"):
        yield Finding(path, f"is 1, while norm is {norm!r}", "at least 2 features, or another norm")
