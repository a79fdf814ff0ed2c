"""Commands about scenarios that run nothing: `validate`, `plan`, `scenarios` and `schema`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from blossom_ray.cli.options import Json, ScenarioPath, Seed, Settings, app, load_scenario
from blossom_ray.cli.output import print_json, say, say_text
from blossom_ray.errors import InputError, Problem, ScenarioError
from blossom_ray.text import quoted

if TYPE_CHECKING:
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runtime.placement import Room


@app.command(epilog="Example: blossom-ray validate scenarios/quickstart.yaml --set data.partition.alpha=0.1")
def validate(scenario: ScenarioPath, settings: Settings = None, seed: Seed = None, as_json: Json = False) -> None:
    """Check a scenario and whether its data can be divided over its clients, without running it.

    An algorithm of your own is tried on a few clients of generated samples.
    """
    from blossom_ray.reading.inspection import Inspector

    inspector = Inspector()
    try:
        checked = load_scenario(scenario, settings, seed, inspector=inspector)
        _try_algorithm(checked, str(scenario))
    except ScenarioError as error:
        if not as_json:
            raise
        problems = [vars(problem) | {"message": str(problem)} for problem in error.problems]
        print_json({"valid": False, "problems": problems})
        raise typer.Exit(error.exit_code) from None
    facts = {"clients": checked.num_clients, "rounds": checked.rounds, "modalities": list(checked.modalities)}
    if checked.num_unseen:
        facts["unseen"] = checked.num_unseen
    notes = inspector.notes(checked)
    if as_json:
        print_json({"valid": True, **facts, "notes": notes})
    else:
        names = ", ".join(checked.modalities)
        clients = f"{checked.num_clients} clients" + (f" ({checked.num_unseen} unseen)" if checked.num_unseen else "")
        found = f"{scenario}: valid; {clients}, {checked.rounds} rounds, modalities {names}"
        say(found, *(f"note: {note}" for note in notes))


def _try_algorithm(scenario: Scenario, file: str) -> None:
    """Find the mistakes of an own algorithm.

    Raises:
        ScenarioError: It has one.
    """
    if scenario.algorithm.kind == "custom":
        from blossom_ray.studies.algorithm_trial import algorithm_problem

        if (problem := algorithm_problem(scenario)) is not None:
            raise ScenarioError((Problem("algorithm", *problem, file=file),))


@app.command(epilog="Example: blossom-ray scenarios quickstart > mine.yaml")
def scenarios(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the scenarios that come with the package, or print one. Other commands take them by name."""
    from blossom_ray.core.phrases import did_you_mean
    from blossom_ray.reading.packaged import packaged_scenarios, shows

    texts = {key: path.read_text(encoding="utf-8") for key, path in packaged_scenarios().items()}
    if name is not None:
        if name not in texts:
            near = did_you_mean(name, texts)
            raise InputError(
                f"there is no packaged scenario {quoted(name)}; expected a name that `scenarios` lists{near}"
            )
        if as_json:
            print_json({"name": name, "shows": shows(texts[name]), "text": texts[name]})
        else:
            say_text(texts[name])
    elif as_json:
        for key, text in texts.items():
            print_json({"name": key, "shows": shows(text)})
    else:
        from rich.table import Table

        from blossom_ray.cli.console.terminal import terminal

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, min_width=max(map(len, texts)))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for key, text in texts.items():
            table.add_row(key, shows(text))
        terminal().print(table)


@app.command(epilog="Example: blossom-ray schema > scenario.schema.json")
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the scenario reference of the docs instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from blossom_ray.reading.reference import json_schema, reference_markdown

    say_text((reference_markdown().rstrip() if markdown else json.dumps(json_schema(), indent=2)) + "\n")


@app.command(epilog="Example: blossom-ray plan scenarios/quickstart.yaml --set execution.clients_per_actor=1")
def plan(
    scenario: ScenarioPath,
    settings: Settings = None,
    seed: Seed = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Time a few batches of each modality set, for an estimate in seconds. Without either: where the "
            "model has no code of your own.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show clients, actors, memory and bytes per round of a scenario, without running it.

    Ray is asked where RAY_ADDRESS names a cluster; else this machine is taken, and Ray is not started.
    """
    checked = load_scenario(scenario, settings, seed)

    from blossom_ray.cli.console.loading import loading_bar
    from blossom_ray.cli.console.plan import plan_values, plan_view
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.storage import temporary_folder
    from blossom_ray.studies.plan import make_plan

    room, where = _room()
    with temporary_folder() as folder, loading_bar(hidden=as_json):
        found = make_plan(checked, room, folder, probe=probe)
    if as_json:
        print_json(plan_values(found))
    else:
        terminal().print(plan_view(checked, found, where))


def _room() -> tuple[Room, str]:
    """What clients have room in, and where that is."""
    if "RAY_ADDRESS" in os.environ:
        from blossom_ray.runtime.cluster import offered_room, session

        with session():
            return offered_room(), f"the cluster at {os.environ['RAY_ADDRESS']}"
    from blossom_ray.runtime.placement import this_machine

    return this_machine().on_ray(), "this machine; Ray is not started"
