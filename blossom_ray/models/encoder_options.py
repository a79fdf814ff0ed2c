"""The encoders of the `model` section: what each takes, how wide its embedding is, and its module.

PyTorch is imported where a module is built alone. Modules stand in `models/encoders.py`; `custom` calls the user's
factory instead.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from blossom_ray.core.phrases import one_of, shown
from blossom_ray.core.section import Custom, Finding, Positive, Probability
from blossom_ray.core.structure import Hint
from blossom_ray.errors import InputError
from blossom_ray.models.block_options import BuiltIn, Pretrained, Shape, Widths

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = {1: "a vector", 2: "a sequence", 3: "an image"}


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


class EmbeddingEncoder(_Encoder):
    """A vector for each token, pooled into one. Samples are numbers of tokens, 0 for padding, which takes no part.

    A sample without tokens is a vector of zeros, which goes through the last linear layer.
    """

    num_axes: ClassVar[int | None] = 1

    kind: Literal["embedding"]
    vocabulary: Annotated[Positive, Field(le=2**24)] | None = None
    """How many numbers of tokens there are, with that of padding: samples are float32, exact up to 2^24. null: as many
    as the text of this name has in `data.modalities`; the scenario of a run says how many that are."""
    width: Positive = 64
    """Width of a token's vector."""
    pooling: Literal["mean", "max", "gru"] = "mean"
    """Mean of the vectors, their largest values, or the mean over the states of a GRU, as wide as they are."""
    dim: Positive | None = None
    """Width of the embedding through a last linear layer; null: the pooled vector as it is."""
    dropout: Probability = 0.0
    """Dropout of the pooled vector."""

    def embedding_dim(self, shape: Shape, modality: str = "input") -> int:  # noqa: ARG002  # as every encoder
        """`dim`, or the width of a token's vector."""
        return self.dim or self.width

    def _module(self, _: Shape) -> partial[Any]:
        from blossom_ray.models.encoders import TokenBag, TokenGru

        table: tuple[Any, ...] = (self.vocabulary, self.width)  # whose size is known before anything is built
        if self.pooling == "gru":
            return partial(TokenGru, *table, dropout=self.dropout, dim=self.dim)
        return partial(TokenBag, *table, pooling=self.pooling, dropout=self.dropout, dim=self.dim)


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
    MlpEncoder | Conv1dEncoder | ConvGruEncoder | GruEncoder | EmbeddingEncoder | Conv2dEncoder | CustomEncoder,
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
