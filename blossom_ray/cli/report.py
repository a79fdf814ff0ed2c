"""The command that turns runs into a page: `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.options import Json, app
from blossom_ray.cli.output import print_json, say
from blossom_ray.cli.sweeps import Choose, Tune


@app.command(epilog="Example: blossom-ray report runs/quickstart/20261123T120000Z-4f1c --figures figures")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or folders of sweeps; several are compared.",
            autocompletion=completion.folders_with("manifest.json", "sweep.json"),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The HTML file. Default: report.html in the folder, or here for several."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder for the figures as SVG and PDF files, for a paper.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    choose: Choose = None,
    tune: Tune = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page, without network: curves, modality sets, clients, communication, time, scenario."""
    from blossom_ray.studies.reports.report import report as write_report

    written = write_report(*runs, out=out, figures=figures, title=title, choose=choose, tune=tune or ())
    if as_json:
        print_json({"report": str(written[0]), "figures": [str(path) for path in written[1:]]})
    else:
        say(*written)
