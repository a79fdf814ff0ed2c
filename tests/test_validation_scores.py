"""Scores on the clients' validation splits: where they come from, where they stand, and what they leave alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import SMALL, Command
from data_sets import open_source
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blossom_ray import Run, Scenario, simulate
from blossom_ray.clients.workspace import client_workspace
from blossom_ray.core.records import RoundRecord
from blossom_ray.data.division.federation import build_federation
from blossom_ray.data.shards import Shard
from blossom_ray.errors import ScenarioError
from blossom_ray.reading.overrides import parse_assignment
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.following import follow
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario.model_validate(SMALL).override(
        {"data.validation_fraction": 0.2, "sharing": "full-model", "evaluation.held_out": "never"}
    )


@pytest.fixture(scope="module")
def run(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(scenario, out=tmp_path_factory.mktemp("runs"))


def rounds_of(preparation: Preparation) -> Iterator[tuple[RoundRecord, Server, dict[int, str]]]:
    """Each round with the server and the clients' private state after it."""
    scenario, profiles = preparation.scenario, preparation.population.representatives()
    runtime = LocalRuntime(preparation)
    server = initial_server(preparation.plan, profiles, scenario.server.optimizer)
    try:
        for record, after in run_rounds(preparation, runtime, server):
            yield record, after, dict(runtime.describe().private_digests)
    finally:
        runtime.close()


def test_scores_are_those_that_scikit_learn_finds_on_the_federation_s_rows(scenario: Scenario, tmp_path: Path) -> None:
    preparation = prepare(scenario, tmp_path)
    record, server, _ = [*rounds_of(preparation)][-1]
    data = open_source(scenario.data, scenario.modalities, scenario.seed, scenario.task).load()
    federation = build_federation(scenario.data, data.targets, scenario.num_clients, scenario.seed)
    assert [each.client for each in record.validation] == [0, 1, 2, 3, 4]
    correct, matrix = 0.0, np.zeros((3, 3), np.int64)
    for scored, profile in zip(record.validation, preparation.population.profiles, strict=True):
        rows = federation.validation.of(scored.client)
        assert scored.num_examples == len(rows) > 0
        workspace = client_workspace(preparation.plan, profile)
        blocks = {instance.name: block.values for instance, block in server.sent.items()}
        workspace.load({name: blocks[name] for name in workspace.flat}, workspace.initial_state)
        workspace.model.eval()
        with torch.no_grad():
            outputs = workspace.model({name: torch.tensor(data.inputs[name][rows]) for name in profile.modalities})
        labels, chances = data.labels[rows], outputs.softmax(dim=1).double().numpy()
        predicted = chances.argmax(axis=1)
        assert scored.scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
        assert scored.scores["macro_f1_present"] == pytest.approx(
            f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
        )
        loss = log_loss(labels, chances / chances.sum(axis=1, keepdims=True), labels=[0, 1, 2])
        assert scored.loss == pytest.approx(loss, rel=1e-5)
        correct += (labels == predicted).sum()
        matrix += confusion_matrix(labels, predicted, labels=[0, 1, 2])
    assert record.metrics["validation/accuracy"] == pytest.approx(correct / federation.validation.counts.sum())
    assert record.metrics["validation/accuracy_pooled"] == pytest.approx(np.trace(matrix) / matrix.sum())


def test_validation_scores_change_nothing_else(scenario: Scenario, tmp_path: Path) -> None:
    """The same training rows, once with validation splits and once with their rows among the test rows."""
    private = scenario.override({"sharing": "private-head"})
    with_splits = prepare(private, tmp_path)
    shards = with_splits.shards
    without = replace(shards, num_validation=0 * shards.num_train, num_test=shards.num_test + shards.num_validation)
    found = [[*rounds_of(preparation)] for preparation in (with_splits, replace(with_splits, shards=without))]
    for (scored, server, clients), (plain, other_server, other_clients) in zip(*found, strict=True):
        assert scored.validation
        assert not plain.validation
        assert server.digest() == other_server.digest()
        assert clients == other_clients
        # Blocks are sent to a client once, on however many splits it is scored.
        assert scored.blocks == plain.blocks
        assert [each.bytes_down for each in scored.evaluation] == [each.bytes_down for each in plain.evaluation]
        assert sum(each.bytes_down for each in scored.validation) == 0
        assert scored.metrics.get("train_loss") == plain.metrics.get("train_loss")


def test_columns_of_the_tables(run: Run) -> None:
    run.check()
    rounds, clients = run.rounds, run.clients
    for name in ("loss", "accuracy", "macro_f1_all", "accuracy_p10", "accuracy_pooled", "accuracy/acc+gyro"):
        assert rounds[f"validation/{name}"].null_count() == rounds[name].null_count() == 0
    for row in rounds.rows(named=True):
        own = clients.filter(pl.col("round") == row["round"])
        weights = own["num_validation_examples"].to_numpy()
        for name in ("loss", "accuracy"):
            expected = np.average(own[f"validation/{name}"].to_numpy(), weights=weights)
            assert row[f"validation/{name}"] == pytest.approx(expected)
    assert clients.schema["num_validation_examples"] == pl.Int64
    assert (
        run.manifest["data"]["num_validation"] == clients.filter(pl.col("round") == 0)["num_validation_examples"].sum()
    )
    memory = simulate(run.scenario)
    for name in ("rounds", "clients", "blocks"):
        frame, stored = getattr(memory, name), getattr(run, name)
        timed = [column for column in frame.columns if "seconds" in column]
        assert frame.drop(timed).equals(stored.drop(timed))


def test_without_validation_rows_there_are_no_columns_of_them(small_scenario: Scenario) -> None:
    plain = simulate(small_scenario)
    for frame in (plain.rounds, plain.clients):
        assert not [name for name in frame.columns if "validation" in name]


def test_with_the_validation_split_test_rows_are_read_in_the_last_round_alone(
    scenario: Scenario, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    test_rows = Shard.test

    def spied(shard: Shard) -> Any:
        reads.append(len(shard.labels))
        return test_rows(shard)

    monkeypatch.setattr(Shard, "test", spied)
    chosen = scenario.override({"evaluation.split": "validation", "evaluation.held_out": "final", "rounds": 2})
    records = []
    for record in simulate(chosen, stream=True):
        records.append(record)
        assert bool(reads) == (record.round_index == 2)
    # Each client's test split, and the held-out set for one client of each modality set.
    assert len(reads) == 5 + 3
    assert [bool(record.evaluation) for record in records] == [False, False, True]
    assert [len(record.validation) for record in records] == [5, 5, 5]
    # The scores are those of a run that reads both in each round, and so are the blocks.
    rounds = run.rounds
    assert [record.metrics["validation/accuracy"] for record in records] == rounds["validation/accuracy"].to_list()
    assert records[-1].metrics["accuracy"] == rounds["accuracy"][-1]
    assert [record.blocks for record in records[:-1]] == [
        record.blocks for record in simulate(scenario, stream=True) if record.round_index < 2
    ]


def test_with_early_stopping_test_rows_are_read_after_the_last_round(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    test_rows = Shard.test
    monkeypatch.setattr(Shard, "test", lambda shard: (reads.append(1), test_rows(shard))[1])
    chosen = scenario.override({"evaluation.split": "validation", "rounds": 3, "stop": {"patience": 9}})
    for record in simulate(chosen, stream=True):
        assert not record.evaluation
        assert not reads
    assert len(reads) == 5


def test_bytes_and_seconds_of_a_round_that_scores_validation_alone_stand_with_the_client(scenario: Scenario) -> None:
    both, alone = (
        simulate(scenario.override({"evaluation.split": split, "rounds": 1})).clients.filter(pl.col("round") == 0)
        for split in ("test", "validation")
    )
    assert alone["num_test_examples"].is_null().all()
    assert alone["evaluate_bytes_down"].to_list() == both["evaluate_bytes_down"].to_list()
    assert (alone["evaluate_seconds"] > 0).all()


def test_fine_tuning_is_scored_on_validation_splits_too(scenario: Scenario) -> None:
    tuned = {"evaluation.fine_tune": {"epochs": 1, "every": 1}, "evaluation.split": "validation"}
    rounds = simulate(scenario.override(tuned)).rounds
    assert rounds["validation/fine_tuned/accuracy"].is_not_null().to_list() == [False, True, True]
    assert rounds["fine_tuned/accuracy"].is_not_null().to_list() == [False, False, True]
    assert rounds["validation/fine_tuned/loss"][2] != rounds["validation/loss"][2]


def test_the_central_model_is_scored_on_validation_splits_too(scenario: Scenario) -> None:
    rounds = simulate(scenario.override({"sharing": "central", "stop": {"patience": 1}})).rounds
    assert rounds["validation/accuracy"].null_count() == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "evaluation.split=validation",
            "evaluation.split is 'validation', and no client has a validation split; expected data.validation_fraction "
            "above 0",
        ),
        (
            "stop={patience: 3}",
            "stop asks for validation splits, and no client has one; expected data.validation_fraction above 0, or "
            "null",
        ),
    ],
)
def test_without_validation_rows_their_scores_are_refused(
    small_scenario: Scenario, command: Command, setting: str, message: str
) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)):
        simulate(small_scenario.override(dict([parse_assignment(setting)])))
    outcome = command("validate", "quickstart", "--set", setting)
    assert outcome.exit_code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_an_attached_terminal_sees_them(scenario: Scenario, run: Run) -> None:
    assert run.path is not None
    written = [*simulate(scenario, stream=True)]
    for found, record in zip(follow(run.path, poll_s=0.01), written, strict=True):
        assert [(each.client, each.num_examples, each.loss, dict(each.scores)) for each in found.validation] == [
            (each.client, each.num_examples, each.loss, dict(each.scores)) for each in record.validation
        ]
        assert [dict(each.scores) for each in found.evaluation] == [dict(each.scores) for each in record.evaluation]


def test_the_commands_show_them_beside_the_test_scores(scenario: Scenario, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(scenario_yaml(scenario), encoding="utf-8")
    outcome = command("simulate", str(path))
    assert outcome.exit_code == 0, outcome.err
    first, *_ = [line for line in outcome.out.splitlines() if line.startswith("round 0")]
    assert "  loss " in first.partition("validation loss")[0]
    assert "accuracy" in first.partition("validation loss")[2]
    assert any(line.strip().startswith("validation ") for line in outcome.out.splitlines())
    stops = ["--set", "evaluation.split=validation", "--set", "stop={patience: 1}", "--set", "rounds=3"]
    outcome = command("simulate", str(path), *stops, "--track", f"tensorboard:{tmp_path / 'boards'}")
    assert outcome.exit_code == 0, outcome.err
    assert ", at most 3 rounds" in outcome.out
    assert "  loss " not in outcome.out.splitlines()[1]
    said = [line for line in outcome.out.splitlines() if "; the best validation/accuracy, " in line]
    assert len(said) == 2
    assert said[0].startswith(("stopped early after round", "ended with round"))
    # What was scored at the end has its place at the best round.
    (folder,) = (tmp_path / "boards" / "small").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    run = Run.open(next(tmp_path.glob(f"runs/small/{folder.name}")))
    assert run.stopped is not None
    assert [(event.step, event.value) for event in events.Scalars("accuracy")] == [
        (run.stopped.best_round, pytest.approx(run.final["accuracy"]))
    ]
    assert [event.step for event in events.Scalars("validation/accuracy")] == run.rounds["round"].to_list()
