"""Two data sets in one federation: each is divided as it is alone, and modalities of one name share an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blossom_ray import simulate
from blossom_ray.core.records import RoundRecord
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import Server, initial_server
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
