"""Clients that never train, against plain PyTorch: scored with averaged blocks, before and after fine-tuning."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_loops import TREE, Blocks, Simulated, World, simulated
from torch.nn import functional as F

from blossom_ray import Scenario
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.data.shards import Samples
from blossom_ray.runtime.preparation import prepare

UNSEEN: list[dict[str, Any]] = [
    {"count": 2, "modalities": ["acc", "gyro"]},
    {"count": 2, "modalities": ["acc"]},
    {"count": 2, "modalities": ["gyro"], "role": "unseen", "shots": 7},
    {"count": 1, "modalities": ["acc"], "role": "unseen", "rows": "held-out", "shots": 3},
]
ROUNDS, EPOCHS, RATE = 2, 3, 0.2


def scenario_of(**changes: Any) -> Scenario:
    tree = {name.replace("__", "."): value for name, value in changes.items()}
    base = {
        "clients": UNSEEN,
        "rounds": ROUNDS,
        "server.clients_per_round": 3,
        "data.subjects": 3,
        "data.held_out_samples": 40,
        "evaluation.held_out": "never",
        "evaluation.fine_tune": {"epochs": EPOCHS, "lr": RATE, "every": 1},
    }
    return Scenario.model_validate(TREE).override(base | tree)


def rows_of(scenario: Scenario) -> dict[int, tuple[Any, Any]]:
    """By client that never trains its samples to tune on, and those to test on: inputs and labels as tensors."""
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        with preparation.open_shards() as reader:
            shards = {profile.index: reader.shard(profile.index) for profile in preparation.population.unseen}
            return {client: (_tensors(shard.train()), _tensors(shard.test())) for client, shard in shards.items()}


def _tensors(samples: Samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = {name: torch.tensor(np.array(values)) for name, values in samples.inputs.items()}
    return inputs, torch.tensor(np.array(samples.labels))


def received(world: World, run: Simulated, client: int) -> Blocks:
    """The averaged blocks of the last round as a client holds them."""
    return {block: torch.tensor(run.value(block)) for block in world.averaged(client)}


def loss_and_accuracy(world: World, client: int, blocks: Blocks, test: Any) -> tuple[float, float]:
    with torch.no_grad():
        outputs = world.set_model(client, blocks)(test[0])
        loss = F.cross_entropy(outputs, test[1], reduction="sum").double() / len(test[1])
        return float(loss), float((outputs.argmax(dim=1) == test[1]).double().mean())


@pytest.mark.parametrize(
    ("sharing", "engine"),
    [
        ("full-model", "vectorized"),
        ("private-head", "sequential"),
        ("local", "vectorized"),
        ("full-model", "sequential"),
    ],
)
def test_before_and_after_fine_tuning_as_in_a_plain_loop(sharing: str, engine: str) -> None:
    scenario = scenario_of(sharing=sharing, training__engine=engine)
    run, world = simulated(scenario), World(scenario)
    record = run.records[-1]
    before = {each.client: each for each in record.unseen}
    after = {each.client: each for each in record.fine_tuned_unseen}
    assert before.keys() == after.keys() == {4, 5, 6}
    section = scenario.training
    for client, (tune, test) in rows_of(scenario).items():
        assert len(tune[1]) == (3 if client == 6 else 7)
        blocks = received(world, run, client)
        assert before[client].num_examples == len(test[1])
        assert (before[client].loss, before[client].scores["accuracy"]) == pytest.approx(
            loss_and_accuracy(world, client, blocks, test), abs=1e-5
        )
        draw = generator(scenario.seeds.training, Purpose.FINE_TUNING, ROUNDS, client)
        orders = [torch.from_numpy(draw.permutation(len(tune[1]))) for _ in range(EPOCHS)]
        batches = (
            ({name: values[rows] for name, values in tune[0].items()}, tune[1][rows])
            for order in orders
            for rows in order.split(section.batch_size)
        )
        tuned, _ = world.descend(client, blocks, batches, RATE)
        assert (after[client].loss, after[client].scores["accuracy"]) == pytest.approx(
            loss_and_accuracy(world, client, tuned, test), abs=1e-4
        )


def test_personal_models_of_algorithms_begin_with_their_first_values() -> None:
    """Ditto's personal model is the averaged one, IFCA's choice the first model, FedMSplit's own an untrained one."""
    engines = {"ditto": "vectorized", "ifca": "sequential", "fedmsplit": "vectorized"}
    runs = {
        kind: simulated(scenario_of(sharing="full-model", algorithm={"kind": kind}, training__engine=engine))
        for kind, engine in engines.items()
    }
    rows = rows_of(runs["ditto"].preparation.scenario)
    for kind, run in runs.items():
        world = World(run.preparation.scenario)
        for each in run.records[-1].unseen:
            _, test = rows[each.client]
            blocks = received(world, run, each.client)
            if kind == "fedmsplit":
                blocks = {name: value for name, value in world.first.items() if name in blocks}
            expected = loss_and_accuracy(world, each.client, blocks, test)
            assert (each.loss, each.scores["accuracy"]) == pytest.approx(expected, abs=1e-5), kind
    # The server has no model of its own for those that never send one.
    keys = {instance.key for instance in runs["fedmsplit"].server.blocks if instance.copy == "mine"}
    assert keys == {"0", "1", "2", "3"}


def test_an_author_sees_nothing_of_them() -> None:
    """Neither among the candidates, nor in the number of clients, nor among the holders."""
    seen: dict[str, Any] = {}

    class Curious:
        def extras(self, layout: Any) -> dict[str, Any]:
            seen.setdefault("num_clients", set()).add(layout.num_clients)
            return {}

        def select(self, s: Any, candidates: Any, size: int, draw: Any) -> list[int]:
            seen["candidates"] = candidates.tolist()
            return list(range(size))

        def server(self, s: Any) -> dict[str, Any]:
            seen["holders"] = {key: (s.num_holders["model"][key], held) for key, held in s.holders["model"].items()}
            return {}

    algorithm = {"kind": "custom", "factory": Curious}
    run = simulated(scenario_of(sharing="full-model", algorithm=algorithm, data__partition={"kind": "iid"}))
    assert seen["num_clients"] == {4}
    assert seen["candidates"] == [0, 1, 2, 3]
    num_train = run.preparation.shards.num_train
    epochs = TREE["training"]["local_epochs"]
    assert seen["holders"]["head", ""] == (4, float(num_train[:4].sum()) * epochs)
    assert seen["holders"]["encoder/gyro", ""] == (2, float(num_train[:2].sum()) * epochs)


@pytest.mark.parametrize(("engine", "group"), [("sequential", "ward"), ("vectorized", "")])
def test_private_blocks_that_begin_with_the_mean_of_those_who_trained(engine: str, group: str) -> None:
    """Heads weigh as training samples do; in round 1 a part of the clients has trained, and counts alone."""
    groups = [
        {"count": 4, "modalities": ["acc"], "group": group},
        {"count": 2, "modalities": ["acc", "gyro"], "group": group},
        {"count": 2, "modalities": ["acc"], "group": group, "role": "unseen", "shots": 4},
    ]
    scenario = scenario_of(
        clients=groups,
        sharing="private-head",
        training__engine=engine,
        server__clients_per_round=3,
        rounds=1,
        evaluation__unseen={"start": "group-average"},
    )
    run, world = simulated(scenario), World(scenario)
    kept = {client: own["model"] for client, own in run.kept.items() if client < 4}
    assert 1 < len(kept) < 4
    weights = {client: world.n[client] for client in kept}
    total = sum(weights[client] * own["head"].astype(np.float64) for client, own in kept.items())
    mean = torch.tensor(total / sum(weights.values())).float()
    untrained, last = run.records
    rows = rows_of(scenario)
    for each in last.unseen:
        _, test = rows[each.client]
        expected = loss_and_accuracy(world, each.client, received(world, run, each.client) | {"head": mean}, test)
        assert (each.loss, each.scores["accuracy"]) == pytest.approx(expected, abs=1e-5)
    first = {name: value for name, value in world.first.items() if name in world.averaged(6)}
    for each in untrained.unseen:  # where none has trained, with the initial values
        expected = loss_and_accuracy(world, each.client, first, rows[each.client][1])
        assert (each.loss, each.scores["accuracy"]) == pytest.approx(expected, abs=1e-5)
    (sent,) = (block for block in last.blocks if block.instance.name == "average/head")
    assert str(sent.instance) == f"average/head[{group + '/' if group else ''}acc]"
    assert (sent.bytes_up, sent.bytes_down) == (len(kept) * 4 * len(mean), 2 * 4 * len(mean))
