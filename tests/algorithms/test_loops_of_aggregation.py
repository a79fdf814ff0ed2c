"""What the server makes of the clients' blocks, and who weighs what: each algorithm against a loop in plain PyTorch."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from plain_loops import (
    BATCH_NORM,
    World,
    assert_close,
    assert_kept,
    assert_model_equals,
    running,
    scenario_of,
    simulated,
)
from torch import Tensor

from blossom_ray.core.seeding import Purpose, stable_number

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ENGINES = ("sequential", "vectorized")
OWN_FUSION = {"encoder/*": "shared", "fusion": "same-modalities", "head": "private"}
FEDERATIONS = {
    "one after the other": {"training.engine": "sequential"},
    "stacked": {"training.engine": "vectorized"},
    "scopes": {"training.engine": "vectorized", "sharing": OWN_FUSION},
    "encoders rest": {"training.modality_dropout": 0.8, "training.batch_size": 20, "sharing": OWN_FUSION},
}
each_federation = pytest.mark.parametrize("changes", FEDERATIONS.values(), ids=FEDERATIONS.keys())
each_engine = pytest.mark.parametrize("engine", ENGINES)


def plain_round(world: World, t: int) -> dict[int, dict[str, Tensor]]:
    """What the cohort of a round sends after plain SGD."""
    return {
        client: world.descend(client, world.received(client), world.batches(client, t)(2), world.rate(t))[0]
        for client in world.cohort(t)
    }


@each_engine
@pytest.mark.parametrize("kind", ["fednova", "scaffold", "random-sparsification", "mfedmc", "fedmsplit"])
def test_running_statistics_weigh_what_their_client_does(kind: str, engine: str) -> None:
    """Whatever is sent of the parameters, and with what weight; in the first round all train as they do in FedAvg."""
    scenario = scenario_of({"kind": kind}, rounds=1, **BATCH_NORM, **{"training.engine": engine})
    world = World(scenario)
    size = len(running(world.models[0].blocks["head"]))
    found = {client: own["head"][-size:] for client, own in plain_round(world, 1).items()}
    total = sum((world.n[client] * own.double() for client, own in found.items()), torch.zeros(size))
    expected = total / sum(world.n[client] for client in found)
    assert_close(simulated(scenario).value("statistics/head"), expected.float(), "statistics/head")
    assert float((expected - world.first["head"][-size:]).abs().max()) > 0.05


@each_federation
def test_fednova(changes: dict[str, Any]) -> None:
    scenario = scenario_of({"kind": "fednova"}, **changes)
    world = World(scenario)
    rested = 0
    for t in world.rounds:
        entries = defaultdict(list)
        for client in world.cohort(t):
            x = world.received(client)
            y, steps = world.descend(client, x, world.batches(client, t)(2), world.rate(t))
            for block, value in y.items():
                rested += steps[block] == 0
                label = world.label(client, block)
                entries[label].append((world.n[client], steps[block], (value - x[block]).double()))
        for label, own in entries.items():
            n = sum(p for p, _, _ in own)
            effective = sum(p * tau for p, tau, _ in own) / n
            step = sum((p / n * change / tau for p, tau, change in own if tau), torch.zeros(()))
            world.shared[label] = (world.shared[label] + effective * step).float()
    assert_model_equals(simulated(scenario), world)
    assert ("training.modality_dropout" in changes) == (rested > 0)


def middle(values: list[np.ndarray]) -> np.ndarray:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def without_ends(values: list[np.ndarray]) -> np.ndarray:
    kept = sorted(values)[len(values) // 5 : len(values) - len(values) // 5]
    return sum(kept) / len(kept)


RULES = {"median": middle, "trimmed-mean": without_ends}


@pytest.mark.parametrize("kind", RULES)
@each_federation
def test_median_and_trimmed_mean(kind: str, changes: dict[str, Any]) -> None:
    options = {"fraction": 0.2} if kind == "trimmed-mean" else {}
    scenario = scenario_of({"kind": kind, **options}, **changes)
    world, rule = World(scenario), RULES[kind]
    for t in world.rounds:
        for label, own in world.by_label(plain_round(world, t)).items():
            columns = torch.stack(list(own.values())).T.tolist()
            world.shared[label] = torch.tensor([rule(column) for column in columns], dtype=torch.float64).float()
    assert_model_equals(simulated(scenario), world)


@each_federation
def test_random_sparsification(changes: dict[str, Any]) -> None:
    scenario = scenario_of({"kind": "random-sparsification", "fraction": 0.25}, **changes)
    world, left, sent_at_all = World(scenario), {}, Counter[bool]()
    seed = scenario.seeds.training
    for t in world.rounds:
        sent = {}
        for client, y in plain_round(world, t).items():
            x, rest = world.received(client), left.get(client, {})
            left[client], sent[client] = {}, {}
            for block, value in y.items():
                key = [seed, int(Purpose.DRAWN_EXTRA), t, client, stable_number(f"number\0{block}")]
                goes = torch.tensor(np.random.default_rng(key).random(len(value)).astype(np.float32)) < 0.25
                change = value - x[block] + rest.get(block, 0)
                sent[client][block] = torch.where(goes, x[block] + change, x[block])
                left[client][block] = torch.where(goes, torch.zeros(()), change)
                sent_at_all.update(goes.tolist())
        world.average(sent, world.n)
    run = simulated(scenario)
    assert_model_equals(run, world)
    assert_kept(run, "left", left)
    assert 0.22 < sent_at_all[True] / sent_at_all.total() < 0.28


@each_federation
def test_fedmsplit(changes: dict[str, Any]) -> None:
    scenario = scenario_of({"kind": "fedmsplit"}, **changes)
    world = World(scenario)
    mine: dict[int, dict[str, Tensor]] = {}
    for t in world.rounds:
        sent = {
            client: world.descend(
                client, mine.get(client, world.received(client)), world.batches(client, t)(2), world.rate(t)
            )[0]
            for client in world.cohort(t)
        }
        for client, own in sent.items():
            mine[client] = {}
            for block, value in own.items():
                others = [w[block].double() for w in sent.values() if block in w]
                scores = torch.stack([value.double() @ other / len(other) ** 0.5 for other in others])
                mine[client][block] = sum(
                    (p * other for p, other in zip(scores.softmax(0), others, strict=True)), torch.zeros(())
                ).float()
    run = simulated(scenario)
    assert_model_equals(run, world)  # the shared model that nobody trains, and private blocks
    for client, own in mine.items():
        for block, value in own.items():
            assert_close(run.value(block, "mine", str(client)), value, f"{block} of client {client}")
    assert len(mine) > 5  # and somebody was there twice


@pytest.mark.parametrize(
    "changes", [*FEDERATIONS.values(), BATCH_NORM | {"rounds": 2}], ids=[*FEDERATIONS, "batch norm"]
)
def test_harmony(changes: dict[str, Any]) -> None:
    """Also the running statistics of a group are averages over its clients."""
    scenario = scenario_of({"kind": "harmony", "groups": 2}, **{**changes, "server.clients_per_round": 7})
    world = World(scenario)
    group: dict[int, int] = defaultdict(int)
    own: dict[tuple[int, str], Tensor] = {}  # by group and label
    changed = 0
    for t in world.rounds:
        sent, moved = {}, {}
        for client in world.cohort(t):
            x = world.received(client)
            start = {b: own.get((group[client], world.label(client, b)), initial(world, client, b)) for b in x}
            start |= {b: value for b, value in x.items() if b.startswith("encoder/")}
            y, _ = world.descend(client, start, world.batches(client, t)(2), world.rate(t))
            sent[client] = y
            moved[client] = [float((y[b] - x[b]).norm()) if b in y else 0.0 for b in ("encoder/acc", "encoder/gyro")]
        largest = [max(column) for column in zip(*moved.values(), strict=True)]
        points = {k: [d / top for d, top in zip(distances, largest, strict=True)] for k, distances in moved.items()}
        order = sorted(points, key=lambda k: sum(points[k]))
        centres = [points[order[0]], points[order[-1]]]
        for _ in range(10):
            sides = {k: min((0, 1), key=lambda j: squared(point, centres[j])) for k, point in points.items()}
            for j in set(sides.values()):
                members = [points[k] for k in points if sides[k] == j]
                centres[j] = [sum(column) / len(members) for column in zip(*members, strict=True)]
        changed += sum(group[k] != j for k, j in sides.items())
        group.update(sides)
        world.average(sent, world.n)
        for j in (0, 1):
            for label, values in world.by_label({k: y for k, y in sent.items() if sides[k] == j}).items():
                total = sum(world.n[k] * value for k, value in values.items())
                own[j, label] = (torch.as_tensor(total) / sum(world.n[k] for k in values)).float()
    run = simulated(scenario)
    assert_model_equals(run, world)
    for (j, label), value in own.items():
        block, _, key = label.partition(" of ")
        if not block.startswith("encoder/"):
            assert_close(run.value(block, f"group {j}", key), value, f"{label} of group {j}")
    found = [int(run.value("", "group", str(client))) for client in range(9)]
    assert found == [group[client] for client in range(9)]
    assert changed


def initial(world: World, client: int, block: str) -> Tensor:
    """The first value of a block, whatever has happened since."""
    return world.first[world.label(client, block)]


def squared(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("algorithm", "keys"),
    [
        ({"kind": "fedprox", "mu": 0.5}, {"training.proximal_mu": 0.5}),
        (
            {"kind": "fedrep", "private_epochs": 2},
            {"training.alternate": {"private_epochs": 2, "shared_epochs": 1}, "sharing": "private-head"},
        ),
    ],
    ids=["fedprox", "fedrep"],
)
@each_engine
def test_a_kind_gives_the_bits_of_its_keys(engine: str, algorithm: dict[str, Any], keys: dict[str, Any]) -> None:
    by_keys = simulated(scenario_of({"kind": "fedavg"}, **keys, **{"training.engine": engine}))
    changes = {key: value for key, value in keys.items() if key == "sharing"}
    by_kind = simulated(scenario_of(algorithm, **changes, **{"training.engine": engine}))
    plain = simulated(scenario_of({"kind": "fedavg"}, **changes, **{"training.engine": engine}))
    for block in ("encoder/acc", "encoder/gyro", "fusion"):
        np.testing.assert_array_equal(by_kind.value(block), by_keys.value(block))
        assert not np.array_equal(by_kind.value(block), plain.value(block))
    for client, kept in by_keys.kept.items():
        for block, value in kept["model"].items():
            np.testing.assert_array_equal(by_kind.kept[client]["model"][block], value)


@each_engine
def test_fedprox(engine: str) -> None:
    scenario = scenario_of({"kind": "fedprox", "mu": 0.5}, training__engine=engine, sharing="private-head")
    world = World(scenario)
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            x, steps = world.received(client), world.batches(client, t)(2)
            pull = lambda b, w, x=x: 0.5 * (w - x[b]) if b in x else 0.0  # noqa: E731
            sent[client], _ = world.descend(client, x, steps, world.rate(t), pull)
        world.average(sent, world.n)
    assert_model_equals(simulated(scenario), world)


@each_engine
def test_fedrep(engine: str) -> None:
    algorithm = {"kind": "fedrep", "private_epochs": 2, "shared_epochs": 1}
    scenario = scenario_of(algorithm, training__engine=engine, sharing="private-head-fusion")
    world = World(scenario)
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            x, batches = world.received(client), world.batches(client, t)
            x, _ = world.descend(client, x, batches(2), world.rate(t), only=["fusion", "head"])
            sent[client], _ = world.descend(client, x, batches(1), world.rate(t), only=list(x))
        world.average(sent, world.n)
    assert_model_equals(simulated(scenario), world)
