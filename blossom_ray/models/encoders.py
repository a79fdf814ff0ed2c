"""Modules of encoders, and of the head: from one modality's samples (B, *shape) to an embedding (B, E).

`models/encoder_options.py` builds them from the scenario's sections, which know what shapes they take. Parameters
start from PyTorch's default initialisation. Shape suffixes: B batch, T time, D features, C channels, H height,
W width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from blossom_ray.models.time_layers import Gru, HalvingMaxPool1d


class RowWise(nn.Module):
    """A module that treats each row of a batch alike and leaves parameters and random numbers to its layers.

    By this word clients may be computed at once, their batches one behind the other; a subclass says it for itself.
    """


class Mlp(RowWise):
    """Flatten, then linear layers with normalisation, ReLU and dropout, then a linear layer to the outputs.

    Args:
        num_inputs: Values of one sample, whatever its shape.
        num_outputs: Width of the output.
        hidden: Widths of the hidden layers.
        dropout: Probability of dropout after each hidden layer, 0..1.
        norm: Normalisation before the ReLU of each hidden layer, as `feature_norm`.

    Source: the heads of BLOSSOM (arXiv:2603.27552); `norm="batch"` is the one for AV-MNIST.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, *, hidden: Sequence[int], dropout: float, norm: str = "none"
    ) -> None:
        super().__init__()
        widths = (num_inputs, *hidden)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            # Nothing stands where there is no normalisation: what does nothing still takes its time in each step.
            norms = [] if norm == "none" else [feature_norm(norm, width_out)]
            layers += [nn.Linear(width_in, width_out), *norms, nn.ReLU(), dropout_layer(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (B, num_outputs) of inputs (B, ...), float32."""
        outputs: Tensor = self.layers(inputs.flatten(1))
        return outputs


class TimeConvolutions(RowWise):
    """Convolutions over time, mean over time, and a linear layer where `dim` asks for one.

    Args:
        num_features: Features D of each step in time.
        channels: Channels of the layers. Each is a convolution with ReLU, max-pooling by 2 and dropout.
        kernel_size: Kernel size; the padding is `kernel_size // 2` on both sides.
        dropout: Probability of dropout after each layer, 0..1.
        dim: Width of the embedding, or None for the last channels as they are.
    """

    def __init__(
        self, num_features: int, channels: Sequence[int], kernel_size: int, *, dropout: float, dim: int | None
    ) -> None:
        super().__init__()
        self.convolutions = _time_convolutions(num_features, channels, kernel_size, dropout)
        self.projection = nn.Identity() if dim is None else nn.Linear(channels[-1], dim)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Embed sequences (B, T, D), float32, as (B, E)."""
        features_BCT: Tensor = self.convolutions(inputs_BTD.transpose(1, 2))
        embeddings_BE: Tensor = self.projection(features_BCT.mean(dim=2))
        return embeddings_BE


class TimeConvolutionsGru(RowWise):
    """Convolutions over time as in `TimeConvolutions`, then a GRU, mean over time.

    Args:
        num_features: Features D of each step in time.
        channels: Channels of the layers.
        kernel_size: Kernel size; the padding is `kernel_size // 2` on both sides.
        dropout: Probability of dropout after each convolution, 0..1.
        dim: Width of the GRU and of the embedding.

    Source: the activity, ECG and audio encoder of BLOSSOM (arXiv:2603.27552) and of FedMultimodal
    (arXiv:2306.09486).
    """

    def __init__(
        self, num_features: int, channels: Sequence[int], kernel_size: int, *, dropout: float, dim: int
    ) -> None:
        super().__init__()
        self.convolutions = _time_convolutions(num_features, channels, kernel_size, dropout)
        self.gru = Gru(channels[-1], dim)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Embed sequences (B, T, D), float32, as (B, E)."""
        features_BCT: Tensor = self.convolutions(inputs_BTD.transpose(1, 2))
        states_BTE: Tensor = self.gru(features_BCT.transpose(1, 2))[0]
        return states_BTE.mean(dim=1)


class MeanGru(RowWise):
    """A GRU, mean over time.

    Args:
        num_features: Features D of each step in time.
        dim: Width of the GRU and of the embedding.

    Source: the text encoder of BLOSSOM (arXiv:2603.27552).
    """

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.gru = Gru(num_features, dim)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        """Embed sequences (B, T, D), float32, as (B, E)."""
        states_BTE: Tensor = self.gru(inputs_BTD)[0]
        return states_BTE.mean(dim=1)


class TokenBag(RowWise):
    """The mean, or the largest value by feature, of the vectors of a sample's tokens. No token gives zeros.

    Args:
        vocabulary: How many numbers of tokens there are; 0 is padding, which takes no part.
        width: Width of a token's vector.
        pooling: `mean` or `max`.
        dropout: Probability of dropout after pooling, 0..1.
        dim: Width of the embedding through a last linear layer, or None for the pooled vector as it is.

    Source: the bag of words of fastText (Joulin et al. 2017, arXiv:1607.01759), as `torch.nn.EmbeddingBag`.
    """

    def __init__(self, vocabulary: int, width: int, *, pooling: str, dropout: float, dim: int | None) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, width, mode=pooling, padding_idx=0)
        self.dropout = dropout_layer(dropout)
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)

    def forward(self, inputs_BT: Tensor) -> Tensor:
        """Embed numbers of tokens (B, T), whole ones in float32, as (B, E)."""
        embeddings_BE: Tensor = self.projection(self.dropout(self.embedding(inputs_BT.long())))
        return embeddings_BE


class TokenGru(RowWise):
    """A GRU over the vectors of a sample's tokens, mean over its states. No token gives zeros.

    Args:
        vocabulary: How many numbers of tokens there are; 0 is padding, which the GRU does not see.
        width: Width of a token's vector and of the GRU.
        dropout: Probability of dropout after the mean, 0..1.
        dim: Width of the embedding through a last linear layer, or None for the mean as it is.
    """

    def __init__(self, vocabulary: int, width: int, *, dropout: float, dim: int | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = Gru(width, width)
        self.dropout = dropout_layer(dropout)
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)

    def forward(self, inputs_BT: Tensor) -> Tensor:
        """Embed numbers of tokens (B, T), whole ones in float32, as (B, E)."""
        is_token_BT = inputs_BT != 0
        counts_B1 = is_token_BT.sum(dim=1, keepdim=True)
        # Tokens in their order, then padding wherever it stood, as far as the longest sample goes.
        order_BT = is_token_BT.byte().argsort(dim=1, descending=True, stable=True)
        tokens_BT = inputs_BT.long().gather(1, order_BT)[:, : max(1, int(counts_B1.max()))]
        states_BTE: Tensor = self.gru(self.embedding(tokens_BT))[0]
        is_state_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < counts_B1
        mean_BE = (states_BTE * is_state_BT.unsqueeze(2)).sum(dim=1) / counts_B1.clamp(min=1)
        embeddings_BE: Tensor = self.projection(self.dropout(mean_BE))
        return embeddings_BE


def token_problem(pieces: Iterable[np.ndarray], vocabulary: int | None) -> str | None:
    """What keeps values from being numbers of tokens, 0 to `vocabulary` - 1, and what is expected; None: nothing.

    Args:
        pieces: The samples, some rows (n, T) at a time.
        vocabulary: How many numbers there are; None: nobody knows, which is a problem, too.
    """
    num_rows, largest = 0, 0
    for numbers in pieces:
        is_whole = (numbers >= 0) & (numbers == np.floor(numbers))
        if not is_whole.all():
            row = int(is_whole.all(axis=1).argmin())
            found = f"has {numbers[row][~is_whole[row]][0]:g} in row {num_rows + row:,}"
            return f"{found}; expected whole numbers of tokens, 0 for padding"
        num_rows, largest = num_rows + len(numbers), max(largest, int(numbers.max(initial=0)))
    if vocabulary is None or largest >= vocabulary:
        known = "null" if vocabulary is None else f"{vocabulary:,}"
        return f"has the token {largest:,}, while vocabulary is {known}; expected at least {largest + 1:,}"
    return None


class ImageConvolutions(RowWise):
    """Convolutions over an image, then a linear layer.

    Args:
        num_channels: Channels of the image.
        channels: Channels of the layers. Each is a convolution, ReLU, normalisation, max-pooling, dropout.
        kernel_sizes: Kernel size of each layer; the padding is `kernel_size // 2`.
        stride: Stride of each convolution.
        max_pool: Whether each layer ends with max-pooling by 2.
        norm: Normalisation after each ReLU: `batch`, `none` or `group` (Wu and He 2018, arXiv:1803.08494) of 4, 2 or 1
            groups, the most that leave two channels in each.
        dropout: Probability of dropout after each layer, 0..1.
        map_size: Values in each channel of the last map, which is flattened; None: it is averaged over space.
        dim: Width of the embedding.

    Source: the image and audio encoders that BLOSSOM (arXiv:2603.27552) uses for AV-MNIST.
    """

    def __init__(
        self,
        num_channels: int,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        stride: int,
        *,
        max_pool: bool,
        norm: str,
        dropout: float,
        map_size: int | None,
        dim: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (width_in, width), kernel_size in zip(pairwise((num_channels, *channels)), kernel_sizes, strict=True):
            layers += [nn.Conv2d(width_in, width, kernel_size, stride, kernel_size // 2), nn.ReLU()]
            layers += [_CHANNEL_NORMS[norm](width), nn.MaxPool2d(2) if max_pool else nn.Identity()]
            layers += [dropout_layer(dropout)]
        self.convolutions = nn.Sequential(*layers)
        self.is_averaged = map_size is None
        self.projection = nn.Linear(channels[-1] * (map_size or 1), dim)

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        """Embed images (B, C, H, W), float32, as (B, E)."""
        maps_BCHW: Tensor = self.convolutions(inputs_BCHW)
        features = maps_BCHW.mean(dim=(2, 3)) if self.is_averaged else maps_BCHW.flatten(1)
        embeddings_BE: Tensor = self.projection(features)
        return embeddings_BE


def dropout_layer(probability: float) -> nn.Module:
    """Dropout, or nothing where the probability is 0: PyTorch draws a mask even then."""
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def feature_norm(norm: str, width: int) -> nn.Module:
    """Normalisation of vectors (B, width).

    Args:
        norm: `batch` (Ioffe and Szegedy 2015, arXiv:1502.03167), `layer` (Ba et al. 2016, arXiv:1607.06450), `group`
            with as many groups as `ImageConvolutions` has for as many channels, or `none`.
        width: Width of the vectors.
    """
    return _FEATURE_NORMS[norm](width)


def _group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(4 if width % 8 == 0 else 2 if width % 4 == 0 else 1, width)


_FEATURE_NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": lambda width: nn.GroupNorm(1, width),  # of vectors this is nn.LayerNorm, and has a stacked form
    "group": _group_norm,
    "none": lambda _: nn.Identity(),
}
_CHANNEL_NORMS: Mapping[str, Callable[[int], nn.Module]] = {**_FEATURE_NORMS, "batch": nn.BatchNorm2d}


def _time_convolutions(num_features: int, channels: Sequence[int], kernel_size: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width in pairwise((num_features, *channels)):
        layers += [nn.Conv1d(width_in, width, kernel_size, padding=kernel_size // 2)]
        # Of half as many values ReLU gives the same, and the larger of two is the same with and without it.
        layers += [HalvingMaxPool1d(), nn.ReLU(), dropout_layer(dropout)]
    return nn.Sequential(*layers)
