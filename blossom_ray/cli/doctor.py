"""The command that looks at the machine: `doctor`."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from blossom_ray.cli.options import Json, app
from blossom_ray.cli.output import print_json
from blossom_ray.errors import BlossomError

if TYPE_CHECKING:
    from blossom_ray.runtime.placement import Room

Level = Literal["good", "warning", "refused"]
GIB = 2**30
# Measured: an actor process holds 42 descriptors, and Ray's own processes share the limit per process.
_DESCRIPTORS_PER_ACTOR = 42
_MAX_SOCKET_PATH = 107  # bytes, Linux
# Ray appends this to its folder: /session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store
_SOCKET_SUFFIX_BYTES = 66
_MARKS = {"good": "ok", "warning": "note", "refused": "no"}
_STYLES = {"good": "green", "warning": "yellow", "refused": "bold red"}


@app.command(epilog="Example: blossom-ray doctor --start")
def doctor(
    start: Annotated[bool, typer.Option("--start", help="Also start Ray and an actor, and time them.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has for a run and what would be refused on it; exit code 1 if something is missing."""
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
    from blossom_ray.runtime.cluster import probe

    started = time.perf_counter()
    try:
        room = probe()
    except BlossomError as error:
        yield Check("Ray starts", "refused", str(error))
    else:
        yield Check("Ray starts", "good", f"{time.perf_counter() - started:.1f} s with one process; it offers {room}")


@dataclass(frozen=True)
class Check:
    """One fact about the machine: what was looked at, what is there, and what to do about it or what follows from it.

    Its level is `good`; `warning`: runs, with a limit; `refused`: no run, or not this kind of run.
    """

    name: str
    level: Level
    found: str
    advice: str = ""


def checks() -> Iterator[Check]:
    """All checks, one after the other; none of them starts a process or changes anything."""
    from blossom_ray.runtime.placement import this_machine

    yield python_check(platform.python_version_tuple()[:2])
    yield from package_checks()
    room = this_machine()
    yield processor_check(room)
    yield memory_check(room)
    yield gpu_check()
    yield compiler_check()
    yield shared_memory_check(Path("/dev/shm"), room.memory_bytes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield descriptor_check(soft, hard)
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    yield disk_check("temporary folder", folder, shutil.disk_usage)
    yield disk_check("working folder", Path.cwd(), shutil.disk_usage)
    yield socket_path_check(folder / "ray" if "RAY_TMPDIR" not in os.environ else folder)
    yield loopback_check()


def python_check(found: tuple[str, ...]) -> Check:
    """Python 3.11 to 3.14."""
    text = ".".join(found)
    if text in {"3.11", "3.12", "3.13", "3.14"}:
        return Check("Python", "good", text)
    return Check("Python", "refused", text, "use Python 3.11 to 3.14")


def package_checks() -> Iterator[Check]:
    """The packages that a run needs, against the versions that this package asks for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    for text in requires("blossom-ray") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "refused", "not installed", f"pip install '{text.split(';')[0].strip()}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        advice = "" if fits else f"expected {requirement.specifier}"
        yield Check(requirement.name, "good" if fits else "refused", found, advice)


def processor_check(machine: Room) -> Check:
    """Cores that this process may use."""
    cores = f"{machine.num_cpus:g}"
    return Check("processor", "good", f"{cores} cores", f"packed clients run in {cores} actors")


def memory_check(machine: Room) -> Check:
    """Free memory, as the number of clients that can have an actor of their own."""
    from blossom_ray.runtime.placement import actor_memory_bytes, num_actors
    from blossom_ray.scenario.sections import Execution

    found, room = f"{machine.memory_bytes / GIB:.1f} GiB free", machine.on_ray()
    resources = Execution().client_resources
    fitting = room.num_actors(resources)
    if machine.memory_bytes < 2 * GIB:
        return Check("memory", "refused", found, "a run on Ray takes about 2 GiB; execution.runtime=local takes less")
    num_own = max((n for n in range(1, fitting + 1) if num_actors(Execution(), n, room) == n), default=0)
    actor_mib = actor_memory_bytes(resources) // 2**20
    return Check(
        "memory", "good", found, f"up to {num_own} clients get an actor of their own ({actor_mib} MiB), more are packed"
    )


def compiler_check() -> Check:
    """A C compiler, for `training.engine: compiled`; it is not tried."""
    from blossom_ray.clients.compiled.library import compiler_command

    command = compiler_command()[0]
    if (found := shutil.which(command)) is not None:
        return Check("C compiler", "good", found)
    return Check("C compiler", "warning", f"no {command}", "training.engine: compiled computes as vectorized")


def gpu_check() -> Check:
    """GPUs that PyTorch can use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        build = "a CPU build of PyTorch" if torch.version.cuda is None else "no GPU found by PyTorch"
        return Check("GPU", "warning", f"none: {build}", "scenarios with client_resources.num_gpus above 0 are refused")
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    return Check("GPU", "good", ", ".join(f"{each.name}, {each.total_memory / GIB:.0f} GiB" for each in found))


def shared_memory_check(folder: Path, free_memory_bytes: float) -> Check:
    """The file system that Ray's object store lies in."""
    if not folder.is_dir():
        return Check("shared memory", "warning", f"no {folder}", "Ray's object store falls back to disk, which is slow")
    size = shutil.disk_usage(folder).free
    found = f"{size / GIB:.1f} GiB free in {folder}"
    wanted = 0.3 * free_memory_bytes  # what Ray asks for
    if size < wanted:
        advice = f"Ray would take {wanted / GIB:.1f} GiB; in Docker: --shm-size={wanted / GIB:.0f}g"
        return Check("shared memory", "warning", found, advice)
    return Check("shared memory", "good", found)


def descriptor_check(soft: int, hard: int) -> Check:
    """How many files and sockets a process may have open."""
    unlimited = resource.RLIM_INFINITY
    found = "no limit" if soft == unlimited else f"{soft} open files"
    if soft != unlimited and soft < 4096:
        room = soft // _DESCRIPTORS_PER_ACTOR
        most = "65536" if hard == unlimited else str(hard)
        return Check(
            "descriptors", "warning", found, f"enough for about {room} actors; raise it with: ulimit -n {most}"
        )
    return Check("descriptors", "good", found)


def disk_check(name: str, folder: Path, usage: Callable[[Path], shutil._ntuple_diskusage]) -> Check:
    """Free space where Ray spills and logs, or where run folders go."""
    try:
        disk = usage(folder)
    except OSError as error:
        return Check(name, "refused", f"{folder}: {error.strerror}", "RAY_TMPDIR names another folder")
    found = f"{disk.free / GIB:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check(name, "refused", f"{folder} cannot be written", "choose another folder")
    # Ray stops storing objects on a disk that is 95 % full.
    if disk.free < 0.05 * disk.total:
        return Check(name, "refused", found, "Ray refuses to work on a disk that is 95 % full")
    if disk.free < 2 * GIB:
        return Check(name, "warning", found, "shards, checkpoints and spilled objects may not fit")
    return Check(name, "good", found)


def socket_path_check(folder: Path) -> Check:
    """Whether the sockets of a Ray session have short enough paths."""
    length = len(os.fsencode(folder)) + _SOCKET_SUFFIX_BYTES
    found = f"{length} bytes under {folder}"
    if length > _MAX_SOCKET_PATH:
        return Check(
            "socket paths", "refused", found, f"at most {_MAX_SOCKET_PATH}: set RAY_TMPDIR to a shorter folder"
        )
    return Check("socket paths", "good", found)


def loopback_check() -> Check:
    """Whether this machine can talk to itself."""
    try:
        server = socket.create_server(("127.0.0.1", 0))
        with server, socket.create_connection(server.getsockname(), timeout=2):
            return Check("loopback", "good", "127.0.0.1 answers")
    except OSError as error:
        return Check("loopback", "refused", f"127.0.0.1: {error}", "Ray needs the loopback interface")
