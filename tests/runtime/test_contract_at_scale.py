"""The contract of runtimes with many clients: 300 of five modality sets, a third of them in a round."""

from functools import cache
from typing import Any

import pytest
from conftest import SMALL
from test_contract import assert_same_bits

from blossom_ray import Run, Scenario, simulate

SETS = (["acc"], ["gyro"], ["mag"], ["acc", "gyro"], ["acc", "gyro", "mag"])
ENCODER = {"kind": "mlp", "hidden": [6], "dim": 4, "dropout": 0.1}
SHAPES = {"acc": (4, 2), "gyro": (4, 2), "mag": (3,)}
CHANGES: dict[str, Any] = {
    "data": {
        "dataset": "synthetic",
        "samples": 3600,
        "classes": 3,
        "modalities": {
            name: {"kind": "sequence" if len(shape) == 2 else "vector", "shape": shape}
            for name, shape in SHAPES.items()
        },
        "partition": {"kind": "quantity", "alpha": 5.0, "min_samples": 2},
    },
    "clients": [{"count": 60, "modalities": modalities} for modalities in SETS],
    "model.encoders": dict.fromkeys(SHAPES, ENCODER),
    "model.head": {"kind": "mlp", "hidden": [6], "norm": "batch"},
    "model.norm_statistics": "local",
    "sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "private"},
    "server.clients_per_round": 0.3,
    "evaluation.clients": 0.5,
    "execution.chunk_size": 8,
}
CLIENTS_PER_ACTOR = {1: 300, 2: 150, 5: 60}
ENGINES: dict[str, Any] = {
    "sequential": "sequential",
    "vectorized": "vectorized",
    "both": {
        "acc": "vectorized", "gyro": "sequential", "mag": "sequential",
        "acc+gyro": "vectorized", "acc+gyro+mag": "sequential",
    },
}  # fmt: skip


def at_scale(engine: str) -> Scenario:
    return Scenario.model_validate(SMALL).override(CHANGES | {"training.engine": ENGINES[engine]})


@cache
def local(engine: str) -> Run:
    return simulate(at_scale(engine))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("engine", "actors"),
    [("sequential", 1), ("sequential", 2), ("sequential", 5), ("vectorized", 1), ("vectorized", 5), ("both", 2)],
)
def test_300_clients_give_the_same_bits_on_every_placement(engine: str, actors: int, ray_session: None) -> None:
    placement = {"execution.runtime": "ray", "execution.clients_per_actor": CLIENTS_PER_ACTOR[actors]}
    placed = simulate(at_scale(engine).override(placement))
    assert placed.manifest["actors"] == actors
    assert_same_bits(local(engine), placed)


def test_a_third_of_them_takes_part_in_a_round() -> None:
    rounds, clients = local("sequential").rounds, local("sequential").clients
    assert rounds["num_clients"].to_list() == [0, 90, 90]
    assert rounds["num_evaluated"].to_list() == [150, 150, 150]
    assert clients["modalities"].n_unique() == len(SETS)


def test_the_engines_are_told_apart_by_last_bits_alone() -> None:
    runs = {engine: local(engine) for engine in ENGINES}
    assert len({run.manifest["digest"]["shared"] for run in runs.values()}) == len(runs)
    expected = runs["sequential"].rounds["train_loss"].drop_nulls().to_list()
    for run in runs.values():
        assert run.rounds["train_loss"].drop_nulls().to_list() == pytest.approx(expected, rel=1e-3)
