"""What a round tells Prometheus, by hand, and that the dashboard in the docs asks for what there is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, simulate
from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import ActorRound, BlockRound, ClientTraining, Failure, RoundRecord
from blossom_ray.core.scores import LearnedTask
from blossom_ray.runtime.prometheus import METRICS, RUN_TAGS, Reading, readings

DASHBOARD = REPOSITORY / "docs" / "grafana-dashboard.json"
# Ray's own metrics that the dashboard shows, with the labels that it uses; `test_prometheus.py` finds them served.
RAY_METRICS = {
    "ray_object_store_memory": {"NodeAddress", "Location"},
    "ray_spill_manager_objects_bytes": {"NodeAddress", "State"},
}

PROFILES = (ClientProfile(0, ("acc",)), ClientProfile(1, ("acc",), "ward-7"), ClientProfile(2, ("acc", "gyro")))


def training(client: int, seconds: float) -> ClientTraining:
    return ClientTraining(client, 10, 10.0, 1, 0.5, {}, 0, 0, seconds)


def block(name: str, scope: Scope, key: str, down: int, up: int) -> BlockRound:
    return BlockRound(BlockInstance(name, scope, key), 1, 10.0, down, up, 0.1, 0.2)


RECORD = RoundRecord(
    round_index=3,
    learning_rate=0.1,
    cohort=(0, 1, 2),
    training=(training(0, 1.0), training(1, 2.0), training(2, 4.0)),
    evaluation=(ClientEvaluation(1, 5, 0.4, {}, 0, 0.25),),
    fine_tuned=(ClientEvaluation(1, 5, 0.4, {}, 0, 0.5),),
    validation=(ClientEvaluation(1, 2, 0.4, {}, 0, 1.0),),
    fine_tuned_validation=(ClientEvaluation(1, 2, 0.4, {}, 0, 2.0),),
    metrics={
        "train_loss": 0.7, "loss": 0.6, "accuracy": 0.5, "accuracy_p10": 0.1, "accuracy/acc+gyro": 0.75,
        "held_out/accuracy/acc": 0.2, "fine_tuned/accuracy": 0.9, "validation/loss": 0.8,
        "validation/accuracy/acc": 0.3, "validation/fine_tuned/accuracy": 0.6,
    },
    blocks=(
        block("fusion", Scope.SAME_MODALITIES, "acc", 100, 10),
        block("fusion", Scope.SAME_MODALITIES, "acc+gyro", 200, 20),
        block("head", Scope.PRIVATE, "", 0, 0),
    ),
    seconds={"train": 5.0, "evaluate": 1.5, "total": 6.5},
    failures=(Failure("training", (0,), 0, "died", "repeated"), Failure("training", (1, 2), 1, "died", "repeated")),
    actors=(ActorRound(0, 2, 3.0, 300, 1), ActorRound(1, 1, 4.0, 500, 1), ActorRound(2, 1, 0.0, None, 0)),
)  # fmt: skip


def told(metric: str) -> dict[tuple[str, ...], float]:
    """Value by tags in the order that the metric declares them."""
    found = [
        reading for reading in readings(RECORD, PROFILES, {"": LearnedTask()}, 20, 900) if reading.metric == metric
    ]
    return {tuple(reading.tags[tag] for tag in METRICS[metric].tags): reading.value for reading in found}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("blossom_rounds", {(): 1}),
        ("blossom_round", {(): 3}),
        ("blossom_rounds_planned", {(): 20}),
        ("blossom_phase_seconds", {("train",): 5.0, ("evaluate",): 1.5}),
        ("blossom_round_seconds", {("train",): 5.0, ("evaluate",): 1.5}),
        ("blossom_clients_trained", {("acc",): 2, ("acc+gyro",): 1}),
        (
            "blossom_client_seconds",
            {("acc", "train"): 3.0, ("acc+gyro", "train"): 4.0, ("acc", "evaluate"): 3.75},
        ),
        (
            "blossom_block_bytes",
            {
                ("fusion", "same-modalities", "down"): 300, ("fusion", "same-modalities", "up"): 30,
                ("head", "private", "down"): 0, ("head", "private", "up"): 0,
            },
        ),
        ("blossom_score", {("loss", "all"): 0.6, ("accuracy", "all"): 0.5, ("accuracy", "acc+gyro"): 0.75}),
        ("blossom_validation_score", {("loss", "all"): 0.8, ("accuracy", "acc"): 0.3}),
        ("blossom_train_loss", {(): 0.7}),
        ("blossom_failures", {("training", "repeated"): 2}),
        ("blossom_actors", {("driver",): 1, ("client",): 3}),
        ("blossom_actors_replaced", {("client",): 2}),
        ("blossom_actor_memory_bytes", {("driver",): 900, ("client",): 800}),
        ("blossom_actor_memory_max_bytes", {("driver",): 900, ("client",): 500}),
    ],
)  # fmt: skip
def test_readings_by_hand(metric: str, expected: dict[tuple[str, ...], float]) -> None:
    assert told(metric) == expected


def test_every_metric_is_tested_by_hand_and_its_tags_are_those_declared() -> None:
    found = list(readings(RECORD, PROFILES, {"": LearnedTask()}, 20, 900))
    assert {reading.metric for reading in found} == set(METRICS)
    assert [reading for reading in found if set(reading.tags) != set(METRICS[reading.metric].tags)] == []


def test_no_tag_tells_clients_or_groups_apart(small_scenario: Scenario) -> None:
    """Twice the clients: the same series."""

    def series(scenario: Scenario) -> set[tuple[Any, ...]]:
        profiles = tuple(scenario.profiles())
        return {
            (reading.metric, *sorted(reading.tags.items()))
            for record in simulate(scenario, stream=True)
            for reading in readings(record, profiles, scenario.learned, scenario.rounds, 1)
        }

    groups = small_scenario.model_dump()["clients"]
    twice = [{**group, "count": 2 * group["count"], "group": f"site-{i}"} for i, group in enumerate(groups)]
    sharing = {"sharing": {"encoder/*": "shared", "fusion": "group", "head": "private"}, "rounds": 1}
    once = [{**group, "group": "one"} for group in groups]
    assert series(small_scenario.override({"clients": twice, **sharing})) == series(
        small_scenario.override({"clients": once, **sharing})
    )


def test_a_round_without_anything_tells_no_failure_and_no_score() -> None:
    record = RoundRecord(0, None, (), (), (), {}, ())
    found = {
        reading.metric: reading for reading in readings(record, PROFILES, {"": LearnedTask(kind="regression")}, 1, 900)
    }
    assert found["blossom_round"] == Reading("blossom_round", 0)
    assert not found.keys() & {"blossom_score", "blossom_train_loss", "blossom_failures", "blossom_actors_replaced"}


def exported_names() -> dict[str, set[str]]:
    """Labels by name as Prometheus sees them."""
    return {
        f"ray_{name}{'_total' if metric.kind == 'counter' else ''}": {*metric.tags, *RUN_TAGS}
        for name, metric in METRICS.items()
    }


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    return asked


def test_the_dashboard_asks_for_metrics_that_there_are_and_leaves_none_out() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\bray_\w+", text)}
    assert asked == exported_names().keys() | RAY_METRICS.keys()


def test_the_dashboard_asks_for_labels_that_the_metrics_have() -> None:
    known = exported_names() | RAY_METRICS
    for text in expressions():
        names = re.findall(r"\bray_\w+", text)
        matched = [
            (name, label)
            for name, matchers in re.findall(r"\b(ray_\w+)\{([^}]*)\}", text)
            for label in re.findall(r"(\w+)=~?\"", matchers)
        ]
        assert [(name, label) for name, label in matched if label not in known[name]] == [], text
        grouped = {
            label.strip() for found in re.findall(r"(?:by|without) \(([^)]*)\)", text) for label in found.split(",")
        }
        assert grouped <= set().union(*(known[name] for name in names)), text


def test_the_legends_of_the_dashboard_name_labels_that_the_metrics_have() -> None:
    known = exported_names() | RAY_METRICS
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            name = re.findall(r"\bray_\w+", target["expr"])[0]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known[name], panel["title"]


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    cells = [
        (column, row)
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24


def test_the_page_has_every_metric_as_it_is_exported() -> None:
    page = (REPOSITORY / "docs" / "watching.md").read_text(encoding="utf-8")
    listed = {
        name: (set(re.findall(r"`(\w+)`", tags)), text)
        for name, tags, text in re.findall(r"^\| `(ray_\w+)` \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    }
    descriptions = [metric.description.removesuffix(".") for metric in METRICS.values()]
    expected = exported_names().items()
    assert listed == {
        name: (tags - set(RUN_TAGS), text) for (name, tags), text in zip(expected, descriptions, strict=True)
    }
