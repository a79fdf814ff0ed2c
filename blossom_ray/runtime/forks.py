"""Ray's workers as forks of one warm process per node and job, which has imported PyTorch and this package.

A worker that imports them itself takes 175 MiB and seconds of a processor; a fork has its own only what it changes.
Ray starts `launcher.py` in place of Python: as its Python in a session of this process's own, and in a cluster that is
joined by a runtime environment. The launcher starts the warm process with the first worker; in a session of this
process's own it stands by since before Ray starts. It ends with the node, or when its job has no worker any more. Where
something is in the way, workers are what they are without.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from blossom_ray.runtime import launcher

SWITCH = "BLOSSOM_RAY_FORKS"
"""Variable that has Ray's workers import everything themselves, if it is 0."""
RESOURCE = "blossom_ray_forks"
"""What a session that forks all its workers offers, so that one knows it."""
_SETTINGS = {
    # Workers that belong to no job yet would need a warm process of their own.
    "RAY_prestart_worker_first_driver": "0",
    # What each worker does all the time adds up over hundreds: it counts its events, and tells a dashboard that is not
    # there of its tasks, while the node's agent adds up its memory and looks into its file of events.
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "10000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    # Where a node is not ready for its own first connection, it tries again after this time, and not after a second.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # Nobody hangs up on an actor that rests (`resting.py`) and does not answer: 20 days.
    "RAY_grpc_keepalive_time_ms": "1800000000",
    "RAY_grpc_client_keepalive_time_ms": "1800000000",
}

# Processes that stood by, by number: they end with their session, and have to be waited for.
_started: list[int] = []


def are_on() -> bool:
    """Whether workers are forked: on Linux, unless `SWITCH` says otherwise."""
    return sys.platform == "linux" and os.environ.get(SWITCH) != "0"


def py_executable() -> str:
    """What a runtime environment says instead of Python, for nodes that have it where it is here."""
    return shlex.join([sys.executable, "-ISE", "-c", Path(launcher.__file__).read_text(encoding="utf-8")])


@contextmanager
def launching() -> Iterator[dict[str, float]]:
    """Have a Ray session that is started meanwhile fork its workers; the resources that it is to offer.

    It does so as long as this process lives.
    """
    try:
        program = _launcher() if are_on() else None
    except (OSError, subprocess.SubprocessError):  # a system may refuse to run what is in memory alone
        os.environ[SWITCH] = "0"
        program = None
    if program is None:
        yield {}
        return
    python = sys.executable
    chosen = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    stand_by()
    sys.executable = program
    os.environ.update(chosen)
    try:
        yield {RESOURCE: 1}
    finally:
        sys.executable = python
        for name in chosen:
            del os.environ[name]


def stand_by() -> None:
    """Start the process that is to become the warm one; none where one stands by already."""
    if not are_on():
        return
    for process in [*_started]:
        with suppress(ChildProcessError):  # it is that of a process that was forked from
            if os.waitpid(process, os.WNOHANG)[0] == 0:
                continue
        _started.remove(process)
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(_name())
        listener.listen()
        listener.set_inheritable(True)
        call = f"stand_by({listener.fileno()}, {os.getpid()})"
        code = f"import gc; gc.disable(); from blossom_ray.runtime.zygote import stand_by; {call}"
        nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}  # as a worker that PyTorch is imported for
        command = [sys.executable, "-P", "-c", code]
        _started.append(os.posix_spawn(sys.executable, command, environment, file_actions=nothing, setsid=True))


@cache
def _launcher() -> str:
    """The launcher as a program, in a file that goes with this process."""
    source = Path(launcher.__file__).read_text(encoding="utf-8")
    source = source.replace("PYTHON = sys.executable", f"PYTHON = {sys.executable!r}")
    source = source.replace('STANDING_BY = ""', f"STANDING_BY = {_name()!r}")
    number = os.memfd_create("launcher")
    os.write(number, f"#!{sys.executable} -ISE\n{source}".encode())
    program = f"/proc/{os.getpid()}/fd/{number}"
    subprocess.run([program, "-c", ""], check=True)
    return program


def _name() -> str:
    return f"\0blossom-ray {os.getuid()} standing by for {os.getpid()}"
