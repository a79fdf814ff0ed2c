"""A run in a process of its own, which goes on when the terminal closes: how it starts, and how it is told to end.

`python -m blossom_ray.background FOLDER ADDRESS` is that process, with the pickled scenario on standard input. Its
session is its own, so that it does not hear of the terminal's end; with it goes the driver actor, wherever Ray runs it.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from blossom_ray.api import continued
from blossom_ray.errors import BlossomError, InputError, RunError
from blossom_ray.results import MANIFEST_FILE
from blossom_ray.scenario import Scenario
from blossom_ray.storage import replacing, writing

PROCESS_FILE = "process.json"
OUTPUT_FILE = "output.log"
_POLL_S = 0.1
# A process between, which ends at once: nobody has to wait for the run's own.
_LAUNCH = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2, start_new_session=True).pid)"


def start(scenario: Scenario, folder: Path, address: str | None = None) -> int:
    """Run a scenario into a run folder, or go on with what is there, in the background.

    Args:
        scenario: What to run; it must be picklable, as everything is that a scenario file names.
        folder: The run's folder.
        address: The Ray cluster, as in `api.simulate`.

    Returns:
        The process's number, once its run has begun.

    Raises:
        RunError: It ended before that; with what it printed.
        RunFolderError: The folder cannot be written.
    """
    output = folder / OUTPUT_FILE
    command = [sys.executable, "-m", "blossom_ray.background", str(folder.absolute()), address or ""]
    with writing(output), output.open("ab") as log:
        before = log.tell()
        launched = subprocess.run(
            [sys.executable, "-c", _LAUNCH, *command],
            input=pickle.dumps(scenario), stdout=subprocess.PIPE, stderr=log, check=True,
        )  # fmt: skip
    pid = int(launched.stdout)
    while not (_entry(folder).get("pid") == pid and (folder / MANIFEST_FILE).exists()):
        if not _is_alive(pid):
            printed = output.read_bytes()[before:].decode(errors="replace").strip()
            if printed:
                raise RunError(f"the run ended before it began: {printed}")
            break  # it is over that soon
        time.sleep(_POLL_S)
    return pid


def stop(folder: Path) -> int:
    """Have a run in the background end after the round in progress, with a checkpoint; its process's number.

    Raises:
        InputError: No run goes on in the background there, or not on this machine.
    """
    entry = _entry(folder)
    if not entry:
        raise InputError(f"{folder}: no run goes on there in the background; expected one that --detach has started")
    if entry["host"] != socket.gethostname():
        raise InputError(f"{folder}: its run goes on on {entry['host']}; expected to be asked there")
    pid = int(entry["pid"])
    if not _is_alive(pid, entry["created"]):
        raise InputError(f"{folder}: the process of its run is gone; go on with: blossom-ray resume {folder}")
    os.kill(pid, signal.SIGTERM)
    return pid


def _is_alive(pid: int, created: float | None = None) -> bool:
    """Whether a process is there that has not ended, and is the one that was created then."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and created in (None, process.create_time())
    except psutil.NoSuchProcess:
        return False


def _entry(folder: Path) -> dict[str, Any]:
    """What the process has written of itself, {} where there is none."""
    try:
        found = json.loads((folder / PROCESS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"pid", "created", "host"} <= found.keys() else {}


def main() -> None:
    """The process."""
    folder, address = Path(sys.argv[1]), sys.argv[2] or None
    scenario: Scenario = pickle.load(sys.stdin.buffer)
    signals: list[int] = []

    def interrupt(signum: int, _frame: object) -> None:
        signals.append(signum)
        if len(signals) > 1:
            raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    here = psutil.Process()
    entry = {"pid": here.pid, "created": here.create_time(), "host": socket.gethostname()}
    try:
        with replacing(folder / PROCESS_FILE) as temporary:
            temporary.write_text(json.dumps(entry) + "\n", encoding="utf-8")
        with closing(continued(scenario, folder, lambda: bool(signals), address)) as records:
            for _ in records:
                pass
    except BlossomError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        raise SystemExit(128 + signals[0]) from None
    finally:
        (folder / PROCESS_FILE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
