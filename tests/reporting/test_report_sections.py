"""Sections hold the numbers of the runs' tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from blossom_ray import Run, Scenario, compare, simulate
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import RoundRecord
from blossom_ray.studies.comparison.entries import collect
from blossom_ray.studies.reports.charts import figure_style
from blossom_ray.studies.reports.federation import failure_section, time_section, traffic_section
from blossom_ray.studies.reports.page import ReportSection
from blossom_ray.studies.reports.report import comparison_section
from blossom_ray.studies.reports.scores import client_section, curve_section, modality_section
from blossom_ray.studies.reports.variants import Variant, format_mean, headline_scores, variants_of


@pytest.fixture(scope="module")
def full_model(runs: list[Run]) -> list[Run]:
    return [simulate(run.scenario.override({"sharing": "full-model"})) for run in runs]


@pytest.fixture(autouse=True)
def _style():
    with figure_style():
        yield


def lines(section: ReportSection, name: str) -> dict:
    (figure,) = (figure.figure for figure in section.figures if figure.name == name)
    return {line.get_label(): line for axis in figure.axes for line in axis.lines}


def test_one_run_shows_its_scores_with_the_spread_over_clients(runs: list[Run]) -> None:
    section = curve_section([Variant("", runs[:1])])
    (line,) = lines(section, "curve-accuracy").values()
    expected = [100 * value for value in runs[0].rounds["accuracy"].to_list()]
    assert line.get_ydata().tolist() == pytest.approx(expected)
    axis = next(f.figure for f in section.figures if f.name == "curve-accuracy").axes[0]
    top = axis.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(100 * runs[0].rounds["accuracy_p90"].max())
    assert section.tables[0].rows[0][:2] == ["all clients", format_mean("accuracy", [runs[0].final["accuracy"]])]
    assert set(lines(section, "curve-loss")) == {"test", "training"}


def test_curves_are_those_of_validation_splits_where_test_splits_are_scored_once(runs: list[Run]) -> None:
    keys = {"data.validation_fraction": 0.2, "evaluation.split": "validation"}
    once = simulate(runs[0].scenario.override(keys))
    section = curve_section([Variant("", [once])])
    (line,) = lines(section, "curve-accuracy").values()
    assert line.get_ydata().tolist() == pytest.approx([100 * value for value in once.rounds["validation/accuracy"]])
    assert set(lines(section, "curve-loss")) == {"validation", "training"}
    assert all("validation s" in figure.caption for figure in section.figures)
    assert set(lines(modality_section([Variant("", [once])]), "modality-sets")) == {"a", "a+b"}
    # With a run whose test splits are scored all along, these are what both have.
    assert set(lines(curve_section([Variant("1", [once]), Variant("2", runs)]), "curve-loss")) == {"1", "2"}


def test_a_variant_of_two_seeds_shows_their_mean_and_its_interval(runs: list[Run]) -> None:
    section = curve_section([Variant("two", runs)])
    line = lines(section, "curve-loss")["test"]
    both = [run.rounds["loss"].to_list() for run in runs]
    means = [(a + b) / 2 for a, b in zip(*both, strict=True)]
    assert line.get_ydata().tolist() == pytest.approx(means)
    # Of two values, s / sqrt(2) is half their distance.
    highs = [mean + 12.7062047 * abs(a - b) / 2 for mean, a, b in zip(means, *both, strict=True)]
    curve = Variant("two", runs).curve("loss")
    assert curve.high == pytest.approx(highs)
    shares = Variant("two", runs).curve("accuracy")
    assert shares.low is not None
    assert shares.high is not None
    assert 0 <= min(shares.low) <= max(shares.high) <= 100


def test_two_variants_stand_side_by_side_in_each_modality_set(runs: list[Run]) -> None:
    section = modality_section([Variant("first", runs[:1]), Variant("second", runs[1:])])
    axes = section.figures[0].figure.axes
    assert [axis.get_title(loc="left") for axis in axes] == ["a", "a+b"]
    assert {line.get_label() for line in axes[0].lines} == {"first", "second"}
    (table,) = curve_section([Variant("first", runs[:1]), Variant("second", runs[1:])]).tables
    own = [row[0] for row in table.rows if len(row) > 1]
    assert own == ["first", "  a", "  a+b", "  a", "  a+b", "second", "  a", "  a+b", "  a", "  a+b"]
    assert [row for row in table.rows if len(row) == 1] == [["first, held-out set"], ["second, held-out set"]]


def test_every_client_of_the_last_round_is_shown(runs: list[Run]) -> None:
    (figure,) = client_section([Variant("", runs[:1])]).figures
    last = runs[0].clients.filter(pl.col("round") == 2, pl.col("modalities") == "a")["accuracy"].to_list()
    dots = [sorted(line.get_xdata()) for line in figure.figure.axes[0].lines if line.get_marker() == "o"]
    assert sorted(100 * value for value in last) in dots


def test_panels_follow_what_variants_have_in_common(runs: list[Run]) -> None:
    variants = [Variant("x", runs[:1], "p"), Variant("y", runs[1:], "p"), Variant("x", runs[:1], "q")]
    figure = curve_section(variants).figures[0].figure
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["p", "q"]
    assert modality_section(variants).figures == []
    tables = curve_section(variants).tables
    assert [table.title for table in tables] == ["p, last scored round", "q, last scored round"]
    assert [row[0] for table in tables for row in table.rows][::6] == ["x", "y", "x"]


def test_tables_of_several_seeds_have_intervals(runs: list[Run]) -> None:
    (table,) = curve_section([Variant("", runs)]).tables
    for row, end in zip(table.rows, ("", "/a"), strict=False):
        values = [run.final[f"loss{end}"] for run in runs]
        half = 12.7062047 * np.std(values, ddof=1) / np.sqrt(2)
        assert row[-2:] == [f"{np.mean(values):.4g} ± {half:.4g}", "2"]
    assert not any("±" in cell for row in curve_section([Variant("", runs[:1])]).tables[0].rows for cell in row)


def test_each_kind_of_scoring_has_rows_from_its_own_last_round(tiny: Scenario) -> None:
    evaluation = (ClientEvaluation(0, 1, 0.0, {}, 0, 0.0),)
    kinds = ({"loss": 1.0}, {"loss_trained": 0.9, "loss/a": 1.0}, {"validation/loss": 0.8, "loss": 0.7})
    metrics = [
        {**each, **{name.replace("loss", "accuracy"): value / 2 for name, value in each.items()}} for each in kinds
    ]
    records = [RoundRecord(index, 0.1, (), (), evaluation, each, ()) for index, each in enumerate(metrics)]
    run = Run.from_records(records, tiny, tuple(tiny.profiles()), {})
    (table,) = curve_section([Variant("", [run])]).tables
    assert [(row[0], row[1], row[-2], row[-1]) for row in table.rows] == [
        ("all clients", "35.0 %", "0.7", "2"),
        ("  a", "50.0 %", "1", "1"),
        ("clients that trained", "45.0 %", "0.9", "1"),
        ("validation split", "40.0 %", "0.8", "2"),
    ]


@pytest.mark.parametrize(
    ("scores", "text"),
    [([0.5, 0.52], "51.0 ± 12.7 %"), ([0.9, 0.5], "70.0 [0.0, 100.0] %"), ([0.5], "50.0 %"), ([], "")],
)
def test_a_score_with_its_interval(scores: list[float], text: str) -> None:
    assert format_mean("accuracy", scores) == text


def test_communication_is_that_of_the_whole_run(runs: list[Run]) -> None:
    section = traffic_section([Variant("", runs[:1])])
    table, figure = section.tables[0], section.figures[0].figure
    names = ["encoder/a (shared)", "encoder/b (shared)", "fusion (private)", "head (private)"]
    assert [row[0] for row in table.rows] == names
    assert table.rows[2][1:] == ["0 B", "0 B"]
    sent = runs[0].blocks.filter(pl.col("block") == "encoder/a")["bytes_up"].sum()
    assert sent / 1e6 in [pytest.approx(bar.get_width()) for bar in figure.axes[0].patches]


def test_time_and_failures(runs: list[Run]) -> None:
    of_settings, of_runs = time_section([Variant("", runs)]).tables
    assert (len(of_settings.rows), len(of_runs.rows), of_runs.is_folded) == (1, 2, True)
    assert time_section([Variant("", runs)]).figures == []
    assert len(time_section([Variant("", runs[:1])]).figures) == 1
    assert failure_section([Variant("", runs)]).is_empty


def test_a_comparison_shows_the_difference_in_the_last_rounds(runs: list[Run], full_model: list[Run]) -> None:
    comparison = compare(*runs, *full_model)
    section = comparison_section("Comparison", comparison)
    (figure,) = section.figures
    (row,) = comparison.table.filter(
        pl.col("modalities") == "all clients", pl.col("points_last5").is_not_null()
    ).to_dicts()
    texts = [text.get_text() for text in figure.figure.axes[0].texts]
    half = row["points_last5_high"] - row["points_last5"]
    assert texts == [f"{row['points_last5']:+.1f}\n± {half:.1f}"]
    variants = variants_of(collect([*runs, *full_model]), ["sharing"])
    assert [(variant.label, len(variant.runs)) for variant in variants] == [
        ("private-head-fusion", 2),
        ("full-model", 2),
    ]


def test_scores_are_percent_and_errors_are_not() -> None:
    assert format_mean("accuracy", [0.5]) == "50.0 %"
    assert format_mean("rmse", [0.5]) == "0.5"
    assert format_mean("accuracy", []) == ""


def test_the_first_score_is_what_the_task_is_judged_by(runs: list[Run]) -> None:
    assert headline_scores([Variant("", runs)])[0].name == "accuracy"
