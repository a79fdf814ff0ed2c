"""Sizes of the paper's encoders, output shapes, and what is said about inputs that do not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from blossom_ray.errors import InputError
from blossom_ray.models.encoder_options import (
    Conv1dEncoder,
    Conv2dEncoder,
    ConvGruEncoder,
    Encoder,
    GruEncoder,
    MlpEncoder,
)

Shape = tuple[int, ...]
IMAGE = Conv2dEncoder(kind="conv2d")
AUDIO = Conv2dEncoder(
    kind="conv2d",
    channels=(8, 16, 32, 64),
    kernel_size=(5, 3, 3, 3),
    stride=2,
    max_pool=False,
    global_pool=True,
    dim=256,
)


def conv1d(**options: Any) -> Conv1dEncoder:
    return Conv1dEncoder(kind="conv1d", **options)


def conv_gru(dim: int, **options: Any) -> ConvGruEncoder:
    return ConvGruEncoder(kind="conv-gru", dim=dim, **options)


def conv2d(base: Conv2dEncoder = IMAGE, **options: Any) -> Conv2dEncoder:
    return base.model_copy(update=options)


def gru(dim: int) -> GruEncoder:
    return GruEncoder(kind="gru", dim=dim)


def mlp(**options: Any) -> MlpEncoder:
    return MlpEncoder(kind="mlp", **options)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("encoder", "shape", "expected"),
    [
        (conv_gru(128), (128, 3), 150_976),
        (conv_gru(64), (1000, 6), 89_632),
        (conv_gru(64), (1000, 80), 101_472),
        (gru(64), (32, 512), 110_976),
        (IMAGE, (1, 28, 28), 15_248),
        (AUDIO, (2, 64, 141), 41_592),
        # By hand: 6 x 4 + 4 and 4 x 2 + 2.
        (mlp(hidden=(4,), dim=2), (2, 3), 38),
        # By hand: 3 x 4 x 5 + 4, then 4 x 2 + 2.
        (conv1d(channels=(4,), dim=2), (8, 3), 74),
    ],
)
def test_encoders_have_the_papers_sizes(encoder: Encoder, shape: Shape, expected: int) -> None:
    assert num_parameters(encoder.build(shape)) == expected


@pytest.mark.parametrize(
    ("encoder", "shape", "width"),
    [
        (mlp(hidden=(), dim=7, dropout=0.5), (2, 3, 4), 7),
        (conv1d(), (20, 3), 128),
        (conv1d(dim=5), (8, 3), 5),
        (conv1d(dim=5, kernel_size=4), (8, 3), 5),
        (conv_gru(6), (21, 3), 6),
        (gru(6), (1, 3), 6),
        (IMAGE, (1, 28, 28), 32),
        (conv2d(kernel_size=(2, 4, 5)), (3, 9, 13), 32),
        (conv2d(norm="group", dropout=0.2), (3, 9, 13), 32),
        (conv2d(AUDIO, norm="none"), (3, 9, 13), 256),
    ],
)
def test_an_embedding_per_sample(encoder: Encoder, shape: Shape, width: int) -> None:
    assert encoder.embedding_dim(shape) == width
    output = encoder.build(shape)(torch.ones(4, *shape))
    assert output.shape == (4, width)
    assert output.dtype == torch.float32


def test_mlp_encoder_by_hand() -> None:
    encoder = mlp(hidden=(2,), dim=1).build((2,))
    with torch.no_grad():
        for parameter, values in zip(
            encoder.parameters(), ([[1.0, 1.0], [-1.0, 0.0]], [0.5, 0.0], [[2.0, 3.0]], [1.0]), strict=True
        ):
            parameter.copy_(torch.tensor(values))
    # Hidden: relu(1 + 2 + 0.5) = 3.5 and relu(-1) = 0; output 2 x 3.5 + 1.
    assert encoder(torch.tensor([[1.0, 2.0]])).item() == 8.0


def test_conv1d_encoder_averages_over_time() -> None:
    encoder = conv1d(channels=(1,), kernel_size=1, dropout=0.0).build((4, 1))
    with torch.no_grad():
        for parameter, value in zip(encoder.parameters(), (1.0, 0.0), strict=True):
            parameter.fill_(value)
    # Max-pooling by 2 of 1, 3, -5, -7 after ReLU leaves 3 and 0.
    assert encoder(torch.tensor([[[1.0], [3.0], [-5.0], [-7.0]]])).item() == 1.5


@pytest.mark.parametrize(("channels", "num_groups"), [(8, 4), (16, 4), (12, 2), (4, 2), (6, 1), (5, 1), (1, 1)])
def test_group_normalisation_leaves_two_channels_in_a_group(channels: int, num_groups: int) -> None:
    encoder = conv2d(channels=(channels,), norm="group").build((1, 4, 4))
    norms = [module for module in encoder.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [num_groups]


@pytest.mark.parametrize(
    ("encoder", "shape", "message"),
    [
        (conv_gru(4), (1, 28, 28), "kind is 'conv-gru', while acc is an image of shape [1, 28, 28]; expected one of c"),
        (gru(4), (3,), "kind is 'gru', while acc is a vector of shape [3]; expected one of embedding, mlp, custom"),
        (gru(4), (2, 2, 2, 2), "kind is 'gru', while acc is an array of shape [2, 2, 2, 2]; expected one of mlp, c"),
        (conv1d(), (7, 3), "channels has so many layers that nothing is left of acc's shape [7, 3]; expected fewer"),
        (IMAGE, (128, 3), "kind is 'conv2d', while acc is a sequence of shape [128, 3]; expected one of conv1d"),
        (IMAGE, (1, 7, 28), "channels has so many layers that nothing is left of acc's shape [1, 7, 28]; expected"),
        (conv2d(kernel_size=2, stride=3), (1, 3, 28), "channels has so many layers that nothing is left of acc's"),
        (conv2d(kernel_size=(3, 3)), (1, 28, 28), "kernel_size is [3, 3]; expected one number, or 3 of them"),
    ],
)
def test_samples_that_do_not_fit_are_refused(encoder: Encoder, shape: Shape, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(f"model.encoders.acc.{message}")):
        encoder.build(shape, "acc")
