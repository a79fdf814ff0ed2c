"""Metrics of the user's own: by hand, in the tables, in comparisons, and what they may give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from blossom_ray import Scenario, ScenarioError, compare, simulate
from blossom_ray.core.scores import OTHER_COLUMNS
from blossom_ray.errors import RunError
from blossom_ray.runs.tables import CLIENT_COLUMNS, ROUND_COLUMNS, SOME_COLUMNS
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.base import Metric


def top(labels: np.ndarray, outputs: np.ndarray, *, k: int = 1) -> float:
    """Share of samples whose class is among the k largest outputs."""
    best = np.argsort(-outputs, axis=1)[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def nothing(labels: np.ndarray, outputs: np.ndarray) -> None:
    """No value on any samples."""


def misses(labels: np.ndarray, outputs: np.ndarray) -> int:
    return int((outputs.argmax(axis=1) != labels).sum())


LABELS = np.array([0, 1, 2, 2])
OUTPUTS = np.array([[3, 2, 1], [3, 2, 1], [3, 2, 1], [1, 2, 3]], dtype=np.float32)


def rules(**metrics: Any) -> Any:
    return task_rules("classification", {name: Metric(**section) for name, section in metrics.items()})


def test_by_hand() -> None:
    # Right at once: samples 0 and 3; among the two largest: 0, 1 and 3.
    own = rules(top_1={"function": top}, top_2={"function": top, "options": {"k": 2}}, none={"function": nothing})
    assert own.predict(torch.from_numpy(OUTPUTS)).shape == (4, 3)
    tally = own.tally(LABELS, OUTPUTS, 3)
    scores = own.scores(tally)
    assert (scores["accuracy"], scores["top_1"], scores["top_2"], scores["none"]) == (0.5, 0.5, 0.75, None)
    assert list(scores)[-3:] == ["top_1", "top_2", "none"]


def test_values_of_several_clients_do_not_add_up() -> None:
    own = rules(top_2={"function": top, "options": {"k": 2}})
    together = own.scores(own.tally(LABELS[:2], OUTPUTS[:2], 3) + own.tally(LABELS[2:], OUTPUTS[2:], 3))
    assert (together["accuracy"], together["top_2"]) == (0.5, None)


def test_a_metric_that_repeats_a_score_has_its_values(small_scenario: Scenario) -> None:
    metrics = {"top_1": {"function": top}, "misses": {"function": misses, "lower_is_better": True}}
    for engine in ("sequential", "vectorized"):
        run = simulate(small_scenario.override({"evaluation.metrics": metrics, "training.engine": engine}))
        assert run.clients["top_1"].to_list() == pytest.approx(run.clients["accuracy"].to_list())
        for column in ("", "_p10", "_p50", "_p90", "/acc", "/acc+gyro"):
            expected = run.rounds[f"accuracy{column}"].to_list()
            assert run.rounds[f"top_1{column}"].to_list() == pytest.approx(expected), column
        assert "top_1_pooled" not in run.rounds.columns
        assert "held_out/top_1/acc" in run.rounds.columns
        wrong = (1 - run.clients["accuracy"]) * run.clients["num_test_examples"]
        assert run.clients["misses"].to_list() == pytest.approx(wrong.to_list())


def test_metrics_change_nothing_else(small_scenario: Scenario) -> None:
    plain = simulate(small_scenario)
    run = simulate(small_scenario.override({"evaluation.metrics": {"top_2": {"function": top, "options": {"k": 2}}}}))
    assert run.manifest["digest"] == plain.manifest["digest"]
    timed = [column for column in plain.rounds.columns if "seconds" in column]
    assert run.rounds.select(plain.rounds.columns).drop(timed).equals(plain.rounds.drop(timed))


def test_comparisons_know_their_direction_and_unit(small_scenario: Scenario) -> None:
    metrics = {
        "misses": {"function": misses, "lower_is_better": True},
        "top_2": {"function": top, "options": {"k": 2}, "is_share": True},
    }
    scenario = small_scenario.override({"evaluation.metrics": metrics, "rounds": 3})
    runs = [simulate(scenario.override({"sharing": sharing})) for sharing in ("full-model", "private-head")]
    found = compare(*runs, metric="misses")
    assert (found.lower_is_better, found.is_share) == (True, False)
    assert found.runs["best"][0] == min(runs[0].rounds["misses"][1:])
    found = compare(*runs, metric="top_2")
    assert (found.lower_is_better, found.is_share) == (False, True)
    assert found.runs["best"][0] == max(runs[0].rounds["top_2"][1:])


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(small_scenario: Scenario, task: str) -> None:
    def largest(labels: np.ndarray, outputs: np.ndarray) -> float:
        assert labels.shape == outputs.shape
        return float(np.abs(labels - outputs).max())

    run = simulate(small_scenario.override({"task": task, "evaluation.metrics": {"largest": {"function": largest}}}))
    assert run.final["largest"] > 0


def test_samples_are_read_only(small_scenario: Scenario) -> None:
    def meddling(labels: np.ndarray, outputs: np.ndarray) -> float:
        outputs[:] = 0
        return 0.0

    scenario = small_scenario.override({"evaluation.metrics": {"zero": {"function": meddling}}})
    with pytest.raises(RunError, match=r"^evaluation\.metrics\.zero\.function raised ValueError: .*read-only"):
        simulate(scenario)


@pytest.mark.parametrize("value", ["much", True, [1.0], 1j])
def test_what_is_no_number(value: Any) -> None:
    own = rules(odd={"function": lambda *_: value})
    with pytest.raises(RunError, match=r"evaluation\.metrics\.odd\.function gave .*; expected a number, or None"):
        own.tally(LABELS, OUTPUTS, 3)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), 2, math.nan])
def test_what_is_a_number(value: Any) -> None:
    own = rules(fine={"function": lambda *_: value})
    assert own.scores(own.tally(LABELS, OUTPUTS, 3))["fine"] == pytest.approx(float(value), nan_ok=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy", r"evaluation\.metrics\.accuracy is the name of a column that runs have already"),
        ("weight", r"evaluation\.metrics\.weight is the name of a column"),
        ("top_p10", r"evaluation\.metrics\.top_p10 ends with one of _pooled, _p10, _p50, _p90"),
        ("a/b", r"evaluation\.metrics\.a/b"),
    ],
)
def test_names_that_are_taken(small_scenario: Scenario, name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        small_scenario.override({"evaluation": {"metrics": {name: {"function": top}}}})


def test_no_column_of_the_tables_can_be_taken() -> None:
    assert {*ROUND_COLUMNS, *CLIENT_COLUMNS, *SOME_COLUMNS} == OTHER_COLUMNS


def test_functions_that_cannot_be_found_are_told_before_a_run(small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"evaluation\.metrics\.x\.function is 'math:no_such', but math has no"):
        simulate(small_scenario.override({"evaluation.metrics": {"x": {"function": "math:no_such"}}}))
