"""The resolved scenario reads back as the same scenario."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.errors import ScenarioError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.scenario.identity import identity, numbers_tree

SMALL = {
    "rounds": 3,
    "data": {"dataset": "synthetic"},
    "clients": [{"count": 4, "modalities": ["acc"]}],
    "model": {"encoders": {"acc": {"kind": "gru"}}},
}
rates = st.floats(min_value=1e-300, max_value=1e9)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | texts,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=8,
)


def read_back(text: str) -> Scenario:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        return Scenario.load(path)


@settings(deadline=None, max_examples=60)
@given(
    lr=rates,
    group=texts,
    options=st.dictionaries(texts, plain_values, max_size=3),
    clients_per_round=st.integers(1, 4) | st.floats(0, 1, exclude_min=True),
    kernel_size=st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=3, max_size=3).map(tuple),
)
def test_round_trip(lr, group, options, clients_per_round, kernel_size):
    scenario = Scenario.model_validate(
        {
            **SMALL,
            "data": {"dataset": "synthetic", "modalities": {"acc": {"kind": "image"}}},
            "clients": [{"count": 4, "modalities": ["acc"], "group": group}],
            "model": {
                "encoders": {"acc": {"kind": "conv2d", "kernel_size": kernel_size}},
                "head": {"kind": "custom", "factory": "package.module:build", "options": options},
            },
            "training": {"optimizer": {"kind": "adam", "lr": lr}},
            "server": {"clients_per_round": clients_per_round},
        }
    )
    again = read_back(scenario_yaml(scenario))
    assert again == scenario
    assert type(again.server.clients_per_round) is type(clients_per_round)
    assert scenario_yaml(again) == scenario_yaml(scenario)


def test_all_defaults_are_spelled_out_and_floats_are_exact():
    text = scenario_yaml(
        Scenario.model_validate(SMALL | {"training": {"optimizer": {"kind": "sgd", "weight_decay": 1e-5}}})
    )
    assert "  clients_per_round: 1.0\n" in text
    assert "    weight_decay: 1e-05\n    nesterov: false\n    blocks: {}\n" in text
    assert "  timeout_s: 1800.0\n" in text
    assert text.startswith("name: scenario\nseed: 0\ntraining_seed: null\nrounds: 3\n")


def test_callables_are_written_by_name():
    data = {"dataset": "custom", "factory": math.hypot, "options": {"function": len, "size": (1, 2)}}
    scenario = Scenario.model_validate(SMALL | {"data": data})
    again = read_back(scenario_yaml(scenario)).data
    assert again.factory == "math:hypot"
    assert again.options == {"function": "builtins:len", "size": [1, 2]}
    assert scenario.override({"seed": 1}).data.factory is math.hypot
    assert scenario.override({"seed": 1}).data.options == {"function": len, "size": (1, 2)}


def test_a_later_key_that_changes_nothing_is_no_part_of_what_numbers_follow_from():
    scenario = Scenario.model_validate(SMALL)
    assert numbers_tree(scenario)["model"]["fusion"] == {"kind": "attention", "dim": 256}
    normed = scenario.override({"model.fusion.norm": "layer"})
    assert numbers_tree(normed)["model"]["fusion"]["norm"] == "layer"
    assert identity(normed) != identity(scenario)
    own = scenario.override({"model.fusion": {"kind": "custom", "factory": "a:b"}})
    assert numbers_tree(own)["model"]["fusion"] == {"kind": "custom", "factory": "a:b", "options": {}}


def test_a_callable_of_no_module_is_refused_when_it_is_read():
    scenario = Scenario.model_validate(SMALL | {"data": {"dataset": "custom", "factory": lambda: None}})
    with pytest.raises(ScenarioError, match=r"data\.factory is 'test_scenario_writer:.*; expected 'module:attribute'"):
        read_back(scenario_yaml(scenario))


def test_an_option_that_yaml_cannot_hold_is_refused():
    data = {"dataset": "custom", "factory": "a:b", "options": {"sizes": [1, {2}]}}
    scenario = Scenario.model_validate(SMALL | {"data": data})
    with pytest.raises(ScenarioError, match=r"data\.options\.sizes\.1 is of type set; expected text, a number"):
        scenario_yaml(scenario)
