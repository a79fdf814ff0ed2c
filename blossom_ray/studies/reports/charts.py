"""Figures from numbers: curves with bands, distributions, bars, heat maps, in one look. They know nothing of runs.

One palette for light pages, one for dark; dashes and markers tell series apart where there is no colour.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blossom_ray.text import printable

INK, GRID, MUTED = "#1a1c1e", "#dfe2e5", "#6b7075"
"""Text and axes, grid lines, secondary text; on a page they become the page's own colours."""

ON_LIGHT, ON_DARK = "#111111", "#fefefe"
"""Text on coloured cells, which look the same on light and dark pages."""


class Series(NamedTuple):
    """How one series is drawn: its colours on light pages and in files and on dark pages, its dash and marker."""

    color: str
    dark: str
    dash: str
    marker: str


SERIES = (
    Series("#1f65ad", "#6cb0f5", "-", "o"),
    Series("#c4511a", "#f59a66", "--", "s"),
    Series("#1d8a52", "#62cc95", "-.", "^"),
    Series("#8644b8", "#c39af2", ":", "D"),
    Series("#9a7400", "#e2bd4e", "-", "v"),
    Series("#bd2f6d", "#f58bb8", "--", "P"),
    Series("#0c7f86", "#5acdd3", "-.", "X"),
    Series("#5b6168", "#b4bac1", ":", "<"),
)
"""Blue, orange, green, purple, ochre, pink, teal, grey. A ninth series starts again."""

FIGURE_STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # which comes with Matplotlib; each text of an SVG has the whole list
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.7,
    "pdf.fonttype": 42,  # text stays text, as publishers ask
    "svg.fonttype": "none",
    "svg.hashsalt": "blossom-ray",  # the same figure gives the same bytes
    "text.color": INK,
    "text.parse_math": False,  # names are text, whatever dollars are in them
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
"""Matplotlib settings in force while a figure is drawn and saved."""


def series(index: int) -> Series:
    """The look of the series with this number."""
    return SERIES[index % len(SERIES)]


WIDTH = 7.2
"""Width of a figure in inches; a page scales it to its column."""

_LONGEST_LABEL = 56  # a figure has room for it
_TITLES = 76  # characters of the titles of panels, side by side
_HEAT_MAP_LABELS = 66  # characters below a heat map, side by side
_NARROWEST_LABEL = 8
_MOST_COLUMNS = 4  # of a heat map whose cells are in the usual size


@dataclass(frozen=True)
class Curve:
    """One line with its name in the legend: `x` ascends, and NaN in `y` leaves a gap.

    `low` and `high`, as long as `y`, are the edges of a band around it, if it has one.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save figures in the style of the project, whatever the caller's settings of matplotlib are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(FIGURE_STYLE)
        yield


def curves(panels: Mapping[str, Sequence[Curve]], *, x_label: str, y_label: str) -> Figure:
    """Lines over rounds, one panel per title, all with the same axes, which a wide band may leave.

    A curve of the same label looks alike in every panel.
    """
    labels = list(dict.fromkeys(curve.label for lines in panels.values() for curve in lines))
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = _grid(rows, columns, len(panels), height=2.7 if columns == 1 else 2.3, share=True)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for curve in lines:
            _draw(axis, curve, series(labels.index(curve.label)))
        axis.set_title(_wrapped(title, _TITLES // columns))
        axis.set_xlabel(_label(x_label))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0].set_ylabel(_label(y_label))
    # As much of the bands as the lines take up, above and below them: few seeds make wide bands.
    values = [value for lines in panels.values() for curve in lines for value in curve.y if math.isfinite(value)]
    if span := max(values, default=0.0) - min(values, default=0.0):
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(max(low, min(values) - span), min(high, max(values) + span))
    if len(labels) > 1:
        entries: dict[str, Artist] = {}
        for axis in axes:
            for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
                entries.setdefault(name, handle)
        handles, names = [*entries.values()], [*entries]
        figure.legend(handles, names, loc="outside upper left", ncols=min(len(labels), 3), handlelength=3)
    return figure


def distributions(groups: Mapping[str, Mapping[str, Sequence[float]]], *, x_label: str) -> Figure:
    """Every value as a dot with the box of quartiles, a row per category (a modality set) and series (a variant)."""
    labels = list(dict.fromkeys(name for values in groups.values() for name in values))
    rows = [(category, name) for category, values in groups.items() for name in values]
    figure, (axis,) = _grid(1, 1, 1, height=0.9 + 0.34 * len(rows))
    for position, (category, name) in enumerate(rows):
        values, look = groups[category][name], series(labels.index(name))
        box = axis.boxplot(
            [list(values)], positions=[position], orientation="horizontal", widths=0.5, showfliers=False, whis=(10, 90)
        )
        for part in (line for lines in box.values() for line in lines):
            part.set_color(look.color)
        # Dots of one row are spread a little in height, in a fixed pattern, so that equal values stay apart.
        heights = [position + 0.16 * ((index * 0.618) % 1 - 0.5) for index in range(len(values))]
        axis.plot(values, heights, look.marker, color=look.color, alpha=0.6, markersize=4.5, markeredgewidth=0)
    names = [category if len(labels) == 1 else f"{category}  {name}" for category, name in rows]
    axis.set_yticks(range(len(rows)), [*map(_label, names)])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(_label(x_label))
    return figure


def bars(values: Mapping[str, Mapping[str, float]], *, x_label: str, stacked: bool = False) -> Figure:
    """Horizontal bars of values of at least 0, a group per category (a block) and a bar per series (up, down).

    If `stacked`, those of a category stand one behind the other, as parts of a whole.
    """
    labels = list(dict.fromkeys(name for row in values.values() for name in row))
    lanes = 1 if stacked else len(labels)
    figure, (axis,) = _grid(1, 1, 1, height=0.9 + (0.3 if stacked else 0.24 * lanes) * len(values))
    thickness = 0.8 / lanes
    starts = [0.0] * len(values)
    for index, name in enumerate(labels):
        shift = 0.0 if stacked else (index - (lanes - 1) / 2) * thickness
        positions = [row + shift for row in range(len(values))]
        widths = [row.get(name, 0.0) for row in values.values()]
        axis.barh(positions, widths, height=thickness * 0.9, left=starts, color=series(index).color, label=_label(name))
        if stacked:
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axis.set_yticks(range(len(values)), [*map(_label, values)])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(_label(x_label))
    if len(labels) > 1:
        figure.legend(loc="outside upper left", ncols=min(len(labels), 4))
    return figure


def stacked_areas(x: Sequence[float], parts: Mapping[str, Sequence[float]], *, x_label: str, y_label: str) -> Figure:
    """Parts of a whole over rounds, one on the other: by name, values of at least 0 at each of `x`, which ascend."""
    figure, (axis,) = _grid(1, 1, 1, height=2.3)
    colors = [series(index).color for index in range(len(parts))]
    axis.stackplot(x, *parts.values(), labels=[*map(_label, parts)], colors=colors, alpha=0.75)
    axis.set_ylim(bottom=0)
    axis.margins(x=0.01)
    axis.set_xlabel(_label(x_label))
    axis.set_ylabel(_label(y_label))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=len(parts))
    return figure


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    unit: str,
    below: Mapping[tuple[int, int], str] = MappingProxyType({}),
) -> Figure:
    """Signed values, row by row, as coloured cells with their numbers; 0 is white, None is an empty cell.

    By its row and column, a cell may have a second line, such as an interval, `below`.
    """
    known = [abs(value) for row in values for value in row if value is not None and math.isfinite(value)]
    limit = max(known, default=1.0) or 1.0
    figure, (axis,) = _grid(1, 1, 1, height=1.1 + (0.5 if below else 0.36) * len(rows))
    size = 9 if len(columns) <= _MOST_COLUMNS else 7
    table = [[math.nan if value is None else value for value in row] for row in values]
    colors = mpl.colormaps["RdBu"]
    image = axis.imshow(table, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None and math.isfinite(value):
                red, green, blue, _ = colors((value + limit) / (2 * limit))
                is_dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
                text = "\n".join(filter(None, (f"{value:+.1f}", below.get((i, j)))))
                color = ON_DARK if is_dark else ON_LIGHT
                axis.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    width = max(_NARROWEST_LABEL, _HEAT_MAP_LABELS // max(len(columns), 1))
    axis.set_xticks(range(len(columns)), [_wrapped(name, width) for name in columns], fontsize=size)
    axis.set_yticks(range(len(rows)), [_wrapped(name, _HEAT_MAP_LABELS // 3) for name in rows])
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, fraction=0.04, pad=0.02)
    bar.set_label(_label(unit))
    bar.outline.set_edgecolor(GRID)
    return figure


def _label(text: str) -> str:
    """A text on one line, without its middle where there is no room; a legend has none that begins with `_`."""
    shown = printable(text)
    if len(shown) > _LONGEST_LABEL:
        shown = f"{shown[: _LONGEST_LABEL // 2]}...{shown[3 - _LONGEST_LABEL // 2 :]}"
    return f" {shown}" if shown.startswith("_") else shown


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(_label(text), width, break_on_hyphens=True)


def _grid(rows: int, columns: int, count: int, *, height: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    axes = [axis for row in grid for axis in row]
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _draw(axis: Axes, curve: Curve, look: Series) -> None:
    marker, label = look.marker if sum(map(math.isfinite, curve.y)) <= 25 else None, _label(curve.label)
    axis.plot(curve.x, curve.y, look.dash, color=look.color, label=label, marker=marker, markersize=3.5)
    if curve.low is not None and curve.high is not None:
        axis.fill_between(curve.x, curve.low, curve.high, color=look.color, alpha=0.16, linewidth=0)
