"""The report as one HTML file: no network, no scripts, light and dark, every name escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import jinja2
from markupsafe import Markup

from blossom_ray.studies.comparison.formats import BELOW
from blossom_ray.studies.reports.parts import ReportSection, ReportTable
from blossom_ray.studies.reports.style import SERIES
from blossom_ray.studies.reports.svg import inline_svg
from blossom_ray.text import printable

# What follows a number: `± 1.2`, or limits, then a unit or a mark.
_INTERVAL = re.compile(r"(?<=\d) (?:± [\d.]|\[[-+\d.]).*$")
_LONG = 40


@dataclass(frozen=True)
class _PageFigure:
    svg: Markup
    caption: str


@dataclass(frozen=True)
class _PageCell:
    """A cell with its class, `i` of an interval and `text` of what may be long, and its shade in percent."""

    text: str
    kind: str = ""
    shade: int | None = None


@dataclass(frozen=True)
class _PageTable:
    """A table whose numbers stand below each other: those with an interval in two cells.

    `columns` are headings with the number of cells below each; a row is the cell that names it and the others.
    """

    title: str
    is_folded: bool
    columns: Sequence[tuple[str, int]]
    rows: Sequence[tuple[str, Sequence[_PageCell]]]


@dataclass(frozen=True)
class _PageSection:
    title: str
    text: Sequence[str]
    notes: Sequence[str]
    figures: Sequence[_PageFigure]
    tables: Sequence[_PageTable]


def render_page(
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    sections: Sequence[ReportSection],
    scenarios: Mapping[str, str],
) -> str:
    """The page as text.

    Args:
        title: Heading, and title of the browser's window.
        lead: A line below it.
        facts: Name to value, shown as tiles.
        sections: What it shows.
        scenarios: Resolved scenarios as YAML, by the name of their run.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("blossom_ray.studies.reports", "."),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        version=version("blossom-ray"),
        title=title,
        lead=lead,
        facts=facts,
        sections=[_page_section(section) for section in sections],
        scenarios=scenarios,
        series=SERIES,
        below=BELOW,
    )


def _shown(value: object) -> object:
    """A value as a page shows it: text without control characters, and figures as they are."""
    return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def _page_section(section: ReportSection) -> _PageSection:
    figures = [
        # Markup: Matplotlib escapes the texts of a figure, `inline_svg` the description.
        _PageFigure(Markup(inline_svg(figure.figure, name=figure.name, description=figure.caption)), figure.caption)
        for figure in section.figures
    ]
    return _PageSection(section.title, section.text, section.notes, figures, [*map(_page_table, section.tables)])


def _page_table(table: ReportTable) -> _PageTable:
    cells = [row[1:] for row in table.rows]
    has_interval = [
        any(_INTERVAL.search(row[place]) for row in cells if len(row) > place)
        for place in range(len(table.columns) - 1)
    ]
    first, *others = table.columns
    columns = [(first, 1), *((name, 1 + has) for name, has in zip(others, has_interval, strict=True))]
    rows = [
        (name, [*_page_cells(number, cells, has_interval, table.shares)])
        for number, (name, *cells) in enumerate(table.rows)
    ]
    return _PageTable(table.title, table.is_folded, columns, rows)


def _page_cells(
    number: int, row: Sequence[str], has_interval: Sequence[bool], shares: Mapping[tuple[int, int], float]
) -> Iterator[_PageCell]:
    for place, (text, is_double) in enumerate(zip(row, has_interval, strict=False), 1):
        found = _INTERVAL.search(text) if is_double else None
        share = shares.get((number, place))
        if found is not None:
            yield _PageCell(text[: found.start()])
        else:
            yield _PageCell(text, "text" if len(text) > _LONG else "", None if share is None else round(100 * share))
        if is_double:
            yield _PageCell("" if found is None else found.group().strip(), "i")
