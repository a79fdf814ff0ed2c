"""When scenarios are the same simulation."""

from __future__ import annotations

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
