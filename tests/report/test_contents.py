"""Sections hold the numbers of the runs' tables."""

from __future__ import annotations

import polars as pl
import pytest

from blossom_ray import Run, Scenario, simulate
from blossom_ray.report.charts import figure_style
from blossom_ray.report.contents import Variant, facts, format_score, headline_metrics, metric_title, run_sections

SCENARIO = {
    "name": "tiny",
    "rounds": 2,
    "data": {"dataset": "synthetic", "samples": 200, "classes": 2},
    "clients": [{"count": 2, "modalities": ["a"]}, {"count": 2, "modalities": ["a", "b"]}],
    "model": {"encoders": {"a": {"kind": "mlp", "dim": 4}, "b": {"kind": "mlp", "dim": 4}}},
    "execution": {"runtime": "local"},
}


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    base = Scenario.model_validate(SCENARIO)
    return [simulate(base.override({"seed": seed})) for seed in (0, 1)]


@pytest.fixture(autouse=True)
def _style():
    with figure_style():
        yield


def sections(*variants: Variant) -> dict:
    return {section.title: section for section in run_sections(variants)}


def lines(section, name: str) -> dict:
    (figure,) = (figure.figure for figure in section.figures if figure.name == name)
    return {line.get_label(): line for axis in figure.axes for line in axis.lines}


def test_one_run_shows_its_scores_with_the_spread_over_clients(runs: list[Run]) -> None:
    found = sections(Variant("", runs[:1]))
    assert list(found) == ["Scores over rounds", "Modality sets", "Clients", "Communication", "Time"]
    scores = found["Scores over rounds"]
    (line,) = lines(scores, "curve-accuracy").values()
    expected = [100 * value for value in runs[0].rounds["accuracy"].to_list()]
    assert line.get_ydata().tolist() == pytest.approx(expected)
    axis = next(f.figure for f in scores.figures if f.name == "curve-accuracy").axes[0]
    tops = axis.collections[0].get_paths()[0].vertices[:, 1].max()
    assert tops == pytest.approx(100 * runs[0].rounds["accuracy_p90"].max())
    assert scores.tables[0].rows[0][1] == format_score("accuracy", runs[0].final["accuracy"])


def test_a_variant_of_two_seeds_shows_their_mean(runs: list[Run]) -> None:
    found = sections(Variant("two", runs))
    (line,) = lines(found["Scores over rounds"], "curve-accuracy").values()
    expected = [50 * (a + b) for a, b in zip(*(run.rounds["accuracy"].to_list() for run in runs), strict=True)]
    assert line.get_ydata().tolist() == pytest.approx(expected)


def test_two_variants_stand_side_by_side_in_each_modality_set(runs: list[Run]) -> None:
    found = sections(Variant("first", runs[:1]), Variant("second", runs[1:]))
    figure = found["Modality sets"].figures[0].figure
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "a+b"]
    assert {line.get_label() for line in figure.axes[0].lines} == {"first", "second"}
    assert len(found["Clients"].figures[0].figure.axes[0].get_yticks()) == 4


def test_communication_is_that_of_the_whole_run(runs: list[Run]) -> None:
    table = sections(Variant("", runs[:1]))["Communication"].tables[0]
    assert [row[0] for row in table.rows] == [
        "encoder/a (shared)",
        "encoder/b (shared)",
        "fusion (private)",
        "head (private)",
    ]
    assert table.rows[2][1:] == ["0 B", "0 B"]
    figure = sections(Variant("", runs[:1]))["Communication"].figures[0].figure
    sent = runs[0].blocks.filter(pl.col("block") == "encoder/a")["bytes_up"].sum()
    assert sent / 1e6 in [pytest.approx(bar.get_width()) for bar in figure.axes[0].patches]


def test_loss_is_no_score(runs: list[Run]) -> None:
    assert headline_metrics([Variant("", runs)])[0] == "accuracy"
    assert "loss" not in headline_metrics([Variant("", runs)])


def test_scores_are_percent_and_errors_are_not() -> None:
    assert format_score("accuracy", 0.5) == "50.0 %"
    assert format_score("rmse", 0.5) == "0.5"
    assert format_score("accuracy", None) == ""
    assert metric_title("macro_f1_all") == "macro-F1, all classes"


def test_facts_of_a_run(runs: list[Run]) -> None:
    assert facts(runs[0]) | {"scenario": "tiny", "clients": "4", "rounds": "2 of 2", "seed": "0"} == facts(runs[0])
