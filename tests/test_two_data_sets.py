"""Two data sets in one federation: each is divided as it is alone, and modalities of one name share an encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blossom_ray import Dataset, compare, from_arrays, simulate
from blossom_ray.core.records import RoundRecord
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.following import follow
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import Server, initial_server, mixed_statistics
from blossom_ray.simulation import run_rounds

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = {"har": 9, "own": 6}
CONV = {"kind": "conv1d", "channels": [4], "kernel_size": 3, "dim": 5, "dropout": 0.1}
DATASETS: dict[str, dict[str, Any]] = {
    "har": {"dataset": "synthetic", "samples": 60, "classes": 3, "held_out_samples": 12,
            "modalities": {"acc": {"shape": [9, 2]}, "gyro": {"kind": "vector", "shape": [4]}}},
    "own": {"dataset": "synthetic", "samples": 48, "held_out_samples": 10, "validation_fraction": 0.25,
            "modalities": {"acc": {"shape": [6, 2]}, "ecg": {"kind": "vector", "shape": [3]}}},
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "activity": {"data": "har"},
    "stress": {"data": "own", "kind": "regression", "lr": 0.02},
}
GROUPS: dict[str, list[dict[str, Any]]] = {
    "activity": [
        {"count": 2, "task": "activity", "modalities": ["acc", "gyro"]},
        {"count": 1, "task": "activity", "modalities": ["acc"]},
    ],
    "stress": [{"count": 2, "task": "stress", "modalities": ["acc", "ecg"]}],
}
APART = {"encoder/*": "same-task", "fusion": "same-task", "head": "shared"}
SHARED = {"encoder/*": "shared", "fusion": "same-task", "head": "shared"}


def scenario_of(*names: str, **changes: Any) -> Scenario:
    """A scenario of these tasks with their data sets and clients."""
    datasets = {TASKS[name]["data"]: DATASETS[TASKS[name]["data"]] for name in names}
    owned = {modality for name in names for group in GROUPS[name] for modality in group["modalities"]}
    encoders = {"acc": CONV, "gyro": {"kind": "mlp", "hidden": [6], "dim": 5}, "ecg": {"kind": "mlp", "dim": 4}}
    tree: dict[str, Any] = {
        "rounds": 2,
        "seed": 3,
        "datasets": datasets,
        "tasks": {name: TASKS[name] for name in names},
        "clients": [group for name in names for group in GROUPS[name]],
        "model": {
            "encoders": {name: encoder for name, encoder in encoders.items() if name in owned},
            "fusion": {"kind": "mean", "dim": 5, "norm": "batch"},
        },
        "training": {"optimizer": {"kind": "adam", "lr": 0.01}, "batch_size": 4, "engine": "sequential"},
        "sharing": APART,
        "execution": {"runtime": "local", "chunk_size": 2},
    }
    scenario = Scenario.model_validate(tree)
    return scenario.override(changes) if changes else scenario


def simulated(scenario: Scenario, folder: Path) -> tuple[list[RoundRecord], Server]:
    preparation = choose_engines(prepare(scenario, folder))
    runtime = LocalRuntime(preparation)
    server = initial_server(preparation.plan, preparation.profiles_on_server(), scenario.server.optimizer)
    rounds = list(run_rounds(preparation, runtime, server))
    runtime.close()
    return [record for record, _ in rounds], rounds[-1][1]


def same_as_alone(both: tuple[list[RoundRecord], Server], alone: tuple[list[RoundRecord], Server], other: str) -> None:
    """What a task has beside another is, to the bit, what it has alone."""
    for together, own in zip(both[0], alone[0], strict=True):
        kept = {name: value for name, value in together.metrics.items() if f"{other}/" not in name}
        assert kept == dict(own.metrics)
        trained = len(own.training)
        assert [(each.loss, each.drift) for each in together.training[:trained]] == [
            (each.loss, each.drift) for each in own.training
        ]
    for instance, block in alone[1].blocks.items():
        assert np.array_equal(both[1].blocks[instance].sent.values, block.sent.values), instance


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(("first", "second"), [("activity", "stress"), ("stress", "activity")])
def test_a_data_set_beside_another_is_computed_as_it_is_alone(
    tmp_path: Path, first: str, second: str, engine: str
) -> None:
    """Also with drawn partitions and splits: what is drawn about a data set follows from its name and its clients."""
    changes = {"training.engine": engine}
    both = simulated(scenario_of(first, second, **changes), tmp_path / "both")
    alone = simulated(scenario_of(first, **changes), tmp_path / "alone")
    same_as_alone(both, alone, second)
    assert len(both[1].blocks) > len(alone[1].blocks)


@pytest.fixture(scope="module")
def joined() -> Any:
    """A run in which both data sets train the encoder of acceleration."""
    return simulate(scenario_of("activity", "stress", sharing=SHARED))


def test_modalities_of_one_name_share_an_encoder_though_their_samples_differ_in_length(joined: Any) -> None:
    blocks = joined.blocks.filter(round=2).select("block", "key", "contributors", "weight").rows()
    assert blocks[:5] == [
        ("encoder/acc", "", 5, 64.0),
        ("encoder/ecg", "", 2, 22.0),
        ("encoder/gyro", "", 2, 28.0),
        ("fusion/activity", "", 3, 42.0),
        ("fusion/stress", "", 2, 22.0),
    ]


def test_the_part_of_each_task_in_the_weight_of_a_block_is_told(joined: Any) -> None:
    shares = joined.blocks.filter(round=2, block="encoder/acc").select("activity/weight_share", "stress/weight_share")
    assert shares.row(0) == pytest.approx((42 / 64, 22 / 64))
    assert joined.blocks["stress/weight_share"].drop_nulls().len() == 2  # of that block alone, in both rounds


def test_each_data_set_has_its_own_splits_held_out_set_and_fingerprints(joined: Any) -> None:
    data = joined.manifest["data"]
    told = {
        name: (task["input_shapes"]["acc"], task["num_train"], task["num_validation"], task["num_held_out"])
        for name, task in data["tasks"].items()
    }
    assert told == {"activity": ([9, 2], 42, 0, 12), "stress": ([6, 2], 22, 12, 10)}
    assert "input_shapes" not in data
    assert (data["num_train"], data["num_held_out"]) == (64, 22)
    assert {"held_out/activity/accuracy/acc", "held_out/stress/rmse/acc+ecg"} <= joined.final.keys()
    assert "validation/stress/rmse" in joined.final
    assert "validation/activity/accuracy" not in joined.final


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_gaps_and_clients_that_never_train_of_one_data_set_do_not_touch_the_other(tmp_path: Path, engine: str) -> None:
    changes = {
        "datasets.own.observed": {"ecg": {"train": 0.7, "test": 0.5}},
        "datasets.own.without_modality": "keep-one",
        "clients": [*GROUPS["activity"], *GROUPS["stress"], {**GROUPS["stress"][0], "role": "unseen", "shots": 3}],
        "training.engine": engine,
        "evaluation.fine_tune": {"epochs": 1},
    }
    both = simulated(scenario_of("activity", "stress", **changes), tmp_path / "both")
    alone = simulated(
        scenario_of("activity", **{"training.engine": engine, "evaluation.fine_tune": {"epochs": 1}}),
        tmp_path / "alone",
    )
    same_as_alone(both, alone, "stress")
    last = both[0][-1].metrics
    assert {"unseen/stress/rmse", "unseen/fine_tuned/stress/rmse", "stress/rmse@acc"} <= last.keys()
    assert not any(name.startswith("unseen/activity") or "activity/accuracy@" in name for name in last)


def test_a_run_of_a_data_set_alone_is_paired_with_one_of_two() -> None:
    """On the same rows, by the fingerprints of the task."""
    together = simulate(scenario_of("activity", "stress", sharing="full-model"))
    alone = simulate(scenario_of("activity", sharing="local"))
    (own,), both = alone.manifest["data"]["tasks"].values(), together.manifest["data"]["tasks"]["activity"]
    assert {**own, "input_shapes": None} == {**both, "input_shapes": None}
    table = compare(together, alone, metric="activity/accuracy", baseline={"sharing": "local"}).runs
    (row,) = table.filter((table["sharing"] == "full-model") & (table["modalities"] == "all clients")).to_dicts()
    difference = together.final["activity/accuracy"] - alone.final["activity/accuracy"]
    assert row["points_final"] == pytest.approx(100 * difference)
    assert row["compared_final"] == 3


def test_names_and_clients_of_a_data_set_decide_what_is_drawn_about_it() -> None:
    def tasks(scenario: Scenario) -> dict[str, Any]:
        with_two = simulate(scenario.override({"rounds": 1})).manifest["data"]["tasks"]
        return {name: (task["fingerprint"], task["partition"]) for name, task in with_two.items()}

    twice = {"datasets": {"har": DATASETS["har"], "own": DATASETS["har"]}, "tasks.stress": {"data": "own"}}
    twice |= {"clients.2.modalities": ["acc", "gyro"], "model.encoders": {"acc": CONV, "gyro": {"kind": "mlp"}}}
    same_options = tasks(scenario_of("activity", "stress", **twice))
    assert same_options["activity"][0] != same_options["stress"][0]
    more = tasks(scenario_of("activity", "stress", **{"clients.2.count": 3}))
    assert more["activity"] == same_options["activity"]


def arrays() -> dict[str, Dataset]:
    """Data sets of a program, whose shapes are known once they are read."""
    draw = np.random.default_rng(0)
    moves, hearts = draw.normal(size=(30, 9, 2)), draw.normal(size=(24, 6, 2))
    return {
        "har": from_arrays({"acc": moves, "gyro": draw.normal(size=(30, 4))}, draw.integers(3, size=30)),
        "own": from_arrays({"acc": hearts, "ecg": draw.normal(size=(24, 3))}, draw.normal(size=24), task="regression"),
    }


@pytest.mark.parametrize("is_known", [True, False])
def test_an_encoder_whose_parameters_follow_from_the_length_is_refused_with_both_shapes(
    tmp_path: Path, is_known: bool
) -> None:
    """By the scenario where it tells the shapes, else once the data are read."""
    changes: dict[str, Any] = {"model.encoders.acc": {"kind": "mlp", "hidden": [6], "dim": 5}}
    if not is_known:
        built = {name: {"dataset": "custom", "factory": lambda name=name: arrays()[name]} for name in DATASETS}
        changes["datasets"] = built
    expected = r"har and own, whose samples have the shapes \[9, 2\] and \[6, 2\]"
    with pytest.raises(InputError, match=expected):
        prepare(scenario_of("activity", "stress", **changes, sharing=SHARED), tmp_path / "shared")
    apart = scenario_of("activity", "stress", **changes)
    plan = prepare(apart, tmp_path / "apart").plan
    assert plan.input_shapes == {"har": {"acc": (9, 2), "gyro": (4,)}, "own": {"acc": (6, 2), "ecg": (3,)}}
    private = {"sharing": "local", "algorithm": {"kind": "scaffold"}, "training.optimizer.kind": "sgd", "rounds": 1}
    assert simulate(apart.override(private)).status == "finished"


@pytest.mark.parametrize(
    ("fusion", "knows"), [("same-task", "acc gyro"), ("private", "acc gyro"), ("shared", "acc ecg gyro")]
)
def test_a_fusion_knows_the_modalities_of_its_own_data_set_unless_it_is_of_both(
    tmp_path: Path, fusion: str, knows: str
) -> None:
    """What a data set lacks is not missing; where the fusion is of both it is, in the shape of the other."""
    changes = {"sharing": {**SHARED, "fusion": fusion}, "model.missing": "zero-input"}
    preparation = prepare(scenario_of("activity", "stress", **changes), tmp_path)
    plan, profiles = preparation.plan, preparation.population.profiles
    held = plan.held_blocks(profiles[2])  # owns acc alone
    assert [block.of for block in held if block.kind == "encoder"] == knows.split()
    assert plan.shapes(profiles[2])["acc"] == (9, 2)
    assert plan.shapes(profiles[3])["acc"] == (6, 2)
    assert plan.shapes(profiles[2]).get("ecg") == ((3,) if fusion == "shared" else None)


def test_all_rules_for_missing_modalities_run_over_two_data_sets() -> None:
    for rule in ("mask", "zero-embedding", "zero-input", "prototype"):
        changes = {"rounds": 1, "model.missing": rule, "sharing": {**SHARED, "fusion": "shared"}}
        run = simulate(scenario_of("activity", "stress", **changes))
        assert run.status == "finished"
        assert run.blocks.filter(round=1, block="fusion")["contributors"].to_list() == [5]


def test_statistics_of_an_encoder_of_two_data_sets_are_told(tmp_path: Path) -> None:
    image = {"kind": "image", "shape": [1, 8, 8]}
    changes = {
        "datasets.har.modalities.acc": image,
        "datasets.own.modalities.acc": {**image, "shape": [1, 6, 6]},
        "model.encoders.acc": {"kind": "conv2d", "channels": [2], "dim": 3, "global_pool": True},
        "model.fusion.norm": "none",
        "sharing": SHARED,
    }
    for sharing, expected in ((SHARED, ["encoder/acc"]), (APART, [])):
        preparation = prepare(
            scenario_of("activity", "stress", **{**changes, "sharing": sharing}), tmp_path / str(len(expected))
        )
        kinds = preparation.population.representatives()
        server = initial_server(preparation.plan, kinds, preparation.scenario.server.optimizer)
        assert [str(each) for each in mixed_statistics(server, preparation.plan, kinds)] == expected


def test_messages_are_about_the_data_set_and_its_clients_ids() -> None:
    whole = scenario_of("activity", "stress").federated[1]
    told = "data.split is 'subject', but client 1 has data.csv; data.partition: {kind: iid}, for client 'client 0'"
    assert whole.in_words(told) == (
        "datasets.own.split is 'subject', but client 4 has data.csv; datasets.own.partition: {kind: iid}, "
        "for client 'client 0'"
    )
    with (
        pytest.raises(PartitionError, match=r"^datasets\.own leaves client 4 with nothing; expected more$"),
        whole.told(),
    ):
        raise PartitionError("data", "leaves client 1 with nothing", "more")


def test_notes_say_which_data_set_they_are_about(tmp_path: Path) -> None:
    """And counts of clients are by their ids among all."""
    changes = {"datasets.own.observed": {"ecg": 0.6}, "datasets.own.without_modality": "leave-out"}
    stress = {
        "datasets.own.modalities": {"ecg": {"kind": "vector"}},
        "clients.2.modalities": ["ecg"],
        "model.encoders": {"acc": CONV, "gyro": {"kind": "mlp"}, "ecg": {"kind": "mlp"}},
    }
    preparation = prepare(scenario_of("activity", "stress", **changes, **stress), tmp_path)
    told = [str(entry) for entry in preparation.left_out]
    assert told[0].startswith(
        "left out: own: train rows in which their client observes no modality (datasets.own.without"
    )


def test_rows_in_which_a_modality_is_observed_are_counted_over_all_clients(tmp_path: Path) -> None:
    """By their ids; those of a data set without gaps are all observed."""
    changes = {"datasets.own.observed": {"acc": {"train": 0.5, "test": 0.8}}}
    observed = prepare(scenario_of("activity", "stress", **changes), tmp_path).observed
    assert observed.keys() == {"acc"}
    train, held_out = observed["acc"]["train"], observed["acc"]["held_out"]
    assert (train.rows, train.by_client[:3]) == (64, (14, 14, 14))
    assert 0 < min(train.by_client[3:]) < 11
    assert (held_out.rows, held_out.by_client) == (56, (12, 12, 12, 10, 10))


def test_data_inspect_shows_each_data_set_and_says_where_units_differ(command: Any) -> None:
    changed = {
        **DATASETS["own"],
        "modalities": {"acc": {"shape": [6, 2], "signal": 20.0}, "ecg": DATASETS["own"]["modalities"]["ecg"]},
    }
    Path("scenario.yaml").write_text(scenario_yaml(scenario_of("activity", "stress", **{"datasets.own": changed})))
    outcome = command("data", "inspect", "scenario.yaml")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "har: synthetic: classification" in outcome.out
    assert "acc: values deviate by" in outcome.out
    shown = json.loads(command("data", "inspect", "scenario.yaml", "--json").out)
    assert [each["client"] for each in shown["datasets"]["own"]["clients"]] == [3, 4]
    assert shown["notes"][0].startswith("acc: values deviate by 1.")
    shared = command("simulate", "scenario.yaml", "--set", "rounds=1", "--set", "sharing=full-model")
    assert "acc: values deviate by" in shared.out + shared.err
    apart = command("simulate", "scenario.yaml", "--set", "rounds=1", "--set", "sharing=local")
    assert "values deviate" not in apart.out + apart.err
    assert command("validate", "scenario.yaml").exit_code == 0
    assert command("plan", "scenario.yaml").exit_code == 0


def test_arrays_are_given_by_the_names_of_data_sets(tmp_path: Path) -> None:
    given = arrays()
    custom = {"datasets": {name: {"dataset": "custom"} for name in given}, "rounds": 1, "sharing": SHARED}
    scenario = scenario_of("activity", "stress", **custom)
    memory, folder = simulate(scenario, data=given), simulate(scenario, data=given, out=tmp_path)
    assert memory.manifest["digest"] == folder.manifest["digest"]
    assert {data.dataset for data in folder.scenario.data_sets.values()} == {"table"}
    assert len(list(tmp_path.glob("data-*.arrow"))) == 2
    attached = {str(block.instance): block.weight_shares for block in [*follow(folder.path)][1].blocks}
    assert attached["encoder/acc"] == pytest.approx({"activity": 21 / 39, "stress": 18 / 39})
    assert attached["encoder/gyro"] == {}
    for wrong, told in (
        (given["har"], "data is one data set, while there are the datasets har, own; expected a mapping"),
        ({"hra": given["har"]}, "data has a data set 'hra'; expected some of har, own"),
    ):
        with pytest.raises(InputError, match=told):
            simulate(scenario, data=wrong)
