"""Comparisons of single classes: against hand-made tables, SciPy and the tables of real runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from blossom_ray import Run, Scenario, compare, simulate
from blossom_ray.core.records import ClassScores, RoundRecord
from blossom_ray.errors import InputError
from blossom_ray.studies.comparison import formats, panels

FEDERATION = {"data": {"fingerprint": "f", "partition": "p", "task": "classification", "num_classes": 2}}
Scores = Mapping[tuple[str, str], tuple[float | None, float | None]]


@pytest.fixture
def make(small_scenario: Scenario) -> Callable[..., Run]:
    """A run in memory of one round, with the recalls of two classes by scoring and modality set."""

    def build(recalls: Scores, names: tuple[str, str] = ("walk", "sit/stand"), **changes: Any) -> Run:
        scenario = small_scenario.override({"rounds": 1, **changes})
        classes = tuple(
            ClassScores(scoring, modalities, number, names[number], 10, 10, 5, recall, 0.5, 0.5)
            for (scoring, modalities), both in recalls.items()
            for number, recall in enumerate(both)
        )
        records = (RoundRecord(0, None, (), (), (), {}, ()), RoundRecord(1, 0.1, (), (), (), {}, (), classes=classes))
        return Run.from_records(records, scenario, tuple(scenario.profiles()), FEDERATION)

    return build


def test_recalls_and_points_by_class_agree_with_scipy(make: Callable[..., Run]) -> None:
    base = [(0.9, 0.5), (0.8, 0.6), (0.7, 0.9)]
    own = [(0.9, 0.7), (0.9, 0.9), (0.5, 1.0)]
    runs = [make({("test", ""): pair}, sharing=name, seed=seed)
            for name, pairs in (("full-model", base), ("local", own)) for seed, pair in enumerate(pairs)]  # fmt: skip
    found = compare(*runs, per_class=True)
    assert (found.metric, found.part, found.is_share) == ("recall", "class", True)
    assert found.table.select("sharing", "class").rows() == [
        ("full-model", "walk"), ("full-model", "sit/stand"), ("local", "walk"), ("local", "sit/stand"),
    ]  # fmt: skip
    p_values = []
    for number, row in enumerate(found.table.filter(sharing="local").to_dicts()):
        theirs, ours = (np.array([pair[number] for pair in pairs]) for pairs in (base, own))
        assert row["final"] == pytest.approx(ours.mean())
        assert row["points_final"] == pytest.approx(100 * (ours - theirs).mean())
        test = stats.ttest_rel(100 * ours, 100 * theirs)
        interval = test.confidence_interval()
        assert (row["points_final_low"], row["points_final_high"]) == pytest.approx((interval.low, interval.high))
        assert row["p_final"] == pytest.approx(test.pvalue)
        p_values.append(test.pvalue)
    smallest = min(p_values)
    adjusted = found.table.filter(sharing="local")["p_holm_final"].to_list()
    assert min(adjusted) == pytest.approx(2 * smallest)  # of two comparisons, one per class


def test_held_out_scores_are_of_one_modality_set(make: Callable[..., Run]) -> None:
    run = make({("held_out", "acc"): (0.25, 0.75), ("held_out", "gyro"): (1.0, 0.0)})
    found = compare(run, metric="held_out/recall/gyro", per_class=True)
    assert found.metric == "held_out/recall/gyro"
    assert found.table["final"].to_list() == [1.0, 0.0]
    with pytest.raises(InputError, match="'held_out/recall'; expected one of held_out/recall/acc, held_out/recall/gyr"):
        compare(run, metric="held_out/recall", per_class=True)


@pytest.mark.parametrize("start", ["", "validation/", "unseen/"])
def test_fine_tuned_scores_stand_below_the_plain_ones(make: Callable[..., Run], start: str) -> None:
    run = make({(start[:-1] or "test", ""): (0.2, 0.4), (f"{start}fine_tuned", ""): (0.6, 0.8)})
    found = compare(run, metric=f"{start}recall", per_class=True)
    assert dict(found.table.group_by("scoring").agg("final").rows()) == {"plain": [0.2, 0.4], "fine-tuned": [0.6, 0.8]}


def test_a_class_without_samples_has_no_row(make: Callable[..., Run]) -> None:
    found = compare(make({("test", ""): (0.5, None)}), per_class=True)
    assert found.table["class"].to_list() == ["walk"]


@pytest.mark.parametrize("names", [("sit", "sit"), ("all clients", "all clients")])
def test_classes_that_share_a_name_are_told_apart_by_their_numbers(
    make: Callable[..., Run], names: tuple[str, str]
) -> None:
    found = compare(make({("test", ""): (0.5, 0.25)}, names), per_class=True)
    assert found.table.select("class", "final").rows() == [
        (f"{names[0]} (class 0)", 0.5), (f"{names[0]} (class 1)", 0.25),
    ]  # fmt: skip


def test_what_cannot_be_compared_is_said(make: Callable[..., Run]) -> None:
    run = make({("test", ""): (0.5, 0.25)})
    with pytest.raises(InputError, match="a class is 'accuracy'; expected one of recall, precision, f1, auroc"):
        compare(run, metric="accuracy", per_class=True)
    with pytest.raises(InputError, match=r"no run has scores of single classes \(test\); expected runs of a classific"):
        compare(make({}), per_class=True)
    found = compare(run, make({}, sharing="local"), per_class=True)
    assert "a run in memory has no recall" in found.notes


def test_a_run_has_the_scores_of_its_table(small_scenario: Scenario, tmp_path: Path, command: Any) -> None:
    for task, score in (("classification", "recall"), ("multilabel", "auroc")):
        run = simulate(small_scenario.override({"task": task}), out=tmp_path / task)
        found = compare(run, per_class=True)
        table = run.classes.filter(scoring="test", modalities="").drop_nulls(score)
        assert found.metric == score
        assert found.table.select("class", "final").rows() == table.select("name", score).rows()
    assert run.path is not None
    shown = command("compare", str(run.path), "--per-class", "--metric", "f1", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert [row["class"] for row in rows] == run.manifest["data"]["class_names"]
    tree = json.loads(command("compare", str(run.path), "--per-class", "--json").out)
    assert (tree["part"], {row["class"] for row in tree["runs"]}) == ("class", {row["class"] for row in rows})


def test_every_format_names_the_classes(make: Callable[..., Run]) -> None:
    found = compare(make({("test", ""): (0.5, 0.25)}), per_class=True)
    table = panels.flat_table(found, "final")
    assert table.columns[0] == "class"
    assert [row[0] for row in table.rows] == ["walk", "sit/stand"]
    assert "sit/stand" in formats.markdown(found, "final")
    assert r"sit/stand & 1 & 25.0" in formats.latex(found, "final")
