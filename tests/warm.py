"""Processes that begin warm: forked from one that has imported PyTorch, which takes most of a short process's time.

A launcher stands in for Python. It hands what it was started with (arguments, environment, folder, open files) to a
server that has imported what every process of ours imports. The server forks, and the child goes on as Python would
have: a module (`-m`), code (`-c`) or a script. Whatever else the launcher is asked for, Python does.

To whoever started it the launcher is the program: it passes signals on, its death is the program's death, and it ends
as the program ends. Only what lies below the program (its children) is not seen below the launcher.

    python warm.py SOCKET
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_LONGEST = 1 << 20
_MOST_FILES = 32
_POLL_S = 5.0
_FREE = 500
"""Open files that were handed over wait above this number until theirs are free."""
_LAUNCHER = """\
#!{python} -ISE
import os, sys
words = sys.argv[1:]
if words[0] == "-P":
    del words[0]
if words[0] not in ("-c", "-m") and not words[0].endswith(".py"):
    os.execv("{python}", ["{python}", *words])
import json, signal, socket
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def held(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return number != server.fileno()
files = [int(name) for name in os.listdir("/proc/self/fd") if held(int(name))]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
server.connect("{socket}")
request = json.dumps([words, os.getcwd(), dict(os.environ), files])
socket.send_fds(server, [request.encode("utf-8", "surrogateescape")], files)
for number in files:
    os.close(number)
ended = int(server.recv(8) or 0)
if ended < 0:
    signal.signal(-ended, signal.SIG_DFL)
    os.kill(os.getpid(), -ended)
os._exit(ended)
"""


class Server:
    """The process that forks, and `launcher`, which stands in for Python. Its forks do not outlive `close`."""

    def __init__(self) -> None:
        # The path of a socket has to be short.
        self._folder = tempfile.TemporaryDirectory(prefix="w-", dir="/tmp")
        place = Path(self._folder.name)
        self.launcher = place / "python"
        self.launcher.write_text(_LAUNCHER.format(python=sys.executable, socket=place / "socket"))
        self.launcher.chmod(0o700)
        command = [sys.executable, __file__, str(place / "socket"), str(self.launcher)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()


def main() -> None:
    """Fork for each request; a child returns as the process that was asked for."""
    import pyarrow as pa

    import blossom_ray.cli.commands
    import blossom_ray.cli.console.runs
    import blossom_ray.clients.host
    import blossom_ray.runtime.client_actor
    import blossom_ray.runtime.local
    import blossom_ray.simulation
    import blossom_ray.studies.sweeps.cell_process  # noqa: F401 # all of them for the forks

    pa.array([0])  # imports pandas, where it is installed

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(sys.argv[1])
    server.listen(256)
    sys.executable = sys.argv[2]  # so that the children of a fork are forked too
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    parent = os.getppid()
    while True:
        ready, _, _ = select.select([server], [], [], _POLL_S)
        if not ready:
            if os.getppid() != parent:  # killed, so that it could not end us
                return None
            continue
        connection, _ = server.accept()
        request, files, _, _ = socket.recv_fds(connection, _LONGEST, _MOST_FILES)
        if os.fork() == 0:
            server.close()
            return _guard(connection, request, files)
        connection.close()
        for file in files:
            os.close(file)


def _guard(connection: socket.socket, request: bytes, files: list[int]) -> None:
    """Fork the program; send it the signals that the launcher gets, and tell the launcher how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = os.fork()
    if program == 0:
        return _become(request, files)
    for file in files:
        os.close(file)
    ending = os.pidfd_open(program)
    while True:
        ready, _, _ = select.select([connection, ending], [], [])
        if ending in ready:
            _, status = os.waitpid(program, 0)
            with contextlib.suppress(OSError):  # the launcher is gone
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        number = connection.recv(1)
        os.kill(program, number[0] if number else signal.SIGKILL)


def _become(request: bytes, files: list[int]) -> None:
    """Take over arguments, environment, folder and files, and go on as Python would."""
    words, folder, environment, numbers = json.loads(request)
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    waiting = [fcntl.fcntl(file, fcntl.F_DUPFD, _FREE) for file in files]
    os.closerange(3, _FREE)
    for file, number in zip(waiting, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115 # as long as the process
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        raw = open(number, "wb", closefd=False)  # noqa: SIM115 # as long as the process
        stream = io.TextIOWrapper(raw, errors=errors, line_buffering=number == 2 or os.isatty(number))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    _run(words)


def _run(words: list[str]) -> Any:
    kind, what = words[0], words[1]
    if kind == "-m":
        sys.path[0:0] = [os.getcwd()]
        sys.argv = words[1:]
        return runpy.run_module(what, run_name="__main__", alter_sys=True)
    if kind == "-c":
        sys.path[0:0] = [""]
        sys.argv = ["-c", *words[2:]]
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        return exec(compile(what, "<string>", "exec"), vars(module))
    sys.path[0:0] = [os.path.dirname(os.path.abspath(kind))]
    sys.argv = words
    return runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
