"""Federations with clients that have several tasks, and samples of which some labels are not known."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from blossom_ray import Dataset, Run, Scenario, compare, from_arrays, simulate
from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.runs.following import follow
from blossom_ray.runtime.preparation import prepare
from blossom_ray.studies.algorithm_trial import algorithm_problem
from blossom_ray.studies.comparison.tasks import task_view

pytestmark = pytest.mark.usefixtures("one_thread")

_ENCODER = {"kind": "mlp", "hidden": [5], "dim": 4}
CLIENTS = [
    {"count": 2, "task": "act", "modalities": ["acc"]},
    {"count": 1, "task": "grade", "modalities": ["acc", "gyro"]},
    {"count": 2, "task": ["grade", "act"], "modalities": ["acc", "gyro"]},
]
TASKS: dict[str, Any] = {
    "act": {"labels": "act"},
    "grade": {"labels": "grade", "kind": "regression", "loss_weight": 0.3},
}


def data(known: float = 0.85, size: int = 120, held_out: int = 0) -> Dataset:
    """Samples of two tasks; so many have a label of each, and a tenth has none at all; the last ones are held out."""
    draw = np.random.default_rng(0)
    classes, lost = draw.integers(0, 3, size), draw.random(size) < 0.1 * (known < 1)
    acc, gyro = draw.standard_normal((size, 4)) + classes[:, None], draw.standard_normal((size, 3))
    has = [(draw.random(size) < known) & ~lost for _ in range(2)]
    act = ["xyz"[label] if is_known else None for label, is_known in zip(classes, has[0], strict=True)]
    grade = [float(values[0]) if is_known else None for values, is_known in zip(acc, has[1], strict=True)]
    columns: dict[str, Any] = {"act": (act, "classification"), "grade": (grade, "regression")}
    splits = ["train"] * (size - held_out) + ["held-out"] * held_out
    return from_arrays({"acc": acc, "gyro": gyro}, list(map(str, classes)), label_columns=columns, splits=splits)


def scenario(known: float = 0.85, **changes: Any) -> Scenario:
    tree: dict[str, Any] = {
        "rounds": 2,
        "data": {"dataset": "custom", "factory": partial(data, known), "validation_fraction": 0.2},
        "clients": CLIENTS,
        "tasks": TASKS,
        "model": {
            "encoders": {"acc": _ENCODER, "gyro": _ENCODER},
            "fusion": {"kind": "mean", "dim": 4},
            "head": {"kind": "linear"},
        },
        "sharing": "full-model",
        "training": {"optimizer": {"kind": "sgd", "lr": 0.1}, "batch_size": 4},
        "execution": {"runtime": "local"},
    }
    return Scenario.model_validate(tree).override(changes)


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(scenario())


def test_a_client_has_one_row_with_scores_of_each_of_its_tasks(run: Run) -> None:
    rows = run.clients.filter(round=2)
    assert rows["client"].to_list() == [0, 1, 2, 3, 4]
    assert rows["task"].to_list() == ["act", "act", "grade", "act+grade", "act+grade"]
    for column in ("loss", "train_loss"):
        assert rows[column].null_count() == 5
        assert rows[f"act/{column}"].is_null().to_list() == [False, False, True, False, False]
        assert rows[f"grade/{column}"].is_null().to_list() == [True, True, False, False, False]
    assert (rows["num_test_examples"] >= rows["grade/num_examples"]).drop_nulls().all()
    # The summary weighs clients by their samples with a label of the task.
    own = rows.drop_nulls("grade/rmse")
    mean = np.average(own["grade/rmse"], weights=own["grade/num_examples"])
    assert run.final["grade/rmse"] == pytest.approx(mean)
    assert not {"loss", "accuracy", "rmse", "train_loss"} & set(run.rounds.columns)


def test_samples_without_any_label_of_their_client_are_left_out_and_counted(run: Run, tmp_path: Path) -> None:
    dataset, found = data(), prepare(scenario(), tmp_path)
    known = {name: dataset.label_columns[name].known for name in TASKS}
    counts = {each["what"]: each["count"] for each in run.manifest["data"]["left_out"]}
    assert sum(counts.values()) == 120 - found.shards.num_samples.sum() > 0
    assert all("without a label that their client learns" in what for what in counts)
    with found.open_shards() as shards:
        for profile in found.population.profiles:
            labels = shards.shard(profile.index).labels
            for split in (shards.shard(profile.index).train(), shards.shard(profile.index).test()):
                assert all(len(split.labels) > 0 for _ in known)
            places = [part.known_rows(labels)[1] for part in found.plan.learned(profile).parts]
            assert np.any([own.reshape(len(labels), -1).any(axis=1) for own in places if own is not None], axis=0).all()
    notes = [note for note in run.manifest["notes"] if note.endswith("labels of clients are known")]
    assert [note.partition(":")[0] for note in notes] == ["act", "grade"]


def test_both_engines_agree(run: Run) -> None:
    stacked = simulate(scenario(**{"training.engine": "vectorized"}))
    assert stacked.manifest["engines"] == {"acc": "vectorized", "acc+gyro": "vectorized"}
    assert stacked.final == pytest.approx(run.final, rel=1e-4, abs=1e-5)


def test_a_task_that_counts_nothing_leaves_a_client_what_it_is() -> None:
    alike = {name: {"labels": "act", "loss_weight": weight} for name, weight in (("one", 1.0), ("other", 1e-12))}
    groups = [{"count": 5, "modalities": ["acc", "gyro"], "task": ["one", "other"]}]
    both = simulate(scenario(1.0, tasks=alike, clients=groups))
    groups = [{"count": 5, "modalities": ["acc", "gyro"]}]
    single = simulate(scenario(1.0, tasks={"one": {"labels": "act"}}, clients=groups))
    for name in ("one/accuracy", "one/loss", "one/train_loss"):
        assert both.final[name] == pytest.approx(single.final[name], rel=1e-5)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_private_parts_phases_and_fine_tuning_are_of_all_heads(engine: str) -> None:
    changes: dict[str, Any] = {
        "sharing": "private-head",
        "training.alternate": {},
        "training.engine": engine,
        "evaluation.fine_tune": {"blocks": "head", "epochs": 2, "lr": 0.3},
        "clients": [*CLIENTS, {"count": 1, "task": ["grade", "act"], "modalities": ["acc", "gyro"], "role": "unseen"}],
    }
    found = simulate(scenario(**changes)).clients.filter(round=2)
    for task in ("act", "grade"):
        own = found.drop_nulls(f"{task}/loss")
        assert (own[f"{task}/loss"] != own[f"fine_tuned/{task}/loss"]).all()
        assert found[f"unseen/{task}/loss"].drop_nulls().len() == 1
        assert found[f"validation/{task}/num_examples"].drop_nulls().len() == len(own)


ALGORITHMS = ("scaffold", "fednova", "ditto", "moon", "mixed", "pfedme", "ifca", "fedmsplit", "harmony", "low-rank")


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_algorithms_take_clients_with_several_tasks(kind: str) -> None:
    how = {"algorithm": {"kind": kind}, "rounds": 1, "data.validation_fraction": 0.0}
    one, other = (simulate(scenario(**how, **{"training.engine": each})) for each in ("sequential", "vectorized"))
    assert np.isfinite(one.final["act/loss"])
    if kind not in ("ifca", "harmony"):  # which choose by numbers that engines round differently
        assert other.final == pytest.approx(one.final, rel=1e-3, abs=1e-4)


def test_samples_that_lack_a_modality_and_labels_on_both_engines() -> None:
    gaps = {"data.observed": {"gyro": 0.7}, "data.without_modality": "leave-out", "model.missing": "zero-input"}
    one, other = (simulate(scenario(**gaps, **{"training.engine": each})) for each in ("sequential", "vectorized"))
    assert "grade/rmse@acc" in one.final
    assert other.final == pytest.approx(one.final, rel=1e-3, abs=1e-4)


def test_a_map_may_say_what_is_of_one_task_alone() -> None:
    """Its fusion is private, and so there are phases to alternate between."""
    sharing = {
        "encoder/*": "shared",
        "fusion": "shared",
        "fusion/act": "private",
        "head/grade": "private",
        "head": "shared",
    }
    run = simulate(scenario(sharing=sharing, rounds=1, **{"training.alternate": {}}))
    scopes = dict(run.blocks.filter(round=1).select("block", "scope").rows())
    assert scopes == {
        "encoder/acc": "shared", "encoder/gyro": "shared", "fusion/act": "private", "fusion/grade": "shared",
        "head/act": "shared", "head/grade": "private",
    }  # fmt: skip


def test_a_rate_of_its_own_is_for_clients_with_that_task_alone(tmp_path: Path) -> None:
    tasks = {**TASKS, "act": {"labels": "act", "lr": 0.01}}
    found = prepare(scenario(tasks=tasks), tmp_path)
    rates = [found.plan.learning_rate(profile, 0.1, 1) for profile in found.population.profiles]
    assert rates == [0.01, 0.01, 0.1, 0.1, 0.1]


def test_the_held_out_set_scores_each_task_on_its_samples_with_labels() -> None:
    how = {"evaluation.held_out": "final", "evaluation.per_class": "final", "rounds": 1}
    own = {"dataset": "custom", "factory": partial(data, 0.85, 150, 30)}
    found, held_out = simulate(scenario(data=own, **how)), data(0.85, 150, 30).held_out
    assert held_out is not None
    known = {name: column.known for name, column in held_out.label_columns.items()}
    assert known["act"] is not None
    classes = found.classes.filter(scoring="held_out/act", modalities="acc")
    assert classes["num_true"].sum() == int(known["act"].sum()) < 30
    assert {"held_out/grade/rmse/acc+gyro", "held_out/act/accuracy/acc+gyro"} <= found.final.keys()


@pytest.mark.parametrize(("fusion", "is_mixed"), [("same-task", False), ("shared", True)])
def test_statistics_of_a_task_are_not_mixed_by_what_else_its_clients_learn(fusion: str, is_mixed: bool) -> None:
    changes = {
        "clients": [{"count": 2, "task": task, "modalities": ["acc", "gyro"]} for task in ("act", ["act", "grade"])],
        "sharing": {"encoder/*": "shared", "fusion": fusion, "head": "shared"},
        "model.fusion.norm": "batch",
        "rounds": 1,
    }
    notes = simulate(scenario(**changes)).manifest["notes"]
    assert any("fusion" in note and "statistics" in note for note in notes) == is_mixed


def test_a_run_that_another_process_writes_is_read_by_task(tmp_path: Path) -> None:
    path = REPOSITORY / "scenarios" / "tasks" / "both.yaml"
    changes = {"rounds": 1, "data.samples": 200, "data.validation_fraction": 0.2}
    run = simulate(Scenario.load(path, changes), out=tmp_path)
    (*_, last) = follow(next(tmp_path.rglob("manifest.json")).parent)
    clients = run.clients.filter(round=1)
    for found, prefix in ((last.evaluation, ""), (last.validation, "validation/")):
        assert [(each.client, each.task) for each in found][-2:] == [(8, "shape"), (8, "strength")]
        for each in found:
            row = clients.row(each.client, named=True)
            assert each.loss == row[f"{prefix}{each.task}/loss"]
            assert each.num_examples == row[f"{prefix}{each.task}/num_examples"]
            assert {f"{prefix}{each.task}/{name}": v for name, v in each.scores.items()}.items() <= row.items()
    assert last.num_evaluated == 9


class ByTask:
    """An own algorithm that looks at all that a batch has by task."""

    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {f"known {task}": Extra(shape=(number,), scope="private") for task, number in layout.outputs.items()}

    def before(self, batch: Any) -> dict[str, Any]:
        return dict(_by_task(batch.losses))

    def loss(self, batch: Any) -> Any:
        outputs, targets, labelled = (_by_task(each) for each in (batch.outputs, batch.targets, batch.labelled))
        assert outputs.keys() == targets.keys() == labelled.keys()
        return 0.1 * sum((values.square().mean(dim=1) for values in outputs.values()), start=0 * batch.total_loss)

    def finish(self, k: Client) -> dict[str, Any]:
        return {"model": Sent(k.new)}


def _by_task(values: Any) -> Any:
    return values if isinstance(values, dict) else {"only": values}


class OfOne(ByTask):
    """It takes losses for numbers per sample, which those of several tasks are not."""

    def before(self, batch: Any) -> dict[str, Any]:
        return {"loss": batch.losses}


def test_own_algorithms_see_what_is_of_each_task() -> None:
    own = scenario(algorithm={"kind": "custom", "factory": ByTask})
    assert algorithm_problem(own) is None
    one, other = (simulate(own.override({"training.engine": each})) for each in ("sequential", "vectorized"))
    assert other.final == pytest.approx(one.final, rel=1e-3, abs=1e-4)
    wrong = algorithm_problem(scenario(algorithm={"kind": "custom", "factory": OfOne}))
    assert wrong is not None
    assert wrong[0].startswith("before or after gave loss of dict")


def test_a_null_in_a_scenario_of_one_task_is_no_label() -> None:
    def factory() -> Dataset:
        draw = np.random.default_rng(1)
        labels = [["a", "b", None][number] for number in draw.integers(0, 3, 60)]
        return from_arrays({"acc": draw.standard_normal((60, 4)), "gyro": draw.standard_normal((60, 3))}, labels)

    groups = [{"count": 2, "modalities": ["acc", "gyro"]}]
    found = simulate(scenario(tasks=None, clients=groups, data={"dataset": "custom", "factory": factory}))
    counts = sum(each["count"] for each in found.manifest["data"]["left_out"])
    known = factory().known
    assert known is not None
    assert counts == int((~known).sum()) > 0
    assert found.manifest["data"]["num_train"] + found.manifest["data"]["num_test"] == 60 - counts
    assert not any(
        note.endswith("labels of clients are known") for note in found.manifest["notes"]
    )  # all that are left


def test_every_client_has_a_label_of_each_task_for_each_purpose(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"leaves client \d with \d+ \w+ rows, of none of which labels of \w+ are known"
    ):
        prepare(scenario(0.05), tmp_path)


def test_each_task_is_compared_with_training_alone_and_has_all_of_its_clients(run: Run) -> None:
    alone = simulate(run.scenario.override({"sharing": "local"}))
    for metric, sign, number in (("act/accuracy", 1, 4), ("grade/rmse", -1, 3)):
        table = compare(run, alone, metric=metric, baseline={"sharing": "local"}).runs
        row = table.filter(table["sharing"] != "local").row(0, named=True)
        own, other = (each.clients.filter(round=2)[metric].drop_nulls() for each in (run, alone))
        assert (len(own), row["compared_final"]) == (number, number)
        assert row["lost_final"] == sum(sign * (mine - theirs) < 0 for mine, theirs in zip(own, other, strict=True))
    view = task_view(run, "grade").clients.filter(round=2)
    assert view["client"].to_list() == [2, 3, 4]
    assert view["loss"].null_count() == view["train_loss"].null_count() == 0
    assert view["num_test_examples"].to_list() == run.clients.filter(round=2)["grade/num_examples"].to_list()[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients.0.task": ["act", "act"]}, "clients.0.task.*each task once"),
        ({"clients.2.task": ["act", "mood"]}, "clients.2.task is 'mood'; expected one of act, grade"),
        ({"clients": CLIENTS[:2]}, "tasks.grade.loss_weight is 0.3, while all clients have one task"),
        ({"sharing": {"encoder/*": "same-task", "fusion": "shared", "head": "shared"}}, "have one encoder for all"),
        (
            {"sharing": {"encoder/*": "shared", "fusion/mood": "shared", "head": "shared"}},
            "sharing.fusion/mood is not a block",
        ),
        ({"server.clients_per_round": {"act": 1, "grade": 1}}, "while clients have the tasks act, grade at once"),
        ({"algorithm": {"kind": "fedproto"}}, "has a place for each class of one task, while clients have act, grade"),
        ({"server.weighting": "entropy"}, "whose outputs are of several kinds"),
    ],
)
def test_what_clients_with_several_tasks_cannot_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(**changes)
    assert re.search(message, str(caught.value)), caught.value
