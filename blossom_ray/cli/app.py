"""The command line itself, and options that several commands share.

Exit codes: 0 done, 1 the run failed, 2 bad input, 130 or 143 ended by Ctrl-C or SIGTERM. Heavy packages are imported
inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.output import fail
from blossom_ray.errors import BlossomError, ClientError, ScenarioError

app = typer.Typer(
    name="blossom-ray",
    help="Simulate multimodal federated learning with block-wise aggregation, on Ray.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioPath = Annotated[
    Path,
    typer.Argument(
        metavar="SCENARIO",
        help="Scenario file (YAML), or a name from `scenarios`.",
        autocompletion=completion.scenarios,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a value by its dotted path, such as training.optimizer.lr=0.01. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Replace the scenario's seed.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="auto|HOST:PORT",
        help="Run on the Ray cluster that this machine is a node of, as RAY_ADDRESS does. From elsewhere: submit.",
        autocompletion=completion.addresses,
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="tensorboard[:FOLDER]|mlflow[:URI]",
        help="Write the rounds for TensorBoard or MLflow, too. Repeatable.",
        autocompletion=completion.trackers,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, one object per line.")]


def main() -> None:
    """Run the command line; the console script."""
    for output in (sys.stdout, sys.stderr):
        # A file name may hold what a terminal cannot show, bytes that are no text included.
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")
    try:
        if completion.is_bash_asking():
            completion.complete_in_bash(_run)
        _run()
    except SystemExit as ended:
        # Only a command that has used Ray has it loaded.
        cluster = sys.modules.get("blossom_ray.runtime.cluster")
        if cluster is not None and isinstance(ended.code, int):
            cluster.leave_without_head(ended.code)
        raise


def _run() -> None:
    try:
        app()
    except ScenarioError as error:
        fail(str(error), error.exit_code)
    except ClientError as error:
        fail(f"error: {error}\n\n{error.details}".rstrip(), error.exit_code)
    except BlossomError as error:
        fail(f"error: {error}", error.exit_code)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from blossom_ray import __version__

        print(f"blossom-ray {__version__}")
        raise typer.Exit
