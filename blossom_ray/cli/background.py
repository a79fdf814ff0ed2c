"""Commands for runs that another process makes: `attach` and `stop`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.options import Json, app
from blossom_ray.cli.output import fail, print_json, round_json, say
from blossom_ray.core.locations import local_path
from blossom_ray.errors import RunError

if TYPE_CHECKING:
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.tracking import Target

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", autocompletion=completion.runs)]
BackgroundRun = Annotated[
    Path, typer.Argument(metavar="RUN", help="The run's folder.", autocompletion=completion.background_runs)
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Run in the background, on when the terminal closes; watch it with attach.")
]


def detached(
    scenario: Scenario, folder: Path, address: str | None, targets: Sequence[Target], *, as_json: bool
) -> None:
    """Start a run in the background, and say how to get at it."""
    from blossom_ray.runs.background import start

    pid = start(scenario, folder, address, targets)
    if as_json:
        print_json({"run": str(folder), "pid": pid})
        return
    quoted = shlex.quote(str(folder))
    say(
        f"{folder} goes on in process {pid}",
        f"watch it: blossom-ray attach {quoted}",
        f"end it:   blossom-ray stop {quoted}",
    )


@app.command(epilog="Example: blossom-ray attach runs/quickstart/20261123T120000Z-4f1c")
def attach(run: RunFolder, as_json: Json = False) -> None:
    """Watch a run that goes on elsewhere, from its first round to its result. Ctrl-C ends the watching alone."""
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.cli.console.views import choose_view, final_summary
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.following import followed

    run = local_path(run, "the run")
    scenario = Run.open(run).scenario
    console = terminal()
    try:
        with closing(followed(run)) as records:
            if as_json:
                for record in records:
                    print_json(round_json(record))
            else:
                with choose_view(scenario, tuple(scenario.profiles()), console) as view:
                    for record in records:
                        view.update(record)
    except KeyboardInterrupt:
        _leave(run)
    ended = Run.open(run)
    if as_json:
        print_json({"run": str(run), "status": ended.status})
    elif ended.status != "failed":
        console.print(final_summary(ended))
    _check_end(ended, run)


@app.command("stop", epilog="Example: blossom-ray stop runs/quickstart/20261123T120000Z-4f1c")
def stop_run(run: BackgroundRun) -> None:
    """End a run that --detach has started, after the round in progress and with a checkpoint. Twice ends it at once."""
    from blossom_ray.runs.background import stop

    run = local_path(run, "the run")
    say(f"{run}: process {stop(run)} was asked to end; go on later with: blossom-ray resume {shlex.quote(str(run))}")


def _leave(run: Path) -> NoReturn:
    from blossom_ray.runs.background import PROCESS_FILE

    quoted = shlex.quote(str(run))
    # A run that another terminal shows is ended there.
    end = f"\nend it: blossom-ray stop {quoted}" if (run / PROCESS_FILE).exists() else ""
    fail(f"\nthe run goes on; watch it again: blossom-ray attach {quoted}{end}", 130)


def _check_end(run: Run, folder: Path) -> None:
    match run.status:
        case "failed":
            error = run.manifest.get("error", {})
            fail(f"error: {error.get('message', 'the run failed')}\n\n{error.get('details', '')}".rstrip(), 1)
        case "interrupted":
            raise RunError("the run was interrupted", f"go on with: blossom-ray resume {shlex.quote(str(folder))}")
