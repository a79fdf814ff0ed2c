"""Scores after local fine-tuning, beside those of the plain run, which goes on as if nothing had been."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import REPOSITORY

from blossom_ray import Run, Scenario, simulate
from blossom_ray.errors import ClientError
from blossom_ray.runs.session import record_run, resume_run

# Full batches and no dropout: an epoch is one step of gradient descent, whatever the order of samples.
FULL_BATCHES: dict[str, Any] = {
    "training.batch_size": 1000,
    "training.optimizer": {"kind": "sgd", "lr": 0.1},
    "model.encoders.acc.dropout": 0.0,
    "model.encoders.gyro.dropout": 0.0,
    "model.head.dropout": 0.0,
}


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([name for name in frame.columns if "seconds" in name or name.startswith("fine_tuned/")])


def tuned_columns(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select([name for name in frame.columns if name.startswith("fine_tuned/")])


def assert_same_run(run: Run, other: Run) -> None:
    assert run.manifest["digest"] == other.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        assert plain(getattr(run, name)).equals(plain(getattr(other, name))), name


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_the_run_itself_does_not_notice(small_scenario: Scenario, engine: str) -> None:
    changes = {
        "rounds": 3,
        "sharing": "private-head",
        "training.engine": engine,
        "training.keep_optimizer_state": True,
        "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
        "model.norm_statistics": "local",
    }
    scenario = small_scenario.override(changes)
    tuned = simulate(scenario.override({"evaluation.fine_tune": {"epochs": 2, "every": 1}}))
    assert_same_run(simulate(scenario), tuned)
    assert tuned.rounds["fine_tuned/loss"].is_null().to_list() == [True, False, False, False]


def test_it_costs_no_traffic_and_runs_only_when_due(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"rounds": 5, "sharing": "full-model"})
    seldom = simulate(scenario.override({"evaluation": {"every": 2, "fine_tune": {"every": 4}}}))
    assert seldom.rounds["fine_tuned/accuracy"].is_not_null().to_list() == [False] * 4 + [True, True]
    final = simulate(scenario.override({"evaluation.fine_tune": {}}))
    assert final.rounds["fine_tuned/accuracy"].is_not_null().to_list() == [False] * 5 + [True]
    last = simulate(scenario.override({"evaluation.fine_tune": {"last": 3}}))
    assert last.rounds["fine_tuned/accuracy"].is_not_null().to_list() == [False] * 3 + [True] * 3
    every = simulate(scenario.override({"evaluation.fine_tune": {"every": 1}}))
    assert last.rounds["fine_tuned/accuracy"].to_list()[3:] == every.rounds["fine_tuned/accuracy"].to_list()[3:]
    scored = simulate(scenario.override({"evaluation": {"every": 2, "fine_tune": {"last": 4}}}))
    assert scored.rounds["fine_tuned/accuracy"].is_not_null().to_list() == [False, False, True, False, True, True]
    whole = simulate(scenario.override({"rounds": 2, "evaluation.fine_tune": {"last": 9}}))
    assert whole.rounds["fine_tuned/accuracy"].is_not_null().to_list() == [False, True, True]
    assert final.rounds["bytes_down"].to_list() == simulate(scenario).rounds["bytes_down"].to_list()


def test_summaries_and_client_rows_agree(small_scenario: Scenario) -> None:
    run = simulate(small_scenario.override({"evaluation.fine_tune": {"epochs": 3}}))
    last = run.clients.filter(pl.col("round") == 2)
    weights = last["num_test_examples"]
    expected = (last["fine_tuned/accuracy"] * weights).sum() / weights.sum()
    assert run.final["fine_tuned/accuracy"] == pytest.approx(expected)
    page = (REPOSITORY / "docs" / "semantics.md").read_text(encoding="utf-8")
    assert "`fine_tuned/<score>`" in page
    assert "`fine_tuned/<column>`" in page
    assert set(tuned_columns(run.clients).columns) < set(tuned_columns(run.rounds).columns)
    assert last["fine_tuned/loss"].to_list() != last["loss"].to_list()


def test_one_step_of_fine_tuning_is_the_next_round_of_a_client_that_trains_alone(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({**FULL_BATCHES, "sharing": "local", "rounds": 3})
    run = simulate(scenario.override({"evaluation.fine_tune": {"every": 1}}))
    clients = run.clients.sort("client", "round")
    for client in range(scenario.num_clients):
        rows = clients.filter(pl.col("client") == client)
        ahead = rows["fine_tuned/loss"].to_list()[1:-1]
        assert ahead == pytest.approx(rows["loss"].to_list()[2:], rel=1e-5)


def test_only_the_named_blocks_move(small_scenario: Scenario) -> None:
    """A head that starts from the full model's and tunes alone is not the whole model tuned."""
    scenario = small_scenario.override({**FULL_BATCHES, "sharing": "full-model"})
    losses = {
        blocks: simulate(scenario.override({"evaluation.fine_tune": {"epochs": 5, "blocks": blocks}})).final[
            "fine_tuned/loss"
        ]
        for blocks in ("all", "fusion-head", "head")
    }
    untuned = simulate(scenario).final["loss"]
    assert len({untuned, *losses.values()}) == 4


def test_the_engines_agree(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"evaluation.fine_tune": {"epochs": 2, "blocks": "fusion-head", "lr": 0.02}})
    sequential, stacked = simulate(scenario), simulate(scenario.override({"training.engine": "vectorized"}))
    assert stacked.final["fine_tuned/loss"] == pytest.approx(sequential.final["fine_tuned/loss"], rel=1e-4)


def test_divergence_names_the_learning_rate_of_fine_tuning(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"evaluation.fine_tune": {"epochs": 5, "lr": 1e30}})
    with pytest.raises(ClientError, match=r"round 2: block .* is not finite") as caught:
        simulate(scenario)
    assert "evaluation.fine_tune.lr" in caught.value.hint


@pytest.mark.ray
def test_actors_give_the_same_bits(small_scenario: Scenario, ray_session: None) -> None:
    scenario = small_scenario.override({"evaluation.fine_tune": {"every": 1}, "rounds": 2})
    local = simulate(scenario)
    placed = simulate(scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3}))
    assert_same_run(local, placed)
    assert tuned_columns(local.rounds).equals(tuned_columns(placed.rounds))
    assert tuned_columns(local.clients).equals(tuned_columns(placed.clients))


@pytest.mark.parametrize("weighting", ["uniform", "entropy"])
def test_a_resumed_run_with_all_switches_is_the_same(small_scenario: Scenario, tmp_path: Path, weighting: str) -> None:
    scenario = small_scenario.override(
        {
            "rounds": 6,
            "sharing": "private-head",
            "checkpoint.every": 2,
            "training.alternate": {"private_epochs": 2},
            "training.proximal_mu": 0.1,
            "training.modality_dropout": 0.4,
            "training.keep_optimizer_state": True,
            "training.optimizer": {"kind": "adam", "lr": 0.01},
            "server.weighting": weighting,
            "server.clients_per_round": 3,
            "evaluation.fine_tune": {"every": 1},
        }
    )
    records = record_run(scenario, tmp_path / "run")
    for _ in range(4):
        next(records)
    records.close()
    for _ in resume_run(scenario, tmp_path / "run"):
        pass
    run, whole = Run.open(tmp_path / "run"), simulate(scenario)
    assert_same_run(whole, run)
    assert tuned_columns(run.clients).equals(tuned_columns(whole.clients))
