"""Runs in which samples lack a modality of their client: tables, what is shown, resuming, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Command
from rich.console import Console
from torch import Tensor, nn

from blossom_ray import Dataset, Run, Scenario, compare, from_arrays, report, simulate
from blossom_ray.cli.console.rounds import score_table
from blossom_ray.core.scores import find_score
from blossom_ray.errors import InputError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.studies.comparison.scores import ALL, find_metric, metric_columns, score_of


@pytest.fixture
def sparse(small_scenario: Scenario) -> Scenario:
    """Two clients with acc, one with gyro, two with both, which miss one or the other in some samples."""
    return small_scenario.override(
        {
            "data.observed": {"acc": {"train": 0.6, "test": 0.35, "held_out": 0.7}, "gyro": 0.6},
            "data.without_modality": "leave-out",
            "sharing": "full-model",
            "model.encoders.acc": {"kind": "conv1d", "channels": [4], "kernel_size": 3, "dim": 6},
            "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
            "training.batch_size": 4,
            "training.optimizer": {"kind": "adam", "lr": 0.01, "weight_decay": 0.01},
            "training.keep_optimizer_state": True,
        }
    )


def test_what_tables_tell_of_samples_without_a_modality(sparse: Scenario) -> None:
    run = simulate(sparse.override({"data.validation_fraction": 0.2}))
    last = run.rounds.row(-1, named=True)
    sets = ("acc", "gyro", "acc+gyro")
    assert sum(last[f"num_examples@{name}"] for name in sets) == run.clients.filter(round=2)["num_test_examples"].sum()
    assert sum("which can spoil their scores" in note and "have acc" in note for note in run.manifest["notes"]) == 1
    mean = sum(last[f"num_examples@{name}"] * last[f"accuracy@{name}"] for name in sets)
    assert mean / sum(last[f"num_examples@{name}"] for name in sets) == pytest.approx(last["accuracy_pooled"])
    assert {"accuracy_pooled@acc", "loss@gyro", "validation/accuracy@acc+gyro"} <= last.keys()
    # The held-out set, all of whose rows have gyro, is seen with gaps by clients with both.
    ends = ("gyro/acc+gyro", "acc+gyro/acc+gyro")
    assert {name for name in last if name.startswith("held_out/loss@")} == {f"held_out/loss@{end}" for end in ends}
    numbers, found = ([last[f"held_out/{name}@{end}"] for end in ends] for name in ("num_examples", "accuracy"))
    assert np.average(found, weights=numbers) == pytest.approx(last["held_out/accuracy/acc+gyro"])
    assert sum(numbers) == run.manifest["data"]["num_held_out"]
    # Clients with one modality have fewer samples and no gaps; what they do not own is null.
    trained = run.clients.filter(round=1).select("modalities", "num_train_examples", pl.col("^num_observed/.*$"))
    assert trained.columns[2:] == ["num_observed/acc", "num_observed/gyro"]
    assert trained.schema["num_observed/acc"] == pl.Int64
    for owned, number, *observed in trained.rows():
        if owned != "acc+gyro":
            assert observed == ([number, None] if owned == "acc" else [None, number])
    both = trained.filter(modalities="acc+gyro").drop("modalities").sum().row(0)
    assert 0 < min(both[1:]) <= max(both[1:]) < both[0]


def test_what_samples_have_is_no_modality_set_of_clients(sparse: Scenario, tmp_path: Path) -> None:
    run = simulate(sparse, out=tmp_path / "run")
    assert set(metric_columns(run, "accuracy")) == {ALL, "acc", "gyro", "acc+gyro"}
    assert find_metric("accuracy@acc", [run]) == ("accuracy@acc", "")
    assert set(metric_columns(run, "held_out/accuracy")) == {"acc", "gyro", "acc+gyro"}
    assert set(metric_columns(run, "held_out/accuracy@gyro")) == {"acc+gyro"}
    assert (score_of("num_examples@acc").lower_is_better, score_of("loss@acc").lower_is_better) == (True, True)
    about = find_score("fine_tuned/accuracy_pooled@acc+gyro")
    assert about is not None
    assert about.name == "accuracy"
    metrics = {name: value for name, value in run.rounds.row(-1, named=True).items() if isinstance(value, float)}
    console = Console(file=io.StringIO(), width=160)
    console.print(score_table(metrics, {"acc": 2, "gyro": 1, "acc+gyro": 2}, "classification"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # of a StringIO
    assert [shown.count(f"samples with {name} ") for name in ("acc", "gyro", "acc+gyro")] == [1, 1, 1]
    (page,) = report(run.path or "", out=tmp_path / "page.html")
    shown = page.read_text(encoding="utf-8")
    assert (shown.count("samples with "), shown.count("samples with gyro, clients with acc+gyro")) == (5, 1)


def test_a_round_is_json_with_the_scores_of_what_samples_have(
    sparse: Scenario, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "sparse.yaml").write_text(scenario_yaml(sparse))
    *_, last, _ = command("simulate", "sparse.yaml", "--json").out.splitlines()
    told = json.loads(last)
    sets = [each["by_set"] for each in told["evaluation"] if each["by_set"]]
    assert (
        sum(own["num_examples"] for each in sets for name, own in each.items() if name == "acc+gyro")
        == (told["num_examples@acc+gyro"])
    )
    assert {"num_examples", "loss", "scores"} == {key for each in sets for own in each.values() for key in own}


def test_a_run_goes_on_from_a_checkpoint(sparse: Scenario, tmp_path: Path) -> None:
    scenario = sparse.override({"training.engine": "vectorized", "checkpoint.every": 1, "rounds": 3})
    whole = simulate(scenario)
    records = record_run(scenario, tmp_path)
    next(record for record in records if record.round_index == 2)
    records.close()
    assert len(list(resume_run(scenario, tmp_path))) >= 1
    assert Run.open(tmp_path).manifest["digest"] == whole.manifest["digest"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.missing": "zero-input", "evaluation.fine_tune": {"epochs": 1}, "evaluation.held_out": "final"},
        {"model.missing": "prototype"},
        {"model.norm_statistics": "same-modalities", "training.loss": {"kind": "weighted"}},
        {"sharing": "central", "training.keep_optimizer_state": False},
        {
            "server.weighting": "entropy",
            "sharing": {"encoder/*": "same-modalities", "fusion": "private", "head": "shared"},
        },
    ],
    ids=["zero-input", "prototype", "same-modalities", "central", "entropy"],
)
def test_it_computes_what_else_a_scenario_asks_for(sparse: Scenario, changes: dict[str, Any]) -> None:
    run = simulate(sparse.override(changes))
    losses = [name for name in run.rounds.columns if "loss" in name]
    last = run.rounds[-1:].select(losses)
    assert {"loss@acc", "loss@gyro", "loss@acc+gyro"} <= set(losses)
    assert all(column.is_finite().all() for column in last if column.null_count() == 0)


def two_labels() -> Dataset:
    """Four clients with twelve samples each, labelled for a classification and a regression."""
    draw = np.random.default_rng(3)
    acc, gyro, classes = draw.normal(size=(48, 4)), draw.normal(size=(48, 3)), draw.integers(0, 3, 48)
    return from_arrays(
        {"acc": acc, "gyro": gyro},
        classes,
        clients=np.repeat(np.arange(4), 12),
        splits=(["train"] * 8 + ["test"] * 4) * 4,
        label_columns={
            "activity": ([str(label) for label in classes], "classification"),
            "stress": (acc[:, :1], "regression"),
        },
    )


def two_tasks(**changes: Any) -> Scenario:
    """Two clients of each of two tasks."""
    encoder = {"kind": "mlp", "hidden": [4], "dim": 3}
    return Scenario.model_validate(
        {
            "rounds": 1,
            "data": {
                "dataset": "custom",
                "factory": two_labels,
                "partition": {"kind": "given"},
                "observed": {"acc": 0.6, "gyro": 0.7},
                "without_modality": "keep-one",
            },
            "tasks": {"activity": {"labels": "activity"}, "stress": {"kind": "regression", "labels": "stress"}},
            "clients": [{"count": 2, "modalities": ["acc", "gyro"], "task": task} for task in ("activity", "stress")],
            "model": {"encoders": {"acc": encoder, "gyro": encoder}, "fusion": {"kind": "mean", "dim": 4}},
            "sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "same-task"},
            "training": {"batch_size": 4},
            "execution": {"runtime": "local"},
        }
    ).override({key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_each_task_has_scores_of_what_samples_have(engine: str) -> None:
    run = simulate(two_tasks(training__engine=engine))
    last = run.rounds.row(-1, named=True)
    for task, score in (("activity", "accuracy"), ("stress", "rmse")):
        sets = ("acc", "gyro", "acc+gyro")
        assert sum(last[f"{task}/num_examples@{name}"] for name in sets) == 8
        assert all(np.isfinite(last[f"{task}/{score}@{name}"]) for name in sets)
    assert score_of("activity/num_examples@acc").lower_is_better
    assert run.clients.filter(round=1)["num_observed/acc"].is_not_null().all()


def test_what_other_clients_observe_is_of_no_account_to_a_task() -> None:
    """It has a digest of its own, and is compared where that is the same."""
    groups = [{"count": 2, "modalities": ["acc", "gyro"], "task": task} for task in ("activity", "stress")]
    fewer = [groups[0], {**groups[1], "observed": {"acc": 0.3}}]
    changes = (("full-model", groups), ("local", fewer))
    runs = [simulate(two_tasks(sharing=name, clients=each)) for name, each in changes]
    told = [{name: own["observation"] for name, own in run.manifest["data"]["tasks"].items()} for run in runs]
    assert told[0]["activity"] == told[1]["activity"] != ""
    assert told[0]["stress"] != told[1]["stress"]
    assert runs[0].manifest["data"]["observation"] != runs[1].manifest["data"]["observation"]
    for metric, has_gain in (("activity/accuracy", True), ("stress/rmse", False)):
        found = compare(*runs, metric=metric, baseline={"sharing": "local"}).runs
        (row,) = found.filter((pl.col("sharing") == "full-model") & (pl.col("modalities") == ALL)).to_dicts()
        assert (row["points_final"] is not None) is has_gain


def test_a_task_that_observes_everything_beside_one_that_does_not_has_no_pattern() -> None:
    whole = {"count": 2, "modalities": ["acc", "gyro"], "task": "activity", "observed": {"acc": 1.0, "gyro": 1.0}}
    groups = [whole, {"count": 2, "modalities": ["acc", "gyro"], "task": "stress"}]
    data = simulate(two_tasks(clients=groups)).manifest["data"]
    assert {name: bool(own["observation"]) for name, own in data["tasks"].items()} == {
        "activity": False,
        "stress": True,
    }


class Mean(nn.Module):
    """A fusion of the user's own."""

    def __init__(self, _: Mapping[str, int]) -> None:
        super().__init__()

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        return sum(embeddings.values()) / len(embeddings)  # type: ignore[return-value]  # not 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.fusion": {"kind": "custom", "factory": Mean}},
            "model.missing is 'mask' and model.fusion own code, which is not told what a sample lacks, while samples "
            "lack acc, gyro; expected another rule, or a fusion of another kind",
        ),
        (
            {
                "model.missing": "prototype",
                "clients": [{"count": 5, "modalities": ["acc", "gyro"]}],
                "sharing": "local",
            },
            "model.missing is 'prototype', while samples lack acc and encoder/acc has the scope private, so its copies "
            "embed differently; expected shared or frozen encoders",
        ),
    ],
    ids=["own fusion", "prototypes"],
)
def test_what_cannot_be_is_said(sparse: Scenario, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        simulate(sparse.override(changes))
    assert message in str(raised.value)


def test_modality_dropout_trains_for_a_sensor_that_fails_later(small_scenario: Scenario) -> None:
    whole = small_scenario.override({"training.modality_dropout": 0.4, "data.without_modality": "leave-out"})
    fails = whole.override({"data.observed.gyro": {"test": 0.5}})
    found = simulate(fails)
    assert found.manifest["digest"] == simulate(whole).manifest["digest"]
    assert found.final["num_examples@acc"] > 0


def test_modality_dropout_is_not_for_training_samples_with_gaps(small_scenario: Scenario) -> None:
    lists = [[[float(row)]] if row % 3 else None for row in range(90)]
    dataset = from_arrays({"acc": np.ones((90, 1, 1)), "gyro": lists}, [0, 1] * 45)
    changes = {"data": {"dataset": "custom"}, "training.modality_dropout": 0.4, "data.without_modality": "leave-out"}
    with pytest.raises(InputError, match=r"is 0\.4, while training samples lack gyro already; expected 0"):
        simulate(small_scenario.override(changes), data=dataset)
