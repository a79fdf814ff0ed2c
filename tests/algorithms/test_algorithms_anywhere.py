"""The same bits of an algorithm wherever its clients live, after a lost actor, and resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import own_algorithms
import polars as pl
import pytest
import torch
from own_algorithms import Everything, deadly
from plain_loops import TREE
from torch import nn

from blossom_ray import Run, Scenario, simulate
from blossom_ray.runs.session import record_run, resume_run

pytestmark = pytest.mark.slow


class FailingHead(nn.Linear):
    """Raises in the training of some clients in some rounds."""

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        # The initial seed of the client and round: the same on every placement.
        if self.training and torch.initial_seed() % 5 == 0:
            raise RuntimeError("a bad client")
        return super().forward(fused)


ALGORITHMS: dict[str, Any] = {
    "scaffold": {"kind": "scaffold"}, "ditto": {"kind": "ditto"},
    "moon": {"kind": "moon"}, "fedproto": {"kind": "fedproto"}, "own": Everything,
}  # fmt: skip
BATCH_NORM = {"model.head": {"kind": "mlp", "hidden": [6], "norm": "batch"}}
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stacked": {"training.engine": "vectorized"},
    "compiled": {"training.engine": "compiled"},
    "group": {
        "clients.0.group": "a",
        "clients.1.group": "b",
        "clients.2.group": "a",
        "sharing": {"encoder/*": "shared", "fusion": "group", "head": "shared"},
    },
    "same-modalities": {"sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "private"}},
    "frozen": {"sharing": {"encoder/acc": "frozen", "encoder/gyro": "shared", "fusion": "shared", "head": "shared"}},
    "zero-input": {"model.missing": "zero-input"},
    "zero-embedding": {"model.missing": "zero-embedding"},
    "prototype": {"model.missing": "prototype"},
    "modality dropout": {"training.modality_dropout": 0.5},
    "batch norm": BATCH_NORM,
    "batch norm, local": BATCH_NORM | {"model.norm_statistics": "local"},
    "batch norm, same-modalities": BATCH_NORM | {"model.norm_statistics": "same-modalities"},
    "batch norm, stacked": BATCH_NORM | {"training.engine": "vectorized"},
    "momentum": {"training.keep_optimizer_state": True, "training.optimizer.momentum": 0.9},
    "fedadam": {"server.optimizer": {"kind": "fedadam"}},
    "bfloat16": {"training.precision": "bfloat16"},
    "failing clients": {
        "failures.on_failure": "drop",
        "model.head": {"kind": "custom", "factory": FailingHead},
    },
    "the best round": {
        "stop": {"patience": 4},
        "data.validation_fraction": 0.25,
        "evaluation.split": "validation",
    },
    "a cohort of one": {"server.clients_per_round": 1},
}


def scenario_of(name: str, **changes: Any) -> Scenario:
    tree = {"algorithm": ALGORITHMS[name], **{key.replace("__", "."): value for key, value in changes.items()}}
    return Scenario.model_validate({**TREE, "rounds": 4, "checkpoint": {"every": 2}}).override(tree)


def comparable(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([name for name in frame.columns if "seconds" in name])


def assert_same_bits(run: Run, other: Run) -> None:
    assert run.manifest["digest"] == other.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        assert comparable(getattr(run, name)).equals(comparable(getattr(other, name))), name


def resumed(scenario: Scenario, folder: Path) -> Run:
    """Broken off after round 3, one after the last checkpoint."""
    records = record_run(scenario, folder)
    for _ in range(4):
        next(records)
    records.close()
    for _ in resume_run(scenario, folder):
        pass
    return Run.open(folder)


SOME = {
    "scaffold": ("stacked", "modality dropout", "batch norm"),
    "ditto": ("stacked", "compiled", "momentum", "batch norm, local"),
    "moon": ("stacked", "modality dropout"),
    "fedproto": ("stacked", "failing clients"),
    "own": (*RULES,),
}
BEFORE_A_RELEASE = {
    "scaffold": ("plain", "group", "fedadam"),
    "ditto": ("plain", "frozen", "bfloat16"),
    "moon": ("plain", "same-modalities", "batch norm"),
    "fedproto": ("plain", "zero-input"),
}


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name, rules in SOME.items() for rule in rules]
    + [pytest.param(name, rule, marks=pytest.mark.long) for name, rules in BEFORE_A_RELEASE.items() for rule in rules],
)
def test_resumed(name: str, rule: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scenario = scenario_of(name).override(RULES[rule])
    run = resumed(scenario, tmp_path)
    assert run.manifest["first_round"] == 3
    assert_same_bits(run, simulate(scenario))
    assert (run.failures.height > 0) == (rule == "failing clients")
    # A warning is about running statistics, which copies on the server have none of.
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert not [message for message in warned if rule != "failing clients" and ":head" in message.split(" ")[1]]


cloudpickle = pytest.importorskip("ray").cloudpickle
# Actors cannot import these files.
cloudpickle.register_pickle_by_value(own_algorithms)
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("name", "packings"),
    [("scaffold", (1,)), ("ditto", (5,)), ("moon", (5,)), ("fedproto", (1,)), ("own", (9, 5, 1))],
)
def test_on_any_number_of_actors(name: str, packings: tuple[int, ...]) -> None:
    scenario = scenario_of(name, sharing="private-head")
    local = simulate(scenario)
    for clients_per_actor in packings:
        placed = {"execution.runtime": "ray", "execution.clients_per_actor": clients_per_actor}
        assert_same_bits(simulate(scenario.override(placed)), local)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_after_a_killed_actor(name: str, tmp_path: Path) -> None:
    scenario = scenario_of(name, sharing="private-head")
    own = {"kind": "custom", "factory": deadly, "options": {"kind": name, "marks": str(tmp_path)}}
    placed = {"algorithm": own, "execution.runtime": "ray", "execution.clients_per_actor": 5}
    run = simulate(scenario.override(placed))
    assert (tmp_path / "struck").exists()
    assert_same_bits(run, simulate(scenario))
