"""Sizes of the paper's encoders, output shapes, and what is said about inputs that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from blossom_ray.errors import InputError
from blossom_ray.models.encoders import (
    Conv1dEncoder,
    Conv2dEncoder,
    ConvGruEncoder,
    GruEncoder,
    MlpEncoder,
)

TIME: dict[str, Any] = {"channels": (32, 64, 128), "kernel_size": 5, "dropout": 0.1}
IMAGE: dict[str, Any] = {
    "channels": (8, 16, 32),
    "kernel_size": 3,
    "stride": 1,
    "max_pool": True,
    "norm": "batch",
    "global_pool": False,
    "dim": 32,
    "dropout": 0.0,
}
AUDIO: dict[str, Any] = IMAGE | {
    "channels": (8, 16, 32, 64),
    "kernel_size": (5, 3, 3, 3),
    "stride": 2,
    "max_pool": False,
    "global_pool": True,
    "dim": 256,
}


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (ConvGruEncoder((128, 3), dim=128, **TIME), 150_976),
        (ConvGruEncoder((1000, 6), dim=64, **TIME), 89_632),
        (ConvGruEncoder((1000, 80), dim=64, **TIME), 101_472),
        (GruEncoder((32, 512), dim=64), 110_976),
        (Conv2dEncoder((1, 28, 28), **IMAGE), 15_248),
        (Conv2dEncoder((2, 64, 141), **AUDIO), 41_592),
        # By hand: 6 x 4 + 4 and 4 x 2 + 2.
        (MlpEncoder((2, 3), hidden=(4,), dim=2, dropout=0.0), 38),
        # By hand: 3 x 4 x 5 + 4, then 4 x 2 + 2.
        (Conv1dEncoder((8, 3), channels=(4,), kernel_size=5, dim=2, dropout=0.0), 74),
    ],
)
def test_encoders_have_the_papers_sizes(encoder: nn.Module, expected: int) -> None:
    assert num_parameters(encoder) == expected


@pytest.mark.parametrize(
    ("encoder", "shape", "width"),
    [
        (MlpEncoder((2, 3, 4), hidden=(), dim=7, dropout=0.5), (2, 3, 4), 7),
        (Conv1dEncoder((20, 3), dim=None, **TIME), (20, 3), 128),
        (Conv1dEncoder((8, 3), dim=5, **TIME), (8, 3), 5),
        (Conv1dEncoder((8, 3), dim=5, **(TIME | {"kernel_size": 4})), (8, 3), 5),
        (ConvGruEncoder((21, 3), dim=6, **TIME), (21, 3), 6),
        (GruEncoder((1, 3), dim=6), (1, 3), 6),
        (Conv2dEncoder((1, 28, 28), **IMAGE), (1, 28, 28), 32),
        (Conv2dEncoder((3, 9, 13), **(IMAGE | {"kernel_size": (2, 4, 5)})), (3, 9, 13), 32),
        (Conv2dEncoder((3, 9, 13), **(IMAGE | {"norm": "group", "dropout": 0.2})), (3, 9, 13), 32),
        (Conv2dEncoder((3, 9, 13), **(AUDIO | {"norm": "none"})), (3, 9, 13), 256),
    ],
)
def test_an_embedding_per_sample(encoder: nn.Module, shape: tuple[int, ...], width: int) -> None:
    output = encoder(torch.ones(4, *shape))
    assert output.shape == (4, width)
    assert output.dtype == torch.float32


def test_mlp_encoder_by_hand() -> None:
    encoder = MlpEncoder((2,), hidden=(2,), dim=1, dropout=0.0)
    with torch.no_grad():
        for parameter, values in zip(
            encoder.parameters(), ([[1.0, 1.0], [-1.0, 0.0]], [0.5, 0.0], [[2.0, 3.0]], [1.0]), strict=True
        ):
            parameter.copy_(torch.tensor(values))
    # Hidden: relu(1 + 2 + 0.5) = 3.5 and relu(-1) = 0; output 2 x 3.5 + 1.
    assert encoder(torch.tensor([[1.0, 2.0]])).item() == 8.0


def test_conv1d_encoder_averages_over_time() -> None:
    encoder = Conv1dEncoder((4, 1), channels=(1,), kernel_size=1, dim=None, dropout=0.0)
    with torch.no_grad():
        for parameter, value in zip(encoder.parameters(), (1.0, 0.0), strict=True):
            parameter.fill_(value)
    # Max-pooling by 2 of 1, 3, -5, -7 after ReLU leaves 3 and 0.
    assert encoder(torch.tensor([[[1.0], [3.0], [-5.0], [-7.0]]])).item() == 1.5


@pytest.mark.parametrize(("channels", "num_groups"), [(8, 4), (16, 4), (12, 2), (4, 2), (6, 1), (5, 1), (1, 1)])
def test_group_normalisation_leaves_two_channels_in_a_group(channels: int, num_groups: int) -> None:
    encoder = Conv2dEncoder((1, 4, 4), **(IMAGE | {"channels": (channels,), "norm": "group"}))
    norms = [module for module in encoder.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [num_groups]


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(1, 28, 28\); expected a sequence \(time, features\)"):
        ConvGruEncoder((1, 28, 28), dim=4, **TIME)
    with pytest.raises(InputError, match=r"shape \(3,\); expected a sequence"):
        GruEncoder((3,), dim=4)
    with pytest.raises(InputError, match=r"7 time steps, and 3 layers that halve them leave none"):
        Conv1dEncoder((7, 3), dim=4, **TIME)
    with pytest.raises(InputError, match=r"shape \(128, 3\); expected an image \(channels, height, width\)"):
        Conv2dEncoder((128, 3), **IMAGE)
    with pytest.raises(InputError, match=r"shape \(1, 7, 28\), too small for 3 layers"):
        Conv2dEncoder((1, 7, 28), **IMAGE)
    with pytest.raises(InputError, match=r"shape \(1, 3, 28\), too small for 3 layers"):
        Conv2dEncoder((1, 3, 28), **(IMAGE | {"kernel_size": 2, "stride": 3}))
    with pytest.raises(InputError, match=r"kernel_size has 2 values; expected one, or 3"):
        Conv2dEncoder((1, 28, 28), **(IMAGE | {"kernel_size": (3, 3)}))
