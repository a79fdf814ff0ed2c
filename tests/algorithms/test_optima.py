"""SCAFFOLD and FedDyn reach the optimum of sum w_k f_k on quadratics, on unequal shards and with a few holders.

f_k(x) = a_k (x - t_k)^2 / 2 is a regression with one parameter: each of n_k samples has the input sqrt(a_k) and the
target sqrt(a_k) t_k. All ten clients hold `encoder/all`, three of them `encoder/few`; four are drawn a round, and take
between one and twelve steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from plain_loops import simulated
from torch import Tensor, nn

from blossom_ray import Scenario, from_arrays
from blossom_ray.algorithms.scaffold import Scaffold
from blossom_ray.algorithms.seam import Client, Sent, ServerView, Tree
from blossom_ray.data.sets.base import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

HOLDERS = {"all": list(range(10)), "few": [7, 8, 9]}
DRAW = np.random.default_rng(0)
A, T, SIZES = (
    values[[0, 2, 3, 5, 6, 7, 9, 1, 4, 8]]
    for values in (DRAW.uniform(0.5, 2, 10), DRAW.normal(0, 1, 10), DRAW.integers(5, 60, 10))
)


class Values(nn.Module):
    """A fusion without parameters: each modality's number, 0 where it is missing."""

    def __init__(self, _: Mapping[str, int]) -> None:
        super().__init__()

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        some = next(iter(embeddings.values()))
        return torch.cat([embeddings.get(name, some.new_zeros(len(some), 1)) for name in HOLDERS], dim=1)


def nothing(width: int, num_targets: int) -> nn.Module:
    """A head that gives what it gets."""
    assert width == num_targets
    return nn.Identity()


def factor(_: tuple[int, ...]) -> nn.Module:
    return nn.Linear(1, 1, bias=False)


class Unweighted:
    """SCAFFOLD whose controls are summed with weight 1 and divided by the number of holders."""

    base = Scaffold(kind="scaffold")
    extras, passes = base.extras, base.passes

    def finish(self, k: Client) -> dict[str, Any]:
        found = self.base.finish(k)
        return {**found, "c": Sent(found["c"].value, 1)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"c": s.current["c"] + s.total["c"] / s.num_holders["c"]}


@cache
def data() -> Dataset:
    clients = np.repeat(np.arange(10), SIZES + 1)
    ends = np.cumsum(SIZES + 1) - 1
    inputs, targets = {}, []
    for name, holders in HOLDERS.items():
        held = np.isin(clients, holders)
        inputs[name] = np.where(held, np.sqrt(A)[clients], np.nan)[:, None]
        targets.append(np.where(held, (np.sqrt(A) * T)[clients], 0.0))
    splits = np.where(np.isin(np.arange(len(clients)), ends), "test", "train")
    return from_arrays(inputs, np.stack(targets, axis=1), task="regression", clients=clients, splits=splits)


def distances(algorithm: dict[str, Any], weighting: str, rate: float = 0.1) -> dict[str, dict[str, float]]:
    """By block how far a run ends from the optima of both sums."""
    scenario = Scenario.model_validate(
        {
            "rounds": 120,
            "task": "regression",
            "algorithm": algorithm,
            "data": {"dataset": "custom", "factory": data, "partition": {"kind": "given"}},
            "clients": [{"count": 7, "modalities": ["all"]}, {"count": 3, "modalities": ["all", "few"]}],
            "model": {
                "encoders": {name: {"kind": "custom", "factory": factor} for name in HOLDERS},
                "fusion": {"kind": "custom", "factory": Values},
                "head": {"kind": "custom", "factory": nothing},
            },
            "sharing": "full-model",
            "training": {"batch_size": 5, "optimizer": {"kind": "sgd", "lr": rate}},
            "server": {"clients_per_round": 4, "weighting": weighting},
            "evaluation": {"every": 120},
            "execution": {"runtime": "local"},
        }
    )
    run = simulated(scenario)
    found = {}
    for name, holders in HOLDERS.items():
        x = float(run.value(f"encoder/{name}")[0])
        found[name] = {
            wanted: abs(x - float((w * A * T)[holders].sum() / (w * A)[holders].sum()))
            for wanted, w in (("samples", SIZES * 1.0), ("uniform", np.ones(10)))
        }
    return found


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize(
    ("algorithm", "rate"),
    [({"kind": "scaffold"}, 0.1), ({"kind": "feddyn", "alpha": 2.0}, 0.2)],
    ids=["scaffold", "feddyn"],
)
def test_it_ends_in_the_optimum_that_weights_say(algorithm: dict[str, Any], rate: float, weighting: str) -> None:
    for name, found in distances(algorithm, weighting, rate).items():
        assert found[weighting] < 1e-5, name
        assert max(found.values()) > 0.1, name


def test_federated_averaging_does_not() -> None:
    for found in distances({"kind": "fedavg"}, "samples").values():
        assert found["samples"] > 0.01


def test_controls_of_weight_one_solve_another_problem() -> None:
    for found in distances({"kind": "custom", "factory": Unweighted}, "samples").values():
        assert found["samples"] > 0.1
        assert found["uniform"] < 1e-5
