"""What a report is made of: sections with figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReportTable:
    """A table of texts.

    Attributes:
        columns: Headings.
        rows: One sequence of cells per row; the first cell names the row. One that begins with two spaces stands below
            the row before. A shorter row lacks its last cells.
        title: What stands above it.
        is_folded: Whether a reader has to open it, by its title.
        shares: Of some cells, by row and place in it, a share of 1 that they are shaded by.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    is_folded: bool = False
    shares: Mapping[tuple[int, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportFigure:
    """A figure with what it is called in files and what it shows.

    Attributes:
        name: File name without its ending; no two figures of a report share it.
        figure: The figure.
        caption: A sentence or two below it.
    """

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class ReportSection:
    """A part of a report.

    Attributes:
        title: Its heading.
        text: Paragraphs at its beginning.
        figures: Figures in order.
        tables: Tables in order, below the figures.
        notes: Sentences below them.
    """

    title: str
    figures: Sequence[ReportFigure] = ()
    tables: Sequence[ReportTable] = ()
    notes: Sequence[str] = ()
    text: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.text or self.figures or self.tables or self.notes)
