"""What does not go with several data sets, or without them: a line each, which says where, what, and what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blossom_ray.errors import ScenarioError
from blossom_ray.reading.scenario import Scenario

TREE: dict[str, Any] = {
    "rounds": 1,
    "datasets": {
        "left": {"dataset": "synthetic", "samples": 60},
        "right": {"dataset": "synthetic", "samples": 60},
    },
    "tasks": {"shape": {"data": "left"}, "size": {"data": "right", "kind": "regression", "labels": "amplitude"}},
    "clients": [
        {"count": 2, "task": "shape", "modalities": ["acc", "gyro"]},
        {"count": 2, "task": "size", "modalities": ["acc"]},
    ],
    "model": {"encoders": {name: {"kind": "conv1d", "channels": [2]} for name in ("acc", "gyro")}},
    "execution": {"runtime": "local"},
}


def refusals(changes: dict[str, Any]) -> str:
    with pytest.raises(ScenarioError) as raised:
        Scenario.model_validate(TREE).override(changes)
    return "\n".join(f"{problem.path}: {problem.found}; {problem.expected}" for problem in raised.value.problems)


def har(path: Path) -> dict[str, Any]:
    return {"dataset": "uci-har", "path": str(path)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"dataset": "synthetic"}}, "datasets: are given, while there is data; one of the two"),
        ({"datasets": None}, "data: is missing; a mapping with the key 'dataset': one of synthetic, uci-har"),
        ({"tasks.size.data": "rigth"}, "tasks.size.data: is 'rigth'; one of left, right; did you mean 'right'?"),
        ({"tasks.size.data": None}, "tasks.size.data: is null, while there are the data sets left, right; one of left"),
        ({"tasks.size.data": "left"}, "datasets.right: is a data set that no task has; a task with data: right"),
        ({"tasks": None}, "tasks: are not there, while there are the data sets left, right; one of left, right"),
        (
            {"sharing": "central"},
            "datasets: are left, right, while sharing is 'central', whose one model has samples of",
        ),
        ({"compat": "blossom-reference"}, "compat: is 'blossom-reference', while there are the data sets left, right"),
        # Rules about `data` hold for each data set, in its words, about its own clients, tasks and modalities.
        (
            {"datasets.left.test_fraction": 0.6, "datasets.left.validation_fraction": 0.5},
            "datasets.left.validation_fraction: is 0.5, which beside datasets.left.test_fraction 0.6 leaves no samples",
        ),
        (
            {"datasets.right.samples": 3},
            "datasets.right.samples: is 3; at least 4, 2 for each of 2 clients",
        ),
        (
            {"datasets.right.partition": {"kind": "subject"}},
            "datasets.right.partition.kind: is 'subject', while datasets.right.subjects is null; a number of subjects "
            "in datasets.right.subjects, or another choice",
        ),
        (
            {"datasets.right.observed": {"gyro": 0.5}},
            "datasets.right.observed.gyro: is not one; a modality that these clients own: acc",
        ),
        ({"tasks.shape.labels": "digit"}, "tasks.shape.labels: is 'digit'; one of class, subject, amplitude"),
        (
            {"datasets.left.partition": {"kind": "dirichlet", "labels": "digit"}},
            "datasets.left.partition.labels: is 'digit'; one of class, subject, amplitude",
        ),
        (
            {"datasets.right.split": "common-subject", "datasets.right.draws": "reference"},
            "datasets.right.split: is 'common-subject', while datasets.right.draws is 'reference'; 'sample'",
        ),
        ({"datasets.right.sample": 3}, "datasets.right.sample: is not a known key"),
        ({"datasets.right.dataset": "uci"}, "datasets.right.dataset: is 'uci'; one of synthetic, uci-har"),
        ({"datasets.a-b": {"dataset": "synthetic"}}, "datasets.a-b: "),
        (
            {"clients.0.task": ["shape", "size"]},
            "clients.0.task: is [shape, size], of the data sets left, right; tasks of one data set",
        ),
        (
            {"datasets.left.validation_fraction": 0.2, "stop": {"patience": 1, "metric": "size/rmse"}},
            "stop.metric: is 'size/rmse', while datasets.right.validation_fraction is 0; datasets.right.validation_f",
        ),
        ({"clients": "from-data"}, "clients: is 'from-data', while there are the tasks shape, size"),
    ],
)
def test_what_does_not_go_with_data_sets(changes: dict[str, Any], told: str) -> None:
    assert told in refusals(changes)


def test_prototypes_stand_for_what_a_data_set_has_and_a_client_lacks() -> None:
    sharing = {"encoder/*": "same-task", "fusion": "same-task", "head": "shared"}
    changes: dict[str, Any] = {"model.missing": "prototype", "sharing": sharing}
    Scenario.model_validate(TREE).override(changes)  # nobody with the data of `left` lacks gyro
    told = refusals(changes | {"sharing": {**sharing, "fusion": "shared"}})
    assert "model.missing: is 'prototype', while encoder/gyro has the scope same-task" in told


def test_a_task_without_data_sets_names_none(small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"tasks\.only\.data is 'left', while there are no datasets; expected null"):
        small_scenario.override({"tasks": {"only": {"data": "left"}}})


@pytest.mark.parametrize("other", ["har.zip", "./har.zip", "link.zip"])
def test_the_same_file_twice_is_one_data_set_with_two_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Else the test rows of the one would be training rows of the other."""
    monkeypatch.chdir(tmp_path)
    Path("har.zip").touch()
    Path("link.zip").symlink_to("har.zip")
    datasets = {"left": har(Path("har.zip")), "right": {**har(Path(other)), "zscore": True}}
    tasks = {"shape": {"data": "left"}, "size": {"data": "right", "labels": "subject"}}
    expected = (
        "datasets.right.path: is that of datasets.left, so one's test rows would be the other's training rows; one data"
    )
    assert expected in refusals({"datasets": datasets, "tasks": tasks})


def test_a_file_that_is_missing_is_told_by_its_data_set() -> None:
    assert "datasets.left.path: is 'none.zip', which does not exist" in refusals(
        {"datasets.left": har(Path("none.zip"))}
    )


def test_a_modality_that_a_data_set_lacks_is_refused(tmp_path: Path) -> None:
    changes = {
        "datasets.left": har(tmp_path),
        "clients.0.modalities": ["acc", "ecg"],
        "model.encoders.ecg.kind": "conv1d",
    }
    assert "model.encoders.ecg: is an encoder of a modality that uci-har does not have" in refusals(changes)
