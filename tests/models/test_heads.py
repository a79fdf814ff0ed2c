"""Sizes of the paper's heads, and the order of their layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blossom_ray.models.encoders import Mlp, feature_norm


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (Mlp(256, 6, hidden=(64,), dropout=0.1, norm="none"), 16_838),
        (Mlp(256, 8, hidden=(64,), dropout=0.1, norm="none"), 16_968),
        (Mlp(128, 5, hidden=(64,), dropout=0.1, norm="none"), 8_581),
        (Mlp(128, 10, hidden=(256, 128), dropout=0.3, norm="batch"), 67_978),
        (Mlp(3, 2, hidden=(), dropout=0.3, norm="batch"), 8),
    ],
)
def test_heads_have_the_papers_sizes(head: nn.Module, expected: int) -> None:
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_layer_and_group_normalisation_are_pytorchs() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 6)
    layer, group = (Mlp(6, 3, hidden=(8,), dropout=0.0, norm=norm) for norm in ("layer", "group"))
    for head, expected in ((layer, nn.LayerNorm(8)), (group, nn.GroupNorm(4, 8))):
        first, norm, _, _, last = head.layers
        assert [tensor.shape for tensor in norm.parameters()] == [tensor.shape for tensor in expected.parameters()]
        with torch.no_grad():
            for own, other in zip(norm.parameters(), expected.parameters(), strict=True):
                other.copy_(own.uniform_())
            torch.testing.assert_close(head(inputs), last(torch.relu(expected(first(inputs)))))
            torch.testing.assert_close(head(inputs[:1]), head(inputs)[:1])
    # By hand: 1, 3 | 5, 5 in two groups is -1, 1 | 0, 0; as one it is (x - 3.5) / sqrt(11 / 4).
    vector = torch.tensor([[1.0, 3.0, 5.0, 5.0]])
    by_layer = feature_norm("layer", 4)(vector).flatten().tolist()
    assert by_layer == pytest.approx([-1.5075, -0.3015, 0.9045, 0.9045], abs=1e-4)
    assert feature_norm("group", 4)(vector).flatten().tolist() == pytest.approx([-1, 1, 0, 0], abs=1e-4)
    assert feature_norm("none", 4)(vector) is vector


def test_normalisation_comes_before_relu_and_dropout_last() -> None:
    head = Mlp(4, 2, hidden=(3,), dropout=0.5, norm="batch")
    kinds = [type(layer) for layer in head.layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    assert head(torch.zeros(5, 4)).shape == (5, 2)
