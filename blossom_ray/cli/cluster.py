"""Commands for runs on a cluster from elsewhere: `submit`, and `jobs list`, `logs`, `stop`, `fetch`."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blossom_ray.cli.options import Json, ScenarioPath, Seed, Settings, app, load_scenario
from blossom_ray.cli.output import fail, print_json, say, say_log
from blossom_ray.core.locations import local_path
from blossom_ray.errors import InputError, RunError, first_line

if TYPE_CHECKING:
    from blossom_ray.studies.jobs.jobs import Jobs

_MOST_SHOWN = 20
_MOST_ENVIRONMENT_BYTES = 2**20

jobs_app = typer.Typer(
    name="jobs", help="Runs that were submitted to a cluster: list, watch, stop, bring home.", no_args_is_help=True
)
app.add_typer(jobs_app)

JobsAddress = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="http://HOST:8265", help="The cluster's dashboard; RAY_API_SERVER_ADDRESS does the same."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `submit` prints it.")]


class PackageFrom(StrEnum):
    """Where a job finds this package."""

    HERE = "here"
    NODES = "nodes"


@app.command(epilog="Example: blossom-ray submit scenarios/quickstart.yaml --address http://head:8265 --follow")
def submit(
    scenario: ScenarioPath,
    address: JobsAddress = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show what the job prints until it ends.")] = False,
    settings: Settings = None,
    seed: Seed = None,
    package: Annotated[
        PackageFrom, typer.Option("--package", help="Take this blossom-ray along, or use the one of the nodes.")
    ] = PackageFrom.HERE,
    include: Annotated[
        list[Path] | None, typer.Option("--include", help="Take this file or folder along, too. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave files and folders of this name out. Repeatable.")
    ] = None,
    limit_mib: Annotated[int, typer.Option("--limit-mib", min=1, help="Refuse to take more along, in MiB.")] = 100,
    out: Annotated[
        str,
        typer.Option("--out", help="Folder for the run, on the node of its driver or shared by all; or a URI (s3://)."),
    ] = "~/blossom-ray-jobs",
    python: Annotated[str, typer.Option("--python", help="The interpreter on the nodes.")] = "python",
    runtime_env: Annotated[
        Path | None,
        typer.Option("--runtime-env", help="YAML file with more of Ray's runtime environment, such as pip."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a scenario as a job of a Ray cluster, of which only the dashboard's port has to be reached.

    It takes along: the scenario with --set and --seed, own modules from the working directory, data.path unless it is
    a URI (file:///... for what the nodes have), this package. It says what before it goes. Secrets by their names,
    links out of a folder, and what .gitignore and .rayignore name stay here.
    """
    checked = load_scenario(scenario, settings, seed, with_uris=False)

    from blossom_ray.storage import temporary_folder
    from blossom_ray.studies.jobs import packing, runs
    from blossom_ray.studies.jobs.jobs import Jobs, parse_address
    from blossom_ray.studies.jobs.storage import check_out

    if checked.execution.runtime == "local":
        raise InputError("execution.runtime is local; expected ray for a job on a cluster")
    environment = {} if runtime_env is None else _runtime_environment(local_path(runtime_env, "--runtime-env"))
    runs.check_environment(environment)
    check_out(out)
    place = parse_address(address)
    with temporary_folder("job") as folder:
        packed = packing.pack(
            checked,
            folder,
            with_package=package is PackageFrom.HERE,
            includes=[local_path(path, "--include") for path in include or ()],
            excludes=exclude or (),
            limit_mib=limit_mib,
        )
        # Before anything leaves this machine.
        packed_names = [str(path) for path, kind in packed.files.items() if kind != packing.PACKAGE]
        left_out = [str(each) for each in packed.left_out]
        if not as_json:
            parts = ", ".join(f"{kind} {size / 2**20:.2f}" for kind, size in packed.sizes.items())
            say(f"takes {len(packed.files)} files along, {packed.num_bytes / 2**20:.2f} MiB ({parts})")
            say(*_some("  ", packed_names), *_some("left out: ", left_out))
        jobs = Jobs(place)
        job_id = runs.submit(jobs, checked, packed, out=out, python=python, runtime_env=environment)
    if as_json:
        print_json(
            {
                "job": job_id,
                "address": jobs.address,
                "bytes": packed.num_bytes,
                "files": len(packed.files),
                "names": packed_names[:_MOST_SHOWN],
                "left_out": left_out[:_MOST_SHOWN],
                "num_left_out": len(left_out),
            }
        )
    else:
        say(
            f"job {job_id} at {jobs.address}",
            f"watch it:      blossom-ray jobs logs {job_id} --follow --address {jobs.address}",
            f"bring it home: blossom-ray jobs fetch {job_id} --address {jobs.address}",
        )
    if follow:
        _follow(jobs, job_id)


@jobs_app.command("list", epilog="Example: blossom-ray jobs list --address http://head:8265")
def list_jobs(
    address: JobsAddress = None,
    everything: Annotated[bool, typer.Option("--all", help="Jobs of other programs, too.")] = False,
    as_json: Json = False,
) -> None:
    """List the jobs, the newest first."""
    from datetime import UTC, datetime

    from blossom_ray.studies.jobs.jobs import Jobs
    from blossom_ray.studies.tables import format_seconds

    found = [job for job in Jobs(address).all() if everything or "blossom_ray" in job.metadata]
    for job in found:
        if as_json:
            print_json({**vars(job), "metadata": dict(job.metadata)})
            continue
        parts = [job.id, job.status]
        if job.started is not None:
            parts.append(f"{datetime.fromtimestamp(job.started, UTC):%Y-%m-%d %H:%M:%SZ}")
            if job.ended is not None:
                parts.append(format_seconds(job.ended - job.started))
        parts += [f"{key} {job.metadata[key]}" for key in ("scenario", "seed", "rounds") if key in job.metadata]
        say("  ".join(parts))
    if not found and not as_json:
        say("no jobs")


@jobs_app.command(epilog="Example: blossom-ray jobs logs quickstart-1f0c9a3e --follow --address http://head:8265")
def logs(
    job: JobId,
    address: JobsAddress = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends; its success is the exit code.")] = False,
) -> None:
    """Show what a job has printed."""
    from blossom_ray.studies.jobs.jobs import Jobs

    jobs = Jobs(address)
    jobs.get(job)
    if follow:
        _follow(jobs, job)
    else:
        say_log(jobs.logs(job))


@jobs_app.command(epilog="Example: blossom-ray jobs stop quickstart-1f0c9a3e --address http://head:8265")
def stop(job: JobId, address: JobsAddress = None) -> None:
    """End a job. Its complete rounds and checkpoints can be fetched, and gone on with by `resume`."""
    from blossom_ray.studies.jobs.jobs import Jobs

    jobs = Jobs(address)
    say(f"{job}: asked to end" if jobs.stop(job) else f"{job}: has ended already ({jobs.get(job).status})")


@jobs_app.command(epilog="Example: blossom-ray jobs fetch quickstart-1f0c9a3e --address http://head:8265")
def fetch(
    job: JobId,
    address: JobsAddress = None,
    out: Annotated[Path, typer.Option("--out", help="Folder under which <name>/<run id> is put.")] = Path("runs"),
    checkpoints: Annotated[bool, typer.Option("--checkpoints/--no-checkpoints", help="With checkpoints.")] = True,
    as_json: Json = False,
) -> None:
    """Bring a job's run folder home, from whatever node it lies on; of a job that goes on, its complete rounds."""
    from blossom_ray.runs.folder import Run
    from blossom_ray.studies.jobs import runs
    from blossom_ray.studies.jobs.jobs import Jobs

    found = runs.fetch(Jobs(address), job, local_path(out, "--out"), with_checkpoints=checkpoints)
    if not found:
        raise RunError(f"job {job} has no run yet", f"what it printed: blossom-ray jobs logs {job}")
    for folder in found:
        status = Run.open(folder).status
        if as_json:
            print_json({"run": str(folder), "status": status})
        else:
            say(f"{folder}: {status}")


def _some(start: str, names: list[str]) -> Iterator[str]:
    """A line per name, as many as one reads."""
    yield from (f"{start}{name}" for name in names[:_MOST_SHOWN])
    if len(names) > _MOST_SHOWN:
        yield f"{start}{len(names) - _MOST_SHOWN} more"


def _follow(jobs: Jobs, job_id: str) -> None:
    """Show what a job prints until it ends, and end with its success."""
    try:
        job = jobs.follow(job_id, say_log)
    except KeyboardInterrupt:
        fail(
            f"\nthe job goes on; watch it again: blossom-ray jobs logs {job_id} --follow --address {jobs.address}\n"
            f"end it: blossom-ray jobs stop {job_id} --address {jobs.address}",
            130,
        )
    if job.status != "SUCCEEDED":
        raise RunError(f"job {job_id} ended as {job.status}: {first_line(job.message)}")


def _runtime_environment(path: Path) -> dict[str, Any]:
    from blossom_ray.reading.yaml_tree import parse_yaml
    from blossom_ray.storage import read_file

    try:
        document = parse_yaml(read_file(path, _MOST_ENVIRONMENT_BYTES).decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--runtime-env is {str(path)!r}, which cannot be read ({reason}); expected a file") from error
    tree = None if document.root is None or document.problems else document.root.plain()
    if not isinstance(tree, dict):
        raise InputError(f"--runtime-env is {str(path)!r}, which is no mapping; expected keys such as pip and env_vars")
    return tree
