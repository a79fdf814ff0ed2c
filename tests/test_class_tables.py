"""The tables `classes` and `confusion` of runs: against dumped outputs, the summary, and what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from torchmetrics.functional import classification as reference

from blossom_ray import Run, Scenario, simulate
from blossom_ray.algorithms.selection import Population
from blossom_ray.checkpoint import _index_checksum
from blossom_ray.errors import RunFolderError
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runs.tables import TABLES
from blossom_ray.scenario.identity import identity, numbers_tree

NUM_CLASSES = 3


def matrix_of(confusion: pl.DataFrame) -> np.ndarray:
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for label, predicted, count in confusion.select("label", "predicted", "count").rows():
        matrix[label, predicted] += count
    return matrix


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_confusion_is_that_of_the_dumped_outputs(small_scenario: Scenario, engine: str) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def dump(labels: np.ndarray, outputs: np.ndarray) -> float:
        seen.append((labels.copy(), outputs.copy()))
        return 0.0

    scenario = small_scenario.override({
        "evaluation.metrics": {"dump": {"function": dump}}, "evaluation.held_out": "never", "training.engine": engine,
    })  # fmt: skip
    run = simulate(scenario)
    profiles = tuple(scenario.profiles())
    chunks = Population(profiles, scenario.execution.chunk_size, 1.0).chunks
    order = [client for chunk in chunks for client in chunk.clients]
    last = dict(zip(order, seen[-len(order) :], strict=True))
    assert run.confusion["scoring"].unique().to_list() == ["test"]
    for modalities in ("acc", "acc+gyro", "gyro"):
        members = [last[profile.index] for profile in profiles if profile.modality_set == modalities]
        labels, outputs = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*members, strict=True))
        expected = reference.multiclass_confusion_matrix(outputs.argmax(1), labels, num_classes=NUM_CLASSES).numpy()
        rows = run.confusion.filter(modalities=modalities)
        np.testing.assert_array_equal(matrix_of(rows), expected)
        assert rows.height == np.count_nonzero(expected)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_sums_over_modality_sets_are_all_clients_and_means_are_the_pooled_scores(
    small_scenario: Scenario, task: str
) -> None:
    run = simulate(small_scenario.override({"task": task, "evaluation.fine_tune": {"epochs": 1}}))
    classes = run.classes
    assert classes["round"].unique().to_list() == [2]
    assert classes["name"].unique(maintain_order=True).to_list() == run.manifest["data"]["class_names"]
    counts = ("num_true", "num_predicted", "num_correct")
    for scoring, prefix in (("test", ""), ("fine_tuned", "fine_tuned/")):
        own = classes.filter(scoring=scoring)
        whole = own.filter(modalities="")
        assert own["modalities"].unique(maintain_order=True).to_list() == ["acc", "acc+gyro", "gyro", ""]
        parts = own.filter(pl.col("modalities") != "").group_by("class", maintain_order=True).agg(pl.col(counts).sum())
        assert parts.equals(whole.select("class", *counts))
        means = {"f1": "macro_f1_present_pooled"}
        means |= {"recall": "balanced_accuracy_pooled"} if task == "classification" else {"auroc": "macro_auroc_pooled"}
        for column, summary in means.items():
            there = whole.filter(pl.col("num_true") > 0)[column].drop_nulls()
            assert there.mean() == pytest.approx(run.final[prefix + summary], abs=1e-12)
        if task == "classification":
            share = whole["num_correct"].sum() / whole["num_true"].sum()
            assert share == pytest.approx(run.final[f"{prefix}accuracy_pooled"], abs=1e-12)
    num_test = run.clients.filter(round=2)["num_test_examples"].sum()
    if task == "classification":
        assert classes.filter(scoring="test", modalities="")["num_true"].sum() == num_test
        from_confusion = run.confusion.filter(scoring="test").group_by("label").agg(pl.col("count").sum()).sort("label")
        assert from_confusion["count"].to_list() == classes.filter(scoring="test", modalities="")["num_true"].to_list()
    else:
        assert run.confusion.is_empty()


def test_the_held_out_set_has_rows_by_modality_set_alone(small_scenario: Scenario) -> None:
    """Three private heads of `acc+gyro` and so on: a sample counts once per model."""
    run = simulate(small_scenario.override({"sharing": "private-head"}))
    held_out = run.classes.filter(scoring="held_out")
    assert held_out["modalities"].unique(maintain_order=True).to_list() == ["acc", "acc+gyro", "gyro"]
    by_set = dict(held_out.group_by("modalities").agg(pl.col("num_true").sum()).rows())
    assert by_set == {"acc": 2 * 30, "acc+gyro": 2 * 30, "gyro": 30}
    for modalities, total in by_set.items():
        correct = held_out.filter(modalities=modalities)["num_correct"].sum()
        # All models see the same samples, so the mean over models is the pooled share.
        assert correct / total == pytest.approx(run.final[f"held_out/accuracy/{modalities}"], abs=1e-12)


@pytest.mark.parametrize(("per_class", "rounds"), [("never", []), ("final", [3]), ("every", [0, 2, 3])])
def test_rounds_that_have_rows(small_scenario: Scenario, tmp_path: Path, per_class: str, rounds: list[int]) -> None:
    scenario = small_scenario.override({"rounds": 3, "evaluation.every": 2, "evaluation.per_class": per_class})
    run = simulate(scenario, out=tmp_path)
    in_memory = simulate(scenario)
    for name in ("classes", "confusion"):
        frame = getattr(run, name)
        assert frame["round"].unique(maintain_order=True).to_list() == rounds
        assert frame.columns == list(TABLES[name])
        assert frame.equals(getattr(in_memory, name))
    run.check()


def test_a_regression_has_empty_tables(small_scenario: Scenario) -> None:
    run = simulate(small_scenario.override({"task": "regression"}))
    assert run.classes.is_empty()
    assert run.confusion.is_empty()


def test_the_default_is_no_part_of_what_a_simulation_is(small_scenario: Scenario) -> None:
    """Runs of versions without the key are the same simulation as those of its default, and no other."""
    assert "per_class" not in numbers_tree(small_scenario)["evaluation"]
    every = small_scenario.override({"evaluation.per_class": "every"})
    assert numbers_tree(every)["evaluation"]["per_class"] == "every"
    assert identity(every) != identity(small_scenario)


def test_a_table_that_is_lost_is_noticed(small_scenario: Scenario, tmp_path: Path) -> None:
    run = simulate(small_scenario, out=tmp_path)
    assert run.path is not None
    (run.path / "confusion.parquet").unlink()
    for look in (lambda: Run.open(run.path).confusion, lambda: Run.open(run.path).check()):
        with pytest.raises(RunFolderError, match=r"'confusion' was damaged or changed: it has 0 rows; expected \d+"):
            look()


# --- runs of earlier versions ---------------------------------------------------------------------------------------


def as_by_an_earlier_version(folder: Path) -> None:
    """Take out of a run that was interrupted what versions without tables of classes did not write.

    Sums of the other tables are those that such a version wrote: a column without a value does not count.
    """
    from blossom_ray.runs.table_files import read_table
    from blossom_ray.runs.table_sums import sums_by_round

    tables = {name: read_table(folder, name) for name in ("rounds", "clients", "blocks", "failures")}
    tables["clients"] = tables["clients"].drop_columns(["rounds_trained"])
    tables["rounds"] = tables["rounds"].drop_columns([c for c in tables["rounds"].column_names if "_trained" in c])
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    for name in ("classes", "confusion"):
        (folder / f"{name}.parquet").unlink()
    sums = sums_by_round(tables)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"] = sums[-1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for checkpoint in (folder / "checkpoints").iterdir():
        forge_clients(checkpoint, sums[int(checkpoint.name)])


def forge_clients(checkpoint: Path, sums: Any) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from blossom_ray.checkpoint import checksum

    file = checkpoint / "clients-0.safetensors"
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
        # A safetensors file has keys, but cannot be iterated over.
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if name != "rounds_trained"}  # noqa: SIM118
    save_file(tensors, file, metadata)
    index = json.loads((checkpoint / "checkpoint.json").read_text())
    index["tables"], index["files"][file.name], index["bytes"][file.name] = sums, checksum(file), file.stat().st_size
    del index["checksum"]
    index["checksum"] = _index_checksum(index)
    (checkpoint / "checkpoint.json").write_text(json.dumps(index))


@pytest.fixture
def earlier(small_scenario: Scenario, tmp_path: Path) -> tuple[Scenario, Path]:
    """Two of six rounds, three of five clients each."""
    scenario = small_scenario.override({"rounds": 6, "server.clients_per_round": 3, "checkpoint.every": 1})
    folder = tmp_path / "run"
    records = record_run(scenario, folder)
    for _ in range(3):
        next(records)
    records.close()
    as_by_an_earlier_version(folder)
    return scenario, folder


def test_a_run_of_an_earlier_version_is_readable(earlier: tuple[Scenario, Path]) -> None:
    run = Run.open(earlier[1])
    run.check()
    assert run.classes.is_empty()
    assert run.confusion.is_empty()
    assert run.clients["rounds_trained"].null_count() == run.clients.height > 0


def test_a_run_of_an_earlier_version_goes_on(earlier: tuple[Scenario, Path], tmp_path: Path) -> None:
    """How often clients trained before is not known, so nothing is said of it."""
    scenario, folder = earlier
    for _ in resume_run(scenario, folder):
        pass
    run, whole = Run.open(folder), simulate(scenario, out=tmp_path / "whole")
    run.check()
    assert run.manifest["digest"] == whole.manifest["digest"]
    assert run.classes.equals(whole.classes)
    assert run.clients["rounds_trained"].null_count() == run.clients.height
    assert not any("_trained" in column for column in run.rounds.columns)
    assert not any("never trained" in note for note in run.manifest["notes"])
    untold = [column for column in whole.rounds.columns if "_trained" not in column and "seconds" not in column]
    assert run.rounds.select(untold).equals(whole.rounds.select(untold))


# --- placement ------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_the_same_rows_on_every_placement(small_scenario: Scenario, ray_session: None) -> None:
    scenario = small_scenario.override({"evaluation.per_class": "every", "server.clients_per_round": 2})
    local = simulate(scenario)
    placed = simulate(scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3}))
    assert placed.manifest["actors"] == 2
    for name in ("classes", "confusion"):
        assert getattr(local, name).equals(getattr(placed, name))
    assert local.clients["rounds_trained"].equals(placed.clients["rounds_trained"])
