"""A scenario as a job, and the job's run folder home: from the URI that it went to, else through the Jobs API alone."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import secrets
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from blossom_ray.core.locations import is_uri
from blossom_ray.errors import BlossomError, InputError, RunError, RunFolderError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import MANIFEST_FILE, Run, lock_folder
from blossom_ray.storage import temporary_folder, writing
from blossom_ray.studies.jobs import archive
from blossom_ray.studies.jobs.jobs import Job, Jobs, check_with_ray
from blossom_ray.studies.jobs.packing import SCENARIO, Package
from blossom_ray.studies.jobs.storage import below, download

OUT = "~/blossom-ray-jobs"
"""Where runs of jobs lie on the node of their driver, unless told otherwise."""
# Of the resource that each node has one of: it takes the job to that node.
_NODE_SHARE = 0.001
_PATIENCE_S = 300.0


def submit(
    jobs: Jobs,
    scenario: Scenario,
    package: Package,
    *,
    out: str = OUT,
    python: str = "python",
    runtime_env: Mapping[str, Any] | None = None,
) -> str:
    """Submit a packed scenario.

    Args:
        jobs: The cluster's jobs.
        scenario: What was packed.
        package: What the job takes along.
        out: Folder on the node of the driver, or one that all nodes share, or a URI that `check_out` takes; the run
            folder is `<out>/<job id>/<name>/<run id>`. One of `file://` is written where it is, any other is a copy of
            a folder in `OUT`.
        python: The interpreter on the nodes.
        runtime_env: More of Ray's runtime environment, such as `{"pip": [...], "env_vars": {...}}`; one that
            `check_environment` takes.

    Returns:
        The job's id.

    Raises:
        RunError: The cluster refuses it.
    """
    job_id = f"{scenario.name}-{secrets.token_hex(4)}"
    # Others on the node have no business in the run folder, nor in what Ray has unpacked.
    place, module = below(out, job_id), "blossom_ray"
    folder = place
    if is_uri(out):
        is_local = urlsplit(out).scheme == "file"
        folder = url2pathname(urlsplit(place).path) if is_local else f"{OUT}/{job_id}"
        module += "" if is_local else f".studies.jobs.storage {_shell(folder)} {_shell(place)}"
    simulate = f"{_shell(python)} -m {module} simulate {SCENARIO} --out {_shell(folder)}"
    command = f"umask 077; chmod go= . ; exec {simulate}"
    metadata = {
        "blossom_ray": version("blossom-ray"),
        "scenario": scenario.name,
        "seed": str(scenario.seeds),
        "rounds": str(scenario.rounds),
        "out": place,
        "python": python,
    }
    jobs.submit(
        job_id, command, runtime_env={**(runtime_env or {}), "working_dir": str(package.folder)}, metadata=metadata
    )
    return job_id


def check_environment(environment: Mapping[str, Any]) -> None:
    """Find out whether a job can have a runtime environment, beside what it takes along.

    Raises:
        InputError: It names a working directory, brings modules from here, or is none of Ray's.
    """
    if "working_dir" in environment:
        raise InputError("--runtime-env has working_dir; expected none, since the job brings its own (see --include)")
    modules = environment.get("py_modules") or []
    if not all(is_uri(str(module)) for module in (modules if isinstance(modules, list) else [modules])):
        raise InputError("--runtime-env has py_modules that Ray would pack whole; expected URIs, or --include instead")
    check_with_ray(environment)


def fetch(jobs: Jobs, job_id: str, out: Path, *, with_checkpoints: bool = True) -> list[Path]:
    """Bring a job's run folder home; of a job that goes on, its complete rounds.

    A run at a URI is read there. Of one in a folder of the cluster, a small job on the node of the run's driver prints
    the folder as text, since a job's log is the one thing that the Jobs API hands out from any node.

    Args:
        jobs: The cluster's jobs.
        job_id: A job of `submit`.
        out: Folder under which `<name>/<run id>` is put. A run that is there already is replaced if it was fetched
            while it went on.
        with_checkpoints: Whether its checkpoints come along.

    Returns:
        The run folders: one, or none where the job ended before its run began.

    Raises:
        InputError: There is no such job, or it is none of ours.
        RunFolderError: The run is here already and has ended, or `out` cannot be written.
        RunError: The node is gone, or the folder cannot be had.
    """
    job = jobs.get(job_id)
    if "out" not in job.metadata:
        raise InputError(f"job {job_id} was not submitted by blossom-ray; expected one of `blossom-ray jobs list`")
    names = () if with_checkpoints else ("checkpoints",)
    with temporary_folder("fetch") as folder:
        if is_uri(place := job.metadata["out"]):
            shared = Path(url2pathname(urlsplit(place).path)).parent
            if urlsplit(place).scheme == "file" and not shared.is_dir():
                raise RunError(
                    f"job {job_id} has its run at {place}, and there is no {shared} on this machine",
                    "mount it here; of a run whose --out is the path alone, the job's log brings the folder home",
                )
            download(place, folder, names)
        else:
            _unpack(_print_folder(jobs, job, names), folder, job_id)
        return [_move_home(found.parent, out) for found in sorted(folder.glob(f"*/*/{MANIFEST_FILE}"))]


def _print_folder(jobs: Jobs, job: Job, names: Sequence[str]) -> bytes:
    """The gzipped tar of a job's folder, without files and folders of these names."""
    job_id, node_ip, place = job.id, job.node_ip, job.metadata["out"]
    is_there = node_ip in jobs.node_ips()
    mark, helper = f"archive-{secrets.token_hex(8)}", f"{job_id}-fetch-{secrets.token_hex(2)}"
    script = Path(archive.__file__).read_text(encoding="utf-8")
    command = f"{_shell(job.metadata['python'])} -c {shlex.join([script, mark, place, *names])}"
    # A shared folder is seen from any node.
    options = {"entrypoint_resources": {f"node:{node_ip}": _NODE_SHARE}} if is_there else {}
    jobs.submit(helper, command, metadata={"fetches": job_id}, **options)
    ended = jobs.ended(helper, _PATIENCE_S)
    lines = jobs.logs(helper).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(f"{mark} ")]
    if not starts:
        raise RunError(f"job {helper}, which was to send the run folder, ended as {ended.status}: {ended.message}")
    match lines[starts[0]].split()[1:]:
        case ["missing"]:
            where = f"on node {node_ip}" if is_there else f"on the head node, and the job's own node {node_ip} is gone"
            raise RunError(
                f"job {job_id} has no run folder {place} {where}",
                "submit --out with a folder that all nodes share outlives a node; what the job printed: "
                f"blossom-ray jobs logs {job_id}",
            )
        case ["large", size]:
            raise RunError(
                f"the run folder of job {job_id} has {int(size) / 2**20:.0f} MiB, and a log carries "
                f"{archive.MOST_BYTES // 2**20}",
                f"leave checkpoints behind with --no-checkpoints, or copy {place} from node {node_ip}",
            )
        case [digest, size]:
            with suppress(ValueError):
                content = base64.b64decode("".join(lines[starts[0] + 1 : starts[-1]]))
                if len(content) == int(size) and hashlib.sha256(content).hexdigest() == digest:
                    return content
    raise _damaged(job_id)


def _damaged(job_id: str) -> RunError:
    return RunError(f"the run folder of job {job_id} came damaged", "try again")


def _unpack(content: bytes, folder: Path, job_id: str) -> None:
    """Unpack a run folder: files alone, for their owner, and no more bytes than a node would send.

    Raises:
        RunError: It is no such archive.
    """
    try:
        size = 0
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            for member in tar:
                size += member.size
                if not member.isreg() or size > archive.MOST_BYTES:
                    raise _damaged(job_id)
                place = tarfile.data_filter(member.replace(mode=0o600), str(folder))
                tar.extract(place, folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(job_id) from error
    for parent, folders, _ in os.walk(folder):
        for each in folders:
            Path(parent, each).chmod(0o700)


def _move_home(run: Path, out: Path) -> Path:
    """A run folder at its place below `out`."""
    place = out / run.parent.name / run.name
    if place.exists() and not _is_snapshot(place):
        raise RunFolderError(f"{place}: is here already, and is no run that goes on; expected another --out")
    with writing(place.parent):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.exists():
            shutil.rmtree(place)
        shutil.move(run, place)
    return place


def _is_snapshot(folder: Path) -> bool:
    """Whether a run was fetched while it went on, and nobody goes on with it here."""
    with suppress(BlossomError):
        if Run.open(folder).status == "running":
            os.close(lock_folder(folder))
            return True
    return False


def _shell(word: str) -> str:
    """A word for a shell, in which a leading `~/` still means the home folder."""
    return f"~/{shlex.quote(word[2:])}" if re.match(r"~/.", word) else shlex.quote(word)
