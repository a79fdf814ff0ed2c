"""Figures as SVG: inside a page, in the page's own colours, and as files for a paper."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from blossom_ray.errors import RunFolderError
from blossom_ray.storage import replacing
from blossom_ray.studies.reports.charts import figure_style
from blossom_ray.studies.reports.style import GRID, INK, MUTED, SERIES
from blossom_ray.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FORMATS = ("svg", "pdf")
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


def inline_svg(figure: Figure, *, name: str, description: str) -> str:
    """A figure as an `<svg>` element whose colours are CSS variables of the page.

    Args:
        figure: Drawn under `figure_style`.
        name: Starts every id in it, so that figures of one page do not share any.
        description: What it shows, for those who do not see it. Plain text.
    """
    target = StringIO()
    with figure_style():
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    svg = _smaller(text[text.index("<svg") :], name)
    label = printable(description).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"',
        lambda match: f'<svg role="img" aria-label="{label}" {match[1]}',
        svg,
        count=1,
    )


def _smaller(svg: str, name: str) -> str:
    """The same picture in the page's colours, with less around it: a page may have a thousand curves."""
    svg = _NOISE.sub("", svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', ""))
    used = dict.fromkeys(found for tag in _TAG.findall(svg) for found in _REFERENCE.findall(tag))
    ids = {old: f"{name}-{number}" for number, old in enumerate(used)}

    def smaller(match: re.Match[str]) -> str:
        tag = match.group().replace("xlink:href", "href")
        tag = _ID.sub(lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else "", tag)
        tag = _REFERENCE.sub(lambda found: found.group().replace(found[1], ids[found[1]]), tag)
        tag = _COORDINATES.sub(lambda found: _DECIMALS.sub(r"\1", found.group()), tag)
        return _COLOR.sub(lambda found: f"var({_VARIABLES[found.group()]})", tag)

    svg = _TAG.sub(smaller, svg)
    return _MARKERS.sub(lambda match: f"{match[1]}{match[3]}>{match[2].replace(match[3], '')}</g>", svg)


def save_figure(figure: Figure, folder: Path, name: str, file_format: str) -> Path:
    """Write a figure as `<folder>/<name>.<format>`, for a paper.

    Raises:
        RunFolderError: The file cannot be written.
    """
    path = folder / f"{name}.{file_format}"
    metadata = {"CreationDate": None} if file_format == "pdf" else {"Date": None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with figure_style(), replacing(path) as temporary:
            figure.savefig(temporary, format=file_format, metadata=metadata, facecolor="white")
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror or error}; expected a folder that can be written") from error
    return path
