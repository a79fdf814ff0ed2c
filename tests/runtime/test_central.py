"""All data in one place: the limits in which that equals a federation, and what the tables say of it."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from blossom_ray import Run, Scenario, simulate
from blossom_ray.errors import RunError
from blossom_ray.runs.session import record_run, resume_run

# Full batches and no dropout: an epoch is one step of gradient descent, whatever the order of samples.
FULL_BATCHES: dict[str, Any] = {
    "training.batch_size": 1000,
    "training.optimizer": {"kind": "sgd", "lr": 0.1},
    "model.encoders.acc.dropout": 0.0,
    "model.encoders.gyro.dropout": 0.0,
    "model.head.dropout": 0.0,
}


@pytest.fixture
def central(small_scenario: Scenario) -> Scenario:
    return small_scenario.override({"sharing": "central", "rounds": 3})


def comparable(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([name for name in frame.columns if "seconds" in name])


def assert_same_bits(run: Run, other: Run) -> None:
    assert run.manifest["digest"] == other.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        assert comparable(getattr(run, name)).equals(comparable(getattr(other, name))), name


def test_one_step_on_all_samples_is_the_average_of_the_clients_steps(small_scenario: Scenario) -> None:
    """Clients of one modality set and unequal sizes: sum n_k (w - lr g_k) / n = w - lr (sum n_k g_k / n)."""
    alike = {
        **FULL_BATCHES,
        "clients": [{"count": 4, "modalities": ["acc", "gyro"]}],
        "data.partition": {"kind": "quantity", "alpha": 0.5},
        "rounds": 4,
    }
    scenario = small_scenario.override(alike)
    federated = simulate(scenario.override({"sharing": "full-model"}))
    pooled = simulate(scenario.override({"sharing": "central"}))
    assert federated.clients["num_train_examples"].n_unique() > 2
    for metric in ("train_loss", "loss"):
        expected = federated.rounds[metric].drop_nulls().to_list()
        assert pooled.rounds[metric].drop_nulls().to_list() == pytest.approx(expected, rel=1e-5)


def test_every_round_scores_one_model_on_every_client(central: Scenario) -> None:
    run = simulate(central)
    assert run.rounds["num_evaluated"].to_list() == [5] * 4
    held_out = run.rounds.row(3, named=True)
    assert {"held_out/accuracy/acc", "held_out/accuracy/acc+gyro", "held_out/accuracy/gyro"} <= held_out.keys()
    blocks = run.blocks.filter(pl.col("round") == 1)
    assert blocks.select("block", "contributors").rows() == [
        ("encoder/acc", 4),
        ("encoder/gyro", 3),
        ("fusion", 5),
        ("head", 5),
    ]
    assert (blocks["update_norm"] > 0).all()
    assert blocks["client_drift"].is_null().all()


def test_samples_are_counted_and_nothing_is_sent_back(central: Scenario) -> None:
    run = simulate(central.override({"training.local_epochs": 2}))
    assert run.rounds["num_examples"].to_list()[1:] == [2 * run.manifest["data"]["num_train"]] * 3
    assert run.rounds["bytes_up"].to_list() == [0] * 4
    # Steps of the one model, whoever owns the samples: a batch holds samples of one modality set.
    sizes = run.clients.filter(pl.col("round") == 1).group_by("modalities").agg(pl.col("num_train_examples").sum() // 2)
    num_batches = sum(-(-size // central.training.batch_size) for size in sizes["num_train_examples"])
    assert run.clients["num_steps"].drop_nulls().unique().to_list() == [2 * num_batches]


def test_too_high_a_rate_is_said_of_the_central_model_and_of_no_client(central: Scenario) -> None:
    with pytest.raises(RunError, match=r"^round 1, the central model: block \S+ is not finite .*\nhint: a smaller"):
        simulate(central.override({"training.optimizer.lr": 1e9}))


def test_it_learns_more_than_clients_alone(central: Scenario) -> None:
    changes = {"rounds": 12, "data.samples": 600, "data.partition": {"kind": "dirichlet", "alpha": 1.0}}
    pooled = simulate(central.override(changes))
    alone = simulate(central.override({**changes, "sharing": "local"}))
    accuracy = {name: run.final["held_out/accuracy/acc+gyro"] for name, run in (("all", pooled), ("alone", alone))}
    assert accuracy["all"] > accuracy["alone"]


@pytest.mark.parametrize("missing", ["mask", "zero-embedding", "zero-input"])
def test_every_rule_for_missing_modalities_trains(central: Scenario, missing: str) -> None:
    run = simulate(central.override({"model.missing": missing, "training.modality_dropout": 0.5}))
    losses = run.rounds["train_loss"].drop_nulls().to_list()
    assert losses[-1] < losses[0]


def test_a_resumed_run_is_the_same(central: Scenario, tmp_path: Path) -> None:
    scenario = central.override({"rounds": 6, "checkpoint.every": 2, "model.head.norm": "batch"})
    records = record_run(scenario, tmp_path / "run")
    for _ in range(5):
        next(records)
    records.close()
    for _ in resume_run(scenario, tmp_path / "run"):
        pass
    assert_same_bits(Run.open(tmp_path / "run"), simulate(scenario))


@pytest.mark.ray
def test_where_clients_are_scored_changes_nothing(central: Scenario, ray_session: None) -> None:
    placed = central.override({"execution.runtime": "ray", "execution.clients_per_actor": 3})
    assert_same_bits(simulate(central), simulate(placed))
