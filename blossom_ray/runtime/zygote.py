"""The warm process of a node and job: it has imported PyTorch, this package and Ray, and forks Ray's workers.

Started and asked by `launcher.py`; that of a session of this package's own has been started with Ray, and stands by.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import traceback
from contextlib import suppress

import numpy as np

import blossom_ray.clients.host
import blossom_ray.runtime.client_actor  # noqa: F401 # both for the workers
from blossom_ray.runtime.launcher import is_own

_IDLE_S = 5.0
_LONGEST = 1 << 20


def stand_by(number: int, parent: int) -> None:
    """Be the warm process of whoever asks first; end with the process that wants it.

    Args:
        number: File descriptor of the socket that the question comes in by.
        parent: The process's id.
    """
    listener = socket.socket(fileno=number)
    wanted_by = os.pidfd_open(parent)
    while True:
        ready, _, _ = select.select([listener.fileno(), wanted_by], [], [])
        if wanted_by in ready:
            os._exit(0)
        connection, _ = listener.accept()
        with connection:
            if not is_own(connection):
                continue
            request, files, _, _ = socket.recv_fds(connection, _LONGEST, 4)
            folder, environment = json.loads(request)
            *standard, requests = files
            _move(folder, environment, standard)
            connection.send(b"1")
        listener.close()
        os.close(wanted_by)
        serve(requests)


def serve(number: int) -> None:
    """Fork a worker for each request, until the node is gone, or there has been no worker for a while.

    Args:
        number: File descriptor of the socket that requests come in by.
    """
    import ray  # noqa: F401 # its settings are read now: a worker of this job has given its environment

    listener = socket.socket(fileno=number)
    raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
    workers = set[int]()

    def bury(*_: object) -> None:
        with suppress(ChildProcessError):
            while worker := os.waitpid(-1, os.WNOHANG)[0]:
                workers.discard(worker)

    signal.signal(signal.SIGCHLD, bury)
    gc.enable()  # it was not, for the imports
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener.fileno(), raylet], [], [], _IDLE_S)
        if raylet in ready or not (ready or workers):
            os._exit(0)
        if not ready:
            continue
        connection, _ = listener.accept()
        with connection:
            if not is_own(connection):
                continue
            request, files, _, _ = socket.recv_fds(connection, _LONGEST, 3)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            worker = os.fork()
            if worker == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
                listener.close()
                connection.close()
                os.close(raylet)
                np.random.seed()
                _become(request, files)
            workers.add(worker)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            with suppress(OSError):  # a launcher that is gone
                connection.send(b"1")
            for file in files:
                os.close(file)


def _become(request: bytes, files: list[int]) -> None:
    """Take arguments, environment, folder and standard files over, and go on as Python would; it does not return."""
    words, folder, environment = json.loads(request)
    # Ray ends a worker's whole process group with it. Workers stay in one session, though: Linux gives each session the
    # same share of the processors, and Ray's own processes, in another one, would get a part of hundreds.
    os.setpgid(0, 0)
    _move(folder, environment, files)
    while words[0].startswith("-"):
        del words[0]
    sys.argv = words
    sys.path[:0] = [os.path.dirname(words[0])]
    code = 1
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        # What Ray destructs at the end of a process was made before the fork in part: it fails, and says so for ever.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _move(folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Take folder, environment and standard files over."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
