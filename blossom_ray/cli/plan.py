"""The command `plan`: what a run would take, without starting it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from blossom_ray.cli.options import Json, ScenarioPath, Seed, Settings, app, load_scenario
from blossom_ray.cli.output import print_json

if TYPE_CHECKING:
    from blossom_ray.runtime.placement import Room


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

    from blossom_ray.cli.console.plan import plan_values, plan_view
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.storage import temporary_folder
    from blossom_ray.studies.plan import make_plan

    room, where = _room()
    with temporary_folder() as folder:
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
