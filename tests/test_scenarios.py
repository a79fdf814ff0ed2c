"""Every scenario that ships, and the one of the design page, loads and runs a tiny round."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from downloads import DOWNLOADS

from blossom_ray import Run, Scenario, simulate
from blossom_ray.models.build import build_client_model
from blossom_ray.runs.session import check_runnable

pytestmark = pytest.mark.slow

SCENARIOS = sorted((REPOSITORY / "scenarios").glob("*.yaml"))


def dataset_of(path: Path) -> str:
    found = re.search(r"^  dataset: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, path
    return found[1]


NEEDS_UCI_HAR = {path for path in SCENARIOS if dataset_of(path) == "uci-har"}
WRITTEN = {path for path in SCENARIOS if dataset_of(path) in DOWNLOADS}
HERE: dict[str, Any] = {"rounds": 1, "execution.runtime": "local"}
FEW_SAMPLES: dict[str, Any] = {"data.samples": 240, "data.held_out_samples": 30}
FEW_CLIENTS: dict[str, Any] = {f"clients.{position}.count": 2 for position in range(7)}
# What a scenario needs besides, to be a small one.
SMALLER: dict[str, dict[str, Any]] = {
    "ten-thousand": FEW_CLIENTS | {"server.clients_per_round": 1.0, "evaluation.clients": 1.0}
}

# The scenario of the design page, word for word but for the data sets and tasks that its comments list.
DESIGN = """\
name: quickstart
seed: 0
rounds: 20
task: classification
data:
  dataset: synthetic
  path: null
  partition: {kind: dirichlet, alpha: 0.5}
  test_fraction: 0.3
clients:
  - {count: 3, modalities: [acc]}
  - {count: 3, modalities: [gyro]}
  - {count: 4, modalities: [acc, gyro]}
model:
  encoders: {acc: {kind: conv-gru}, gyro: {kind: conv-gru}}
  fusion: {kind: attention, dim: 256}     # attention | concat | mean | gated
  head: {kind: mlp, hidden: [64], dropout: 0.1}
  missing: mask
sharing: private-head-fusion
training:
  local_epochs: 1
  batch_size: 16
  optimizer: {kind: sgd, lr: 0.05, momentum: 0.9, weight_decay: 1e-5}
  schedule: {kind: constant}
server: {optimizer: {kind: fedavg}, clients_per_round: 1.0}
evaluation: {every: 1}
execution: {runtime: ray, clients_per_actor: auto, client_resources: {num_cpus: 0.2, num_gpus: 0}}
"""


def assert_one_round(run: Run, scenario: Scenario) -> None:
    assert run.status == "finished"
    assert run.rounds["round"].to_list() == [0, 1]
    assert run.rounds["num_clients"].to_list() == [0, scenario.num_clients]
    assert run.rounds["num_evaluated"].to_list() == [scenario.num_clients] * 2
    # Encoders are sent, private blocks are not.
    sent = {block for block, count in run.blocks.select("block", "bytes_up").iter_rows() if count > 0}
    others = {"fusion"} if scenario.sharing == "private-head" else set()
    assert sent == {f"encoder/{modality}" for modality in scenario.modalities} | others


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", SCENARIOS, ids=ids)
def test_every_scenario_says_what_it_shows_and_is_named_like_its_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    comment = text[: text.index("\nname:")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"blossom-ray simulate scenarios/{path.name}" in comment
    assert "two cores" in comment
    assert f"\nname: {path.stem}\n" in text


@pytest.mark.parametrize("path", sorted(set(SCENARIOS) - NEEDS_UCI_HAR - WRITTEN), ids=ids)
def test_scenarios_on_generated_data_run_a_tiny_round(path: Path) -> None:
    check_runnable(Scenario.load(path))
    scenario = Scenario.load(path, HERE | FEW_SAMPLES | SMALLER.get(path.stem, {}))
    assert_one_round(simulate(scenario), scenario)


@pytest.mark.data
@pytest.mark.parametrize("path", sorted(NEEDS_UCI_HAR), ids=ids)
def test_scenarios_on_uci_har_can_be_met_by_the_official_archive(path: Path, uci_har_zip: Path) -> None:
    check_runnable(Scenario.load(path, {"data.path": str(uci_har_zip)}))


@pytest.mark.data
@pytest.mark.parametrize("path", sorted(NEEDS_UCI_HAR), ids=ids)
def test_scenarios_on_uci_har_run_a_tiny_round(path: Path, small_uci_har: Path) -> None:
    scenario = Scenario.load(path, HERE | {"data.path": str(small_uci_har), "data.partition.alpha": 10.0})
    assert_one_round(simulate(scenario), scenario)


@pytest.mark.parametrize("path", sorted(WRITTEN), ids=ids)
def test_scenarios_on_other_data_run_a_tiny_round(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    dirichlet = {"data.partition.alpha": 10.0, "data.partition.min_samples": 2}
    data = {"data.path": str(DOWNLOADS[dataset_of(path)](tmp_path)), **dirichlet}
    scenario = Scenario.load(path, HERE | data)
    check_runnable(scenario)
    assert_one_round(simulate(scenario), scenario)


@pytest.mark.parametrize(
    ("name", "num_classes", "attention", "concat"),
    [
        ("ku-har", 8, 385_482, 384_712),
        ("ptb-xl", 5, 204_743, 204_357),
        ("av-mnist", 10, 162_516, 161_810),
        ("meld", 4, 237_862, 237_476),
        ("iemocap", 4, 237_862, 237_476),
    ],
)
def test_scenarios_have_the_papers_models(
    name: str, num_classes: int, attention: int, concat: int, tmp_path: Path
) -> None:
    path = REPOSITORY / "scenarios" / f"{name}.yaml"
    for kind, expected in (("attention", attention), ("concat", concat)):
        scenario = Scenario.load(path, {"data.path": str(tmp_path), "model.fusion.kind": kind})
        shapes = scenario.data.input_shapes(scenario.modalities)
        model = build_client_model(scenario.model, shapes, num_classes, scenario.modalities, seed=0)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.data
def test_the_real_part_of_ptb_xl_serves_its_scenario() -> None:
    subset = REPOSITORY.parent / "shared" / "data" / "PTB-XL-subset"
    if not subset.exists():
        pytest.skip(f"the real records are not at {subset}")
    check_runnable(Scenario.load(REPOSITORY / "scenarios" / "ptb-xl.yaml", {"data.path": str(subset)}))


@pytest.mark.data
@pytest.mark.parametrize("name", ["av-mnist", "meld"])
def test_the_official_files_serve_scenarios_on_sound_and_text(name: str) -> None:
    folder = REPOSITORY.parent / "shared" / "data" / name.upper()
    if not folder.is_dir():
        pytest.skip(f"the official files are not at {folder}")
    check_runnable(Scenario.load(REPOSITORY / "scenarios" / f"{name}.yaml", {"data.path": str(folder)}))


def test_the_scenario_of_the_design_page(tmp_path: Path) -> None:
    path = tmp_path / "design.yaml"
    path.write_text(DESIGN, encoding="utf-8")
    check_runnable(Scenario.load(path))
    scenario = Scenario.load(path, HERE | FEW_SAMPLES)
    assert scenario.training.optimizer.weight_decay == 1e-5
    assert_one_round(simulate(scenario), scenario)
