"""Encoders: from one modality's input (B, *shape) to an embedding (B, E).

Each constructor takes the shape of one sample and the plain values of its scenario section. Parameters start
from PyTorch's default initialisation. Shape suffixes: B batch, T time, D features, C channels, H height,
W width, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from blossom_ray.errors import InputError

Shape = tuple[int, ...]
FeatureNorm = Literal["batch", "group", "layer", "none"]


class MlpEncoder(nn.Module):
    """Flatten, then linear layers with ReLU and dropout, then a linear layer to the embedding.

    Args:
        input_shape: Shape of one sample, any.
        hidden: Widths of the hidden layers.
        dim: Width of the embedding.
        dropout: Probability of dropout after each hidden layer, 0..1.
    """

    def __init__(self, input_shape: Shape, *, hidden: Sequence[int], dim: int, dropout: float) -> None:
        super().__init__()
        widths = (math.prod(input_shape), *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), dropout_layer(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed inputs (B, *input_shape), float32, as (B, E)."""
        embeddings_BE: Tensor = self.layers(inputs)
        return embeddings_BE


class Conv1dEncoder(nn.Module):
    """Convolutions over time, mean over time, and a linear layer where `dim` asks for one.

    Args:
        input_shape: Shape of one sample, (T, D).
        channels: Channels of the layers. Each is a convolution with ReLU, max-pooling by 2 and dropout.
        kernel_size: Kernel size; the padding is `kernel_size // 2` on both sides.
        dim: Width of the embedding, or None for the last channels as they are.
        dropout: Probability of dropout after each layer, 0..1.

    Raises:
        InputError: The input is no sequence, or too short for the pooling.
    """

    def __init__(
        self,
        input_shape: Shape,
        *,
        channels: Sequence[int],
        kernel_size: int,
        dim: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.convolutions = _time_convolutions(input_shape, channels, kernel_size, dropout)
        self.projection = nn.Identity() if dim is None else nn.Linear(channels[-1], dim)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Embed sequences (B, T, D), float32, as (B, E)."""
        features_BCT: Tensor = self.convolutions(inputs_BTD.transpose(1, 2))
        embeddings_BE: Tensor = self.projection(features_BCT.mean(dim=2))
        return embeddings_BE


class ConvGruEncoder(nn.Module):
    """Convolutions over time as in `Conv1dEncoder`, then a GRU, mean over time.

    Args:
        input_shape: Shape of one sample, (T, D).
        channels: Channels of the layers.
        kernel_size: Kernel size; the padding is `kernel_size // 2` on both sides.
        dim: Width of the GRU and of the embedding.
        dropout: Probability of dropout after each convolution, 0..1.

    Raises:
        InputError: The input is no sequence, or too short for the pooling.

    Source: the activity, ECG and audio encoder of BLOSSOM (arXiv:2603.27552) and of FedMultimodal
    (arXiv:2306.09486).
    """

    def __init__(
        self, input_shape: Shape, *, channels: Sequence[int], kernel_size: int, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.convolutions = _time_convolutions(input_shape, channels, kernel_size, dropout)
        self.gru = nn.GRU(channels[-1], dim, batch_first=True)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Embed sequences (B, T, D), float32, as (B, E)."""
        features_BCT: Tensor = self.convolutions(inputs_BTD.transpose(1, 2))
        return _mean_over_time(self.gru, features_BCT.transpose(1, 2))


class GruEncoder(nn.Module):
    """A GRU, mean over time.

    Args:
        input_shape: Shape of one sample, (T, D).
        dim: Width of the GRU and of the embedding.

    Raises:
        InputError: The input is no sequence.

    Source: the text encoder of BLOSSOM (arXiv:2603.27552).
    """

    def __init__(self, input_shape: Shape, *, dim: int) -> None:
        super().__init__()
        _, num_features = _sequence_shape(input_shape)
        self.gru = nn.GRU(num_features, dim, batch_first=True)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Embed sequences (B, T, D), float32, as (B, E)."""
        return _mean_over_time(self.gru, inputs_BTD)


class Conv2dEncoder(nn.Module):
    """Convolutions over an image, then a linear layer.

    Args:
        input_shape: Shape of one sample, (C, H, W).
        channels: Channels of the layers. Each is a convolution, ReLU, normalisation, max-pooling, dropout.
        kernel_size: Kernel size, one for all layers or one for each; the padding is `kernel_size // 2`.
        stride: Stride of each convolution.
        max_pool: Whether each layer ends with max-pooling by 2.
        norm: Normalisation after each ReLU. `group` (Wu and He 2018, arXiv:1803.08494): 4, 2 or 1 groups, the
            most that leave two channels in each.
        global_pool: Whether the last map is averaged over space (true) or flattened (false).
        dim: Width of the embedding.
        dropout: Probability of dropout after each layer, 0..1.

    Raises:
        InputError: The input is no image, or too small for the pooling; kernel sizes do not match the layers.

    Source: the image and audio encoders that BLOSSOM (arXiv:2603.27552) uses for AV-MNIST.
    """

    def __init__(
        self,
        input_shape: Shape,
        *,
        channels: Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int,
        max_pool: bool,
        norm: Literal["batch", "group", "none"],
        global_pool: bool,
        dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise InputError(f"the input has shape {input_shape}; expected an image (channels, height, width)")
        kernels = (kernel_size,) * len(channels) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernels) != len(channels):
            raise InputError(f"kernel_size has {len(kernels)} values; expected one, or {len(channels)}")
        num_channels, *size = input_shape
        shrink = 2 if max_pool else 1
        layers: list[nn.Module] = []
        for width, kernel in zip(channels, kernels, strict=True):
            layers += [nn.Conv2d(num_channels, width, kernel, stride, kernel // 2), nn.ReLU()]
            layers += [_norm_2d(norm, width), nn.MaxPool2d(2) if max_pool else nn.Identity()]
            layers += [dropout_layer(dropout)]
            size = [((side + 2 * (kernel // 2) - kernel) // stride + 1) // shrink for side in size]
            if 0 in size:
                raise InputError(
                    f"the input has shape {input_shape}, too small for {len(channels)} layers of stride "
                    f"{stride} with max-pooling; expected a larger image or fewer layers"
                )
            num_channels = width
        self.convolutions = nn.Sequential(*layers)
        self.global_pool = global_pool
        self.projection = nn.Linear(num_channels * (1 if global_pool else math.prod(size)), dim)

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        """Embed images (B, C, H, W), float32, as (B, E)."""
        maps_BCHW: Tensor = self.convolutions(inputs_BCHW)
        features = maps_BCHW.mean(dim=(2, 3)) if self.global_pool else maps_BCHW.flatten(1)
        embeddings_BE: Tensor = self.projection(features)
        return embeddings_BE


def dropout_layer(probability: float) -> nn.Module:
    """Dropout, or nothing where the probability is 0: PyTorch draws a mask even then."""
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def feature_norm(norm: FeatureNorm, width: int) -> nn.Module:
    """Normalisation of vectors (B, width): by the batch, by groups of features, by all features, or none.

    Args:
        norm: `batch` (Ioffe and Szegedy 2015, arXiv:1502.03167), `layer` (Ba et al. 2016, arXiv:1607.06450), `group`
            with as many groups as `Conv2dEncoder` has for as many channels, or `none`.
        width: Width of the vectors.
    """
    match norm:
        case "batch":
            return nn.BatchNorm1d(width)
        case "layer":
            return nn.GroupNorm(1, width)  # of vectors this is nn.LayerNorm, and has a stacked form
        case "group":
            return nn.GroupNorm(_num_groups(width), width)
        case "none":
            return nn.Identity()


def _sequence_shape(input_shape: Shape) -> tuple[int, int]:
    if len(input_shape) != 2:
        raise InputError(f"the input has shape {input_shape}; expected a sequence (time, features)")
    return input_shape[0], input_shape[1]


def _time_convolutions(input_shape: Shape, channels: Sequence[int], kernel_size: int, dropout: float) -> nn.Sequential:
    num_steps, num_features = _sequence_shape(input_shape)
    layers: list[nn.Module] = []
    length = num_steps
    for width in channels:
        layers += [nn.Conv1d(num_features, width, kernel_size, padding=kernel_size // 2)]
        layers += [nn.ReLU(), nn.MaxPool1d(2), dropout_layer(dropout)]
        length = (length + 2 * (kernel_size // 2) - kernel_size + 1) // 2
        num_features = width
    if length == 0:
        raise InputError(
            f"the input has {num_steps} time steps, and {len(channels)} layers that halve them leave none; "
            "expected a longer sequence or fewer layers"
        )
    return nn.Sequential(*layers)


def _mean_over_time(gru: nn.GRU, inputs_BTD: Tensor) -> Tensor:
    states_BTE: Tensor = gru(inputs_BTD)[0]
    return states_BTE.mean(dim=1)


def _num_groups(num_channels: int) -> int:
    return 4 if num_channels % 8 == 0 else 2 if num_channels % 4 == 0 else 1


def _norm_2d(norm: Literal["batch", "group", "none"], num_channels: int) -> nn.Module:
    match norm:
        case "batch":
            return nn.BatchNorm2d(num_channels)
        case "group":
            return nn.GroupNorm(_num_groups(num_channels), num_channels)
        case "none":
            return nn.Identity()
