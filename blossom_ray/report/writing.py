"""From runs to the report's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blossom_ray.errors import RunFolderError
from blossom_ray.report.charts import figure_style
from blossom_ray.report.contents import ReportSection, Variant, facts, run_sections
from blossom_ray.report.page import render_page
from blossom_ray.report.svg import save_figure
from blossom_ray.scenario.writer import scenario_yaml
from blossom_ray.table_files import replacing


def write_report(
    variants: Sequence[Variant],
    path: Path,
    *,
    title: str,
    first_sections: Sequence[ReportSection] = (),
    figures: Path | None = None,
    formats: Sequence[str] = ("svg", "pdf"),
) -> list[Path]:
    """Write the page, and where asked for its figures.

    Args:
        variants: What it shows; a single run is one variant.
        path: The HTML file.
        title: Its heading.
        first_sections: Shown before the sections on the runs: a comparison.
        figures: Folder for figures as files, or None.
        formats: Their formats: `svg`, `pdf`.

    Returns:
        The files written, the page first.

    Raises:
        RunFolderError: A run cannot be read, or a file cannot be written.
    """
    runs = [(variant, run) for variant in variants for run in variant.runs]
    with figure_style():
        sections = [*first_sections, *run_sections(variants)]
        scenarios = {
            f"{variant.label or run.scenario.name}, seed {run.scenario.seed}": scenario_yaml(run.scenario)
            for variant, run in runs
        }
        page = render_page(
            title=title,
            lead=f"{len(runs)} runs, {len(variants)} variants" if len(runs) > 1 else str(runs[0][1].path or ""),
            facts=facts(runs[0][1]) if len(runs) == 1 else {},
            sections=sections,
            scenarios=scenarios,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror or error}; expected a file that can be written") from error
    written = [path]
    if figures is not None:
        for figure in (figure for section in sections for figure in section.figures):
            written += [save_figure(figure.figure, figures, figure.name, file_format) for file_format in formats]
    return written
