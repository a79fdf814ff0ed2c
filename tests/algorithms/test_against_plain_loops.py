"""Each algorithm against its paper's box, written as a loop in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import compiled
from plain_loops import World, assert_close, assert_model_equals, scenario_of, simulated

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ENGINES = ("sequential", "vectorized", compiled)
SCHEMES = ("full-model", "private-head")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sharing", SCHEMES)
def test_scaffold(engine: str, sharing: str) -> None:
    scenario = scenario_of({"kind": "scaffold"}, training__engine=engine, sharing=sharing)
    world = World(scenario)
    c = {block: torch.zeros_like(value) for block, value in world.shared.items()}
    own: dict[int, dict[str, Any]] = {}
    for t in world.rounds:
        sent, changes = {}, {}
        for client in world.cohort(t):
            x = world.received(client)
            control = own.get(client, {block: torch.zeros_like(value) for block, value in x.items()})
            steps = world.batches(client, t)(2)
            y, number = world.descend(
                client, x, steps, world.rate(t), lambda b, _, k=control: c[b] - k[b] if b in c else 0.0
            )
            new = {b: control[b] - c[b] + (x[b] - y[b]) / (number[b] * world.rate(t)) for b in x}
            changes[client] = {b: new[b] - control[b] for b in x}
            own[client], sent[client] = new, y
        world.average(sent, world.n)
        for block in c:
            total = sum(world.n[k] * changes[k][block].double() for k in changes if block in changes[k])
            c[block] = (c[block] + total / sum(world.n[k] for k in world.holders(block))).float()
    run = simulated(scenario)
    assert_model_equals(run, world)
    for block, value in c.items():
        assert_close(run.value(block, "c"), value, f"c of {block}", 2e-4)
    for client, control in own.items():
        for block, value in control.items():
            assert_close(run.kept[client]["own"][block], value, f"control {block} of client {client}", 2e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_feddyn(engine: str) -> None:
    alpha = 0.1
    scenario = scenario_of({"kind": "feddyn", "alpha": alpha}, training__engine=engine)
    world = World(scenario)
    h = {block: torch.zeros_like(value) for block, value in world.shared.items()}
    own: dict[int, dict[str, Any]] = {}
    for t in world.rounds:
        sent, before = {}, {block: value.clone() for block, value in world.shared.items()}
        for client in world.cohort(t):
            x = world.received(client)
            mine = own.get(client, {block: torch.zeros_like(value) for block, value in x.items()})
            y, _ = world.descend(
                client,
                x,
                world.batches(client, t)(2),
                world.rate(t),
                lambda b, w, m=mine, x=x: -m[b] + alpha * (w - x[b]),
            )
            own[client] = {b: mine[b] - alpha * (y[b] - x[b]) for b in x}
            sent[client] = y
        world.average(sent, world.n)
        for block in h:
            movers = [k for k in sent if block in sent[k]]
            if movers:
                moved = sum(world.n[k] * (sent[k][block] - before[block]).double() for k in movers)
                h[block] = (h[block] - alpha * moved / sum(world.n[k] for k in world.holders(block))).float()
                world.shared[block] = world.shared[block] - h[block] / alpha
    run = simulated(scenario)
    assert_model_equals(run, world)
    for block, value in h.items():
        assert_close(run.value(block, "h"), value, f"h of {block}")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sharing", SCHEMES)
def test_ditto(engine: str, sharing: str) -> None:
    weight = 0.5
    algorithm = {"kind": "ditto", "weight": weight, "epochs": 1}
    scenario = scenario_of(algorithm, training__engine=engine, sharing=sharing)
    world = World(scenario)
    personal: dict[int, dict[str, Any]] = {}
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            x, batches = world.received(client), world.batches(client, t)
            sent[client], _ = world.descend(client, x, batches(2), world.rate(t))
            personal[client], _ = world.descend(
                client,
                personal.get(client, x),
                batches(1),
                world.rate(t),
                lambda b, w, x=x: weight * (w - x[b]) if b in x else 0.0,
                only=x,
            )
        world.average(sent, world.n)
    run = simulated(scenario)
    assert_model_equals(run, world)
    for client, mine in personal.items():
        for block, value in mine.items():
            assert_close(run.kept[client]["personal"][block], value, f"personal {block} of client {client}")
