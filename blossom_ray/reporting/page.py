"""The report as one HTML file: no network, no scripts, light and dark, every name escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from blossom_ray import __version__
from blossom_ray.reporting.parts import ReportSection, ReportTable
from blossom_ray.reporting.style import SERIES
from blossom_ray.reporting.svg import inline_svg
from blossom_ray.text import printable


@dataclass(frozen=True)
class _PageFigure:
    svg: Markup
    caption: str


@dataclass(frozen=True)
class _PageSection:
    title: str
    notes: Sequence[str]
    figures: Sequence[_PageFigure]
    tables: Sequence[ReportTable]


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
        loader=jinja2.PackageLoader("blossom_ray.reporting", "."),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        version=__version__,
        title=title,
        lead=lead,
        facts=facts,
        sections=[_page_section(section) for section in sections],
        scenarios=scenarios,
        series=SERIES,
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
    return _PageSection(section.title, section.notes, figures, section.tables)
