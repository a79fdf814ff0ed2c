"""Counts and resources that no machine can mean are refused before anything runs."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from blossom_ray import Scenario, ScenarioError, simulate
from blossom_ray.errors import BlossomError

pytestmark = pytest.mark.slow

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


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number of the scenario's JSON schema, with its place there."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"enum", "const"} & schema.keys():
            yield path, schema
        for key, value in schema.items():
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from numbers(value, f"{path}/{index}")


def test_every_number_has_bounds() -> None:
    found = list(numbers(Scenario.model_json_schema()))
    assert len(found) > 100
    for path, schema in found:
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), path
        assert {"maximum", "exclusiveMaximum"} & schema.keys(), path
        assert schema.get("maximum", 0) <= (10**9 if schema["type"] == "integer" else 1e38), path


EXTREMES = (0, -1, 2**31, 2**63, 1e308, -0.0, math.nan, math.inf, 1e-300, 1e9)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"training.optimizer": {"kind": "sgd", "momentum": 0.5}, "training.schedule": {"kind": "cosine"}},
    {"training.optimizer": {"kind": "adam"}, "training.schedule": {"kind": "step", "every": 1}},
    {"training.optimizer": {"kind": "adamw"}, "data.partition": {"kind": "dirichlet", "alpha": 1.0}},
    {"server.optimizer": {"kind": "fedavgm"}, "data.partition": {"kind": "quantity", "alpha": 1.0}},
    *({"server.optimizer": {"kind": kind}} for kind in ("fedadagrad", "fedadam", "fedyogi")),
    {"evaluation.fine_tune": {"epochs": 1, "lr": 0.1}, "training.proximal_mu": 0.1},
)


def leaves(tree: Any, path: str = "") -> Iterator[str]:
    """Paths of the numbers of a scenario's tree."""
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    elif type(tree) in (int, float):
        yield path


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "+".join(map(str, variant)))
def test_an_extreme_is_refused_with_its_place_or_ends_in_no_traceback(
    small_scenario: Scenario, variant: dict[str, Any]
) -> None:
    few = {"rounds": 1, "clients.0.count": 1, "clients.2.count": 1, "data.samples": 45, "data.held_out_samples": 9}
    scenario = small_scenario.override({**few, "training.proximal_mu": 0.0} | variant)
    changed = {leaf for key in variant for leaf in leaves(scenario.model_dump()) if leaf.startswith(key)}
    paths = changed if variant is not VARIANTS[0] else set(leaves(scenario.model_dump()))
    for path in sorted(paths):
        for value in EXTREMES:
            try:
                other = scenario.override({path: value})
            except ScenarioError as error:
                refusal = str(error)
            else:
                refusal = ""
                if isinstance(value, float):
                    with contextlib.suppress(BlossomError):
                        simulate(other)
            assert not refusal or re.search(rf"{re.escape(path)} .*expected", refusal)
