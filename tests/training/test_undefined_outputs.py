"""Outputs that are not finite: a model that gives them has no scores, and the run says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from blossom_ray import Scenario, compare, simulate
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.errors import ClientError, RunError
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.base import Metric
from blossom_ray.tasks.summary import summarize

DIVERGING = {"rounds": 1, "training.batch_size": 64, "training.optimizer": {"kind": "sgd", "lr": 1e20}}


class Spoiled(nn.Module):
    """A linear head whose outputs are `value` in evaluation mode, in one column or in all."""

    def __init__(self, input_dim: int, num_outputs: int, value: float = math.nan, column: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, num_outputs)
        self.value, self.column = value, column

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.linear(features)
        if self.training or not features.abs().sum():  # zeros are what a new head is tried with
            return outputs
        spoiled = outputs.clone()
        spoiled[:, slice(None) if self.column is None else self.column] = self.value
        return spoiled


def largest(labels: Any, outputs: Any) -> float:
    assert (outputs == outputs).all(), "own metrics are not asked about outputs that are not finite"
    return float(outputs.max())


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("sharing", ["private-head", "full-model", "local"])
def test_a_run_that_diverges_in_its_last_round_has_no_scores(
    small_scenario: Scenario, sharing: str, engine: str
) -> None:
    changes = {**DIVERGING, "sharing": sharing, "training.engine": engine}
    run = simulate(small_scenario.override({**changes, "evaluation.metrics": {"largest": {"function": largest}}}))
    last = run.rounds.row(-1, named=True)
    scores = ("accuracy", "macro_f1_all", "accuracy_pooled", "accuracy/acc", "held_out/accuracy/acc", "largest")
    assert all(math.isnan(last[name]) for name in scores)
    assert run.clients.filter(pl.col("round") == 1)["balanced_accuracy"].is_nan().all()
    assert run.rounds["accuracy"][0] > 0
    (note,) = (note for note in run.manifest["notes"] if "not finite" in note)
    assert note.startswith("round 1: outputs of client 0 and 4 others on their own test samples and the held-out set")


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize(("value", "sharing"), [(math.nan, "central"), (math.inf, "full-model"), (-math.inf, "local")])
def test_every_task_knows_outputs_that_are_not_finite(
    small_scenario: Scenario, task: str, value: float, sharing: str
) -> None:
    head = {"kind": "custom", "factory": Spoiled, "options": {"value": value}}
    changes = {"task": task, "model.head": head, "sharing": sharing, "evaluation.fine_tune": {"epochs": 1}}
    run = simulate(small_scenario.override(changes))
    found = {name: run.rounds[name].to_list() for name in run.rounds.columns}
    score = {"classification": "accuracy", "multilabel": "macro_auroc", "regression": "rmse"}[task]
    assert all(math.isnan(number) for number in found[score])
    assert math.isnan(found[f"fine_tuned/{score}"][-1])
    assert any(note.startswith("round 0: outputs") for note in run.manifest["notes"])


def test_a_class_that_a_head_rules_out_is_no_missing_score(small_scenario: Scenario) -> None:
    head = {"kind": "custom", "factory": Spoiled, "options": {"value": -math.inf, "column": 0}}
    run = simulate(small_scenario.override({"model.head": head}))
    assert run.rounds["accuracy"].is_finite().all()
    assert not any("not finite" in note for note in run.manifest["notes"])


def test_one_client_that_diverges_leaves_no_mean_over_the_others() -> None:
    rules = task_rules("classification", {"largest": Metric(function=largest)})
    labels, good, bad = (np.array(v) for v in ([0, 1], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, math.nan]]))
    tallies = [rules.tally(labels, outputs, 2) for outputs in (good, bad, good)]
    assert [rules.scores(tally)["accuracy"] == 1 for tally in tallies] == [True, False, True]
    for order in ((0, 1, 2), (1, 0, 2)):
        both = rules.scores(tallies[order[0]] + tallies[order[1]] + tallies[order[2]])
        assert math.isnan(both.pop("accuracy") or 0)
        assert both["largest"] is None
    evaluations = [ClientEvaluation(k, 2, 0.5, rules.scores(tally), 0, 0.0) for k, tally in enumerate(tallies)]
    summary = summarize(evaluations, ["acc", "acc+gyro", "acc"], {"accuracy": math.nan})
    assert math.isnan(summary["accuracy"])
    assert math.isnan(summary["accuracy/acc+gyro"])
    assert summary["accuracy/acc"] == 1


def test_compare_leaves_such_scores_out_and_says_so(small_scenario: Scenario, tmp_path: Path) -> None:
    good = simulate(small_scenario.override({"rounds": 1}), out=tmp_path)
    bad = simulate(small_scenario.override({**DIVERGING, "seed": 1}), out=tmp_path)
    comparison = compare(good, bad, metric="accuracy")
    assert any("ends with no finite accuracy" in note for note in comparison.notes)
    rows = comparison.runs.filter(pl.col("modalities") == "all clients").sort("seed")
    assert rows["final"].to_list() == [good.rounds["accuracy"][-1], None]


def test_a_server_step_that_is_not_finite_ends_the_run(small_scenario: Scenario) -> None:
    optimizer = {"kind": "fedadam", "lr": 1e38, "beta1": 0.0, "beta2": 0.99, "tau": 1e-9}
    with pytest.raises(RunError, match=r"not finite after the server's step\nhint: a smaller server.optimizer.lr"):
        simulate(small_scenario.override({"server.optimizer": optimizer}))


def test_a_weight_by_entropy_needs_finite_outputs(small_scenario: Scenario) -> None:
    head = {"kind": "custom", "factory": Spoiled}
    changes = {"model.head": head, "server.weighting": "entropy"}
    with pytest.raises(ClientError, match="client 0, round 1: outputs on its training samples are not finite"):
        simulate(small_scenario.override(changes))


def test_rules_keep_the_class_of_finite_outputs() -> None:
    outputs = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-math.inf, 0.5], [math.nan, 1.0], [math.inf, 1.0]])
    assert task_rules("classification").predict(outputs).tolist() == [0, 1, 1, -1, -1]
