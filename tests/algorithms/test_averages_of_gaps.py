"""What averages come to where clients see a modality in some of their samples alone, by hand.

An encoder of one number e and a loss (e - t)^2: client 0 has the modality in all of its ten samples, and t = 0;
client 1 in two of ten, and t = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from plain_loops import Simulated, simulated
from torch import Tensor, nn

from blossom_ray import Scenario, from_arrays
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.data.sets.base import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES = ["sequential", "vectorized"]


class Sum(nn.Module):
    """A fusion without parameters: the sum of the embeddings."""

    def __init__(self, _: Mapping[str, int]) -> None:
        super().__init__()

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        first, *others = embeddings.values()
        for other in others:
            first = first + other
        return first


def nothing(width: int, num_targets: int) -> nn.Module:
    """A head that gives what it gets."""
    assert width == num_targets
    return nn.Identity()


def factor(_: tuple[int, ...]) -> nn.Module:
    """One number that its input is multiplied by, zero at first."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def mean(_: tuple[int, ...]) -> nn.Module:
    """Running statistics that are those of the last batch."""
    return nn.BatchNorm1d(1, momentum=1.0)


def data(is_about_means: bool = False) -> Dataset:
    """Samples of m, which client 1 has in two of ten and not in its test sample, and of zeros that all have."""
    clients = np.repeat([0, 1], 11)
    splits = np.where(np.arange(22) % 11 == 10, "test", "train")
    has = (clients == 0) | np.isin(np.arange(22), [11, 14])
    target = np.where(clients == 1, 1.0, 0.0)
    m = np.where(clients == 0, 2.0, 8.0) + np.where(np.arange(22) % 2, 1, -1) if is_about_means else np.ones(22)
    inputs = {"m": np.where(has, m, np.nan)[:, None], "rest": np.zeros((22, 1))}
    return from_arrays(inputs, target[:, None], task="regression", clients=clients, splits=splits)


def run(encoder: Any = factor, options: dict[str, Any] | None = None, **changes: Any) -> Simulated:
    tree = {
        "rounds": 1,
        "task": "regression",
        "data": {"dataset": "custom", "factory": data, "options": options or {}, "partition": {"kind": "given"}},
        "clients": [{"count": 2, "modalities": ["m", "rest"]}],
        "model": {
            "encoders": {
                "m": {"kind": "custom", "factory": encoder},
                "rest": {"kind": "custom", "factory": factor},
            },
            "fusion": {"kind": "custom", "factory": Sum},
            "head": {"kind": "custom", "factory": nothing},
            "missing": "zero-embedding",
        },
        "sharing": "full-model",
        "training": {"batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.5}},
        "evaluation": {"every": 1000},
        "execution": {"runtime": "local"},
    }
    return simulated(Scenario.model_validate(tree).override(changes))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("weighting", "optimum"), [("samples", 2 / 12), ("observed", 0.4 / 10.4)])
def test_small_steps_lead_to_the_optimum_of_all_samples_by_samples_alone(
    engine: str, weighting: str, optimum: float
) -> None:
    changes = {"server.weighting": weighting, "training.engine": engine}
    first = float(run(**changes).value("encoder/m")[0])
    assert first == pytest.approx({"samples": (0 + 0.2) / 2, "observed": 2 * 0.2 / 12}[weighting])
    found = run(**changes, rounds=25)
    assert float(found.value("encoder/m")[0]) == pytest.approx(optimum, abs=1e-4)
    assert [entry.num_observed for entry in found.records[-1].training] == [{"m": 10}, {"m": 2}]
    weights = {str(block.instance): block.weight for block in found.records[-1].blocks}
    assert weights["encoder/m"] == {"samples": 20, "observed": 12}[weighting]
    assert weights["encoder/rest"] == 20


@pytest.mark.parametrize(("weighting", "expected"), [("samples", 0.5), ("observed", 2 / 12)])
def test_long_local_training_leads_there_by_observed_samples(weighting: str, expected: float) -> None:
    found = run(**{"server.weighting": weighting, "training.local_epochs": 60})
    assert float(found.value("encoder/m")[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_scaffold_in_batches_of_one_reaches_the_optimum(engine: str) -> None:
    """In eight of ten batches of client 1 the encoder steps along its offset alone; if it rested: 0.5."""
    changes = {"algorithm": {"kind": "scaffold"}, "training.batch_size": 1, "training.optimizer.lr": 0.02}
    found = run(**changes, rounds=60, **{"training.engine": engine})
    assert float(found.value("encoder/m")[0]) == pytest.approx(2 / 12, abs=3e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_fednova_counts_batches_without_the_modality(engine: str) -> None:
    """Per step that is taken alone, client 1 would count five times what it does: 0.5."""
    changes = {"algorithm": {"kind": "fednova"}, "training.batch_size": 1, "training.optimizer.lr": 0.01}
    found = run(**changes, rounds=40, **{"training.engine": engine})
    assert float(found.value("encoder/m")[0]) == pytest.approx(2 / 12, abs=0.02)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "changes",
    [
        {"server.weighting": "uniform"},
        *({"algorithm": kind} for kind in ({"kind": "fedavg"}, {"kind": "fednova"}, {"kind": "ifca"})),
        {"algorithm": {"kind": "low-rank", "block": "encoder/m"}},
    ],
    ids=str,
)
def test_statistics_are_means_over_the_samples_that_have_the_modality(engine: str, changes: dict[str, Any]) -> None:
    """Whatever an algorithm sends of the parameters."""
    found = run(mean, {"is_about_means": True}, **{"training.engine": engine}, **changes)
    statistics = BlockInstance("statistics/encoder/m", Scope.SHARED)
    values = found.server.blocks[statistics].sent.values
    assert values[0] == pytest.approx((10 * 2 + 2 * 8) / 12)  # 3, and not 5
    (entry,) = (block for block in found.records[-1].blocks if block.instance == statistics)
    assert (entry.weight, entry.contributors) == (12, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_are_scored_by_what_they_have(engine: str) -> None:
    found = run(**{"training.engine": engine})
    metrics, e = found.records[-1].metrics, float(found.value("encoder/m")[0])
    assert {name: value for name, value in metrics.items() if name.startswith("num_examples@")} == {
        "num_examples@m+rest": 1,
        "num_examples@rest": 1,
    }
    # Client 0's sample has m and the target 0; client 1's has the target 1 and nothing that tells it.
    assert metrics["rmse@m+rest"] == pytest.approx(e)
    assert metrics["rmse@rest"] == metrics["rmse_pooled@rest"] == 1
    assert metrics["loss@rest"] == 1
    assert metrics["rmse/m+rest"] == pytest.approx((1 + e) / 2)
