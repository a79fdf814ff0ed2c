"""A run in a process of its own, which goes on when the terminal closes: how it starts, and how it is told to end.

The process gets the folder as its argument, and what to run on standard input, pickled. Its session is its own, so that
it does not hear of the terminal's end; with it goes the driver actor, wherever Ray runs it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from blossom_ray.errors import BlossomError, InputError, RunError, RunFolderError
from blossom_ray.reading.read_back import ReadBack, read_back
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import MANIFEST_FILE, lock_folder
from blossom_ray.runs.session import continue_run
from blossom_ray.runs.tracking import Target, Tracking
from blossom_ray.storage import appending, read_file, replacing, writing
from blossom_ray.text import printable

PROCESS_FILE = "process.json"
OUTPUT_FILE = "output.log"
_CODE = f"from {__name__} import main; main()"
_POLL_S = 0.1
_MOST_PRINTED_BYTES = 2**20
# A process between, which ends at once: nobody has to wait for the run's own.
_LAUNCH = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2, start_new_session=True).pid)"


def start(scenario: Scenario, folder: Path, address: str | None = None, targets: Sequence[Target] = ()) -> int:
    """Run a scenario into a run folder, or go on with what is there, in the background.

    Args:
        scenario: What to run; it must be picklable, as everything is that a scenario file names.
        folder: The run's folder, which is there.
        address: The Ray cluster, as in `api.simulate`.
        targets: Where to track.

    Returns:
        The process's number, once its run has begun.

    Raises:
        RunError: It ended before that; with what it printed.
        RunFolderError: The run goes on already, or the folder cannot be written.
    """
    os.close(lock_folder(folder))
    before = _manifest_version(folder)
    output = folder / OUTPUT_FILE
    # It finds its modules where this one does, whatever lies in the working directory.
    code = f"import sys; sys.path[:] = {sys.path!r}; {_CODE}"
    command = [sys.executable, "-c", code, str(folder.resolve())]
    with writing(output), appending(output) as log:
        log_start = os.fstat(log).st_size
        launched = subprocess.run(
            [sys.executable, "-c", _LAUNCH, *command],
            input=pickle.dumps((scenario, address, [*targets])), stdout=subprocess.PIPE, stderr=log, check=True,
        )  # fmt: skip
    pid = int(launched.stdout)
    try:
        while _manifest_version(folder) == before:
            if not _is_there(pid, folder) and _manifest_version(folder) == before:
                raise _start_error(_read_output(output, log_start))
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise
    return pid


def stop(folder: Path) -> int:
    """Have a run in the background end after the round in progress, with a checkpoint; its process's number.

    Asked a second time, it ends at once.

    Raises:
        InputError: No run goes on in the background there, or not on this machine, or it is somebody else's.
        RunFolderError: What the folder says of its process cannot be.
    """
    entry = _read_process(folder)
    if entry is None:
        raise InputError(f"{folder}: no run goes on there in the background; expected one that --detach has started")
    if entry.host != socket.gethostname():
        raise InputError(f"{folder}: its run goes on on {entry.host}; expected to be asked there")
    try:
        process = psutil.Process(entry.pid)
        # It has written its number itself, so its arguments are there.
        if _runs_into(process.cmdline(), folder):
            # Signals no process that got the number of one that ended meanwhile.
            process.send_signal(signal.SIGTERM)
            return entry.pid
    except psutil.AccessDenied as error:
        raise InputError(f"{folder}: its run belongs to another user; expected to be asked by that one") from error
    except psutil.Error:
        pass
    raise InputError(f"{folder}: the process of its run is gone; go on with: blossom-ray resume {folder}")


def _read_output(output: Path, start: int) -> str:
    """What a process has written behind a place of its output, as much of it as is read by anyone."""
    with appending(output) as log:
        return os.pread(log, _MOST_PRINTED_BYTES, start).decode(errors="replace").strip()


def _manifest_version(folder: Path) -> tuple[int, int] | None:
    """Changes with every manifest that is written; None as long as there is none."""
    try:
        found = (folder / MANIFEST_FILE).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_there(pid: int, folder: Path) -> bool:
    """Whether a process is there that runs into this folder, not another one that got its number."""
    try:
        arguments = psutil.Process(pid).cmdline()
    except psutil.Error:  # a process that has ended and whose exit code nobody has asked for raises, too
        return False
    # While its program is being loaded, it has no arguments yet.
    return not arguments or _runs_into(arguments, folder)


def _runs_into(arguments: Sequence[str], folder: Path) -> bool:
    match arguments:
        case [*_, code, argument]:
            return code.endswith(_CODE) and argument == str(folder.resolve())
        case _:
            return False


def _start_error(printed: str) -> RunError:
    """Why a process ended before its run began: its own error message, or all that it printed."""
    messages = re.split(r"^error: ", printed, flags=re.MULTILINE)[1:]
    if messages:
        cause, _, hint = messages[-1].partition("\nhint: ")
        return RunError(cause, hint)
    return RunError("the process of the run ended before the run began", f"it printed: {printed or 'nothing'}")


class _Process(ReadBack):
    """What a process says of itself."""

    pid: Annotated[int, Field(gt=1, le=10_000_000)]
    """Its number."""
    host: str
    """The machine that it runs on."""


def _read_process(folder: Path) -> _Process | None:
    """What the process has written of itself; None where there is none."""
    path = folder / PROCESS_FILE
    try:
        tree = json.loads(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    return read_back(_Process, tree, path)


def main() -> None:
    """The process."""
    folder = Path(sys.argv[1])
    scenario, address, targets = pickle.load(sys.stdin.buffer)
    signals: list[int] = []
    has_rounds = False

    def interrupt(signum: int, _frame: object) -> None:
        signals.append(signum)
        if len(signals) > 1 or not has_rounds:
            raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    entry = {"pid": os.getpid(), "host": socket.gethostname()}
    records = continue_run(scenario, folder, lambda: bool(signals), address)
    try:
        with writing(folder), replacing(folder / PROCESS_FILE) as temporary:
            temporary.write_text(json.dumps(entry) + "\n", encoding="utf-8")
        with Tracking(targets, scenario, folder, _say) as tracking, closing(records):
            for record in records:
                has_rounds = True
                tracking.write(record)
    except BlossomError as error:
        _say(f"error: {error}")
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        raise SystemExit(128 + signals[0]) from None
    finally:
        (folder / PROCESS_FILE).unlink(missing_ok=True)


def _say(message: str) -> None:
    print(printable(message, keep="\n"), file=sys.stderr, flush=True)
