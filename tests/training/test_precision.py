"""`training.precision: bfloat16`: products in bfloat16, everything that is kept in float32, in both engines."""

from typing import Any

import numpy as np
import pytest
from test_stacked import BATCH_NORM_HEAD, ENCODERS, make_tasks, train_alone, train_stacked, training, workspace

from blossom_ray import Scenario, simulate
from blossom_ray.clients.job import LocalResult
from blossom_ray.clients.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

# bfloat16 has 8 significant bits: a relative error of 2^-8 in a product of numbers of this size.
ROUNDING = 2**-8


def difference(found: list[LocalResult], expected: list[LocalResult]) -> float:
    return max(
        float(np.abs(one.blocks[name] - other.blocks[name]).max())
        for one, other in zip(found, expected, strict=True)
        for name in one.blocks
    )


def trained(space: Workspace, engine: str) -> list[LocalResult]:
    tasks, section = make_tasks(space), training()
    return (
        train_stacked(space, tasks, section)
        if engine == "vectorized"
        else [train_alone(space, t, section) for t in tasks]
    )


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(
    "make",
    [
        *({"encoder": encoder} for encoder in ENCODERS.values()),
        *({"fusion": {"kind": kind, "dim": 6}, "owned": ("acc",)} for kind in ("attention", "mean", "gated")),
        {"missing": "zero-input", "owned": ("acc",)},
    ],
    ids=[*ENCODERS, "attention", "mean", "gated", "zero-input"],
)
def test_training_is_that_of_float32_but_for_the_rounding_of_products(make: dict[str, Any], engine: str) -> None:
    exact, space = workspace(**make), workspace(**make)
    space.model.precision = "bfloat16"
    expected, found = trained(exact, engine), trained(space, engine)
    assert 0 < difference(found, expected) < ROUNDING
    assert {values.dtype for result in found for values in result.blocks.values()} == {np.dtype(np.float32)}
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=ROUNDING)


def test_batch_statistics_are_float32() -> None:
    space = workspace(head=BATCH_NORM_HEAD, norm_statistics="local")
    space.model.precision = "bfloat16"
    for engine in ("sequential", "vectorized"):
        for result in trained(space, engine):
            statistics = result.local_state["head"]
            assert {v.dtype for k, v in statistics.items() if "running" in k} == {np.dtype(np.float32)}


def test_a_weight_that_a_step_has_changed_is_the_one_that_the_next_step_sees() -> None:
    """Autocast keeps copies of weights while it is on: with stale ones, all steps would go where the first one went."""
    exact, space = workspace(), workspace()
    space.model.precision = "bfloat16"
    section = training({"kind": "sgd"}, local_epochs=30)
    results = [train_alone(s, make_tasks(s, [8])[0], section) for s in (exact, space)]
    assert results[1].loss == pytest.approx(results[0].loss, rel=0.01)
    moved = float(np.abs(results[0].blocks["fusion"] - make_tasks(exact, [8])[0].blocks["fusion"]).max())
    assert difference([results[1]], [results[0]]) < 0.1 * moved


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_scenario_sets_it_for_training_and_evaluation(small_scenario: Scenario, engine: str) -> None:
    scenario = small_scenario.override({"training.engine": engine, "evaluation.held_out": "every"})
    exact, rounded = simulate(scenario), simulate(scenario.override({"training.precision": "bfloat16"}))
    # Round 0 scores the same initial blocks.
    losses = [run.rounds["loss"][0] for run in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=ROUNDING)
    assert rounded.rounds["train_loss"][-1] == pytest.approx(exact.rounds["train_loss"][-1], rel=0.02)
    assert simulate(rounded.scenario).manifest["digest"] == rounded.manifest["digest"]
