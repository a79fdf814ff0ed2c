"""What is trained, and from what it is made: each algorithm against a loop in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import compiled
from plain_loops import (
    BATCH_NORM,
    World,
    assert_close,
    assert_kept,
    assert_model_equals,
    norms_of,
    running,
    scenario_of,
    set_running,
    simulated,
)
from torch import Tensor
from torch.nn import functional as F

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Blocks = dict[str, Tensor]
ENGINES = ("sequential", "vectorized")
DECAY = {"training.optimizer.weight_decay": 0.01}


def cross_entropy(world: World, client: int, blocks: Blocks, inputs: Any, labels: Tensor) -> Tensor:
    """The loss as a function of blocks, through which gradients flow."""
    model = world.models[client]
    names = {name: list(module.named_parameters()) for name, module in model.blocks.items()}
    held = {**world.private[client], **blocks}
    replaced: dict[str, dict[str, Tensor]] = {}
    for name, entries in names.items():
        cuts = held[name].split([p.numel() for _, p in entries])
        replaced[name] = {key: cut.view_as(p) for (key, p), cut in zip(entries, cuts, strict=True)}
    embeddings = {
        m: torch.func.functional_call(model.blocks[f"encoder/{m}"], replaced[f"encoder/{m}"], x)
        for m, x in inputs.items()
    }
    fused = torch.func.functional_call(model.blocks["fusion"], replaced["fusion"], (embeddings,))
    return F.cross_entropy(torch.func.functional_call(model.blocks["head"], replaced["head"], fused), labels)


@pytest.mark.parametrize("sharing", ["full-model", "private-head"])
@pytest.mark.parametrize("engine", [*ENGINES, compiled])
def test_mixed(engine: str, sharing: str) -> None:
    scenario = scenario_of({"kind": "mixed", "rate": 4.0}, **DECAY, **{"training.engine": engine, "sharing": sharing})
    world = World(scenario)
    v: dict[int, Blocks] = {}
    lean: dict[int, Blocks] = {}
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            x, batches = world.received(client), world.batches(client, t)
            decay = lambda block, w: 0.01 * w  # noqa: E731
            sent[client], _ = world.descend(client, x, batches(2), world.rate(t), decay)
            v.setdefault(client, x)
            lean.setdefault(client, {block: torch.zeros(()) for block in x})
            for inputs, labels in batches(2):
                own = {b: w.clone().requires_grad_() for b, w in v[client].items()}
                a = {b: w.clone().requires_grad_() for b, w in lean[client].items()}
                mixed = {b: a[b].sigmoid() * own[b] + (1 - a[b].sigmoid()) * sent[client][b] for b in own}
                cross_entropy(world, client, mixed, inputs, labels).backward()
                v[client] = {b: w.detach() - 0.1 * (w.grad + 0.01 * w.detach()) for b, w in own.items()}
                lean[client] = {b: w.detach() - 0.4 * w.grad for b, w in a.items()}
        world.average(sent, world.n)
    run = simulated(scenario)
    assert_model_equals(run, world)
    assert_kept(run, "v", v)
    assert_kept(run, "lean", lean)


@pytest.mark.parametrize(
    ("block", "changes"),
    [("head", {}), ("encoder/acc", {}), ("head", BATCH_NORM | {"rounds": 2})],
    ids=["head", "encoder", "norm"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_low_rank(engine: str, block: str, changes: dict[str, Any]) -> None:
    """Factors travel in the place of the block; its running statistics are averaged all the same."""
    scenario = scenario_of({"kind": "low-rank", "block": block, "rank": 2}, **{"training.engine": engine}, **changes)
    world = World(scenario)
    run = simulated(scenario)
    statistics = running(world.models[0].blocks[block])
    size = len(world.first[block]) - len(statistics)
    world.shared[block] = world.first[block] = world.first[block][:size]
    width = int(size**0.5)
    height = -(-size // width)
    start = simulated(scenario.override({"rounds": 1, "training.optimizer.lr": 1e-30}))
    a, b = torch.tensor(start.value(block, "a")), torch.zeros(2, width)
    assert a.shape == (height, 2)
    assert abs(float(a.std()) - 1) < 0.5
    for t in world.rounds:
        sent, factors, measured = {}, {}, {}
        for client in world.cohort(t):
            x, own = world.received(client), {"a": a, "b": b}
            set_running(world.models[client].blocks["head"], statistics if block == "head" else torch.zeros(0))
            for inputs, labels in world.batches(client, t)(2):
                for norm in norms_of(world.models[client]):
                    norm.train(len(labels) > 1)
                if block not in x:
                    x, _ = world.descend(client, x, iter([(inputs, labels)]), world.rate(t))
                    continue
                leaves = {name: w.clone().requires_grad_() for name, w in {**x, **own}.items()}
                whole = leaves[block] + ((leaves["a"] @ leaves["b"]) / 2**0.5).flatten()[:size]
                blocks = {**{name: leaves[name] for name in x}, block: whole}
                cross_entropy(world, client, blocks, inputs, labels).backward()
                moved = {name: w.detach() - world.rate(t) * w.grad for name, w in leaves.items() if name != block}
                x, own = {**x, **{name: moved[name] for name in x if name != block}}, {n: moved[n] for n in own}
            if block in x:
                factors[client] = own
                measured[client] = running(world.models[client].blocks[block])
                del x[block]
            sent[client] = x
        world.average(sent, world.n)
        n = sum(world.n[k] for k in factors)
        if factors:
            a, b = (sum(world.n[k] * own[f].double() for k, own in factors.items()).div(n).float() for f in ("a", "b"))
            statistics = (sum(world.n[k] * own.double() for k, own in measured.items()) / n).float()
    assert_model_equals(run, world)
    assert_close(run.value(block, "a"), a, "a")
    assert_close(run.value(block, "b"), b, "b")
    if changes:
        assert_close(run.value("statistics/head"), statistics, "statistics")
        assert float(statistics.abs().max()) > 0.1
    assert torch.equal(world.shared[block], world.first[block])
    assert float(b.abs().max()) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"sharing": "private-head"}, {"training.modality_dropout": 0.5}], ids=str)
def test_pfedme(changes: dict[str, Any]) -> None:
    options = {"pull": 2.0, "inner_steps": 3, "inner_rate": 0.1}
    scenario = scenario_of({"kind": "pfedme", **options}, **changes)
    world = World(scenario)
    personal: dict[int, Blocks] = {}
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            w = theta = {**world.received(client), **world.private[client]}
            for inputs, labels in world.batches(client, t)(2):
                for _ in range(3):
                    leaves = {b: x.clone().requires_grad_() for b, x in theta.items()}
                    cross_entropy(world, client, leaves, inputs, labels).backward()
                    gradient = {b: torch.zeros_like(x) if x.grad is None else x.grad for b, x in leaves.items()}
                    theta = {b: x - 0.1 * (gradient[b] + 2 * (x - w[b])) for b, x in theta.items()}
                w = {b: x - world.rate(t) * 2 * (x - theta[b]) for b, x in w.items()}
            sent[client] = {b: w[b] for b in world.averaged(client)}
            personal[client] = {b: theta[b] for b in world.averaged(client)}
            world.private[client] = {b: w[b] for b in world.private[client]}
        world.average(sent, world.n)
    run = simulated(scenario)
    assert_model_equals(run, world)
    assert_kept(run, "personal", personal)
