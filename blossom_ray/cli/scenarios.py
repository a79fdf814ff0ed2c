"""Commands about scenario files: `validate` and `schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from blossom_ray.cli.app import Json, ScenarioPath, Seed, Settings, app
from blossom_ray.cli.loading import load_scenario
from blossom_ray.cli.output import print_json
from blossom_ray.errors import ScenarioError


@app.command(epilog="Example: blossom-ray validate scenarios/quickstart.yaml --set data.partition.alpha=0.1")
def validate(scenario: ScenarioPath, settings: Settings = None, seed: Seed = None, as_json: Json = False) -> None:
    """Check a scenario and whether its data can be divided over its clients, without running it."""
    try:
        checked = load_scenario(scenario, settings, seed)
    except ScenarioError as error:
        if not as_json:
            raise
        problems = [vars(problem) | {"message": str(problem)} for problem in error.problems]
        print_json({"valid": False, "problems": problems})
        raise typer.Exit(error.exit_code) from None
    facts = {"clients": checked.num_clients, "rounds": checked.rounds, "modalities": list(checked.modalities)}
    if as_json:
        print_json({"valid": True, **facts})
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
