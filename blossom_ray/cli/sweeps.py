"""Commands over many runs: `sweep`, `compare` and `report`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.interruption import Interruption, interruptible
from blossom_ray.cli.options import Address, Json, Settings, Track, app, decode_first, parse_settings, track_targets
from blossom_ray.cli.output import print_json, say, say_text, warn
from blossom_ray.core.locations import local_path
from blossom_ray.errors import BlossomError, InputError, Problem, ScenarioError

if TYPE_CHECKING:
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.tracking import Target
    from blossom_ray.studies.comparison.comparing import Comparison
    from blossom_ray.studies.sweeps.grid import Cell
    from blossom_ray.studies.sweeps.sweeping import CellEvent


class Form(StrEnum):
    """How `compare` prints."""

    TABLE = "table"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


class GainOf(StrEnum):
    """The score whose gains `compare` shows."""

    FINAL = "final"
    LAST5 = "last5"
    BEST = "best"


Choose = Annotated[
    str | None,
    typer.Option(
        "--choose",
        metavar="METRIC",
        help="Choose values of the keys of --tune by this score on validation data, such as accuracy, for each setting "
        "of the others, and compare the test scores of the runs with these values alone.",
    ),
]
Tune = Annotated[
    list[str] | None,
    typer.Option(
        "--tune",
        metavar="PATH",
        help="A varied key whose values are chosen, such as training.optimizer.lr. Repeatable.",
    ),
]


@app.command(
    epilog="Example: blossom-ray sweep scenarios/quickstart.yaml "
    "--vary sharing=full-model,private-head,private-head-fusion --seeds 5"
)
def sweep(
    scenarios: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCENARIO...",
            help="Scenario files (YAML), or names from `scenarios`.",
            autocompletion=completion.scenarios,
        ),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="PATH=VALUE,VALUE...",
            help="Values that a key takes, one after the other. Repeatable: all combinations are run.",
            autocompletion=completion.settings,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="How many seeds from 0 on, such as 5, or which ones, such as 0,1,7.")
    ] = None,
    settings: Settings = None,
    choose: Choose = None,
    tune: Tune = None,
    out: Annotated[Path | None, typer.Option("--out", help="The sweep's folder; sweeps/<name> unless given.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Cells that run at a time; one per CPU core unless given.")
    ] = None,
    address: Address = None,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a grid of scenarios, values and seeds. The same command again goes on where it stopped.

    All cells are checked before the first one runs. A cell that fails is noted, and the others go on.
    """
    with interruptible() as interruption:
        out = None if out is None else local_path(out, "--out")
        cells = _checked_cells(scenarios, vary or [], seeds, settings or [])

        from blossom_ray.studies.comparison.choosing import check_choice
        from blossom_ray.studies.sweeps.sweeping import default_folder

        # What is tuned is told by what it is chosen by: its test scores are nobody's business.
        column = check_choice(cells, choose, tune or [])
        targets = track_targets(track)
        folder = out or default_folder(cells)
        options = [("--choose", choose), *(("--tune", key) for key in tune or [])] if choose is not None else []
        compare_it = shlex.join(["blossom-ray", "compare", str(folder), *(word for pair in options for word in pair)])
        interruption.farewell = (
            f"interrupted; what is done is kept in {folder}\ngo on with the same command, and look at it with: "
            f"{compare_it}"
        )
        for scenario in {repr(cell.scenario.data_sets): cell.scenario for cell in cells}.values():
            decode_first(scenario, address, as_json=as_json)
        num_failed = _follow(folder, cells, jobs, address, interruption, targets, compare_it, column, as_json=as_json)
    if choose is not None:
        _show_choice(folder, cells, choose, tune or [], may_fail=num_failed > 0, as_json=as_json)
    if num_failed:
        raise typer.Exit(1)


@app.command(epilog="Example: blossom-ray compare sweeps/quickstart --metric macro_f1_present --target 0.7")
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|SWEEP...",
            help="Folders of runs and of sweeps.",
            autocompletion=completion.folders_with("manifest.json", "sweep.json"),
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="A column of the table rounds, such as held_out/accuracy; what the task is judged by unless given.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="PATH=VALUE",
            help="What gains are measured against; sharing=full-model unless given, or all rows observed. Repeatable.",
            autocompletion=completion.settings,
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="PATH", help="Tell apart by this key and average over the others. Repeatable."),
    ] = None,
    target: Annotated[float | None, typer.Option("--target", help="Show rounds and bytes to reach this score.")] = None,
    up_to: Annotated[
        int | None, typer.Option("--up-to", min=1, metavar="ROUND", help="Look at rounds up to this one alone.")
    ] = None,
    per_class: Annotated[
        bool,
        typer.Option(
            "--per-class",
            help="Scores of single classes: recall unless --metric says precision, f1 or auroc, also as "
            "held_out/recall/acc.",
        ),
    ] = False,
    gain_of: Annotated[
        GainOf | None,
        typer.Option(
            "--gain-of",
            help="The score whose gains are shown, and which --choose goes by; last5 unless given, but for runs that "
            "stop early or score their test splits once.",
        ),
    ] = None,
    choose: Choose = None,
    tune: Tune = None,
    form: Annotated[Form, typer.Option("--format", help="How to print it; csv and json hold everything.")] = Form.TABLE,
    as_json: Json = False,
) -> None:
    """Compare finished runs: scores, gains over a baseline on the same federation, with 95 % intervals.

    Runs of several tasks get a table for each of them, or for the one that --metric begins with. Intervals are over
    seeds (Student t); with a single seed over its clients (bootstrap; jackknife of more than 300), in brackets.
    """
    from blossom_ray.studies.comparison.comparing import Question, compare_entries
    from blossom_ray.studies.comparison.entries import collect
    from blossom_ray.studies.comparison.tasks import task_metrics

    overrides, problems = parse_settings(baseline or [], "--baseline")
    if problems:
        raise ScenarioError(tuple(problems))
    entries = collect(runs)
    for each in [metric] if metric is not None else task_metrics(entries, per_class=per_class):
        question = Question(
            metric=each,
            baseline=overrides or None,
            by=by,
            target=target,
            up_to=up_to,
            per_class=per_class,
            choose=choose,
            tune=tune or (),
            choose_by=None if gain_of is None else gain_of.value,
        )
        found = compare_entries(entries, question)
        _show(found, gain_of, Form.JSON if as_json else form)


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


def _show(found: Comparison, asked: GainOf | None, form: Form) -> None:
    from blossom_ray.studies.comparison import formats, panels

    gain_of = found.summary if asked is None else asked.value
    match form:
        case Form.TABLE:
            from blossom_ray.cli.console.terminal import terminal

            console = terminal()
            console.print(panels.terminal(found, gain_of, console.width))
        case Form.CSV:
            say_text(formats.csv(found))
        case Form.MARKDOWN:
            say_text(formats.markdown(found, gain_of))
        case Form.LATEX:
            say_text(formats.latex(found, gain_of))
        case Form.JSON:
            say_text(f"{formats.json_text(found)}\n")


def _show_choice(
    folder: Path, cells: Sequence[Cell], choose: str, tune: Sequence[str], *, may_fail: bool, as_json: bool
) -> None:
    """What was chosen among the cells of this command, and how the runs with it compare."""
    from blossom_ray.studies.comparison.comparing import Question, compare_entries
    from blossom_ray.studies.comparison.entries import collect
    from blossom_ray.studies.comparison.tasks import task_metrics
    from blossom_ray.studies.sweeps.folder import Sweep

    known = {cell.identity: cell for cell in Sweep.open(folder).cells}
    entries = collect([Sweep(folder, tuple(known[cell.identity] for cell in cells))])
    questions = [Question(metric, choose=choose, tune=tune) for metric in task_metrics(entries)]
    try:
        found = [compare_entries(entries, question) for question in questions]
    except InputError as error:
        if not may_fail:
            raise
        # What failed has been told, and is what the command ends with.
        warn(f"error: {error}")
        return
    for each in found:
        if not as_json:
            say("")
        _show(each, None, Form.JSON if as_json else Form.TABLE)


def _checked_cells(scenarios: list[Path], vary: list[str], seeds: str | None, settings: list[str]) -> tuple[Cell, ...]:
    """All cells of the grid, or every problem of the options, or else of the cells."""
    from blossom_ray.reading.overrides import parse_each
    from blossom_ray.studies.sweeps.grid import expand, parse_axis, parse_seeds

    overrides, problems = parse_settings(settings)
    axes, of_axes = parse_each(parse_axis, vary)
    numbers, of_seeds = parse_each(parse_seeds, [] if seeds is None else [seeds])
    problems += [*of_axes, *of_seeds]
    twice = [path for path in overrides if path in {axis.path for axis in axes} or (path == "seed" and numbers)]
    problems += [Problem(path, "is varied too", "each key in one option", source=f"--set {path}") for path in twice]
    if problems:
        raise ScenarioError(tuple(problems))
    return expand(scenarios, axes, numbers[0] if numbers else None, overrides)


def _follow(
    folder: Path,
    cells: tuple[Cell, ...],
    jobs: int | None,
    address: str | None,
    interruption: Interruption,
    targets: Sequence[Target],
    compare_it: str,
    column: str | None,
    *,
    as_json: bool,
) -> int:
    """Show the cells as they go, and the tally at the end; the number of cells that failed."""
    from blossom_ray.cli.console.sweeps import sweep_view
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.studies.comparison.notes import run_notes
    from blossom_ray.studies.sweeps.grid import value_text
    from blossom_ray.studies.sweeps.sweeping import run_cells

    ends: Counter[str] = Counter()
    failures: list[str] = []
    noted: list[tuple[str, Run]] = []
    going_on = run_cells(folder, cells, jobs=jobs, stopping=interruption.is_asked, address=address)
    view: AbstractContextManager[Callable[[CellEvent], None]]
    if as_json:
        view = nullcontext(partial(_print_event, validation_only=column is not None))
    else:
        say(f"{len(cells)} cells in {folder}")
        view = sweep_view(cells, terminal(), column)
    with _tracked(targets) as track, closing(going_on) as events, view as show:
        for event in events:
            interruption.is_graceful = True
            if event.kind not in ("started", "round"):
                ends[event.kind] += 1
            if event.kind == "failed":
                failures.append(f"failed: {event.folder}: {event.error}")
            track(event)
            show(event)
            if (run := _run_of(event)) is not None:
                noted.append((", ".join(map(value_text, event.cell.setting.values())), run))
    if interruption.signals and sum(ends.values()) - ends["interrupted"] < len(cells):
        raise KeyboardInterrupt
    if as_json:
        print_json({"sweep": str(folder), "cells": len(cells), **ends})
        return ends["failed"]
    tally = ", ".join(f"{count} {kind}" for kind, count in ends.items())
    notes = (f"note: {note}" for note in run_notes(noted))
    say(*failures, *notes, f"{len(cells)} cells: {tally}", f"compare them with: {compare_it}")
    return ends["failed"]


@contextmanager
def _tracked(targets: Sequence[Target]) -> Iterator[Callable[[CellEvent], None]]:
    """What hands events on to the trackers of cells in progress; those left in the middle are ended at the end."""
    from blossom_ray.runs.tracking import Tracking

    in_progress: dict[str, Tracking] = {}

    def track(event: CellEvent) -> None:
        key = event.cell.identity
        if event.kind == "started":
            in_progress[key] = Tracking(targets, event.cell.scenario, event.folder, warn)
        elif event.progress is not None:
            in_progress[key].write(event.progress)
        elif key in in_progress:
            in_progress.pop(key).close(event.kind)

    try:
        yield track
    finally:
        while in_progress:
            in_progress.popitem()[1].close("interrupted")


def _run_of(event: CellEvent) -> Run | None:
    """The run of a cell that has ended; None where it goes on, or has none that can be read."""
    from blossom_ray.runs.folder import Run

    with suppress(BlossomError):
        return None if event.kind in ("started", "round") else Run.open(event.folder)
    return None


def _print_event(event: CellEvent, *, validation_only: bool) -> None:
    values: dict[str, object] = {"event": event.kind, "cell": event.cell.name, "run": str(event.folder)}
    if event.progress is not None:
        metrics = event.progress.metrics.items()
        shown = {name: value for name, value in metrics if not validation_only or name.startswith("validation/")}
        values |= {"round": event.progress.round_index, **shown}
    if event.error is not None:
        values["error"] = event.error
    if (run := _run_of(event)) is not None:
        values["notes"] = list(run.manifest.get("notes", ()))
    print_json(values)
