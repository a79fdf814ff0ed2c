"""What is added to the loss, and what is measured on samples: each algorithm against a loop in plain PyTorch."""

from __future__ import annotations

from collections import Counter, defaultdict
from copy import deepcopy
from itertools import permutations
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
from torch.nn import functional as F

from blossom_ray.core.seeding import Purpose, generator

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

STACKED = {"training.engine": "vectorized"}
DROPPED = {"training.modality_dropout": 0.5, "sharing": "private-head"}
PRIVATE = {"training.engine": "vectorized", "sharing": "private-head"}
each_federation = pytest.mark.parametrize(
    "changes", [{}, STACKED, PRIVATE, DROPPED], ids=["one after the other", "stacked", "private head", "dropped"]
)


def frozen_model(world: World, client: int, blocks: dict[str, Tensor]) -> Any:
    """A function from inputs to what a model gives that stands still: embeddings, representation, outputs."""
    model = deepcopy(world.set_model(client, {**world.private[client], **blocks}))

    @torch.no_grad()
    def seen(inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        return parts(model, inputs)

    return seen


def parts(
    model: Any, inputs: dict[str, Tensor], only: tuple[str, ...] | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A model's embeddings, representation and outputs; fusion and head of some modalities alone."""
    embeddings = {name: model.blocks[f"encoder/{name}"](x) for name, x in inputs.items()}
    representation = model.blocks["fusion"]({m: z for m, z in embeddings.items() if only is None or m in only})
    return embeddings, representation, model.blocks["head"](representation)


@each_federation
def test_moon(changes: dict[str, Any]) -> None:
    mu, temperature = 2.0, 0.3
    scenario = scenario_of({"kind": "moon", "mu": mu, "temperature": temperature}, rounds=3, **changes)
    world = World(scenario)
    previous: dict[int, dict[str, Tensor]] = {}
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            x = world.received(client)
            others = [frozen_model(world, client, w) for w in (x, previous.get(client, x))]

            def loss(model: Any, inputs: Any, labels: Tensor, others: Any = others) -> Tensor:
                still = [other(inputs)[1] for other in others]
                _, z, outputs = parts(model, inputs)
                near, far = (F.cosine_similarity(z, other) / temperature for other in still)
                contrast = -torch.log(near.exp() / (near.exp() + far.exp()))
                return F.cross_entropy(outputs, labels) + mu * contrast.mean()

            sent[client], _ = world.descend(client, x, world.batches(client, t)(2), world.rate(t), loss=loss)
            previous[client] = sent[client]
        world.average(sent, world.n)
    run = simulated(scenario)
    assert_model_equals(run, world)
    assert_kept(run, "previous", previous)


@pytest.mark.parametrize("sharing", ["local", "full-model"])
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_fedproto(engine: str, sharing: str) -> None:
    scenario = scenario_of({"kind": "fedproto", "weight": 3.0}, **{"training.engine": engine, "sharing": sharing})
    world = World(scenario)
    prototypes: dict[int, Tensor] = {}
    for t in world.rounds:
        sent, of_class = {}, defaultdict(list)
        for client in world.cohort(t):

            def loss(model: Any, inputs: Any, labels: Tensor) -> Tensor:
                _, z, outputs = parts(model, inputs)
                gaps = [((z[i] - prototypes[k]) ** 2).mean() for i, k in enumerate(labels.tolist()) if k in prototypes]
                return F.cross_entropy(outputs, labels) + 3.0 * sum(gaps, torch.zeros(())) / len(labels)

            x = world.received(client)
            sent[client], _ = world.descend(client, x, world.batches(client, t)(2), world.rate(t), loss=loss)
            inputs, labels = world.shards[client]
            for z, k in zip(frozen_model(world, client, sent[client])(inputs)[1], labels.tolist(), strict=True):
                of_class[k].append(z.double())
        world.average(sent, world.n)
        prototypes.update({k: torch.stack(own).mean(0).float() for k, own in of_class.items()})
    run = simulated(scenario)
    assert_model_equals(run, world)
    found = run.value("", "prototypes")
    for k in range(4):
        expected = torch.cat([prototypes[k], torch.ones(1)]) if k in prototypes else torch.zeros(7)
        assert_close(found[k], expected, f"prototype of class {k}")


@each_federation
def test_pmcmfl(changes: dict[str, Any]) -> None:
    weight, temperature = 1.5, 0.4
    scenario = scenario_of({"kind": "pmcmfl", "weight": weight, "temperature": temperature}, rounds=3, **changes)
    world = World(scenario)
    prototypes: dict[tuple[str, int], Tensor] = {}
    for t in world.rounds:
        sent, of_class = {}, defaultdict(list)
        for client in world.cohort(t):

            def loss(model: Any, inputs: Any, labels: Tensor, num_owned: int = len(world.shards[client][0])) -> Tensor:
                embeddings, _, outputs = parts(model, inputs)
                total = F.cross_entropy(outputs, labels)
                for name, z in embeddings.items():
                    seen = [k for k in range(4) if (name, k) in prototypes]
                    for i, k in enumerate(labels.tolist()):
                        if k in seen:
                            cosines = [F.cosine_similarity(z[i], prototypes[name, c], dim=0) for c in seen]
                            log_p = F.log_softmax(torch.stack(cosines) / temperature, 0)
                            total = total - weight / num_owned / len(labels) * log_p[seen.index(k)]
                return total

            x = world.received(client)
            sent[client], _ = world.descend(client, x, world.batches(client, t)(2), world.rate(t), loss=loss)
            inputs, labels = world.shards[client]
            for name, embeddings in frozen_model(world, client, sent[client])(inputs)[0].items():
                for z, k in zip(embeddings, labels.tolist(), strict=True):
                    of_class[name, k].append(z.double())
        world.average(sent, world.n)
        prototypes.update({key: torch.stack(own).mean(0).float() for key, own in of_class.items()})
    run = simulated(scenario)
    assert_model_equals(run, world)
    for (name, k), expected in prototypes.items():
        assert_close(run.value("", f"prototypes of {name}")[k, :-1], expected, f"{name} of class {k}")


@each_federation
def test_flism(changes: dict[str, Any]) -> None:
    options = {"contrast": 0.7, "temperature": 0.4, "distillation": 1.3}
    scenario = scenario_of({"kind": "flism", **options}, rounds=2, **changes)
    world = World(scenario)
    for t in world.rounds:
        sent = {}
        for client in world.cohort(t):
            x, owned = world.received(client), list(world.shards[client][0])
            teacher = frozen_model(world, client, x)

            def loss(model: Any, inputs: Any, labels: Tensor, teacher: Any = teacher, owned: Any = owned) -> Tensor:
                p = teacher(inputs)[2].softmax(-1)
                _, z, outputs = parts(model, inputs)
                total = F.cross_entropy(outputs, labels)
                total = total + 1.3 * (p * (p.log() - outputs.log_softmax(-1))).sum(-1).mean()
                for name in inputs:
                    rest = tuple(other for other in inputs if other != name)
                    if rest:
                        view = parts(model, inputs, only=rest)[1]
                        total = total + 0.7 / len(owned) * supervised_contrast(z, view, labels, 0.4)
                return total

            sent[client], _ = world.descend(client, x, world.batches(client, t)(2), world.rate(t), loss=loss)
        world.average(sent, world.n)
    assert_model_equals(simulated(scenario), world)


def supervised_contrast(one: Tensor, other: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Khosla et al. 2020, equation 2, anchor by anchor."""
    points, classes = torch.cat([one, other]), [*labels.tolist(), *labels.tolist()]
    losses = []
    for i, anchor in enumerate(points):
        rest = [j for j in range(len(points)) if j != i]
        cosines = torch.stack([F.cosine_similarity(anchor, points[j], dim=0) / temperature for j in rest])
        hits = [at for at, j in enumerate(rest) if classes[j] == classes[i]]
        losses.append(-torch.stack([cosines[at] - cosines.logsumexp(0) for at in hits]).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "changes",
    [{}, STACKED, PRIVATE, DROPPED, BATCH_NORM | {"rounds": 2}, BATCH_NORM | {"rounds": 2, **STACKED}],
    ids=["one after the other", "stacked", "private head", "dropped", "batch norm", "batch norm, stacked"],
)
def test_ifca(changes: dict[str, Any]) -> None:
    """Also the running statistics of a model are averages over the clients that have chosen it."""
    scenario = scenario_of({"kind": "ifca", "clusters": 3}, **{**changes, "server.clients_per_round": 7})
    run = simulated(scenario)
    first = simulated(scenario.override({"rounds": 1, "training.optimizer.lr": 1e-30}))
    world = World(scenario)
    names = ["", "cluster 1", "cluster 2"]
    models = [dict(world.shared)] + [
        {label: torch.tensor(first.value(label, name)) for label in world.shared} for name in names[1:]
    ]
    if "model.head" in changes:  # which have statistics already
        size = len(running(world.models[0].blocks["head"]))
        for model in models:
            model["head"] = torch.cat([model["head"][:-size], world.first["head"][-size:]])
    choices: dict[int, int] = {}
    for t in world.rounds:
        groups: list[dict[int, dict[str, Tensor]]] = [{}, {}, {}]
        for client in world.cohort(t):
            inputs, labels = world.shards[client]
            held = [{b: model[b].clone() for b in world.averaged(client)} for model in models]
            losses = [float(F.cross_entropy(frozen_model(world, client, w)(inputs)[2], labels)) for w in held]
            choices[client] = j = int(np.argmin(losses))
            groups[j][client], _ = world.descend(client, held[j], world.batches(client, t)(2), world.rate(t))
        for model, own in zip(models, groups, strict=True):
            world.shared = model
            world.average(own, world.n)
    world.shared = models[0]
    assert_model_equals(run, world)
    for name, model in zip(names[1:], models[1:], strict=True):
        for block, value in model.items():
            assert_close(run.value(block, name), value, f"{block} of {name}")
    assert {client: int(kept["choice"][""]) for client, kept in run.kept.items()} == choices
    assert len(set(choices.values())) > 1
    for scored in run.records[-1].evaluation:
        inputs, labels = world.tests[scored.client]
        model = models[choices.get(scored.client, 0)]
        own = frozen_model(world, scored.client, {b: model[b] for b in world.averaged(scored.client)})
        assert scored.loss == pytest.approx(float(F.cross_entropy(own(inputs)[2], labels)), abs=1e-4)


@pytest.mark.parametrize("changes", [{}, STACKED, PRIVATE], ids=["one after the other", "stacked", "private head"])
def test_mfedmc(changes: dict[str, Any]) -> None:
    options = {"modalities": 1, "clients": 0.5, "impact": 1.0, "size": 0.4, "recency": 0.6}
    scenario = scenario_of({"kind": "mfedmc", **options}, **{**changes, "server.clients_per_round": 7})
    world = World(scenario)
    last: dict[tuple[int, str], int] = Counter()
    taken_of, offered_of = 0, 0
    for t in world.rounds:
        sent, offers = {}, defaultdict(list)
        for client in world.cohort(t):
            x = world.received(client)
            sent[client], _ = world.descend(client, x, world.batches(client, t)(2), world.rate(t))
            inputs, labels = world.shards[client]
            model, own = world.set_model(client, sent[client]), list(inputs)

            @torch.no_grad()
            def right(subset: tuple[str, ...], model: Any = model, inputs: Any = inputs, y: Tensor = labels) -> float:
                if not subset:
                    return 0.0
                return float(parts(model, inputs, subset)[2].softmax(1)[torch.arange(len(y)), y].mean())

            shapley = dict.fromkeys(own, 0.0)
            orders = list(permutations(own))
            for order in orders:
                for i, name in enumerate(order):
                    shapley[name] += (right(order[: i + 1]) - right(order[:i])) / len(orders)
            size = {name: len(sent[client][f"encoder/{name}"]) for name in own}
            priority = {
                name: abs(shapley[name]) / max(map(abs, shapley.values()))
                + 0.4 * (1 - size[name] / max(size.values()))
                + 0.6 * (t - last[client, name]) / t
                for name in own
            }
            best = max(own, key=lambda name, p=priority: p[name])
            last[client, best] = t
            alone = parts(model, inputs, (best,))[2].detach()
            offers[best].append((float(F.cross_entropy(alone, labels)), client))
            for name in own:
                if name != best:
                    del sent[client][f"encoder/{name}"]
        for name, entries in offers.items():
            taken = {client for _, client in sorted(entries)[: -(-len(entries) // 2)]}
            taken_of, offered_of = taken_of + len(taken), offered_of + len(entries)
            for _, client in entries:
                if client not in taken:
                    del sent[client][f"encoder/{name}"]
        world.average(sent, world.n)
    run = simulated(scenario)
    assert_model_equals(run, world)
    for (client, name), t in last.items():
        assert run.kept[client]["last"][f"encoder/{name}"] == t
    assert taken_of < offered_of < sum(len(world.shards[c][0]) for t in world.rounds for c in world.cohort(t))


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_oort(engine: str) -> None:
    scenario = scenario_of({"kind": "oort", "exploration": 0.4}, **{"training.engine": engine})
    world = World(scenario)
    utility: dict[int, float] = {}
    last: dict[int, int] = {}
    cohorts = []
    for t in world.rounds:
        fresh, seen = ([c for c in range(9) if (c in last) is known] for known in (False, True))
        num_fresh = min(len(fresh), max(2, 5 - len(seen)))
        value = {c: utility[c] + np.sqrt(0.1 * np.log(t) / last[c]) for c in seen}
        cohort = sorted(seen, key=lambda c, v=value: -v[c])[: 5 - num_fresh]
        draw = generator(scenario.seeds.training, Purpose.SELECTION, t)
        cohort += draw.choice(fresh, num_fresh, replace=False).tolist()
        cohorts.append(sorted(cohort))
        sent = {}
        for client in sorted(cohort):
            x = world.received(client)
            sent[client], _ = world.descend(client, x, world.batches(client, t)(2), world.rate(t))
            inputs, labels = world.shards[client]
            losses = F.cross_entropy(frozen_model(world, client, sent[client])(inputs)[2], labels, reduction="none")
            utility[client], last[client] = len(labels) * float(losses.square().mean().sqrt()), t
        world.average(sent, world.n)
    run = simulated(scenario)
    assert [[record.client for record in each.training] for each in run.records[1:]] == cohorts
    assert_model_equals(run, world)
    assert cohorts != [list(world.cohort(t)) for t in world.rounds]
