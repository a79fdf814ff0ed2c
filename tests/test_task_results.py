"""The page of results on tasks, gaps and unseen people: its numbers are those of its data file."""

from __future__ import annotations

import csv
import importlib
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY
from scipy import stats

from blossom_ray import Scenario
from blossom_ray.reading.overrides import parse_assignment

PAGE = (REPOSITORY / "docs" / "results" / "tasks.md").read_text(encoding="utf-8")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scenarios" / "paper")
    return importlib.import_module("tasks_and_gaps")


def test_the_tables_follow_from_the_lines(script: ModuleType) -> None:
    lines = [line for line in script.tables(script.read(script.LINES)) if line]
    assert [line for line in "\n".join(lines).splitlines() if line not in PAGE] == [], (
        "run scenarios/paper/tasks_and_gaps.py"
    )


def test_a_comparison_by_other_means(script: ModuleType) -> None:
    found = script.read(script.LINES)
    (compared,) = (each for each in script.comparisons()["tasks"] if each.text == "uci-har, who: shared - local")
    own, base = (
        [100 * scores["who/accuracy"] for _, scores in sorted(found[side.sweep, side.setting].items())]
        for side in (compared.own, compared.base)
    )
    judge = stats.ttest_rel(own, base)
    low, high = judge.confidence_interval()
    expected = f"| {compared.text} | {(low + high) / 2:+.1f} ± {(high - low) / 2:.1f} | {script.p_text(judge.pvalue)} |"
    assert expected in PAGE


def test_each_sweep_has_commands_that_can_be_given(script: ModuleType, tmp_path: Path) -> None:
    with script.LINES.open(encoding="utf-8", newline="") as file:
        first = {row["sweep"]: row for row in csv.DictReader(file)}
    for row in first.values():
        words = shlex.split(row["command"].replace("PATH", str(tmp_path)))
        assert words[:2] == ["blossom-ray", "simulate"]
        settings = dict(parse_assignment(word) for before, word in pairwise(words) if before == "--set")
        scenario = Scenario.load(Path(words[2]), settings | {"seed": int(words[-1])})
        assert scenario.seed == int(row["seed"])
