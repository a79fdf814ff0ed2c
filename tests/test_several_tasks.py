"""Several tasks in one federation: each is computed as if it were alone, and scored by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blossom_ray import Dataset, Run, compare, from_arrays, simulate
from blossom_ray.core.blocks import Block, BlockInstance, ClientProfile, Scope, SharingScheme
from blossom_ray.core.records import RoundRecord
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds
from blossom_ray.studies.comparison.scores import ALL
from blossom_ray.studies.comparison.tasks import task_view

pytestmark = pytest.mark.usefixtures("one_thread")

_ENCODER = {"kind": "mlp", "hidden": [6], "dim": 5, "dropout": 0.1}
_FUSION = {"kind": "mean", "dim": 5, "norm": "batch"}
_APART = {"encoder/*": "same-task", "fusion": "same-task", "head": "shared"}
TASKS: dict[str, dict[str, Any]] = {
    "activity": {"labels": "activity"},
    "stress": {"kind": "regression", "labels": "stress", "lr": 0.02},
}


def given_data(clients: str) -> Dataset:
    """Rows of some clients, ten each with their own numbers, labelled for a classification and a regression."""
    parts = []
    for name in clients:
        draw = np.random.default_rng(ord(name))
        parts.append((draw.standard_normal((10, 4, 2)), draw.standard_normal((10, 3)), draw.integers(0, 3, 10)))
    acc, gyro, classes = (np.concatenate(values) for values in zip(*parts, strict=True))
    return from_arrays(
        {"acc": acc, "gyro": gyro},
        classes,
        class_names=["sit", "walk", "run"],
        clients=[name for name in clients for _ in range(10)],
        splits=(["train"] * 6 + ["test"] * 4) * len(clients),
        label_columns={
            "activity": ([("sit", "walk", "run")[label] for label in classes], "classification"),
            "stress": (gyro[:, :1] + acc[:, 0, :1], "regression"),
        },
    )


def scenario_of(clients: list[dict[str, Any]], names: str, tasks: dict[str, Any] | None, **more: Any) -> Scenario:
    tree = {
        "rounds": 2,
        "data": {"dataset": "custom", "factory": lambda: given_data(names), "partition": {"kind": "given"}},
        "clients": clients,
        "tasks": tasks,
        "model": {
            "encoders": {"acc": _ENCODER, "gyro": _ENCODER},
            "fusion": _FUSION,
        },
        "training": {"optimizer": {"kind": "adam", "lr": 0.01}, "batch_size": 4, "schedule": {"kind": "cosine"}},
        "sharing": _APART,
        "execution": {"runtime": "local", "chunk_size": 2},
        **more,
    }
    return Scenario.model_validate(tree)


def simulated(scenario: Scenario, folder: Path) -> tuple[list[RoundRecord], Server]:
    preparation = choose_engines(prepare(scenario, folder))
    runtime = LocalRuntime(preparation)
    server = initial_server(preparation.plan, preparation.profiles_on_server(), scenario.server.optimizer)
    rounds = list(run_rounds(preparation, runtime, server))
    runtime.close()
    return [record for record, _ in rounds], rounds[-1][1]


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(("first", "second"), [("activity", "stress"), ("stress", "activity")])
def test_a_task_beside_another_is_computed_as_it_is_alone(tmp_path: Path, first: str, second: str, engine: str) -> None:
    owned = ["acc", "gyro"]
    groups = [{"count": 3, "task": first, "modalities": owned}, {"count": 2, "task": second, "modalities": owned}]
    more = {"training": {"engine": engine, "optimizer": {"kind": "adam", "lr": 0.01}, "batch_size": 4}}
    both, server = simulated(scenario_of(groups, "abcde", TASKS, **more), tmp_path / "both")
    only, alone = simulated(scenario_of(groups[:1], "abc", {first: TASKS[first]}, **more), tmp_path / "alone")
    for together, own in zip(both, only, strict=True):
        assert {name: value for name, value in together.metrics.items() if f"{second}/" not in name} == dict(
            own.metrics
        )
        assert [each.scores for each in together.evaluation[:3]] == [each.scores for each in own.evaluation]
        assert [(each.loss, each.drift) for each in together.training[:3]] == [
            (each.loss, each.drift) for each in own.training
        ]
    assert len(alone.blocks) == 4
    for instance, block in alone.blocks.items():
        assert np.array_equal(server.blocks[instance].sent.values, block.sent.values), instance
    assert len(server.blocks) == 8


def test_a_central_model_of_each_task_is_that_of_the_task_alone(tmp_path: Path) -> None:
    more = {"training": {"optimizer": {"kind": "adam", "lr": 0.01}, "batch_size": 4}, "rounds": 2}
    both, server = simulated(scenario_of(GROUPS, "abcde", TASKS, sharing="central-per-task", **more), tmp_path / "both")
    for task, groups, names in (("activity", GROUPS[:1], "abc"), ("stress", GROUPS[1:], "de")):
        alone = scenario_of(groups, names, {task: TASKS[task]}, sharing="central", **more)
        only, own = simulated(alone, tmp_path / task)
        for together, record in zip(both, only, strict=True):
            for name in (name for name in record.metrics if f"{task}/" in name):
                assert together.metrics[name] == record.metrics[name], name
        for instance, block in own.blocks.items():
            names_of = (instance.name, f"{instance.name}/{task}")
            (found,) = (
                held.sent.values
                for i, held in server.blocks.items()
                if i.name in names_of and i.key in ("", task) and (i.name.kind != "encoder" or i.key == task)
            )
            assert np.array_equal(found, block.sent.values), instance


OWNED = ["acc", "gyro"]
GROUPS = [{"count": 3, "task": "activity", "modalities": OWNED}, {"count": 2, "task": "stress", "modalities": OWNED}]


@pytest.fixture(scope="module")
def shared_run() -> Any:
    sharing = {"encoder/*": "shared", "fusion": "same-task+same-modalities", "head": "same-task"}
    return simulate(scenario_of(GROUPS, "abcde", TASKS, sharing=sharing))


def test_encoders_are_averaged_over_all_tasks_and_heads_within_their_own(shared_run: Any) -> None:
    blocks = shared_run.blocks.filter(round=2).select("block", "scope", "key", "contributors", "weight").rows()
    assert blocks == [
        ("encoder/acc", "shared", "", 5, 30.0),
        ("encoder/gyro", "shared", "", 5, 30.0),
        ("fusion/activity", "same-modalities", "acc+gyro", 3, 18.0),
        ("fusion/stress", "same-modalities", "acc+gyro", 2, 12.0),
        ("head/activity", "shared", "", 3, 18.0),
        ("head/stress", "shared", "", 2, 12.0),
    ]


def test_scores_stand_behind_the_name_of_their_task_and_nothing_is_pooled_over_tasks(shared_run: Any) -> None:
    columns = set(shared_run.rounds.columns)
    assert {"activity/accuracy", "activity/train_loss", "stress/rmse_p50", "stress/r2/acc+gyro"} <= columns
    assert not columns & {"loss", "train_loss", "accuracy", "rmse", "loss/acc+gyro"}
    rates = shared_run.rounds.select("learning_rate", "stress/learning_rate").rows()
    assert rates[0] == (None, None)
    assert rates[1:] == [pytest.approx((rate, 2 * rate)) for rate in (0.01, 0.0)]
    assert "activity/learning_rate" not in columns


def test_a_client_has_one_row_with_the_scores_of_its_task(shared_run: Any) -> None:
    last = shared_run.clients.filter(round=2)
    assert last["task"].to_list() == ["activity"] * 3 + ["stress"] * 2
    assert last["activity/accuracy"].is_null().to_list() == [False] * 3 + [True] * 2
    assert last["stress/rmse"].is_null().to_list() == [True] * 3 + [False] * 2
    own = last.filter(task="stress")
    expected = np.average(own["stress/rmse"].to_numpy(), weights=own["num_test_examples"].to_numpy())
    assert shared_run.final["stress/rmse"] == pytest.approx(expected, rel=1e-12)
    assert shared_run.classes["scoring"].unique().to_list() == ["test/activity"]


def test_the_manifest_says_what_each_task_has_of_the_data(shared_run: Any) -> None:
    data = shared_run.manifest["data"]
    told = {name: (task["task"], task["num_classes"], task["num_train"]) for name, task in data["tasks"].items()}
    assert told == {"activity": ("classification", 3, 18), "stress": ("regression", 1, 12)}
    assert data["tasks"]["activity"]["class_names"] == ["run", "sit", "walk"]
    assert "class_names" not in data
    assert data["num_train"] == 30


def test_one_task_by_name_has_the_bits_of_the_task_without_a_name(tmp_path: Path) -> None:
    """`labels: null` are those of the data set, and the head begins with the same values."""
    groups = [{"count": 3, "modalities": OWNED}]
    runs = [
        simulated(scenario_of(groups, "abc", tasks, sharing="private-head-fusion"), tmp_path / str(number))
        for number, tasks in enumerate(({"only": {}}, None))
    ]
    (first, server), (second, other) = runs
    assert [dict(each.metrics) for each in second] == [
        {name.replace("only/", ""): value for name, value in each.metrics.items()} for each in first
    ]
    for instance, block in other.blocks.items():
        assert np.array_equal(server.blocks[instance].sent.values, block.sent.values)


def test_a_head_belongs_to_its_task_whatever_scope_heads_have() -> None:
    client = ClientProfile(3, ("acc",), "left", tasks=("who",))
    head = Block("head", "who")
    for scope, expected in {
        "same-task": BlockInstance(head, Scope.SHARED),
        "shared": BlockInstance(head, Scope.SHARED),
        "same-modalities+same-task": BlockInstance(head, Scope.SAME_MODALITIES, "acc"),
        "group": BlockInstance(head, Scope.GROUP, "left"),
        "private": BlockInstance(head, Scope.PRIVATE, "3"),
    }.items():
        scheme = SharingScheme.of({"encoder/*": "same-task", "fusion": scope, "head": scope})
        assert scheme.instance(head, client) == expected
    fusion = SharingScheme.of({"fusion": "same-modalities+same-task"}).instance("fusion", client)
    assert str(fusion) == "fusion[acc/who]"
    encoder = SharingScheme.of({"encoder/*": "same-task"}).instance("encoder/acc", client)
    assert str(encoder.statistics(client)) == "statistics/encoder/acc[acc/who]"


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_clients_that_never_train_are_scored_by_task_as_if_it_were_alone(tmp_path: Path, engine: str) -> None:
    """Means of private blocks that they begin with are of clients with the same task, too."""

    def groups(task: str) -> tuple[dict[str, Any], dict[str, Any]]:
        own = {"modalities": ["acc", "gyro"], "task": task}
        return {"count": 2, **own}, {"count": 1, **own, "role": "unseen", "shots": 3}

    (active, active_new), (stressed, stressed_new) = groups("activity"), groups("stress")
    more: dict[str, Any] = {
        "sharing": {"encoder/*": "same-task", "fusion": "private", "head": "private"},
        "training": {"optimizer": {"kind": "sgd", "lr": 0.05}, "engine": engine},
        "evaluation": {"unseen": {"start": "group-average"}, "fine_tune": {"epochs": 1}},
    }
    together = scenario_of([active, stressed, active_new, stressed_new], "abcdef", TASKS, **more)
    alone = scenario_of([active, active_new], "abe", {"activity": TASKS["activity"]}, **more)
    (records, _), (own, _) = (
        simulated(scenario.override({"data.partition.unseen": names}), tmp_path / names[0])
        for scenario, names in ((together, ["e", "f"]), (alone, ["e"]))
    )
    for record, other in zip(records, own, strict=True):
        for name in ("loss", "accuracy", "accuracy/acc+gyro"):
            assert record.metrics[f"unseen/activity/{name}"] == other.metrics[f"unseen/activity/{name}"]
        assert "unseen/stress/rmse" in record.metrics
        assert "unseen/loss" not in record.metrics
    assert {"unseen/fine_tuned/activity/accuracy", "unseen/fine_tuned/stress/rmse"} <= records[-1].metrics.keys()
    sent = {
        str(block.instance): block.bytes_up for block in records[-1].blocks if block.instance.name.kind == "average"
    }
    assert sent.keys() == {
        "average/fusion[acc+gyro/activity]", "average/fusion[acc+gyro/stress]",
        "average/head/activity[acc+gyro/activity]", "average/head/stress[acc+gyro/stress]",
    }  # fmt: skip
    assert all(sent.values())


def test_clients_that_never_train_need_a_head_that_somebody_trains() -> None:
    new = {"count": 1, "modalities": ["acc", "gyro"], "role": "unseen", "task": "stress"}
    active = {"count": 2, "modalities": ["acc", "gyro"], "task": "activity"}
    expected = "clients.1 is of unseen clients that share head/stress with no client that trains"
    with pytest.raises(ScenarioError, match=expected):
        scenario_of([active, new], "abc", TASKS, sharing="full-model").override({"data.partition.unseen": ["c"]})


def test_tasks_are_compared_one_by_one_and_the_clients_that_lost_are_counted(shared_run: Any) -> None:
    together, alone = (simulate(shared_run.scenario.override({"sharing": name})) for name in ("full-model", "local"))
    for metric, task, clients, sign in (("activity/accuracy", "activity", 3, 1), ("stress/rmse", "stress", 2, -1)):
        table = compare(together, alone, metric=metric, baseline={"sharing": "local"}).runs
        row = table.filter(table["sharing"] != "local").row(0, named=True)
        score = metric.split("/")[1]
        own, other = together.final[metric], alone.final[metric]
        assert row["gain_final"] == pytest.approx(sign * 100 * (own - other) / abs(other))
        both = [run.clients.filter(round=2, task=task).sort("client")[metric].to_numpy() for run in (together, alone)]
        lost = int(np.sum(sign * (both[0] - both[1]) < 0))
        tied = int(np.sum(both[0] == both[1]))
        assert (row["lost_final"], row["tied_final"], row["compared_final"]) == (lost, tied, clients), score
    with pytest.raises(InputError, match=r"no metric is given, while the runs have the tasks activity, stress"):
        compare(together, alone)


def test_the_best_round_is_that_by_which_the_run_stopped_whatever_the_task(shared_run: Any) -> None:
    """One model is kept, for all tasks."""
    changes = {"rounds": 4, "data.validation_fraction": 0.3, "stop": {"patience": 4, "metric": "activity/accuracy"}}
    run = simulate(shared_run.scenario.override(changes))
    own = run.rounds.filter(run.rounds["round"] > 0)
    assert int(own["round"][int(own["validation/stress/rmse"].arg_min() or 0)]) != run.stopped.best_round
    assert compare(run, metric="stress/rmse").runs["best_round"].to_list() == [run.stopped.best_round] * 2


@pytest.mark.parametrize("changes", [{}, {"evaluation.split": "validation", "stop": {"patience": 1}}], ids=str)
def test_clients_with_several_tasks_are_scored_on_validation_by_task(
    small_scenario: Scenario, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Their run can be read again, without a column `validation/loss`, which would be of several tasks."""
    changes = {**changes, "stop.metric": "size/rmse"} if changes else {}
    both = [{"count": 3, "task": ["shape", "size"], "modalities": OWNED}]
    tasks = {"shape": {"labels": "class"}, "size": {"kind": "regression", "labels": "amplitude"}}
    given = {"clients": both, "tasks": tasks, "data.validation_fraction": 0.3, **changes}
    run = simulate(small_scenario.override(given), out=tmp_path)
    scored = Run.open(run.path or "").clients.filter(round=1)
    assert {"validation/shape/loss", "validation/size/rmse", "num_validation_examples"} <= set(scored.columns)
    assert "validation/loss" not in scored.columns
    found = compare(run.path or "", metric="validation/size/rmse").runs
    assert found["final"][0] == run.rounds["validation/size/rmse"][-1]


def test_one_task_of_a_run_has_the_form_of_a_run_of_one(shared_run: Any) -> None:
    view = task_view(shared_run, "activity")
    assert {"accuracy", "loss", "train_loss"} <= set(view.rounds.columns)
    assert not [name for name in view.rounds.columns if "/" in name and name.startswith(("activity", "stress"))]
    assert view.clients["client"].unique().sort().to_list() == [0, 1, 2]
    assert view.manifest["data"]["task"] == "classification"


def test_a_run_of_one_task_is_paired_with_one_of_two_on_the_same_rows() -> None:
    """Its clients are the same ones, with the labels of the other task besides."""
    clients = {"count": 5, "modalities": OWNED}
    both = simulate(scenario_of([{**clients, "task": [*TASKS]}], "abcde", TASKS, sharing="full-model"))
    own = {"activity": TASKS["activity"]}
    alone = simulate(scenario_of([{**clients, "task": "activity"}], "abcde", own, sharing="local"))
    assert both.manifest["data"]["fingerprint"] != alone.manifest["data"]["fingerprint"]
    table = compare(both, alone, metric="activity/accuracy", baseline={"sharing": "local"}).runs
    (row,) = table.filter((table["sharing"] == "full-model") & (table["modalities"] == ALL)).to_dicts()
    difference = both.final["activity/accuracy"] - alone.final["activity/accuracy"]
    assert row["points_final"] == pytest.approx(100 * difference)
    assert row["compared_final"] == 5
    view, whole = (task_view(run, "activity").manifest["data"] for run in (both, alone))
    assert {name: view[name] for name in ("fingerprint", "partition")} == {
        name: whole[name] for name in ("fingerprint", "partition")
    }


def test_a_run_of_other_data_is_not_paired_by_task(shared_run: Any) -> None:
    alone = simulate(scenario_of(GROUPS[:1], "abd", {"activity": TASKS["activity"]}, sharing="local"))
    table = compare(shared_run, alone, metric="activity/accuracy", baseline={"sharing": "local"}).runs
    assert table["gain_final"].is_null().all()
