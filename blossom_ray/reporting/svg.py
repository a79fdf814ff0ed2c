"""Figures as SVG: inside a page, in the page's own colours, and as files for a paper."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from blossom_ray.errors import RunFolderError
from blossom_ray.reporting.charts import figure_style
from blossom_ray.reporting.style import GRID, INK, MUTED, SERIES
from blossom_ray.storage import replacing
from blossom_ray.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FORMATS = ("svg", "pdf")
_VARIABLES = {INK: "--ink", GRID: "--grid", MUTED: "--muted"} | {
    look.color: f"--series-{index}" for index, look in enumerate(SERIES)
}
_COLOR = re.compile("|".join(_VARIABLES))
_IDENTIFIER = re.compile(r'(\bid="|url\(#|href="#)')


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
    svg = text[text.index("<svg") :]
    svg = _COLOR.sub(lambda match: f"var({_VARIABLES[match.group()]})", svg)
    svg = _IDENTIFIER.sub(rf"\g<1>{name}-", svg)
    label = printable(description).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"',
        lambda match: f'<svg role="img" aria-label="{label}" {match[1]}',
        svg,
        count=1,
    )


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
