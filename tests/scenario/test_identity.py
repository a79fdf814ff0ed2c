"""When scenarios are the same simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blossom_ray import Scenario
from blossom_ray.scenario.identity import identity, numbers_tree


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [
        ("data.validation_fraction", 0.0, 0.1),
        ("evaluation.split", "test", "validation"),
        ("stop", None, {"patience": 2}),
    ],
)
def test_a_key_of_a_later_version_counts_where_it_is_not_at_its_default(
    small_scenario: Scenario, key: str, default: Any, other: Any
) -> None:
    """Runs and sweeps from before the key have its value in no checkpoint and in no identity."""
    *sections, name = key.split(".")

    def place(scenario: Scenario) -> Any:
        tree = numbers_tree(scenario)
        return tree[sections[0]] if sections else tree

    assert name not in place(small_scenario)
    given = small_scenario.override({key: default})
    assert identity(given) == identity(small_scenario)
    changed = small_scenario.override({key: other})
    assert name in place(changed)
    assert identity(changed) != identity(small_scenario)


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [
        ("data.observed", {}, {"acc": 0.5}),
        ("data.without_modality", "refuse", "keep-one"),
        ("clients.1.observed", {}, {"gyro": 0.5}),
        ("clients.1.observed_draw", "independent", "together"),
    ],
)
def test_a_later_key_in_a_list_counts_where_it_is_not_at_its_default(
    small_scenario: Scenario, key: str, default: Any, other: Any
) -> None:
    assert not {"observed", "observed_draw"} & numbers_tree(small_scenario)["clients"][1].keys()
    assert identity(small_scenario.override({key: default})) == identity(small_scenario)
    assert identity(small_scenario.override({key: other})) != identity(small_scenario)


def test_what_nan_means_in_a_table_counts_where_it_is_said(tmp_path: Path) -> None:
    data = {"dataset": "table", "path": str(tmp_path), "modalities": {"acc": {"column": "a"}}}
    scenario = Scenario.model_validate(
        {
            "rounds": 1,
            "data": data,
            "clients": [{"count": 2, "modalities": ["acc"]}],
            "model": {"encoders": {"acc": {"kind": "mlp"}}},
        }
    )
    assert numbers_tree(scenario)["data"]["modalities"] == {"acc": {"column": "a", "shape": None}}
    changed = scenario.override({"data.modalities.acc.nan": "unobserved"})
    assert identity(changed) != identity(scenario)
