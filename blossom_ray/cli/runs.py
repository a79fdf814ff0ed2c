"""Commands for runs: `simulate`, `resume` and `export`, and of those that another process makes `attach` and `stop`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.interruption import Interruption, interruptible
from blossom_ray.cli.options import (
    Address,
    Json,
    ScenarioPath,
    Seed,
    Settings,
    Track,
    app,
    decode_first,
    load_scenario,
    track_targets,
)
from blossom_ray.cli.output import fail, print_json, round_json, say, warn
from blossom_ray.core.locations import local_path
from blossom_ray.errors import InputError, RunError
from blossom_ray.text import quoted

if TYPE_CHECKING:
    from blossom_ray.core.records import RoundRecord
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.tracking import Target

RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The run's folder.", autocompletion=completion.folders_with("manifest.json")),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Run in the background, on when the terminal closes; watch it with attach.")
]


@app.command(epilog="Example: blossom-ray simulate scenarios/quickstart.yaml --set sharing=full-model --seed 1")
def simulate(
    scenario: ScenarioPath,
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder under which the run folder <name>/<run id> is made.")
    ] = Path("runs"),
    resume_newest: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of this scenario that has not finished, if any.")
    ] = False,
    address: Address = None,
    track: Track = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Run a scenario: a live view on a terminal, plain lines elsewhere, everything in the run folder."""
    with interruptible() as interruption:
        out = local_path(out, "--out")
        checked = load_scenario(scenario, settings, seed)

        from blossom_ray.runs.resuming import unfinished_run
        from blossom_ray.runs.session import check_address, continue_run
        from blossom_ray.runs.writer import new_run_folder, remove_if_unbegun

        check_address(checked, address)
        targets = track_targets(track)
        decode_first(checked, address, as_json=as_json)
        unfinished = unfinished_run(out, checked) if resume_newest else None
        folder = interruption.folder = unfinished or new_run_folder(out, checked.name)
        with remove_if_unbegun(folder):
            if detach:
                _detach(checked, folder, address, targets, as_json=as_json)
            else:
                records = continue_run(checked, folder, interruption.is_asked, address)
                _follow(checked, folder, records, interruption, targets, as_json=as_json)


@app.command(epilog="Example: blossom-ray resume runs/quickstart/20261123T120000Z-4f1c")
def resume(
    run: RunFolder,
    settings: Settings = None,
    address: Address = None,
    track: Track = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted, failed or was killed; the result is that of an undisturbed run.

    --set may change where it runs (execution, but for chunk_size), checkpoint and failures, and rounds: more of them
    let a run that has finished go on, too.
    """
    with interruptible() as interruption:
        from blossom_ray.runs.folder import SCENARIO_FILE, Run
        from blossom_ray.runs.resuming import check_resumption
        from blossom_ray.runs.session import check_address, resume_run

        run = local_path(run, "the run")
        opened = Run.open(run)
        is_done, stopped = opened.status == "finished", opened.stopped
        is_early = stopped is not None and stopped.reason == "patience"
        if settings or not is_done:
            checked = load_scenario(run / SCENARIO_FILE, settings, None)
            _check_no_cell(run, opened.scenario, checked)
            check_resumption(checked, run)
            is_done = is_done and (is_early or checked.rounds == opened.scenario.rounds)
        if is_done:
            opened.check()
            how = f"stopped early after round {stopped.round}" if stopped is not None and is_early else "finished"
            say(f"{run}: {how} already; nothing to do")
            return
        check_address(checked, address)
        targets = track_targets(track)
        decode_first(checked, address, as_json=as_json)
        interruption.folder = run
        if detach:
            _detach(checked, run, address, targets, as_json=as_json)
        else:
            records = resume_run(checked, run, interruption.is_asked, address)
            _follow(checked, run, records, interruption, targets, as_json=as_json)


@app.command(epilog="Example: blossom-ray attach runs/quickstart/20261123T120000Z-4f1c")
def attach(run: RunFolder, as_json: Json = False) -> None:
    """Watch a run that goes on elsewhere, from its first round to its result. Ctrl-C ends the watching alone."""
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.following import follow

    run = local_path(run, "the run")
    quoted = shlex.quote(str(run))
    try:
        with closing(follow(run)) as records, _view(Run.open(run).scenario, as_json=as_json) as show:
            for record in records:
                show(record)
    except KeyboardInterrupt:
        from blossom_ray.runs.background import PROCESS_FILE

        # A run that another terminal shows is ended there.
        end = f"\nend it: blossom-ray stop {quoted}" if (run / PROCESS_FILE).exists() else ""
        fail(f"\nthe run goes on; watch it again: blossom-ray attach {quoted}{end}", 130)
    ended = Run.open(run)
    _show_end(ended, run, as_json=as_json)
    if ended.status == "failed":
        error = ended.manifest.get("error", {})
        fail(f"error: {error.get('message', 'the run failed')}\n\n{error.get('details', '')}".rstrip(), 1)
    if ended.status == "interrupted":
        raise RunError("the run was interrupted", f"go on with: blossom-ray resume {quoted}")


@app.command("stop", epilog="Example: blossom-ray stop runs/quickstart/20261123T120000Z-4f1c")
def stop_run(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The run's folder.", autocompletion=completion.folders_with("process.json")),
    ],
) -> None:
    """End a run that --detach has started, after the round in progress and with a checkpoint. Twice ends it at once."""
    from blossom_ray.runs.background import stop

    run = local_path(run, "the run")
    say(f"{run}: process {stop(run)} was asked to end; go on later with: blossom-ray resume {shlex.quote(str(run))}")


@app.command(epilog="Example: blossom-ray export runs/quickstart/20261123T120000Z-4f1c --client 3 --to model-3")
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="The new folder.")],
    client: Annotated[int | None, typer.Option("--client", metavar="ID", help="The model of this client.")] = None,
    everybody: Annotated[bool, typer.Option("--global", help="The model that all clients share.")] = False,
    round_index: Annotated[
        str | None,
        typer.Option(
            "--round",
            metavar="best|last|ROUND",
            help="After which round, of those with a checkpoint; the best one of a run with stop, else the last one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model into a folder, with weights and code that need torch, safetensors and numpy alone."""
    from blossom_ray.runs.exporting import write_export
    from blossom_ray.runs.folder import Run

    if (client is None) != everybody:
        raise InputError(f"--client and --global are {'both' if everybody else 'not'} given; expected one of the two")
    number: int | Literal["best", "last"] | None
    match round_index:
        case None | "best" | "last":
            number = round_index
        case _ if round_index.isdecimal() and len(round_index) < 10:
            number = int(round_index)
        case _:
            raise InputError(f"--round is {quoted(round_index)}; expected best, last or a round")
    model = Run.open(local_path(run, "the run")).model(client, round_index=number)
    files = write_export(model, folder := local_path(to, "--to"))
    if as_json:
        print_json({"export": str(folder), "files": [str(path) for path in files]})
    else:
        say(*files, f"predict with it: python {shlex.quote(str(folder / 'predict.py'))} TABLE.parquet")


def _check_no_cell(run: Path, before: Scenario, now: Scenario) -> None:
    """Refuse to give a cell of a sweep other rounds than its neighbours have."""
    from blossom_ray.studies.sweeps.folder import Sweep, is_sweep

    parent = run.absolute().parent
    if now.rounds == before.rounds or not is_sweep(parent):
        return
    if any(cell.folder == run.absolute().name for cell in Sweep.open(parent).cells):
        raise InputError(
            f"{run}: is a cell of a sweep, whose cells have the same rounds; expected the sweep's own command with "
            f"--set rounds={now.rounds}, which runs new cells"
        )


def _follow(
    scenario: Scenario,
    folder: Path,
    records: Generator[RoundRecord, None, None],
    interruption: Interruption,
    targets: Sequence[Target],
    *,
    as_json: bool,
) -> None:
    """Show a run's rounds as they come, and its result at the end."""
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.tracking import Tracking

    view = _view(scenario, as_json=as_json)
    with Tracking(targets, scenario, folder, warn) as tracking, closing(records), view as show:
        for record in records:
            interruption.is_graceful = True
            tracking.write(record)
            show(record)
    finished = Run.open(folder)
    if interruption.signals and finished.status != "finished":
        raise KeyboardInterrupt
    _show_end(finished, folder, as_json=as_json)


def _view(scenario: Scenario, *, as_json: bool) -> AbstractContextManager[Callable[[RoundRecord], None]]:
    """What shows a round."""
    if as_json:
        return nullcontext(lambda record: print_json(round_json(record)))
    from blossom_ray.cli.console.runs import run_view
    from blossom_ray.cli.console.terminal import terminal

    return run_view(scenario, terminal())


def _show_end(run: Run, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"run": str(folder), "status": run.status})
    elif run.status != "failed":
        from blossom_ray.cli.console.runs import final_summary
        from blossom_ray.cli.console.terminal import terminal

        terminal().print(final_summary(run))


def _detach(scenario: Scenario, folder: Path, address: str | None, targets: Sequence[Target], *, as_json: bool) -> None:
    """Start a run in the background, and say how to get at it."""
    from blossom_ray.runs.background import start

    pid, quoted = start(scenario, folder, address, targets), shlex.quote(str(folder))
    if as_json:
        print_json({"run": str(folder), "pid": pid})
    else:
        ways = f"watch it: blossom-ray attach {quoted}", f"end it:   blossom-ray stop {quoted}"
        say(f"{folder} goes on in process {pid}", *ways)
