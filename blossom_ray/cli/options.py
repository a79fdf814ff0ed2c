"""The command line that the commands are put into, and options that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.output import say

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


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from blossom_ray import __version__

        say(f"blossom-ray {__version__}")
        raise typer.Exit
