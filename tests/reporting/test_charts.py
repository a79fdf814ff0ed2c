"""Figures carry the numbers that they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.text import Text

from blossom_ray.studies.reports.charts import (
    SERIES,
    Curve,
    bars,
    curves,
    distributions,
    figure_style,
    heat_map,
    stacked_areas,
)


@pytest.fixture(autouse=True)
def _style():
    with figure_style():
        yield


def test_a_curve_has_its_points_and_its_band() -> None:
    figure = curves(
        {"accuracy": [Curve("a", [0, 1, 2], [10, 20, 40], [5, 15, 30], [15, 25, 50])]}, x_label="round", y_label="%"
    )
    (axis,) = figure.axes
    assert axis.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert axis.lines[0].get_ydata().tolist() == [10, 20, 40]
    corners = axis.collections[0].get_paths()[0].vertices
    assert {(1.0, 15.0), (1.0, 25.0), (2.0, 30.0), (2.0, 50.0)} <= {tuple(corner) for corner in corners.tolist()}
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title(loc="left")) == ("round", "%", "accuracy")


def test_a_series_looks_alike_in_every_panel_and_stands_once_in_the_legend() -> None:
    panels = {"acc": [Curve("b", [0], [1])], "gyro": [Curve("a", [0], [1]), Curve("b", [0], [2])]}
    figure = curves(panels, x_label="round", y_label="%")
    colors = {line.get_label(): line.get_color() for axis in figure.axes for line in axis.lines}
    assert colors == {"b": SERIES[0].color, "a": SERIES[1].color}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b", "a"]


def test_more_than_three_panels_take_a_second_row_without_empty_frames() -> None:
    panels = {name: [Curve("a", [0, 1], [1, 2])] for name in "pqrs"}
    assert len(curves(panels, x_label="x", y_label="y").axes) == 4


def test_a_distribution_shows_every_value_and_the_median() -> None:
    (axis,) = distributions({"acc": {"": [1.0, 2.0, 9.0]}}, x_label="%").axes
    medians = [
        line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert 2.0 in medians
    assert [1.0, 2.0, 9.0] in [list(line.get_xdata()) for line in axis.lines]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["acc"]


def test_bars_are_as_long_as_their_values() -> None:
    (axis,) = bars({"head": {"up": 3.0, "down": 1.5}, "fusion": {"up": 2.0}}, x_label="MB").axes
    assert [bar.get_width() for bar in axis.patches] == [3.0, 2.0, 1.5, 0.0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["head", "fusion"]


def test_areas_are_stacked() -> None:
    (axis,) = stacked_areas(
        [1, 2], {"training": [1.0, 2.0], "evaluation": [0.5, 1.0]}, x_label="round", y_label="s"
    ).axes
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axis.collections]
    assert tops == [2.0, 3.0]


def test_a_heat_map_names_each_value_and_leaves_unknown_cells_empty() -> None:
    figure = heat_map(["iid", "dirichlet"], ["PH", "PHF"], [[1.25, None], [-10.0, math.nan]], "gain (%)")
    texts = [text.get_text() for text in figure.axes[0].findobj(Text) if text.get_text()]
    assert {"+1.2", "-10.0", "iid", "dirichlet", "PH", "PHF"} <= set(texts)
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-10.0, 10.0)
    assert np.isnan(image.get_array().filled(np.nan)).sum() == 2


def test_a_heat_map_without_any_value_can_be_drawn() -> None:
    assert heat_map(["a"], ["b"], [[None]], "%").axes[0].images[0].get_clim() == (-1.0, 1.0)
