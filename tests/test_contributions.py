"""Prototypes of modalities: measured by their owners, averaged, and put in the place of what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from blossom_ray import Scenario, simulate
from blossom_ray.clients.contributions import mean_embedding
from blossom_ray.clients.host import ClientHost
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.runs.folder import Run
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds
from blossom_ray.tasks.learned import one_task

PROTOTYPE = BlockInstance("prototype/acc", Scope.SHARED)


@pytest.fixture
def scenario(small_scenario: Scenario) -> Scenario:
    """Two clients with acc, one with gyro, two with both; prototypes stand for what is missing."""
    return small_scenario.override({"model.missing": "prototype", "sharing": "full-model", "rounds": 2})


def owner_workspace(scenario: Scenario) -> Workspace:
    return Workspace(
        scenario.model, {"acc": (8, 2), "gyro": (8, 2)}, one_task("classification", 3), owned=("acc",), seed=0
    )


def test_the_mean_embedding_by_hand(scenario: Scenario) -> None:
    space = owner_workspace(scenario)
    samples = np.random.default_rng(0).normal(size=(7, 8, 2)).astype(np.float32)
    space.model.train()  # it must not matter: dropout has no place here
    found = mean_embedding(space, "acc", {"acc": samples}, batch_size=3)
    with torch.inference_mode():
        expected = space.model.eval().blocks["encoder/acc"](torch.from_numpy(samples)).mean(dim=0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    assert found.dtype == np.float32
    assert found.shape == (6,)


def test_a_prototype_is_the_mean_over_all_training_samples_of_the_owners(scenario: Scenario, tmp_path: Path) -> None:
    preparation = prepare(scenario, tmp_path)
    runtime = LocalRuntime(preparation)
    server = initial_server(preparation.plan, preparation.population.representatives(), scenario.server.optimizer)
    assert not server.blocks[PROTOTYPE].sent.values.any()
    host = ClientHost(preparation.plan, preparation.population.profiles, preparation.open_shards())
    sent = server.sent
    total, count = np.zeros(6), 0
    for chunk in preparation.population.chunks:
        part = host.train(chunk, sent, round_index=1, learning_rate=0.05, whole=False)
        for record, vector in zip(
            part.records, part.sent[PROTOTYPE].values if PROTOTYPE in part.sent else (), strict=False
        ):
            total += record.num_examples * vector.astype(np.float64)
            count += record.num_examples
    rounds = run_rounds(preparation, runtime, server)
    next(rounds)
    record, after = next(rounds)
    np.testing.assert_allclose(after.blocks[PROTOTYPE].sent.values, total / count, rtol=1e-5, atol=1e-7)
    entry = next(block for block in record.blocks if block.instance == PROTOTYPE)
    assert (entry.contributors, entry.client_drift, entry.update_norm) == (4, None, 0.0)
    assert count == entry.weight
    runtime.close()
    host.close()


def test_it_stands_for_what_is_missing_in_training_and_in_scoring(scenario: Scenario) -> None:
    space = Workspace(
        scenario.model, {"acc": (8, 2), "gyro": (8, 2)}, one_task("classification", 3), owned=("gyro",), seed=0
    )
    inputs = {"gyro": torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0))}
    assert "prototype/acc" not in space.trained
    prototype = np.arange(6, dtype=np.float32)
    space.load({**space.initial_blocks, "prototype/acc": prototype}, {})
    embeddings = {
        "acc": torch.from_numpy(prototype).expand(4, -1),
        "gyro": space.model.blocks["encoder/gyro"](inputs["gyro"]),
    }
    expected = space.model.blocks["head"](space.model.blocks["fusion"](embeddings))
    torch.testing.assert_close(space.model(inputs), expected)


def test_prototypes_are_traffic_for_those_who_need_them_and_those_who_make_them(scenario: Scenario) -> None:
    run = simulate(scenario)
    rows = run.blocks.filter(pl.col("block").str.starts_with("prototype/") & (pl.col("round") == 1))
    assert rows.select("block", "contributors", "bytes_up", "bytes_down").rows() == [
        ("prototype/acc", 4, 4 * 6 * 4, 1 * 6 * 4),
        ("prototype/gyro", 3, 3 * 6 * 4, 2 * 6 * 4),
    ]


def test_where_nobody_lacks_a_modality_there_is_no_prototype(scenario: Scenario) -> None:
    everyone = {"clients": [{"count": 5, "modalities": ["acc", "gyro"]}]}
    run, masked = (simulate(scenario.override({**everyone, "model.missing": rule})) for rule in ("prototype", "mask"))
    assert set(run.blocks["block"]) == {"encoder/acc", "encoder/gyro", "fusion", "head"}
    assert run.manifest["digest"] == masked.manifest["digest"]


def test_the_first_round_is_that_of_an_embedding_of_zeros(scenario: Scenario) -> None:
    one_round = {"rounds": 1, "sharing": "private-head-fusion"}
    run, zeros = (
        simulate(scenario.override({**one_round, "model.missing": rule})) for rule in ("prototype", "zero-embedding")
    )
    assert run.rounds["train_loss"].to_list() == zeros.rounds["train_loss"].to_list()
    assert run.rounds["loss"].to_list()[0] == zeros.rounds["loss"].to_list()[0]
    assert run.rounds["loss"].to_list()[1] != zeros.rounds["loss"].to_list()[1]


def test_they_are_in_the_checkpoint(scenario: Scenario, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rounds": 5, "checkpoint.every": 2, "server.optimizer": {"kind": "fedadam"}}
    long = scenario.override(changes)
    records = record_run(long, tmp_path / "run")
    for _ in range(4):
        next(records)
    records.close()
    for _ in resume_run(long, tmp_path / "run"):
        pass
    run = Run.open(tmp_path / "run")
    assert run.manifest["digest"] == simulate(long).manifest["digest"]
