"""The walk from the reference's numbers to ours: the page's are those of its data file, and the patches are right."""

from __future__ import annotations

import importlib
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from sklearn.metrics import f1_score
from torch import nn

from blossom_ray import Scenario
from blossom_ray.models.build import build_client_model
from blossom_ray.models.options import Model
from blossom_ray.reading.overrides import parse_assignment

PAGE = (REPOSITORY / "docs" / "results" / "reference.md").read_text(encoding="utf-8")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scenarios" / "paper")
    return importlib.import_module("reference")


@pytest.fixture
def code(study: ModuleType) -> ModuleType:
    return importlib.import_module("reference_code")


def test_the_tables_follow_from_the_lines(study: ModuleType) -> None:
    lines = "\n".join(study.tables(study.read(study.LINES), study.read(study.GRID))).splitlines()
    assert [line for line in lines if line not in PAGE] == [], "run scenarios/paper/reference.py tables"


def test_a_row_by_hand(study: ModuleType) -> None:
    lines = [
        {"split": "5-5-0", "step": "as published", "scheme": scheme, "seed": seed, "accuracy": score}
        for scheme, scores in {"full-model": ("0.50", "0.60"), "private-head-fusion": ("0.70", "0.90")}.items()
        for seed, score in zip("01", scores, strict=True)
    ]
    rows = "\n".join(study.tables(lines, [])).splitlines()
    # Student's t with one degree of freedom: 12.706 standard errors, which are half of the distance of two values.
    values = "55.0 ± 63.5 (2) | 80.0 ± 127.1 (2) | +25.0 ± 63.5 (2)"
    assert rows[3] == f"| 5-5-0, as published, 4 workers | {values} | - | - | - |"
    assert rows[-1] == "| 5-5-0 | +20.0 to +30.0 | +10.0 to +40.0 |"


def test_each_of_our_runs_has_a_command_that_can_be_given(study: ModuleType, tmp_path: Path) -> None:
    for line in study.read(study.LINES):
        assert line["command"] == study.command(line)
        words = shlex.split(line["command"].replace("PATH", str(tmp_path)))
        if line["step"] in study.OURS:
            settings = dict(parse_assignment(word) for before, word in pairwise(words) if before == "--set")
            scenario = Scenario.load(REPOSITORY / words[2], settings | {"seed": int(words[-1])})
            assert (scenario.rounds, scenario.data.draws) == (int(line["rounds"]), "reference")


def test_scores_of_a_task_of_the_reference(code: ModuleType) -> None:
    labels, predicted = [0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 2, 3]
    counts = {
        f"{kind}_class_{c}": sum((p == c, y == c) == pair for y, p in zip(labels, predicted, strict=True))
        for c in range(4)
        for kind, pair in {"tp": (True, True), "fp": (True, False), "fn": (False, True)}.items()
    }
    theirs = SimpleNamespace(num_classes=4, compute_aggregated_metrics=lambda *_: {"val_f1": 55.0})
    scores = code.with_scores(theirs).compute_aggregated_metrics({**counts, "correct": 4}, 6, 1.0)
    expected = f1_score(labels, predicted, labels=[0, 1, 3], average="macro")
    assert scores == pytest.approx(
        {"val_f1": 55.0, "accuracy": 4 / 6, "macro_f1_all": 0.55, "macro_f1_present": expected}
    )


@pytest.mark.parametrize("owned", [("gyro",), ("acc", "gyro")])
def test_the_masked_reference_is_our_model(code: ModuleType, owned: tuple[str, ...]) -> None:
    tree = {
        "encoders": {name: {"kind": "mlp", "hidden": [4], "dim": 5} for name in ("acc", "gyro")},
        "fusion": {"kind": "attention", "dim": 6},
        "head": {"kind": "mlp", "hidden": [4], "dropout": 0.0},
        "missing": "mask",
    }
    shapes = {"acc": (4, 3), "gyro": (4, 3)}
    ours = build_client_model(Model.model_validate(tree), shapes, 3, owned, seed=0)
    blocks = {str(name): block for name, block in ours.blocks.items()}
    fusion = blocks["fusion"]
    theirs = SimpleNamespace(
        encoders={name: blocks.get(f"encoder/{name}") for name in shapes},
        fusion_module=SimpleNamespace(
            attention=nn.Sequential(fusion.scores, nn.Softmax(-1)),
            encoding_projection=dict(zip(shapes, fusion.projections, strict=True)),
            parameters=fusion.parameters,
        ),
        head_module=blocks["head"],
    )
    inputs = {name: torch.randn(7, *shape) for name, shape in shapes.items()}
    logits = code.masked_forward(theirs, owned, inputs)
    torch.testing.assert_close(logits, ours({name: inputs[name] for name in owned}))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())
