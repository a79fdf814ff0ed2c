"""Counts and resources that no machine can mean are refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from blossom_ray import Scenario, ScenarioError

COUNTS = (
    "rounds", "training.batch_size", "training.local_epochs", "evaluation.batch_size", "evaluation.every",
    "execution.chunk_size", "data.samples", "data.classes", "clients.0.count", "model.encoders.acc.dim",
    "model.encoders.acc.hidden.0", "model.fusion.dim", "checkpoint.every", "failures.max_retries",
)  # fmt: skip


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [10**9 + 1, 2**63, 10**30, -1])
def test_counts_have_a_bound(small_scenario: Scenario, key: str, value: int) -> None:
    with pytest.raises(ScenarioError, match=rf"{key} is {value}; expected .*an integer"):
        small_scenario.override({key: value})


@pytest.mark.parametrize("value", [0.00005, 0.0, -1.0, 1e300])
def test_cores_have_the_grain_of_ray(small_scenario: Scenario, value: Any) -> None:
    with pytest.raises(ScenarioError, match="num_cpus"):
        small_scenario.override({"execution.client_resources.num_cpus": value})


@pytest.mark.parametrize("value", [1e-5, 9e-5, 5e-324])
def test_a_part_of_a_gpu_that_is_smaller_than_ray_gives(value: float, small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"num_gpus is .*; expected 0, or at least 0\.0001"):
        small_scenario.override({"execution.client_resources.num_gpus": value})
    assert small_scenario.override({"execution.client_resources.num_gpus": 1e-4})
