"""Scenarios written with each key explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blossom_ray import Scenario
from blossom_ray.reading.packaged import packaged_scenarios
from blossom_ray.reading.scenario import inspect_scenario
from blossom_ray.reading.writer import commented_yaml

SMALLEST = """\
rounds: 3
data: {dataset: synthetic}
clients: [{count: 2, modalities: [acc, gyro]}, {count: 1, modalities: [gyro]}]
model: {encoders: {acc: {kind: gru}, gyro: {kind: gru, dim: 8}}}
server: {optimizer: {kind: fedadam}}
"""

EXPLAINED = """\
# Number of rounds. Rounds count from 1; round 0 is the untrained model.
rounds: 3

# The data set, its partition over clients and the clients' test splits.
data:
  # Generated samples; the formula stands in `blossom_ray/data/sets/synthetic.py` and in the docs.
  # Choices: synthetic, uci-har, ku-har, ptb-xl, av-mnist, meld, iemocap, table, custom.
  dataset: synthetic

# Groups of clients by the modalities that they own, or `from-data`: those that the data give.
clients:
  # Number of clients.
  - count: 2
    # Modalities that each of them owns.
    modalities: [acc, gyro]
  - count: 1
    modalities: [gyro]

# The late-fusion model.
model:
  # Encoder by modality. The modalities here are all that the federation has.
  encoders:
    acc:
      # A GRU, mean over time.
      # Choices: mlp, conv1d, conv-gru, gru, embedding, conv2d, custom.
      kind: gru
    gyro:
      kind: gru
      # Width of the GRU and of the embedding.
      dim: 8

# Cohort and server optimizer.
server:
  # The server optimizer; each block instance has its own state.
  optimizer:
    # FedAdam (Reddi et al. 2021, algorithm 2).
"""


@pytest.fixture
def smallest(tmp_path: Path) -> Scenario:
    path = tmp_path / "smallest.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return Scenario.load(path)


def test_each_key_is_explained_once_in_the_words_of_its_section(smallest: Scenario) -> None:
    # The kinds of server optimizer may grow.
    assert commented_yaml(smallest, defaults=False).startswith(EXPLAINED)


def test_all_keys_are_there_if_asked(smallest: Scenario) -> None:
    text = commented_yaml(smallest, defaults=True)
    assert [name for name in Scenario.model_fields if f"\n{name}:" not in f"\n{text}"] == []
    assert "    # Decay of the first moment.\n    beta1: 0.9\n" in text
    assert "# Choices: classification, multilabel, regression.\ntask: classification\n" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("defaults", [False, True])
@pytest.mark.parametrize("name", packaged_scenarios())
def test_what_is_written_reads_back_equal(name: str, defaults: bool, tmp_path: Path) -> None:
    # Packaged scenarios of downloaded data say no path; any file will do for reading one.
    path = {} if inspect_scenario(Path(name)).scenario is not None else {"data.path": str(tmp_path)}
    scenario = Scenario.load(name, path)
    written = tmp_path / "written.yaml"
    written.write_text(commented_yaml(scenario, defaults=defaults), encoding="utf-8")
    assert Scenario.load(written) == scenario


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    group=st.text(st.characters(codec="utf-8"), max_size=20),
    text=st.text(st.characters(codec="utf-8"), max_size=20),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_number_reads_back_equal(
    group: str, text: str, number: float, smallest: Scenario, tmp_path: Path
) -> None:
    options = {"text": text, "number": number, "list": [text, number, None, True], "map": {"a b": text}}
    scenario = smallest.override(
        {"clients.0.group": group, "model.fusion": {"kind": "custom", "factory": "a:b", "options": options}}
    )
    written = tmp_path / "written.yaml"
    written.write_text(commented_yaml(scenario, defaults=False), encoding="utf-8", newline="")
    assert Scenario.load(written) == scenario


def test_a_mapping_of_one_key_keeps_its_braces(smallest: Scenario, tmp_path: Path) -> None:
    fusion = {"kind": "custom", "factory": "a:b", "options": {"depth": 2}}
    written = tmp_path / "written.yaml"
    written.write_text(commented_yaml(smallest.override({"model.fusion": fusion}), defaults=False), encoding="utf-8")
    assert Scenario.load(written).model.fusion.options == {"depth": 2}
