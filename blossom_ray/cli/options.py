"""The command line that the commands are put into; options that several of them share, and what is read by them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.output import say
from blossom_ray.errors import Problem, ScenarioError

if TYPE_CHECKING:
    from blossom_ray.reading.inspection import Inspector
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runs.tracking import Target

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
        autocompletion=completion.words("auto", "local"),
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="tensorboard[:FOLDER]|mlflow[:URI]",
        help="Write the rounds for TensorBoard or MLflow, too. Repeatable.",
        autocompletion=completion.words("tensorboard", "mlflow"),
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


def decode_first(scenario: Scenario, address: str | None, *, as_json: bool) -> None:
    """Decode what a run's data leave to be decoded, with a bar, unless the run takes place elsewhere.

    Raises:
        DataError: A value is refused; or a table, a file or the cache cannot be used.
    """
    from blossom_ray.cli.console.loading import loading_bar
    from blossom_ray.runtime.loading import decode

    if address is None and "RAY_ADDRESS" not in os.environ:
        with loading_bar(hidden=as_json):
            decode(scenario)


def load_scenario(
    path: Path,
    settings: list[str] | None,
    seed: int | None,
    *,
    with_uris: bool = True,
    inspector: Inspector | None = None,
) -> Scenario:
    """Read and check a scenario, its data included, those at a URI on request; every problem at once.

    Raises:
        ScenarioError: With every problem found.
    """
    from blossom_ray.cli.console.loading import loading_bar
    from blossom_ray.reading.inspection import Inspector

    overrides, problems = parse_settings(settings or [])
    sources = {key: f"--set {key}" for key in overrides}
    if seed is not None:
        overrides["seed"], sources["seed"] = seed, "--seed"
    try:
        with loading_bar():
            scenario = (inspector or Inspector()).read(path, overrides, sources, with_uris=with_uris)
    except ScenarioError as error:
        problems += error.problems
    if problems:
        problems.sort(key=lambda problem: (problem.source is not None, problem.line or 0))
        raise ScenarioError(tuple(problems))
    return scenario


def parse_settings(settings: Sequence[str], option: str = "--set") -> tuple[dict[str, Any], list[Problem]]:
    """Value by dotted path of options such as `--set`, and what is wrong with others."""
    from blossom_ray.reading.overrides import parse_assignment, parse_each

    assignments, problems = parse_each(lambda text: parse_assignment(text, option), settings)
    return dict(assignments), problems


def track_targets(track: Sequence[str] | None) -> list[Target]:
    """The targets of `--track`, each once, that can be written to.

    Raises:
        InputError: One is no target, or cannot be written to.
    """
    if not track:
        return []
    from blossom_ray.runs.tracking import parse_target
    from blossom_ray.runs.tracking.following import check_target

    targets = [*dict.fromkeys(parse_target(text) for text in track)]
    for target in targets:
        check_target(target)
    return targets
