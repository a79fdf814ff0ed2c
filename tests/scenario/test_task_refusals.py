"""What does not go with several tasks, or without them: one line each, which says where, what, and what would do."""

from __future__ import annotations

from typing import Any

import pytest

from blossom_ray.core.section import plain_tree
from blossom_ray.errors import ScenarioError
from blossom_ray.reading.scenario import Scenario

TASKS = {"shape": {"labels": "class"}, "size": {"kind": "regression", "labels": "amplitude"}}
GROUPS = [
    {"count": 2, "task": "shape", "modalities": ["acc"]},
    {"count": 1, "task": "size", "modalities": ["gyro"]},
    {"count": 2, "task": "size", "modalities": ["acc", "gyro"]},
]


def refusals(scenario: Scenario, changes: dict[str, Any]) -> str:
    with pytest.raises(ScenarioError) as raised:
        scenario.override(changes)
    return "\n".join(f"{problem.path}: {problem.found}; {problem.expected}" for problem in raised.value.problems)


@pytest.fixture
def several(small_scenario: Scenario) -> Scenario:
    return small_scenario.override({"tasks": TASKS, "clients": GROUPS})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clients.0.task": None}, "clients.0.task: is null, while there are the tasks shape, size; one of them"),
        ({"clients.0.task": "shap"}, "clients.0.task: is 'shap'; one of shape, size; did you mean 'shape'?"),
        ({"clients.0.task": "size"}, "tasks.shape: is a task that no client has"),
        ({"task": "regression"}, "task: is 'regression', while there are tasks"),
        ({"tasks.shape.labels": "digit"}, "tasks.shape.labels: is 'digit'; one of class, subject, amplitude"),
        ({"tasks.shape.labels": "subject"}, "tasks.shape.labels: is 'subject', while data.subjects is null"),
        (
            {"tasks.size.kind": "classification"},
            "tasks.size.kind: is 'classification', which the labels 'amplitude' do",
        ),
        ({"tasks.size.labels": None}, "tasks.size.kind: is 'regression', while other labels are of a classification"),
        ({"tasks.size.labels": "class"}, "tasks.size.kind: is 'regression', which the labels 'class' do not serve"),
        (
            {"tasks.shape.class_names": ["a", "b", "c"]},
            "tasks.shape.class_names: is given, while data.dataset is 'synth",
        ),
        (
            {"sharing": "central", "tasks.size.lr": 0.1},
            "tasks.size.lr: is 0.1, while sharing is 'central', which trains",
        ),
        (
            {"sharing": "central-per-task", "clients.2.task": ["shape", "size"]},
            "sharing: is 'central-per-task', while cl",
        ),
        (
            {"sharing": "central", "server.task_weights": "equal"},
            "server.task_weights: is 'equal', while sharing is 'central'; 'samples'",
        ),
        ({"server.weighting": "entropy"}, "server.weighting: is 'entropy', while the task is 'regression'"),
        ({"algorithm": {"kind": "fedproto"}}, "while tasks.size.kind is 'regression'"),
        (
            {"server.clients_per_round": {"shape": 1}},
            "server.clients_per_round: says nothing about size; a fraction or a number for each task",
        ),
        (
            {"server.clients_per_round": {"shape": 1, "size": 4}},
            "server.clients_per_round.size: is 4; at most 3, the number of its clients",
        ),
        (
            {"server.clients_per_round": {"shape": 1, "size": 1, "sise": 1}},
            "server.clients_per_round.sise: is of the task 'sise', which there is not; one of shape, size",
        ),
        (
            {"server.clients_per_round": {"shape": 1, "size": 1.5}},
            "server.clients_per_round.size: is 1.5; a number above",
        ),
        ({"server.task_weights": "equl"}, "server.task_weights: is 'equl'; one of samples, equal"),
        (
            {"server.task_weights": "equal", "algorithm": {"kind": "scaffold"}, "training.optimizer": {"kind": "sgd"}},
            "server.task_weights: is 'equal', while algorithm.kind is 'scaffold', for which a client has one weight",
        ),
        ({"training.loss": {"kind": "label-smoothing"}}, "training.loss.kind: is 'label-smoothing'"),
        (
            {"evaluation.metrics": {"mine": {"function": "math:fsum"}}},
            "evaluation.metrics: are given, while the tasks are of the kinds classification, regression",
        ),
        (
            {"data.validation_fraction": 0.2, "stop": {"patience": 1}},
            "stop.metric: is null, while there are the tasks shape, size; a score of one of them, such as "
            "'shape/accuracy'",
        ),
        (
            {"data.validation_fraction": 0.2, "stop": {"patience": 1, "metric": "accuracy"}},
            "stop.metric: is 'accuracy'; a score on the clients' validation splits, such as shape/loss, shape/accuracy",
        ),
        (
            {"data.partition": {"kind": "dirichlet", "labels": "digit"}},
            "data.partition.labels: is 'digit'; one of class, subject, amplitude",
        ),
        (
            {"data.subjects": 9, "tasks.shape.labels": "subject", "data.split": "subject"},
            "tasks.shape.labels: is 'subject', while data.split is 'subject', which tests on others than it trains on",
        ),
        (
            {"sharing": {"encoder/*": "shared", "fusion": "shared", "head/who": "shared"}},
            "sharing.head/who: is not a blo",
        ),
    ],
)
def test_what_does_not_go_with_tasks(several: Scenario, changes: dict[str, Any], told: str) -> None:
    assert told in refusals(several, changes)


@pytest.mark.parametrize("name", ["rmse", "rmse_p10", "loss", "acc", "validation", "round", "test", "mine"])
def test_a_task_is_not_called_as_something_else_is(small_scenario: Scenario, name: str) -> None:
    metrics = {"mine": {"function": "math:fsum"}}
    told = refusals(small_scenario, {"tasks": {name: {}}, "evaluation.metrics": metrics})
    assert f"tasks.{name}: is the name of a score, a column or a modality, too; another name" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clients.0.task": "shape"}, "clients.0.task: is 'shape', while there are no tasks; null, or tasks by name"),
        (
            {"sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "shared"}},
            "sharing.fusion: is 'same-task', while there are no tasks; another scope, or tasks",
        ),
        (
            {"data.partition": {"kind": "dirichlet", "labels": "class"}},
            "data.partition.labels: is 'class', while there a",
        ),
    ],
)
def test_what_does_not_go_without_tasks(small_scenario: Scenario, changes: dict[str, Any], told: str) -> None:
    assert told in refusals(small_scenario, changes)


def test_scopes_are_composed_in_any_order_and_kept_sorted(several: Scenario) -> None:
    map_of = {"encoder/*": "shared", "fusion": "same-task+same-modalities", "head": "same-task"}
    found = several.override({"sharing": map_of})
    assert plain_tree(found, defaults=False)["sharing"]["fusion"] == "same-modalities+same-task"
    assert found == several.override({"sharing": {**map_of, "fusion": "same-modalities+same-task"}})
    assert "sharing.fusion: is 'group+same-task'; one of shared, same-modalities, same-task," in refusals(
        several, {"sharing": {**map_of, "fusion": "same-task+group"}}
    )
