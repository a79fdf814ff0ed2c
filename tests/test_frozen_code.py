"""Own modules that come frozen: nobody trains, averages or sends them back, whatever the sharing scheme says."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from torch import Tensor, nn

from blossom_ray import Scenario, simulate


def encoder(input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 6)).requires_grad_(False)


def head(input_dim: int, num_outputs: int) -> nn.Module:
    return nn.Linear(input_dim, num_outputs).requires_grad_(False)


class Fusion(nn.Module):
    def __init__(self, dims: dict[str, int]) -> None:
        super().__init__()
        self.scale = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, embeddings: dict[str, Tensor]) -> Tensor:
        fused: Tensor = self.scale(sum(embeddings.values()))
        return fused


OWN: dict[str, tuple[str, Any]] = {
    "encoder/acc": ("model.encoders.acc", encoder),
    "encoder/gyro": ("model.encoders.gyro", encoder),
    "fusion": ("model.fusion", Fusion),
    "head": ("model.head", head),
}


@pytest.mark.parametrize("sharing", ["full-model", "private-head", "local", "central", {"encoder/*": "group"}])
@pytest.mark.parametrize("names", [["encoder/acc"], ["head"], ["fusion"], list(OWN)])
def test_what_comes_frozen_stands_still(small_scenario: Scenario, sharing: Any, names: list[str]) -> None:
    if isinstance(sharing, dict):
        sharing = {"encoder/*": "same-modalities", "fusion": "shared", "head": "private"}
    changes = {OWN[name][0]: {"kind": "custom", "factory": OWN[name][1]} for name in names}
    run = simulate(small_scenario.override({**changes, "sharing": sharing, "training.proximal_mu": 0.0}))
    assert run.status == "finished"
    blocks = run.blocks.filter(pl.col("block").is_in(names))
    assert blocks["bytes_up"].sum() == 0
    assert blocks["contributors"].sum() == 0
    assert set(blocks["scope"]) == {"frozen"}
