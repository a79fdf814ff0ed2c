import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray import Scenario, simulate
from blossom_ray.clients.contributions import LOWEST_ENTROPY, client_weights, entropies
from blossom_ray.clients.job import ClientTask, LocalResult
from blossom_ray.errors import ClientError


class Measured:
    """An engine whose clients' predictions have these mean entropies."""

    def __init__(self, *means: float) -> None:
        self._means = means

    def measure(self, tasks: list[ClientTask], *_: Any, **__: Any) -> list[dict[str, float]]:
        return [{"entropy": mean * len(task.labels)} for task, mean in zip(tasks, self._means, strict=True)]


def weights(rule: Any, *means: float) -> list[float]:
    """Of two clients that saw 12 and 3 samples."""
    tasks = [ClientTask(client, {}, {}, np.zeros(2)) for client in (7, 8)]
    results = [LocalResult({}, {}, {}, num_examples, 1, 0.0, {}, 0.0) for num_examples in (12, 3)]
    engine: Any = Measured(*means)
    return client_weights(rule, engine, tasks, results, batch_size=4, round_index=5)


@pytest.mark.parametrize(
    ("rule", "expected"), [("samples", [12.0, 3.0]), ("uniform", [1.0, 1.0]), ("entropy", [4.0, 2.0])]
)
def test_weights_by_hand(rule: str, expected: list[float]) -> None:
    assert weights(rule, 0.25, 0.5) == expected


def test_a_client_without_doubts_has_a_finite_weight() -> None:
    assert weights("entropy", 0.25, 0.0) == [4.0, 1 / LOWEST_ENTROPY]


def test_a_client_without_an_entropy_is_named() -> None:
    with pytest.raises(ClientError, match="client 8, round 5: outputs on its training samples are not finite"):
        weights("entropy", 0.25, math.nan)


def test_entropies_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(3.0), 0.0, -1000.0], [1000.0, 0.0, 0.0]])
    # Probabilities 1/3 each; 3/4 and 1/4; 1.
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropies(logits).tolist() == pytest.approx([math.log(3), quarter, 0.0], abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=6))
def test_entropy_lies_between_nothing_and_that_of_a_guess(logits: list[float]) -> None:
    entropy = entropies(torch.tensor([logits])).item()
    assert -1e-6 <= entropy <= math.log(len(logits)) + 1e-5


def last_round(scenario: Scenario, **changes: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    run = simulate(scenario.override({name.replace("__", "."): value for name, value in changes.items()}))
    return (frame.filter(pl.col("round") == 2) for frame in (run.clients, run.blocks))


def test_tables_show_the_weights(small_scenario: Scenario) -> None:
    clients, blocks = last_round(small_scenario, sharing="full-model")
    assert clients["weight"].to_list() == clients["num_train_examples"].to_list()
    total = clients["num_train_examples"].sum()
    assert blocks.filter(pl.col("block") == "head")["weight"].to_list() == [total]

    clients, blocks = last_round(small_scenario, sharing="full-model", server__weighting="uniform")
    assert clients["weight"].to_list() == [1.0] * 5
    assert blocks["weight"].to_list() == blocks["contributors"].to_list()

    clients, blocks = last_round(small_scenario, sharing="full-model", server__weighting="entropy")
    weights = clients["weight"].to_numpy()
    # No client can be less sure than a guess among three classes.
    assert (weights > 1 / math.log(3) - 1e-9).all()
    assert len(np.unique(weights)) == 5
    assert blocks.filter(pl.col("block") == "head")["weight"].to_list() == pytest.approx([weights.sum()])


def test_the_average_follows_the_weights(small_scenario: Scenario) -> None:
    """Two clients, one of them with nearly all samples: evenly weighted, the small one counts as much."""
    scenario = small_scenario.override(
        {"clients": [{"count": 2, "modalities": ["acc", "gyro"]}], "sharing": "full-model", "rounds": 1}
    )
    uneven = scenario.override({"data.partition": {"kind": "quantity", "alpha": 0.3}, "seed": 3})
    runs = {rule: simulate(uneven.override({"server.weighting": rule})) for rule in ("samples", "uniform")}
    sizes = runs["samples"].clients.filter(pl.col("round") == 1)["num_train_examples"].to_list()
    assert max(sizes) > 2 * min(sizes)
    assert runs["samples"].manifest["digest"] != runs["uniform"].manifest["digest"]
    even = scenario.override({"data.partition": {"kind": "iid"}})
    digests = [simulate(even.override({"server.weighting": rule})).manifest["digest"] for rule in runs]
    # Equal sizes: (53 a + 53 b) / 106 is (a + b) / 2, but for rounding that float32 does not see.
    assert digests[0] == digests[1]


def test_the_engines_measure_the_same_entropies(small_scenario: Scenario) -> None:
    changes = {"sharing": "private-head", "server__weighting": "entropy", "evaluation__batch_size": 7}
    one, _ = last_round(small_scenario, **changes)
    other, _ = last_round(small_scenario, training__engine="vectorized", **changes)
    assert other["weight"].to_list() == pytest.approx(one["weight"].to_list(), rel=1e-4)
