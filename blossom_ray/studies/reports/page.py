"""What a report is made of, and how it becomes one HTML file: no network, no scripts, light and dark, names escaped.

Figures stand in it as SVG, in the page's own colours; for a paper they are written as files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from blossom_ray.errors import RunFolderError
from blossom_ray.storage import replacing
from blossom_ray.studies.comparison.panels import BELOW
from blossom_ray.studies.reports.charts import GRID, INK, MUTED, SERIES, figure_style
from blossom_ray.studies.tables import TextTable
from blossom_ray.text import printable

FIGURE_FORMATS = ("svg", "pdf")
# What follows a number: `± 1.2`, or limits, then a unit or a mark.
_INTERVAL = re.compile(r"(?<=\d) (?:± [\d.]|\[[-+\d.]).*$")
_LONG = 40
_VARIABLES = {INK: "--ink", GRID: "--grid", MUTED: "--muted"} | {
    look.color: f"--series-{index}" for index, look in enumerate(SERIES)
}
_COLOR = re.compile("|".join(_VARIABLES))
# A name in a figure is text between tags, without < and >.
_TAG = re.compile(r"<[^>]*>")
_REFERENCE = re.compile(r'(?:url\(|href=")#([^)"]+)')
_ID = re.compile(r' id="([^"]*)"')
_NOISE = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|\n\s*", re.DOTALL)
# Coordinates in points; nobody sees a hundredth of one.
_COORDINATES = re.compile(r' (?:d|x|y|transform|points|width|height)="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")
# Markers of a line, which all say how they look.
_MARKERS = re.compile(r'(<g clip-path="[^"]*")>((?:<use [^>]*?( style="[^"]*")/>)(?:<use [^>]*?\3/>)*)</g>')


@dataclass(frozen=True)
class ReportFigure:
    """A figure with the name of its files, which no two figures of a report share, and a sentence or two below it."""

    name: str
    figure: Figure
    caption: str


class Picture(NamedTuple):
    """A small picture, a `data:` URI, and the words below it."""

    uri: str
    caption: str


@dataclass(frozen=True)
class ReportSection:
    """A part of a report: its heading, paragraphs, figures, tables below them, pictures by title, sentences below."""

    title: str
    figures: Sequence[ReportFigure] = ()
    tables: Sequence[TextTable] = ()
    notes: Sequence[str] = ()
    text: Sequence[str] = ()
    galleries: Mapping[str, Sequence[Picture]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.text or self.figures or self.tables or self.notes or self.galleries)


def render_page(
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    sections: Sequence[ReportSection],
    scenarios: Mapping[str, str],
) -> str:
    """The page as text: a heading and a line below it, facts as tiles, what it shows, resolved scenarios as YAML."""

    def show(value: object) -> object:
        """Text without control characters, and figures as they are."""
        return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value

    def svg(figure: ReportFigure) -> Markup:
        # Matplotlib escapes the texts of a figure, `inline_svg` the description.
        return Markup(inline_svg(figure.figure, name=figure.name, description=figure.caption))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("blossom_ray.studies.reports", "."),
        autoescape=True,
        finalize=show,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        version=version("blossom-ray"),
        title=title,
        lead=lead,
        facts=facts,
        sections=sections,
        scenarios=scenarios,
        series=SERIES,
        below=BELOW,
        svg=svg,
        align=_align,
    )


class _Cell(NamedTuple):
    """A cell with its class, `i` of an interval and `text` of what may be long, and its shade in percent."""

    text: str
    kind: str = ""
    shade: int | None = None


def _align(table: TextTable) -> tuple[list[tuple[str, int]], list[tuple[str, list[_Cell]]]]:
    """A table whose numbers stand below each other, those with an interval in two cells.

    Returns:
        Headings with the number of cells below each; rows as the cell that names them and the others.
    """
    has_interval = [
        any(_INTERVAL.search(row[place]) for row in table.rows if len(row) > place)
        for place in range(1, len(table.columns))
    ]
    first, *others = table.columns
    columns = [(first, 1), *((name, 1 + has) for name, has in zip(others, has_interval, strict=True))]

    def cells(number: int, row: Sequence[str]) -> Iterator[_Cell]:
        for place, (text, is_double) in enumerate(zip(row, has_interval, strict=False), 1):
            found = _INTERVAL.search(text) if is_double else None
            share = table.shares.get((number, place))
            if found is not None:
                yield _Cell(text[: found.start()])
            else:
                yield _Cell(text, "text" if len(text) > _LONG else "", None if share is None else round(100 * share))
            if is_double:
                yield _Cell("" if found is None else found.group().strip(), "i")

    return columns, [(name, [*cells(number, row)]) for number, (name, *row) in enumerate(table.rows)]


def inline_svg(figure: Figure, *, name: str, description: str) -> str:
    """A figure, drawn under `figure_style`, as an `<svg>` element whose colours are CSS variables of the page.

    Every id in it starts with the name, so that figures of one page do not share any. The description, plain text, is
    for those who do not see it.
    """
    target = StringIO()
    with figure_style():
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    # With less around it: a page may have a thousand curves.
    svg = _NOISE.sub("", text[text.index("<svg") :].replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', ""))
    used = dict.fromkeys(found for tag in _TAG.findall(svg) for found in _REFERENCE.findall(tag))
    ids = {old: f"{name}-{number}" for number, old in enumerate(used)}

    def smaller(match: re.Match[str]) -> str:
        tag = match.group().replace("xlink:href", "href")
        tag = _ID.sub(lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else "", tag)
        tag = _REFERENCE.sub(lambda found: found.group().replace(found[1], ids[found[1]]), tag)
        tag = _COORDINATES.sub(lambda found: _DECIMALS.sub(r"\1", found.group()), tag)
        return _COLOR.sub(lambda found: f"var({_VARIABLES[found.group()]})", tag)

    svg = _TAG.sub(smaller, svg)
    svg = _MARKERS.sub(lambda match: f"{match[1]}{match[3]}>{match[2].replace(match[3], '')}</g>", svg)
    label = printable(description).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    size = r'<svg ([^>]*?)width="[^"]*" height="[^"]*"'
    return re.sub(size, lambda match: f'<svg role="img" aria-label="{label}" {match[1]}', svg, count=1)


def save_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        RunFolderError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror or error}; expected a file that can be written") from error


def save_figure(figure: ReportFigure, folder: Path, file_format: str) -> Path:
    """Write a figure as `<folder>/<name>.<format>`, for a paper.

    Raises:
        RunFolderError: The file cannot be written.
    """
    path = folder / f"{figure.name}.{file_format}"
    metadata = {"CreationDate": None} if file_format == "pdf" else {"Date": None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with figure_style(), replacing(path) as temporary:
            figure.figure.savefig(temporary, format=file_format, metadata=metadata, facecolor="white")
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror or error}; expected a folder that can be written") from error
    return path
