"""The `blossom-ray` command: puts a scenario, a runtime and a view together.

Exit codes: 0 done, 1 the run failed, 2 bad input, 130 or 143 ended by Ctrl-C or SIGTERM. Heavy packages are imported
inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from blossom_ray.errors import BlossomError, ClientError, Problem, ScenarioError

if TYPE_CHECKING:
    from blossom_ray.records import RoundRecord
    from blossom_ray.scenario import Scenario

app = typer.Typer(
    name="blossom-ray",
    help="Simulate multimodal federated learning with block-wise aggregation, on Ray.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a value by its dotted path, such as training.optimizer.lr=0.01. Repeatable.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Replace the scenario's seed.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, one object per line.")]


def main() -> None:
    """Run the command line; the console script."""
    try:
        app()
    except ScenarioError as error:
        _fail(str(error), error.exit_code)
    except ClientError as error:
        _fail(f"error: {error}\n\n{error.details}".rstrip(), error.exit_code)
    except BlossomError as error:
        _fail(f"error: {error}", error.exit_code)


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
    as_json: Json = False,
) -> None:
    """Run a scenario: a live view on a terminal, plain lines elsewhere, everything in the run folder."""
    with _interruptible() as interruption:
        checked = _load(scenario, settings, seed)

        from blossom_ray.api import recorded, resumed
        from blossom_ray.results import new_run_folder, unfinished_run

        folder = unfinished_run(out, checked) if resume_newest else None
        if folder is not None:
            interruption.folder = folder
            _follow(checked, folder, resumed(checked, folder, interruption.is_asked), interruption, as_json=as_json)
        else:
            folder = interruption.folder = new_run_folder(out, checked.name)
            _follow(checked, folder, recorded(checked, folder, interruption.is_asked), interruption, as_json=as_json)


@app.command(epilog="Example: blossom-ray resume runs/quickstart/20261123T120000Z-4f1c")
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a run that did not finish.")],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted, failed or was killed; the result is that of an undisturbed run.

    --set may change where it runs (execution, but for chunk_size), checkpoint and failures.
    """
    with _interruptible() as interruption:
        from blossom_ray.api import resumed
        from blossom_ray.results import SCENARIO_FILE, Run

        opened = Run.open(run)
        if opened.status == "finished":
            print(f"{run}: finished already; nothing to do")
            return
        checked = _load(run / SCENARIO_FILE, settings, None)
        interruption.folder = run
        _follow(checked, run, resumed(checked, run, interruption.is_asked), interruption, as_json=as_json)


@app.command(epilog="Example: blossom-ray validate scenarios/quickstart.yaml --set data.partition.alpha=0.1")
def validate(scenario: ScenarioPath, settings: Settings = None, seed: Seed = None, as_json: Json = False) -> None:
    """Check a scenario and whether its data can be divided over its clients, without running it."""
    try:
        checked = _load(scenario, settings, seed)
    except ScenarioError as error:
        if not as_json:
            raise
        problems = [vars(problem) | {"message": str(problem)} for problem in error.problems]
        _print_json({"valid": False, "problems": problems})
        raise typer.Exit(error.exit_code) from None
    facts = {"clients": checked.num_clients, "rounds": checked.rounds, "modalities": list(checked.modalities)}
    if as_json:
        _print_json({"valid": True, **facts})
    else:
        names = ", ".join(checked.modalities)
        print(f"{scenario}: valid; {checked.num_clients} clients, {checked.rounds} rounds, modalities {names}")


@app.command(epilog="Example: blossom-ray schema > scenario.schema.json")
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the scenario reference of the docs instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from blossom_ray.scenario.reference import json_schema, reference_markdown

    print(reference_markdown().rstrip() if markdown else json.dumps(json_schema(), indent=2))


def _follow(
    scenario: Scenario,
    folder: Path,
    records: Generator[RoundRecord, None, None],
    interruption: _Interruption,
    *,
    as_json: bool,
) -> None:
    """Show a run's rounds as they come, and its result at the end."""
    from rich.console import Console

    from blossom_ray.console import choose_view, final_summary
    from blossom_ray.results import Run

    console = Console()
    with closing(records):
        if as_json:
            for record in records:
                interruption.is_graceful = True
                _print_json({"round": record.round_index, **record.metrics})
        else:
            with choose_view(scenario, tuple(scenario.profiles()), console) as view:
                for record in records:
                    interruption.is_graceful = True
                    view.update(record)
    finished = Run.open(folder)
    if interruption.signals and finished.status != "finished":
        raise KeyboardInterrupt
    if as_json:
        _print_json({"run": str(folder), "status": finished.status})
    else:
        console.print(final_summary(finished))


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from blossom_ray import __version__

        print(f"blossom-ray {__version__}")
        raise typer.Exit


def _load(path: Path, settings: list[str] | None, seed: int | None) -> Scenario:
    """Read and check a scenario, its data included; every problem at once.

    Raises:
        ScenarioError: With every problem found.
    """
    from blossom_ray.data.federation import federation_problems
    from blossom_ray.factories import factory_problems
    from blossom_ray.scenario.reader import inspect_scenario, parse_assignment

    problems: list[Problem] = []
    overrides: dict[str, Any] = {}
    for text in settings or []:
        try:
            key, value = parse_assignment(text)
        except ScenarioError as error:
            problems += error.problems
        else:
            overrides[key] = value
    sources = {key: f"--set {key}" for key in overrides}
    if seed is not None:
        overrides["seed"], sources["seed"] = seed, "--seed"
    reading = inspect_scenario(path, overrides, sources)
    problems += reading.problems
    sections = reading.sections
    if {"data", "clients", "seed"} <= sections.keys() and not _concerns(problems, "data", "clients"):
        clients = sections["clients"]
        num_clients = sum(group.count for group in clients)
        owned = {modality for group in clients for modality in group.modalities}
        # A modality that the data do not have is reported already, at its encoder.
        owned -= {problem.path.removeprefix("model.encoders.") for problem in problems}
        modalities = tuple(sorted(owned))
        for where, found, expected in federation_problems(sections["data"], modalities, num_clients, sections["seed"]):
            problems.append(reading.problem(where, found, expected))
    if "model" in sections:
        problems += [reading.problem(*problem) for problem in factory_problems(sections["model"])]
    if problems or reading.scenario is None:
        problems.sort(key=lambda problem: (problem.source is not None, problem.line or 0))
        raise ScenarioError(tuple(problems))
    return reading.scenario


def _concerns(problems: list[Problem], *sections: str) -> bool:
    return any(problem.path.split(".")[0] in sections for problem in problems)


# Signals that follow the first one so soon mean the same: an impatient hand, or a terminal and a scheduler at once.
_IMPATIENCE_S = 2.0


@dataclass
class _Interruption:
    """What an interrupt finds: the signals so far, the run folder once there is one, and whether rounds are running."""

    signals: list[int] = field(default_factory=list)
    since: float = 0.0
    folder: Path | None = None
    is_graceful: bool = False

    def is_asked(self) -> bool:
        """Whether the run is to end after the round in progress."""
        return bool(self.signals)


@contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """End the command on Ctrl-C or SIGTERM with a message and 130 or 143, after the run has cleaned up."""
    interruption = _Interruption()

    def interrupt(signum: int, _frame: object) -> None:
        is_first = not interruption.signals
        interruption.signals.append(signum)
        if is_first:
            interruption.since = time.monotonic()
            if interruption.is_graceful:
                print("\nfinishing the round in progress; Ctrl-C again ends it at once", file=sys.stderr)
            else:
                raise KeyboardInterrupt
        elif time.monotonic() - interruption.since > _IMPATIENCE_S:
            raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    except KeyboardInterrupt:
        # The process is about to end; one more signal would only add a traceback.
        before = dict.fromkeys(before, signal.SIG_IGN)
        # Ray raises its own KeyboardInterrupt in place of ours, so the signal is told by what was noted.
        exit_code = 128 + (interruption.signals or [signal.SIGINT])[0]
        folder = interruption.folder
        if folder is None or not (folder / "manifest.json").exists():
            _fail("interrupted before the run began", exit_code)
        _fail(
            f"interrupted; complete rounds are kept in {folder}\n"
            f'look at them with: python -c "import blossom_ray; print(blossom_ray.Run.open({str(folder)!r}).rounds)"\n'
            f"go on with: blossom-ray resume {shlex.quote(str(folder))}",
            exit_code,
        )
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _print_json(values: dict[str, Any]) -> None:
    # JSON has no infinity and no NaN, which the loss of a client that diverges may be.
    finite = {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in values.items()}
    print(json.dumps(finite), flush=True)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(exit_code)
