"""How settings are set out: which keys head tables, and which tell their rows apart."""

from __future__ import annotations

from itertools import product

import pytest

from blossom_ray.studies.comparison.entries import grouping_of

KEYS = {"data.partition": ("iid", "dirichlet"), "model.missing": ("mask", "zero-input"), "sharing": ("a", "b")}
ALL_SETTINGS = [dict(zip(KEYS, values, strict=True)) for values in product(*KEYS.values())]


def test_what_is_compared_stands_below_each_other_and_the_rest_above() -> None:
    grouping = grouping_of(ALL_SETTINGS, [*KEYS], {"sharing": "a"})
    panels = grouping.panels(ALL_SETTINGS, dict)
    assert [*panels] == [f"partition {p}, missing {m}" for p in KEYS["data.partition"] for m in KEYS["model.missing"]]
    assert all([*names] == ["a", "b"] for names in panels.values())
    assert panels["partition dirichlet, missing mask"]["b"] == [ALL_SETTINGS[5]]
    assert grouping.heading == "sharing"


@pytest.mark.parametrize(
    ("settings", "baseline", "panel", "name"),
    [
        (ALL_SETTINGS, {}, "partition iid, missing mask", "a"),  # the last key where there is no baseline
        (ALL_SETTINGS[:2], {"sharing": "a"}, "", "a"),  # what does not vary stands nowhere
        (ALL_SETTINGS[:1], {"sharing": "a"}, "", ""),
        (ALL_SETTINGS, {"model.missing": "mask"}, "partition iid, sharing a", "mask"),
    ],
)
def test_the_places_of_the_first_setting(settings, baseline, panel, name) -> None:
    grouping = grouping_of(settings, [*KEYS], baseline)
    assert (grouping.panel(settings[0]), grouping.name(settings[0])) == (panel, name)


def test_fine_tuned_scores_stand_beside_plain_ones_whose_name_says_nothing_of_it() -> None:
    settings = [{"lr": lr, "scoring": scoring} for lr in ("1", "2") for scoring in ("plain", "fine-tuned")]
    grouping = grouping_of(settings, ["lr", "scoring"], {"lr": "1"})
    assert [grouping.name(setting) for setting in settings] == ["1", "1, fine-tuned", "2", "2, fine-tuned"]
    assert grouping.heading == "lr"
