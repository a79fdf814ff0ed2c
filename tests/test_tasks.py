"""Runs of every task, from the data to the tables, and on data that a program gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from blossom_ray import (
    DataError,
    Dataset,
    Run,
    Scenario,
    ScenarioError,
    compare,
    from_arrays,
    report,
    simulate,
    write_table,
)
from blossom_ray.core.records import RoundRecord
from blossom_ray.core.scores import SCORES, Task, default_score
from blossom_ray.data.dataset import LeftOut

OTHER_TASKS: list[Task] = ["multilabel", "regression"]
VECTORS = {name: {"kind": "vector", "shape": (6,), "distinguishable_classes": 2} for name in ("acc", "gyro")}
LEARNABLE = {
    "data.modalities": VECTORS,
    "data.classes": 4,
    "data.targets": 4,
    "data.samples": 600,
    "data.held_out_samples": 200,
    "rounds": 15,
    "model.encoders.acc.dropout": 0.0,
    "model.encoders.gyro.dropout": 0.0,
    "model.head": {"kind": "linear"},
    "sharing": "full-model",
}


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_what_can_be_learned_is_learned(small_scenario: Scenario, task: Task) -> None:
    run = simulate(small_scenario.override({"task": task, **LEARNABLE}))
    rounds, last = run.rounds, run.final
    assert rounds["loss"][-1] < 0.95 * rounds["loss"][0]
    score = default_score(task)
    assert (rounds[score.name][-1] < rounds[score.name][0]) == score.lower_is_better
    # Two of four outputs are seen by each modality: both together tell more than one alone.
    both, one = (last[f"held_out/{score.name}/{owned}"] for owned in ("acc+gyro", "acc"))
    assert (both < one) == score.lower_is_better
    assert run.manifest["data"]["task"] == task


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_every_score_of_a_task_is_in_the_tables(small_scenario: Scenario, task: Task) -> None:
    run = simulate(small_scenario.override({"task": task, "rounds": 1}))
    names = [score.name for score in SCORES[task]]
    assert run.clients.columns[-len(names) :] == names
    for name in ("loss", *names):
        suffixes = ["_p10", "_p50", "_p90", "/acc", "/acc+gyro", "/gyro", *([] if name == "loss" else ["_pooled"])]
        assert [suffix for suffix in suffixes if f"{name}{suffix}" not in run.rounds.columns] == []
        assert f"held_out/{name}/acc" in run.rounds.columns
    assert "accuracy" not in run.rounds.columns


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_pooled_errors_follow_from_the_clients_errors(small_scenario: Scenario, engine: str) -> None:
    scenario = small_scenario.override({"task": "regression", "rounds": 1, "training.engine": engine})
    run = simulate(scenario)
    last = run.clients.filter(run.clients["round"] == 1)
    weights = last["num_test_examples"].to_numpy()
    np.testing.assert_allclose(last["rmse"].to_numpy() ** 2, last["loss"].to_numpy(), rtol=1e-5)
    assert run.final["rmse_pooled"] ** 2 == pytest.approx(
        np.average(last["loss"].to_numpy(), weights=weights), rel=1e-5
    )
    assert run.final["mae_pooled"] == pytest.approx(np.average(last["mae"].to_numpy(), weights=weights))


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_both_engines_agree(small_scenario: Scenario, task: Task) -> None:
    scenario = small_scenario.override({"task": task, "data.classes": 5, "data.targets": 2, "sharing": "full-model"})
    runs = [simulate(scenario.override({"training.engine": engine})) for engine in ("sequential", "vectorized")]
    for name in ("train_loss", "loss", *(score.name for score in SCORES[task])):
        assert runs[0].final[name] == pytest.approx(runs[1].final[name], rel=2e-3, abs=2e-3), name


def test_a_score_that_nobody_can_have_is_left_out(small_scenario: Scenario) -> None:
    # Four samples per client, two of them for testing: many lack both values of every class.
    scenario = small_scenario.override(
        {"task": "multilabel", "data.samples": 10, "data.classes": 2, "rounds": 1, "data.held_out_samples": 0}
    )
    run = simulate(scenario)
    scored = run.clients.filter(run.clients["num_test_examples"].is_not_null())
    assert scored["macro_auroc"].null_count() == scored.height
    assert "macro_auroc" not in run.final
    assert scored["macro_f1_all"].null_count() == 0
    assert "macro_f1_all" in run.final


@pytest.mark.parametrize("task", OTHER_TASKS)
@pytest.mark.parametrize("partition", [{"kind": "dirichlet", "alpha": 0.3}, {"kind": "quantity", "alpha": 1.0}])
def test_skewed_partitions(small_scenario: Scenario, task: Task, partition: dict[str, Any]) -> None:
    values = {"task": task, "data.partition": partition, "data.samples": 600, "rounds": 1}
    assert simulate(small_scenario.override(values)).rounds.height == 2


def test_a_data_set_of_another_task_is_refused_before_anything_starts(small_scenario: Scenario, tmp_path: Path) -> None:
    custom = {"data": {"dataset": "custom"}}
    scenario = small_scenario.override({**custom, "task": "regression"})
    with pytest.raises(ScenarioError, match=r"labels are for classification .*; expected task: regression"):
        simulate(scenario, data=two_sensors(), out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def two_sensors(task: Task = "classification", **others: Any) -> Dataset:
    draw = np.random.default_rng(7)
    labels = draw.integers(0, 2, 120)
    acc, gyro = (labels[:, None] + draw.standard_normal((120, 4)) for _ in range(2))
    return from_arrays(
        {"acc": acc, "gyro": gyro}, labels if task == "classification" else labels + 0.5, task=task, **others
    )


def given(small_scenario: Scenario, **values: Any) -> Scenario:
    return small_scenario.override({"data": {"dataset": "custom", "test_fraction": 0.5}, "rounds": 2, **values})


def same_numbers(first: Run, second: Run) -> bool:
    measured = ("seconds", "seconds_train", "seconds_evaluate")
    return (
        first.rounds.drop(measured).equals(second.rounds.drop(measured))
        and first.manifest["digest"] == second.manifest["digest"]
        and first.manifest["data"]["fingerprint"] == second.manifest["data"]["fingerprint"]
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_given_data_set_in_memory_and_in_a_run_folder(small_scenario: Scenario, task: Task, tmp_path: Path) -> None:
    scenario, dataset = given(small_scenario, task=task), two_sensors(task)
    kept = simulate(scenario, data=dataset, out=tmp_path)
    assert same_numbers(simulate(scenario, data=dataset), kept)
    assert (
        kept.manifest["data"]["num_test"] == sum(kept.manifest["data"][key] for key in ("num_train", "num_test")) // 2
    )
    again = simulate(kept.scenario)  # the resolved scenario reads the data from their file
    assert same_numbers(again, kept)
    other = simulate(scenario.override({"seed": 1}), data=dataset, out=tmp_path)
    assert len(list(tmp_path.glob("data-*.arrow"))) == 1
    assert not same_numbers(other, kept)


def test_a_run_folder_keeps_what_is_left_out_and_recordings(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario, dataset = given(small_scenario), two_sensors()
    left_out = (LeftOut("windows without a label\x1b", 3, ("a", "é\n")), LeftOut("others", 1))
    recordings = np.arange(dataset.num_samples) // 4
    noted = replace(dataset, recordings=recordings, left_out=left_out)
    kept = simulate(scenario, data=noted, out=tmp_path)
    assert same_numbers(simulate(scenario, data=noted), kept)
    assert same_numbers(simulate(kept.scenario), kept)
    for run in (kept, simulate(kept.scenario)):
        told = [(entry["what"], entry["count"], tuple(entry["examples"])) for entry in run.manifest["data"]["left_out"]]
        assert told[:2] == [(entry.what, entry.count, entry.examples) for entry in left_out]
    simulate(scenario, data=replace(noted, left_out=()), out=tmp_path)
    assert len(list(tmp_path.glob("data-*.arrow"))) == 2


@pytest.mark.parametrize("notes", [b"", b"[]", b'{"left_out": [{"what": 1}]}', b'{"has_recordings": true}', b"\xff"])
def test_damaged_notes_of_a_table_are_refused(small_scenario: Scenario, notes: bytes, tmp_path: Path) -> None:
    table = pa.ipc.open_file(write_table(two_sensors(), tmp_path / "rows.arrow")).read_all()
    feather.write_feather(table.replace_schema_metadata({"blossom_ray": notes}), tmp_path / "noted.arrow")
    with pytest.raises(ScenarioError, match=r"noted\.arrow has (damaged notes|no column 'recording')"):
        simulate(small_scenario.override({"data": {"dataset": "table", "path": str(tmp_path / "noted.arrow")}}))


def test_records_of_a_given_data_set_come_as_they_are_made(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario, dataset = given(small_scenario), two_sensors()
    for out in (None, tmp_path):
        records = simulate(scenario, data=dataset, stream=True, out=out)
        assert [record.round_index for record in records if isinstance(record, RoundRecord)] == [0, 1, 2]


@pytest.mark.ray
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_given_data_set_gives_the_same_bits_on_ray(
    ray_session: None, small_scenario: Scenario, task: Task, tmp_path: Path
) -> None:
    draw = np.random.default_rng(3)
    labels = draw.standard_normal((120, 2))
    labels = labels > 0.5 if task == "multilabel" else labels
    arrays = {name: labels @ draw.standard_normal((2, 5)) + draw.standard_normal((120, 5)) for name in ("acc", "gyro")}
    dataset = from_arrays(arrays, labels, task=task, held_out=({k: v[:9] for k, v in arrays.items()}, labels[:9]))
    local = simulate(given(small_scenario, task=task), data=dataset)
    spread = {"execution.runtime": "ray", "execution.clients_per_actor": 1}
    assert same_numbers(local, simulate(given(small_scenario, task=task, **spread), data=dataset))


def test_what_is_not_given_as_it_should_be(small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"data.dataset is 'synthetic'; expected 'custom' without a factory"):
        simulate(small_scenario, data=two_sensors())
    scenario = given(small_scenario, data={"dataset": "custom", "factory": two_sensors})
    with pytest.raises(
        ScenarioError, match=r"data.factory names another data set; expected 'custom' without a factory"
    ):
        simulate(scenario, data=two_sensors())
    with pytest.raises(DataError, match=r"data has a data set 'acc'; expected a blossom_ray.Dataset"):
        simulate(given(small_scenario), data={"acc": [1, 2]})  # type: ignore[call-overload]  # a user's mistake
    with pytest.raises(ScenarioError, match=r"data.factory is null; expected module:attribute, or a data set given"):
        simulate(given(small_scenario))


def test_a_table_runs_with_no_code_and_its_faults_are_told_with_their_place(
    small_scenario: Scenario, tmp_path: Path
) -> None:
    path = write_table(two_sensors(), tmp_path / "rows.arrow")
    scenario = small_scenario.override({"data": {"dataset": "table", "path": str(path)}})
    assert simulate(scenario).final["accuracy"] > 0.5
    with pytest.raises(
        ScenarioError, match=r"data.path is '.*rows.arrow': rows.arrow has no column 'cls' \(its columns"
    ):
        simulate(scenario.override({"data.label_column": "cls"}))
    with pytest.raises(ScenarioError, match=r"data.path is '.*', which does not exist; expected a Parquet, Ar"):
        scenario.override({"data.path": str(tmp_path / "none.arrow")})


def test_a_run_without_the_usual_score_is_compared_by_the_next_one(tmp_path: Path) -> None:
    """Of classes that every sample has, or none, there is no AUROC."""
    dataset = from_arrays({"acc": np.eye(12)}, [[1, 0]] * 12, task="multilabel")
    tree = {
        "rounds": 1, "task": "multilabel", "data": {"dataset": "custom"}, "execution": {"runtime": "local"},
        "clients": [{"count": 2, "modalities": ["acc"]}], "model": {"encoders": {"acc": {"kind": "mlp"}}},
    }  # fmt: skip
    run = simulate(Scenario.model_validate(tree), data=dataset)
    assert "macro_auroc" not in run.rounds.columns
    found = compare(run)
    assert (found.metric, found.table["final"].to_list()) == (
        "macro_f1_present", [run.final["macro_f1_present"], run.final["macro_f1_present/acc"]],
    )  # fmt: skip
    (page,) = report(run, out=tmp_path / "page.html")
    assert "F1 present" in page.read_text(encoding="utf-8")
