"""Colours and type of all figures: one palette for light pages, one for dark; dashes and markers tell series apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INK, GRID, MUTED = "#1a1c1e", "#dfe2e5", "#6b7075"
"""Text and axes, grid lines, secondary text; on a page they become the page's own colours."""

ON_LIGHT, ON_DARK = "#111111", "#fefefe"
"""Text on coloured cells, which look the same on light and dark pages."""


@dataclass(frozen=True)
class Series:
    """How one series is drawn.

    Attributes:
        color: On a light page, and in files.
        dark: On a dark page.
        dash: Line style, so that lines differ in print without colour.
        marker: Marker of its points.
    """

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
