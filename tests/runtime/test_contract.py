"""One contract for all runtimes and placements: same scenario, same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from blossom_ray import Run, Scenario, from_arrays, simulate, write_table

PLACEMENTS = {"1 actor": 5, "2 actors": 3, "an actor per client": 1}
SCHEMES: dict[str, Any] = {
    "FM": "full-model",
    "PH": "private-head",
    "PHF": "private-head-fusion",
    "custom": {"encoder/acc": "shared", "encoder/*": "group", "fusion": "same-modalities", "head": "private"},
}


def own_code() -> dict[str, Any]:
    """A user's own server optimizer and metric. Defined in here, they reach actors by value."""

    class Sloth:
        """Goes a smaller share of the way with each step."""

        def __init__(self, share: float) -> None:
            self.share = share

        def init(self, num_parameters: int) -> dict[str, np.ndarray]:
            return {"share": np.ones(())}

        def step(
            self, state: dict[str, np.ndarray], current: np.ndarray, average: np.ndarray
        ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            share = state["share"] * self.share
            return current + share * (average - current), {"share": np.asarray(share)}

    def mean_logit(labels: np.ndarray, outputs: np.ndarray) -> float | None:
        """Clients without a sample of class 0 do not have it."""
        return float(outputs[labels == 0].mean(dtype=np.float64)) if (labels == 0).any() else None

    return {
        "server.optimizer": {"kind": "custom", "factory": Sloth, "options": {"share": 0.5}},
        "evaluation.metrics": {"mean_logit": {"function": mean_logit}},
    }


def comparable(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([name for name in frame.columns if "seconds" in name])


def assert_same_bits(run: Run, other: Run) -> None:
    assert run.manifest["digest"] == other.manifest["digest"]
    for name in ("rounds", "clients", "blocks", "classes", "confusion"):
        frame, other_frame = comparable(getattr(run, name)), comparable(getattr(other, name))
        assert frame.equals(other_frame), name


@pytest.fixture(params=["synthetic", pytest.param("uci-har", marks=pytest.mark.data)])
def federation(request: pytest.FixtureRequest, small_scenario: Scenario) -> Scenario:
    """Three rounds with partial participation: three of five clients a round, two groups."""
    changes: dict[str, Any] = {
        "rounds": 3,
        "server.clients_per_round": 3,
        "clients.0.group": "home",
        "clients.1.group": "work",
        "clients.2.group": "home",
    }
    if request.param == "uci-har":
        path: Path = request.getfixturevalue("small_uci_har")
        encoder = {"kind": "conv-gru", "channels": [8, 8, 8], "dim": 8}
        changes |= {
            "data": {"dataset": "uci-har", "path": str(path), "partition": {"kind": "dirichlet", "alpha": 1.0}},
            "model.encoders": {"acc": encoder, "gyro": encoder},
        }
    return small_scenario.override(changes)


@pytest.mark.ray
@pytest.mark.parametrize("scheme", SCHEMES)
def test_placement_never_changes_a_bit(federation: Scenario, scheme: str, ray_session: None) -> None:
    scenario = federation.override({"sharing": SCHEMES[scheme]})
    local = simulate(scenario)
    assert local.rounds.height == 4
    assert local.clients["num_train_examples"].is_not_null().sum() == 3 * 3
    for clients_per_actor in PLACEMENTS.values():
        placed = scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": clients_per_actor})
        run = simulate(placed)
        assert run.manifest["actors"] == -(-5 // clients_per_actor)
        assert_same_bits(local, run)


@pytest.mark.ray
def test_shards_through_the_object_store_change_nothing(small_scenario: Scenario, ray_session: None) -> None:
    placed = {"execution.runtime": "ray", "execution.clients_per_actor": 3, "execution.shards": "object-store"}
    # With rows of all three splits, and two seeds.
    scenario = small_scenario.override({"data.validation_fraction": 0.2, "training_seed": 5})
    assert_same_bits(simulate(scenario), simulate(scenario.override(placed)))


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_samples_that_lack_a_modality_are_the_same_everywhere(
    small_scenario: Scenario, engine: str, ray_session: None
) -> None:
    scenario = small_scenario.override(
        {
            "data.observed": {"acc": {"train": 0.6, "test": 0.5, "held_out": 0.7}, "gyro": 0.6},
            "data.without_modality": "leave-out",
            "model.missing": "zero-input",
            "model.encoders.acc": {"kind": "conv1d", "channels": [4], "kernel_size": 3, "dim": 6},
            "sharing": "full-model",
            "server.weighting": "observed",
            "training.batch_size": 4,
            "training.engine": engine,
            "evaluation.fine_tune": {"epochs": 1},
            "evaluation.held_out": "final",
        }
    )
    placed = {"execution.runtime": "ray", "execution.clients_per_actor": 3, "execution.shards": "object-store"}
    assert_same_bits(simulate(scenario), simulate(scenario.override(placed)))


@pytest.mark.ray
def test_several_tasks_and_data_sets_are_the_same_on_every_placement(
    small_scenario: Scenario, tmp_path: Path, ray_session: None
) -> None:
    """The first has labels that are not known, the second shorter windows, gaps, and a client that never trains."""
    draw = np.random.default_rng(0)
    inputs = {name: draw.standard_normal((100, 8, 2)) for name in ("acc", "gyro")}
    size = [float(value) if value < 0.8 else None for value in draw.random(100)]
    labels = [int(number) if number < 3 else None for number in draw.integers(0, 4, 100)]
    columns: dict[str, Any] = {"class": (labels, "classification"), "amplitude": (size, "regression")}
    write_table(from_arrays(inputs, [0, 1] * 50, label_columns=columns), tmp_path / "rows.arrow")
    other = {"acc": {"shape": [5, 2]}, "ecg": {"kind": "vector", "shape": [3]}}
    hearts = {"task": "pulse", "modalities": ["acc", "ecg"]}
    changes: dict[str, Any] = {
        "data": None,
        "datasets": {
            "main": {"dataset": "table", "path": str(tmp_path / "rows.arrow")},
            "heart": {"dataset": "synthetic", "samples": 60, "modalities": other, "observed": {"ecg": 0.6}},
        },
        "tasks": {
            "shape": {"data": "main", "labels": "class"},
            "size": {"data": "main", "kind": "regression", "labels": "amplitude", "lr": 0.02, "loss_weight": 0.5},
            "pulse": {"data": "heart", "kind": "regression"},
        },
        "model.encoders": {name: {"kind": "gru", "dim": 6} for name in ("acc", "gyro")} | {"ecg": {"kind": "mlp"}},
        "clients": [
            {"count": 2, "task": "shape", "modalities": ["acc"]},
            {"count": 1, "task": "size", "modalities": ["acc", "gyro"]},
            {"count": 2, "task": ["size", "shape"], "modalities": ["acc", "gyro"]},
            {"count": 2, **hearts},
            {"count": 1, **hearts, "role": "unseen", "shots": 3},
        ],
        "sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "private"},
        "model.fusion.norm": "batch",
        "model.norm_statistics": "same-modalities",
        "evaluation.fine_tune": {},
        "server.clients_per_round": 5,
        "server.task_weights": "equal",
    }
    scenario = small_scenario.override(changes)
    local = simulate(scenario)
    assert local.blocks["task_cosine"].drop_nulls().len() > 0
    assert {"shape/accuracy", "size/rmse", "fine_tuned/size/rmse/acc+gyro"} <= set(local.rounds.columns)
    assert {"pulse/rmse@acc", "unseen/pulse/rmse", "held_out/pulse/rmse/acc+ecg"} <= set(local.rounds.columns)
    for placed in ({"clients_per_actor": 2, "shards": "object-store"}, {"clients_per_actor": 1}):
        changes = {f"execution.{key}": value for key, value in {"runtime": "ray", **placed}.items()}
        assert_same_bits(local, simulate(scenario.override(changes)))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("norm_statistics", "clients_per_actor"), [("local", 2), ("same-modalities", 5), ("same-modalities", 3)]
)
def test_normalisation_statistics_and_kept_optimizer_state_follow_their_client(
    small_scenario: Scenario, norm_statistics: str, clients_per_actor: int, ray_session: None
) -> None:
    scenario = small_scenario.override(
        {
            "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
            "model.norm_statistics": norm_statistics,
            "sharing": "full-model",
            "training.optimizer": {"kind": "adam", "lr": 0.01},
            "training.keep_optimizer_state": True,
            "server.clients_per_round": 0.6,
            "rounds": 3,
        }
    )
    placed = scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": clients_per_actor})
    assert_same_bits(simulate(scenario), simulate(placed))


@pytest.mark.ray
@pytest.mark.parametrize(
    "algorithm",
    [
        {
            "sharing": "private-head",
            "training.proximal_mu": 0.1,
            "training.alternate": {"private_epochs": 2},
            "training.modality_dropout": 0.5,
            "server.weighting": "entropy",
            "evaluation.fine_tune": {"every": 2, "blocks": "fusion-head"},
        },
        {"sharing": "full-model", "model.missing": "prototype", "server.weighting": "uniform"},
        own_code(),
    ],
    ids=["switches", "prototypes", "own code"],
)
def test_baselines_give_the_same_bits_on_every_placement(
    small_scenario: Scenario, algorithm: dict[str, Any], ray_session: None
) -> None:
    scenario = small_scenario.override({**algorithm, "rounds": 3, "server.clients_per_round": 4})
    placed = scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3})
    assert_same_bits(simulate(scenario), simulate(placed))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(small_scenario: Scenario) -> None:
    first, again = simulate(small_scenario), simulate(small_scenario)
    assert_same_bits(first, again)
    other = simulate(small_scenario.override({"seed": 1}))
    assert first.manifest["digest"]["shared"] != other.manifest["digest"]["shared"]


@pytest.mark.ray
def test_stacked_chunks_give_the_same_bits_on_every_placement(small_scenario: Scenario, ray_session: None) -> None:
    scenario = small_scenario.override(
        {
            "training.engine": "vectorized",
            "server.clients_per_round": 4,
            "rounds": 3,
            "clients.0.count": 5,
            "clients.2.count": 4,
        }
    )
    local = simulate(scenario)
    for clients_per_actor in (10, 5):
        placed = scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": clients_per_actor})
        assert_same_bits(local, simulate(placed))


@pytest.mark.ray
def test_stacked_own_modules_give_the_same_bits_on_two_actors(small_scenario: Scenario, ray_session: None) -> None:
    class Head(nn.Module):
        def __init__(self, width: int, outputs: int) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.3)
            self.out = nn.Parameter(torch.randn(width, outputs))

        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            return self.drop(self.norm(fused)) @ self.out

    scenario = small_scenario.override(
        {
            "training.engine": "vectorized",
            "model.head": {"kind": "custom", "factory": Head},
            "clients.0.count": 5,
            "clients.2.count": 4,
        }
    )
    local = simulate(scenario)
    assert local.manifest["engines"] == dict.fromkeys(("acc", "acc+gyro", "gyro"), "vectorized")
    assert not [note for note in local.manifest["notes"] if "engine" in note]
    assert_same_bits(local, simulate(scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 5})))
    in_turn = simulate(scenario.override({"training.engine": "sequential"}))
    expected = in_turn.rounds["train_loss"].drop_nulls().to_list()
    assert local.rounds["train_loss"].drop_nulls().to_list() == pytest.approx(expected, rel=1e-4)


def test_the_engines_agree_within_rounding(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"sharing": "private-head", "data.samples": 300})
    sequential, stacked = simulate(scenario), simulate(scenario.override({"training.engine": "vectorized"}))
    for metric in ("train_loss", "loss", "loss/acc", "loss/acc+gyro"):
        expected = sequential.rounds[metric].drop_nulls().to_list()
        assert stacked.rounds[metric].drop_nulls().to_list() == pytest.approx(expected, rel=1e-4)
    steps = [run.clients["num_steps"].to_list() for run in (sequential, stacked)]
    assert steps[0] == steps[1]
