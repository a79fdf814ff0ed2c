"""Sizes of the paper's heads, and the order of their layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blossom_ray.models.heads import MlpHead


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (MlpHead(256, 6, hidden=(64,), dropout=0.1, norm="none"), 16_838),
        (MlpHead(256, 8, hidden=(64,), dropout=0.1, norm="none"), 16_968),
        (MlpHead(128, 5, hidden=(64,), dropout=0.1, norm="none"), 8_581),
        (MlpHead(128, 10, hidden=(256, 128), dropout=0.3, norm="batch"), 67_978),
        (MlpHead(3, 2, hidden=(), dropout=0.3, norm="batch"), 8),
    ],
)
def test_heads_have_the_papers_sizes(head: nn.Module, expected: int) -> None:
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_normalisation_comes_before_relu_and_dropout_last() -> None:
    head = MlpHead(4, 2, hidden=(3,), dropout=0.5, norm="batch")
    kinds = [type(layer) for layer in head.layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    assert head(torch.zeros(5, 4)).shape == (5, 2)
