"""The stories of people with data of their own, as they go: from a table to a comparison, without code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import natural_tables
import numpy as np
import polars as pl
import pytest
from conftest import Command

from blossom_ray import Run, Scenario, from_arrays, simulate
from blossom_ray.errors import ScenarioError
from blossom_ray.scenario.identity import identity

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

LOCAL = ("--set", "execution.runtime=local", "--out", "runs")


def run_in(folder: Path, name: str) -> Run:
    (found,) = (folder / "runs" / name).iterdir()
    return Run.open(found)


def test_people_who_wear_different_sensors(command: Command, tmp_path: Path) -> None:
    """Several modalities, some missing for some people, two people held out; trials are counted."""
    natural_tables.actions(tmp_path / "actions.parquet", num_trials=6)
    outcome = command("init", "--dataset", "table", "--path", "actions.parquet", "--out", "actions.yaml")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "actions.yaml: 6 clients, 30 rounds, modalities acc, gyro, skeleton",
        "task: classification, 4 classes: a1, a2, a3, a4 (labels are text or whole numbers; --task chooses another)",
        "client: 6 clients, 2 with acc+gyro, 2 with acc+gyro+skeleton, 2 with skeleton",
        "no modality: trial: whole numbers, as ids and counts are; data.modalities takes what is measured",
        "run it: blossom-ray simulate actions.yaml",
    ]
    text = (tmp_path / "actions.yaml").read_text(encoding="utf-8")
    assert "\nclients: from-data\n" in text
    assert "trial" not in text
    valid = command("validate", "actions.yaml", "--json")
    assert json.loads(valid.out)["clients"] == 6

    for sharing in ("full-model", "private-head"):
        outcome = command("simulate", "actions.yaml", *LOCAL, "--set", f"sharing={sharing}", "--set", "rounds=12")
        assert (outcome.exit_code, outcome.err) == (0, "")
    runs = [Run.open(folder) for folder in (tmp_path / "runs/actions").iterdir()]
    for run in runs:
        assert [(group.count, "+".join(group.modalities)) for group in run.scenario.groups] == [
            (2, "acc+gyro"), (2, "acc+gyro+skeleton"), (2, "skeleton")
        ]  # fmt: skip
        last = run.clients.filter(pl.col("round") == 12)
        assert last["name"].to_list() == ["s1", "s4", "s2", "s5", "s3", "s6"]
        owned = dict(last.select("name", "modalities").iter_rows())
        assert owned == {name: "+".join(sets) for name, sets in natural_tables.OWNERS.items()}
    full_model = next(run for run in runs if run.scenario.sharing == "full-model")
    assert full_model.final["accuracy"] > 0.6  # chance is 0.25
    assert full_model.final["held_out/accuracy/acc+gyro+skeleton"] > 0.5
    outcome = command("compare", str(runs[0].path), str(runs[1].path))
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "acc+gyro+skeleton" in outcome.out
    outcome = command("data", "inspect", "actions.yaml", "--json")
    assert [share["name"] for share in json.loads(outcome.out)["clients"]] == ["s1", "s4", "s2", "s5", "s3", "s6"]
    assert " s3 " in command("data", "inspect", "actions.yaml").out


def test_people_who_fall(command: Command, tmp_path: Path) -> None:
    """Overlapping windows of recordings, imbalanced classes, whole numbers for people and labels."""
    natural_tables.falls(tmp_path / "falls.parquet")
    outcome = command("init", "--dataset", "table", "--path", "falls.parquet", "--out", "falls.yaml")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[2:] == [
        "client: 6 clients, 2 with acc, 2 with acc+gyro, 2 with gyro",
        "recording: 144 recordings, each whole in one split (data.split: recording)",
        "run it: blossom-ray simulate falls.yaml",
    ]
    for command_line in (
        ("validate", "falls.yaml", "--set", "data.validation_fraction=0.1"),
        ("simulate", "falls.yaml", *LOCAL, "--set", "rounds=8", "--set", "data.validation_fraction=0.1"),
    ):
        outcome = command(*command_line)
        assert (outcome.exit_code, outcome.err) == (0, "")
    run = run_in(tmp_path, "falls")
    assert run.clients["name"].to_list()[:6] == ["0", "3", "2", "5", "1", "4"]
    final = run.final
    assert final["accuracy"] > 0.6  # the most frequent class has about 0.55
    assert final["macro_f1_present"] > 0.45
    assert final["held_out/accuracy/acc+gyro"] > 0.5
    assert command("compare", str(run.path)).exit_code == 0
    assert command("report", str(run.path)).exit_code == 0
    page = next((run.path or tmp_path).glob("*.html")).read_text(encoding="utf-8")
    assert re.search(r"<th[^>]*>name</th>", page)


def test_subjects_that_lack_a_modality_are_clients(command: Command, tmp_path: Path) -> None:
    natural_tables.actions(tmp_path / "actions.parquet", column="subject", num_trials=4)
    outcome = command("init", "--dataset", "table", "--path", "actions.parquet", "--out", "actions.yaml")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "subject: 6 clients, 2 with acc+gyro, 2 with acc+gyro+skeleton, 2 with skeleton" in outcome.out
    assert "client_column: subject" in (tmp_path / "actions.yaml").read_text(encoding="utf-8")


def test_subjects_that_have_everything_are_dealt_to_clients(command: Command, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    frame = pl.DataFrame({"acc": draw.normal(size=(60, 4)).tolist(), "gyro": draw.normal(size=(60, 4)).tolist()})
    people = [f"p{row % 7}" for row in range(60)]
    frame.with_columns(subject=pl.Series(people), label=pl.Series([row % 2 for row in range(60)])).write_parquet(
        tmp_path / "rows.parquet"
    )
    outcome = command("init", "--dataset", "table", "--path", "rows.parquet")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "subject: 7 subjects, each whole with one client" in outcome.out
    assert Scenario.load(tmp_path / "scenario.yaml").data.partition.kind == "subject"
    outcome = command("simulate", "scenario.yaml", *LOCAL, "--set", "rounds=1")
    assert (outcome.exit_code, outcome.err) == (0, "")
    names = run_in(tmp_path, "scenario").manifest["data"]["client_names"]
    assert sorted(", ".join(names).split(", ")) == sorted(set(people))


def test_what_it_writes_learns_in_raw_units(command: Command, tmp_path: Path) -> None:
    """From thousandths to ten thousands, where SGD at the quickstart's rate ends in NaN; chance is 0.5."""
    natural_tables.patients(tmp_path / "rows.parquet", num_rows=300)
    outcome = command("init", "--dataset", "table", "--path", "rows.parquet")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "no modality: room: whole numbers" in outcome.out
    run = simulate(Scenario.load(tmp_path / "scenario.yaml").override({"rounds": 4, "execution.runtime": "local"}))
    assert run.final["accuracy"] > 0.65


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    natural_tables.actions(tmp_path / "actions.parquet", num_trials=3)
    return Scenario.model_validate(
        {
            "rounds": 2,
            "data": {"dataset": "table", "path": str(tmp_path / "actions.parquet"), "partition": {"kind": "given"}},
            "clients": "from-data",
            "model": {"encoders": {name: {"kind": "mlp", "hidden": [8]} for name in natural_tables.ACTIONS}},
            "execution": {"runtime": "local"},
        }
    )


def test_the_scenario_of_a_run_has_the_groups_that_were_found(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="clients is 'from-data', and the data have not been read"):
        _ = scenario.num_clients
    run = simulate(scenario, out=tmp_path / "runs")
    groups = [{"count": 2, "modalities": own.split("+")} for own in ("acc+gyro", "acc+gyro+skeleton", "skeleton")]
    explicit = simulate(scenario.override({"clients": groups}), out=tmp_path / "runs")
    assert identity(run.scenario) == identity(explicit.scenario)
    assert run.manifest["digest"] == explicit.manifest["digest"]
    assert run.manifest["data"] == explicit.manifest["data"]


def test_sweep_resume_and_plan_know_the_clients(scenario: Scenario, command: Command, tmp_path: Path) -> None:
    from blossom_ray.reading.writer import scenario_yaml

    (tmp_path / "s.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    arguments = ("sweep", "s.yaml", "--vary", "sharing=local", "--out", "sweep", "--jobs", "1", "--json")
    assert command(*arguments).exit_code == 0
    assert command(*arguments).exit_code == 0
    assert len([*(tmp_path / "sweep").glob("*/manifest.json")]) == 1  # the second time it knew the cell
    assert command("compare", "sweep").exit_code == 0
    plan = command("plan", "s.yaml", "--json")
    assert plan.exit_code == 0
    assert {name: own["clients"] for name, own in json.loads(plan.out)["sets"].items()} == {
        "acc+gyro": 2, "acc+gyro+skeleton": 2, "skeleton": 2
    }  # fmt: skip
    assert command("simulate", "s.yaml", "--out", "runs").exit_code == 0
    run = run_in(tmp_path, "scenario")
    assert command("resume", str(run.path), "--set", "rounds=3").exit_code == 0
    assert Run.open(run.path or "").rounds.height == 4


@pytest.mark.ray
def test_clients_from_the_data_are_the_same_on_ray(scenario: Scenario, tmp_path: Path) -> None:
    local = simulate(scenario)
    on_ray = simulate(scenario.override({"execution.runtime": "ray"}))
    assert on_ray.manifest["digest"] == local.manifest["digest"]
    assert on_ray.clients["name"].to_list() == local.clients["name"].to_list()


def test_arrays_of_given_clients_run_like_their_table(scenario: Scenario, tmp_path: Path) -> None:
    frame = pl.read_parquet(tmp_path / "actions.parquet")
    inputs: dict[str, Any] = {name: frame[name] for name in natural_tables.ACTIONS}
    dataset = from_arrays(inputs, frame["label"], clients=frame["client"], splits=frame["split"])
    given = scenario.override({"data": {"dataset": "custom", "partition": {"kind": "given"}}})
    in_memory, on_disk = simulate(given, data=dataset), simulate(given, data=dataset, out=tmp_path / "runs")
    table = simulate(scenario)
    assert in_memory.manifest["digest"] == on_disk.manifest["digest"] == table.manifest["digest"]
    assert in_memory.manifest["data"]["fingerprint"] == on_disk.manifest["data"]["fingerprint"]
    assert on_disk.manifest["data"]["client_names"] == table.manifest["data"]["client_names"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.partition": {"kind": "iid"}}, "clients is 'from-data', while data.partition.kind is 'iid'"),
        (
            {"data": {"dataset": "synthetic", "partition": {"kind": "given"}}},
            "data.partition.kind is 'given', while data",
        ),
        ({"clients": "from-table"}, "clients is 'from-table'; expected a list .* or from-data"),
        ({"server.clients_per_round": 7}, "server.clients_per_round is 7; expected at most 6"),
        ({"training.engine": {"acc": "sequential"}}, "training.engine.acc is not a modality set of the clients"),
        ({"data.client_column": "person"}, "has no column 'person'"),
        ({"model.encoders": {"eeg": {"kind": "mlp"}}}, "has no column 'eeg'"),
    ],
)
def test_what_does_not_go_with_given_clients(change: dict[str, Any], message: str, scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=message):
        simulate(scenario.override(change))
