"""Every algorithm that is built in: short, with its source, on the page of baselines, and it runs there as it comes."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, simulate
from blossom_ray.algorithms.options import (
    OF_CLASSES,
    OF_PLAIN_STEPS,
    AlgorithmOption,
    CustomAlgorithm,
    FederatedAveraging,
)
from blossom_ray.core.blocks import HEAD, Block, BlockInstance, Scope
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds

BUILT_IN = [
    each for each in get_args(get_args(AlgorithmOption)[0]) if each not in (FederatedAveraging, CustomAlgorithm)
]
BASELINE = REPOSITORY / "scenarios" / "baselines" / "full-model-masked.yaml"
PAGE = (REPOSITORY / "docs" / "baselines.md").read_text(encoding="utf-8")
each_algorithm = pytest.mark.parametrize("section", BUILT_IN, ids=lambda section: kind_of(section))


def kind_of(section: Any) -> str:
    (kind,) = get_args(section.model_fields["kind"].annotation)
    return str(kind)


def num_lines(section: Any) -> int:
    """Lines of an algorithm: those of its class that are not empty, no comment, docstring or option."""
    lines = inspect.getsource(section).splitlines()
    (node,) = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.ClassDef)
    spared = [part for part in ast.walk(node) if isinstance(part, ast.AnnAssign) and part in node.body]
    spared += [part for part in ast.walk(node) if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)]
    for part in spared:
        lines[part.lineno - 1 : part.end_lineno] = [""] * ((part.end_lineno or part.lineno) - part.lineno + 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


@each_algorithm
def test_it_is_short_and_says_where_it_is_from(section: Any) -> None:
    assert num_lines(section) <= 40
    assert "    # Source: " in Path(inspect.getfile(section)).read_text(encoding="utf-8")
    assert f"`{kind_of(section)}`" in PAGE


@each_algorithm
def test_it_runs_on_the_baselines_with_its_defaults(section: Any) -> None:
    changes = {"rounds": 1, "data.samples": 240, "training.optimizer.momentum": 0.0, "server.clients_per_round": 5}
    run = simulate(Scenario.load(BASELINE, {**changes, "algorithm.kind": kind_of(section)}))
    assert run.status == "finished"
    assert run.rounds["loss"].is_finite().all()


@each_algorithm
def test_running_statistics_of_a_shared_head_are_averaged(section: Any, tmp_path: Path) -> None:
    head = {"kind": "mlp", "hidden": [6], "norm": "batch", "dropout": 0.0}
    changes = {"rounds": 1, "data.samples": 240, "training.optimizer.momentum": 0.0, "model.head": head}
    preparation = choose_engines(
        prepare(Scenario.load(BASELINE, {**changes, "algorithm.kind": kind_of(section)}), tmp_path)
    )
    before = initial_server(preparation.plan, preparation.profiles_on_server(), preparation.scenario.server.optimizer)
    *_, (_, after) = run_rounds(preparation, LocalRuntime(preparation), before)
    apart, head = (BlockInstance(block, Scope.SHARED) for block in (Block("statistics", HEAD), HEAD))
    first = before.blocks[head].num_parameters if apart not in before.blocks else 0
    instance = apart if apart in before.blocks else head
    # Of several models that a client trains one of, each has its own.
    copies = {each for each in before.blocks if each._replace(copy="") == instance}
    old, new = ([server.blocks[each].sent.values[first:] for each in copies] for server in (before, after))
    assert any(not np.isclose(one, other).all() for one, other in zip(old, new, strict=True))
    assert len(old) == {"ifca": 2, "harmony": 3}.get(kind_of(section), 1)


@pytest.mark.parametrize("kind", OF_CLASSES)
@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_what_needs_classes_says_so(kind: str, task: str) -> None:
    expected = (
        rf"algorithm.kind is '{kind}', which has a place for each class, while task is '{task}'; expected another"
    )
    with pytest.raises(ScenarioError, match=expected):
        Scenario.load(BASELINE, {"task": task, "algorithm.kind": kind})


@pytest.mark.parametrize("kind", OF_PLAIN_STEPS)
@pytest.mark.parametrize("own", [{"kind": "adam"}, {"momentum": 0.5}, {"blocks": {"head": {"momentum": 0.5}}}])
def test_what_counts_plain_steps_says_so(kind: str, own: dict[str, Any]) -> None:
    given = {"training.optimizer": {"kind": "sgd", **own}, "algorithm.kind": kind}
    expected = f"training.optimizer has momentum or is no sgd, while algorithm.kind is '{kind}', which counts plain"
    with pytest.raises(ScenarioError, match=expected):
        Scenario.load(BASELINE, given)


def test_a_private_head_may_have_momentum() -> None:
    optimizer = {"kind": "sgd", "blocks": {"head": {"momentum": 0.5}}}
    changes = {"training.optimizer": optimizer, "algorithm.kind": "scaffold", "sharing": "private-head"}
    assert Scenario.load(BASELINE, changes).algorithm.kind == "scaffold"


def test_low_rank_knows_the_blocks() -> None:
    changes = {"rounds": 1, "data.samples": 240, "algorithm": {"kind": "low-rank", "block": "heads"}}
    scenario = Scenario.load(BASELINE, changes)
    expected = "algorithm.block is 'heads'; expected one of encoder/acc, encoder/gyro, fusion, head"
    with pytest.raises(InputError, match=expected):
        simulate(scenario)
