"""Clients that are scored on the same samples with the same encoders: computed once, with the same results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blossom_ray.clients import common_part
from blossom_ray.clients.common_part import until_own
from blossom_ray.clients.engines import make_engine
from blossom_ray.clients.job import ClientTask, Scored
from blossom_ray.clients.options import EngineName
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.label_rows import label_rows
from blossom_ray.models.options import Model, Precision
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.learned import Learned, one_task

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"acc": (4,), "gyro": (3,)}
MLP = {"kind": "mlp", "hidden": [5], "dim": 4}
NUM_ROWS, BATCH_SIZE = 21, 8
TWO_TASKS = Learned(
    {name: ("classification", task_rules("classification"), number, 1.0) for name, number in (("a", 3), ("b", 2))},
    has_rows=True,
)


def in_place_head(num_features: int, num_outputs: int) -> nn.Module:
    """A head that overwrites what it is given."""
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(num_features, num_outputs))


def counting(shape: tuple[int, ...]) -> nn.Module:
    """An encoder with a buffer of its own."""
    encoder = nn.Linear(shape[0], 4)
    encoder.register_buffer("count", torch.zeros((), dtype=torch.int64))
    return encoder


def workspace(
    *,
    learned: Learned | None = None,
    owned: Sequence[str] = ("acc", "gyro"),
    sparse: Sequence[str] = (),
    precision: Precision = "float32",
    **changes: Any,
) -> Workspace:
    tree = {"encoders": dict.fromkeys(SHAPES, MLP), "fusion": {"kind": "attention", "dim": 6}} | changes
    section = Model.model_validate({"head": {"kind": "linear"}} | tree)
    learned = learned or one_task("classification", 3)
    return Workspace(section, SHAPES, learned, owned=tuple(owned), seed=0, sparse=sparse, precision=precision)


def clients(space: Workspace, own: Sequence[str], *, gaps: bool = False, number: int = 5) -> list[ClientTask]:
    """Clients that see the same samples, with blocks of their own of these kinds."""
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(NUM_ROWS, *SHAPES[name])).astype(np.float32) for name in space.model.owned}
    labels = rng.integers(0, 3, NUM_ROWS)
    if space.learned.has_rows:
        labels = label_rows([(labels, rng.random(NUM_ROWS) < 0.8), (labels % 2, None)])
    observed = {"gyro": np.arange(NUM_ROWS) % 3 > 0} if gaps else {}
    tasks = []
    for client in range(number):
        blocks = dict(space.initial_blocks)
        for name in space.model.blocks:
            if name.kind in own:
                blocks[name] = rng.normal(size=blocks[name].shape).astype(np.float32)
        tasks.append(ClientTask(client, blocks, dict(inputs), labels, observed=dict(observed)))
    return tasks


def apart(tasks: Sequence[ClientTask]) -> list[ClientTask]:
    """The same clients, whose samples lie in memory of their own each."""
    return [replace(task, labels=task.labels.copy()) for task in tasks]


def numbers(scored: Sequence[Scored]) -> Iterator[Any]:
    for each in scored:
        for name, part in each.by_task.items():
            counts = {key: values.tolist() for key, values in part.tally.counts.items()}
            by_set = {key: (tally.num_examples, loss) for key, (tally, loss) in part.by_set.items()}
            yield name, part.tally.num_examples, counts, part.loss, by_set


CASES: dict[str, tuple[dict[str, Any], Sequence[str], bool]] = {
    "heads": ({}, ("head",), False),
    "fusions-and-heads": ({}, ("head", "fusion"), False),
    "gaps-masked": ({"sparse": ("gyro",), "missing": "mask"}, ("head", "fusion"), True),
    "gaps-zero-input": ({"sparse": ("gyro",), "missing": "zero-input"}, ("head", "fusion"), True),
    "gaps-prototype": ({"sparse": ("gyro",), "missing": "prototype"}, ("head",), True),
    "zero-input": ({"owned": ("acc",), "missing": "zero-input"}, ("head", "fusion"), False),
    "zero-embedding": ({"owned": ("gyro",), "missing": "zero-embedding"}, ("head",), False),
    "two-tasks": ({"learned": TWO_TASKS}, ("head",), False),
    "bfloat16": ({"precision": "bfloat16"}, ("head", "fusion"), False),
    "in-place": ({"head": {"kind": "custom", "factory": in_place_head}}, ("head",), False),
}


@pytest.mark.parametrize(
    ("case", "engine"),
    # Clients whose prototypes are measured are not stacked.
    [(case, "sequential") for case in CASES] + [(case, "vectorized") for case in CASES if "prototype" not in case],
)
def test_scores_are_those_of_whole_models(case: str, engine: EngineName) -> None:
    changes, own, gaps = CASES[case]
    space = workspace(**changes)
    tasks = clients(space, own, gaps=gaps)
    assert until_own(tasks, space) == ("fusion" if "fusion" in own else "head")
    assert until_own(apart(tasks), space) is None
    made = make_engine(engine, space)
    found, whole = (list(numbers(made.evaluate(each, BATCH_SIZE, round_index=1))) for each in (tasks, apart(tasks)))
    assert not made.obstacles
    if engine == "sequential":
        assert found == whole  # in every bit
    else:
        assert [each[:3] for each in found] == [each[:3] for each in whole]
        assert [each[3] for each in found] == pytest.approx([each[3] for each in whole], rel=1e-6)
    assert len({each[3] for each in found}) > 1


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(("own", "encoded", "fused"), [(("head",), 3, 3), (("head", "fusion"), 3, 15)])
def test_what_is_common_computes_once_a_batch(own: Sequence[str], encoded: int, fused: int, engine: EngineName) -> None:
    """Of 21 samples there are 3 batches of 8, of 5 clients; a fusion of each is called for each, or of all at once."""
    space, rows = workspace(), {"encoder": [0, 0], "fusion": [0, 0]}
    made, tasks = make_engine(engine, space), clients(space, own)
    made.evaluate(tasks, BATCH_SIZE, round_index=1)
    model = space.model
    if isinstance(made, StackedEngine):
        assert made._stack is not None
        model = made._stack.model

    def count(name: str, values: Any) -> None:
        any_tensor = next(iter(values.values())) if isinstance(values, dict) else values
        rows[name][0] += 1
        rows[name][1] += len(any_tensor)

    for name, block in model.blocks.items():
        if name.kind in rows and name.of != "gyro":
            block.register_forward_pre_hook(lambda _, given, kind=name.kind: count(kind, given[0]))
    made.evaluate(tasks, BATCH_SIZE, round_index=1)
    assert rows["encoder"] == [encoded, NUM_ROWS]
    assert rows["fusion"] == [3 if engine == "vectorized" else fused, NUM_ROWS * (fused // 3)]


def test_what_differs_is_not_common() -> None:
    space = workspace()
    heads, encoders = clients(space, ["head"]), clients(space, ["encoder", "head"])
    assert until_own(heads, space) == "head"
    assert until_own(heads[:1], space) is None
    assert until_own(encoders, space) is None
    other = {"acc": heads[1].inputs["acc"].copy(), "gyro": heads[1].inputs["gyro"]}
    assert until_own([heads[0], replace(heads[1], inputs=other)], space) is None
    assert until_own([heads[0], replace(heads[1], observed={"gyro": np.ones(NUM_ROWS, bool)})], space) is None
    assert until_own([replace(heads[0], observed={"gyro": np.ones(NUM_ROWS, bool)}), heads[1]], space) is None
    same = clients(space, [])
    assert until_own(same, space) == "head"  # clients that never trained


def test_state_of_their_own_is_not_common() -> None:
    def until(space: Workspace) -> str | None:
        states = [space.local_state() for _ in range(5)]
        assert all(states)
        tasks = zip(clients(space, ["head"]), states, strict=True)
        return until_own([replace(task, local_state=state) for task, state in tasks], space)

    normed = {"fusion": {"kind": "concat", "dim": 6, "norm": "batch"}}
    assert until(workspace(norm_statistics="local", **normed)) == "fusion"
    assert until(workspace(norm_statistics="shared", **normed)) == "head"  # the counter of steps counts for nothing
    own = workspace(encoders={name: {"kind": "custom", "factory": counting} for name in SHAPES})
    assert until(own) is None
    assert until_own(clients(own, ["head"]), own) == "head"


def test_what_would_not_fit_into_memory_is_computed_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    space = workspace()
    tasks = clients(space, ["head"])
    monkeypatch.setattr(common_part, "_MAX_VALUES", NUM_ROWS * 8)
    assert until_own(tasks, space) == "head"
    monkeypatch.setattr(common_part, "_MAX_VALUES", NUM_ROWS * 8 - 1)
    assert until_own(tasks, space) is None
