"""When scenarios are the same simulation."""

from __future__ import annotations

from blossom_ray import Scenario
from blossom_ray.scenario.identity import identity, numbers_tree


def test_a_key_of_a_later_version_counts_where_it_is_not_at_its_default(small_scenario: Scenario) -> None:
    """Runs and sweeps from before the key have its value in no checkpoint and in no identity."""
    assert "validation_fraction" not in numbers_tree(small_scenario)["data"]
    given = small_scenario.override({"data.validation_fraction": 0.0})
    assert identity(given) == identity(small_scenario)
    other = small_scenario.override({"data.validation_fraction": 0.1})
    assert numbers_tree(other)["data"]["validation_fraction"] == 0.1
    assert identity(other) != identity(small_scenario)
