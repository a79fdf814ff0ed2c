"""A process that runs one cell of a sweep after another with the local runtime, and its handle in the sweep's process.

A process of our own making rather than `multiprocessing`: it does not import the user's main module again, and it ends
by itself, with its run folder closed, when the sweep's process is gone.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from blossom_ray.core.records import Progress
from blossom_ray.errors import RunError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.session import continue_run

_STOP = "stop"
_HINT = "put it into a module, or use execution.runtime ray"
_POLL_S = 0.5
# A step of training may have to end before the process can.
_PATIENCE_S = 10.0


_Task = tuple[Scenario, Path]


class _End(NamedTuple):
    """What became of a task: None when it ended as it should, else the error in words."""

    error: str | None


class CellProcess:
    """Runs cells in a process of its own, which is started with the first one.

    Args:
        descriptors: Open files that the process holds too: a lock on the sweep's folder stays until it has ended.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = tuple(descriptors)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def run(self, scenario: Scenario, folder: Path, stopping: Callable[[], bool]) -> Iterator[Progress]:
        """Run a scenario into a run folder, or go on with what is there; yields each round that is on disk.

        `stopping` is asked again and again; True ends the run after the round in progress.

        Raises:
            RunError: The run failed, its process died, or the scenario holds what no other process can get.
        """
        connection = self._connect()
        try:
            connection.send((scenario, folder))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RunError(f"own code cannot be sent to another process: {error}", _HINT) from error
        told = False
        while True:
            if not told and stopping():
                connection.send(_STOP)
                told = True
            try:
                if not connection.poll(_POLL_S):
                    continue
                message = connection.recv()
            except (EOFError, OSError) as error:
                raise RunError(f"its process {self._wait_for_end()}") from error
            if isinstance(message, _End):
                if message.error is not None:
                    cause, _, hint = message.error.partition("\nhint: ")
                    raise RunError(cause, hint)
                return
            yield message

    def close(self) -> None:
        """End the process; a cell that it is running is left interrupted, with its complete rounds."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE_S + 5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._connection = None

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection, there = Pipe()
            os.set_inheritable(there.fileno(), True)
            # Not `-m`: run as a script the module would be there twice, and its classes with it.
            command = [sys.executable, "-c", f"from {__name__} import main; main()", str(there.fileno())]
            # A session of its own: Ctrl-C in a terminal reaches the sweep, which tells its processes.
            self._process = subprocess.Popen(
                command, pass_fds=(there.fileno(), *self._descriptors), start_new_session=True, stdin=subprocess.DEVNULL
            )
            there.close()
            self._connection.send(list(sys.path))
        return self._connection

    def _wait_for_end(self) -> str:
        assert self._process is not None, "asked about a process that was started"
        code = self._process.wait()
        self.close()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """The process: run what comes over the connection whose descriptor is the argument, until it is closed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection = Connection(int(sys.argv[1]))
    sys.path[:] = connection.recv()
    tasks: queue.SimpleQueue[_Task | _End | None] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(connection, tasks, stop), daemon=True).start()
    try:
        while (task := tasks.get()) is not None:
            end = task if isinstance(task, _End) else _End(None)
            if not isinstance(task, _End):
                try:
                    for record in continue_run(*task, stop.is_set):
                        connection.send(Progress.of(record))
                except BrokenPipeError:
                    raise
                except Exception as error:
                    end = _End(f"{error}" if isinstance(error, RunError) else f"{type(error).__name__}: {error}")
            connection.send(end)
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _listen(connection: Connection, tasks: queue.SimpleQueue[_Task | _End | None], stop: threading.Event) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            break
        except Exception as error:
            tasks.put(_End(f"own code cannot be found in another process: {error}\nhint: {_HINT}"))
            continue
        if message == _STOP:
            stop.set()
        else:
            stop.clear()
            tasks.put(message)
    # The sweep is gone, or wants no more of this.
    tasks.put(None)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(_PATIENCE_S)
    os._exit(1)
