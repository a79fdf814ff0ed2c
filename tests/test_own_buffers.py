"""Buffers of own modules: running statistics follow `model.norm_statistics`, all others stay with the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from blossom_ray import Run, Scenario, simulate
from blossom_ray.models.flat import block_layout
from blossom_ray.runs.session import resume_run


class Scaled(nn.Linear):
    """A head whose inputs are scaled by constants."""

    def __init__(self, input_dim: int, num_outputs: int) -> None:
        super().__init__(input_dim, num_outputs)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, input_dim))
        self.register_buffer("offset", torch.ones(input_dim, dtype=torch.float64), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.seen += len(features)
        return super().forward(features * self.scale + self.offset.float())


class Plain(nn.Linear):
    """The same values without buffers."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features * torch.linspace(0.5, 1.5, self.in_features) + 1)


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_scale", torch.ones(3))
        self.register_buffer("table", torch.ones(5))


def with_head(scenario: Scenario, head: Any, **more: Any) -> Scenario:
    return scenario.override({"model.head": {"kind": "custom", "factory": head}, **more})


@pytest.mark.parametrize(
    ("sharing", "norm_statistics"),
    [("full-model", "shared"), ("full-model", "local"), ("private-head", "shared"), ("central", "shared")],
)
def test_constants_change_neither_results_nor_traffic_nor_notes(
    small_scenario: Scenario, sharing: str, norm_statistics: str
) -> None:
    more = {"sharing": sharing, "model.norm_statistics": norm_statistics}
    run, plain = (simulate(with_head(small_scenario, head, **more)) for head in (Scaled, Plain))
    assert run.manifest["notes"] == plain.manifest["notes"]
    assert run.blocks.equals(plain.blocks)
    accuracy = pl.col("accuracy")
    assert run.clients.select(accuracy).equals(plain.clients.select(accuracy))


def test_a_resumed_run_has_the_state_of_buffers(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario = with_head(small_scenario, f"{__name__}:Scaled", **{"checkpoint.every": 1, "rounds": 3})
    whole = simulate(scenario, out=tmp_path / "whole")
    part = simulate(scenario.override({"rounds": 2}), out=tmp_path / "part")
    assert part.path is not None
    list(resume_run(scenario, part.path))
    assert Run.open(part.path).manifest["digest"] == whole.manifest["digest"]


def test_running_statistics_are_those_of_norms_and_what_is_named_so() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), OwnNorm(), nn.InstanceNorm1d(2, track_running_stats=True))
    shared = [entry.name for entry in block_layout(module, "shared").buffers]
    expected = ["0.running_mean", "0.running_var", "1.running_scale", "2.running_mean", "2.running_var"]
    assert shared == expected
    assert block_layout(module, "local").buffers == ()
