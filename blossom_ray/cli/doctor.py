"""The command that looks at the machine: `doctor`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blossom_ray.cli.options import Json, app
from blossom_ray.cli.output import print_json
from blossom_ray.errors import BlossomError

if TYPE_CHECKING:
    from blossom_ray.cli.console.doctor_checks import Check

_MARKS = {"good": "ok", "warning": "note", "refused": "no"}
_STYLES = {"good": "green", "warning": "yellow", "refused": "bold red"}


@app.command(epilog="Example: blossom-ray doctor --start")
def doctor(
    start: Annotated[bool, typer.Option("--start", help="Also start Ray and an actor, and time them.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has for a run and what would be refused on it; exit code 1 if something is missing."""
    from blossom_ray.cli.console.doctor_checks import checks
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.studies.tables import line

    found = [*checks(), *(_start_checks() if start else ())]
    if as_json:
        for check in found:
            print_json(vars(check))
    else:
        console = terminal()
        width = max(len(check.name) for check in found)
        for check in found:
            mark = line(f"{_MARKS[check.level]:4}", _STYLES[check.level])
            console.print(mark + line(f" {check.name:{width}} {check.found}"))
            if check.advice:
                console.print(line(f"{'':{width + 6}}{check.advice}", "dim"))
    if any(check.level == "refused" for check in found):
        raise typer.Exit(1)


def _start_checks() -> Iterator[Check]:
    from blossom_ray.cli.console.doctor_checks import Check
    from blossom_ray.runtime.cluster import probe

    started = time.perf_counter()
    try:
        room = probe()
    except BlossomError as error:
        yield Check("Ray starts", "refused", str(error))
    else:
        yield Check("Ray starts", "good", f"{time.perf_counter() - started:.1f} s with one process; it offers {room}")
