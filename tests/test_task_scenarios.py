"""The packaged scenarios with several tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY, Command
from downloads import DOWNLOADS

from blossom_ray import Scenario, simulate
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.studies.reports.federation import federation_section

FOLDER = REPOSITORY / "scenarios" / "tasks"


def test_generated_data_have_a_classification_and_a_regression() -> None:
    run = simulate(Scenario.load(FOLDER / "generated.yaml", {"rounds": 1, "data.samples": 200}))
    assert {"shape/accuracy", "strength/rmse", "held_out/strength/r2/acc+gyro"} <= run.final.keys()


def test_clients_with_both_tasks_stand_among_clients_with_one() -> None:
    run = simulate(Scenario.load(FOLDER / "both.yaml", {"rounds": 1, "data.samples": 200}))
    held = run.blocks.filter(round=1).select("block", "contributors").rows()
    assert [number for _, number in held] == [9, 6, 6, 6, 6, 6]
    assert {"held_out/shape/accuracy/acc+gyro", "held_out/strength/rmse/acc+gyro"} <= run.final.keys()


def test_data_inspect_divides_the_samples_as_a_run_does(
    small_scenario: Scenario, command: Command, tmp_path: Path
) -> None:
    """By the labels of the first task, which are not the first ones of the data set."""
    tasks = {"who": {"labels": "subject"}, "shape": {"labels": "class"}}
    groups = [{"count": 2, "task": task, "modalities": ["acc", "gyro"]} for task in tasks]
    partition = {"kind": "dirichlet", "alpha": 0.3, "min_samples": 4}
    scenario = small_scenario.override(
        {"data.subjects": 5, "data.partition": partition, "tasks": tasks, "clients": groups, "rounds": 1}
    )
    (tmp_path / "two.yaml").write_text(scenario_yaml(scenario))
    told = json.loads(command("data", "inspect", "two.yaml", "--json").out)["clients"]
    run = simulate(scenario)
    assert "Partition: dirichlet (alpha 0.3, min samples 4); split by sample." in federation_section([run]).text[0]
    trained = run.clients.filter(round=1)
    for key, column in (("train", "num_train_examples"), ("test", "num_test_examples")):
        assert [client[key] for client in told] == trained[column].to_list()


def test_two_data_sets_share_the_encoder_of_what_both_have() -> None:
    fewer = {"rounds": 1, "datasets.har.samples": 120, "datasets.heart.samples": 60}
    run = simulate(Scenario.load(FOLDER / "two-data-sets.yaml", fewer))
    assert {"activity/accuracy/acc", "held_out/stress/rmse/acc+ecg"} <= run.final.keys()
    shares = run.blocks.filter(round=1, block="encoder/acc").select("activity/weight_share", "stress/weight_share")
    assert shares.row(0) == pytest.approx((2 / 3, 1 / 3), abs=0.02)


@pytest.mark.data
def test_uci_har_tells_what_is_done_and_who_it_is(small_uci_har: Path) -> None:
    fewer = {"rounds": 1, "data.path": str(small_uci_har), "execution.runtime": "local"}
    run = simulate(Scenario.load(FOLDER / "uci-har.yaml", fewer))
    tasks = run.manifest["data"]["tasks"]
    assert (tasks["activity"]["num_classes"], tasks["who"]["num_classes"]) == (6, 21)
    assert not any(name.startswith("held_out/who") for name in run.final)
    assert any(note.startswith("who: the held-out set has other classes") for note in run.manifest["notes"])


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("av-mnist", {"held_out/digit/accuracy/image", "held_out/speaker/accuracy/audio"}),
        ("ptb-xl", {"superclasses/macro_auroc/i_to_avf", "held_out/normal/accuracy/i_to_avf+v1_to_v6"}),
        ("meld", {"emotion/accuracy", "held_out/sentiment/macro_f1_present/text"}),
    ],
)
def test_two_columns_of_labels_are_two_tasks(name: str, scores: set[str], tmp_path: Path) -> None:
    few = {"rounds": 1, "execution.runtime": "local", "data.partition": {"kind": "iid"}}
    data = {"data.path": str(DOWNLOADS[name](tmp_path))}
    assert scores <= simulate(Scenario.load(FOLDER / f"{name}.yaml", few | data)).final.keys()
