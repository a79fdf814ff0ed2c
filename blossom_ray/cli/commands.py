"""All commands, and how one ends.

Exit codes: 0 done, 1 the run failed, 2 bad input, 130 or 143 ended by Ctrl-C or SIGTERM. Heavy packages are imported
inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from io import StringIO

import typer

# In the order of --help.
# isort: off
from blossom_ray.cli import init, runs, scenarios, sweeps, cluster, doctor, data, completion
# isort: on

from blossom_ray.cli.options import app
from blossom_ray.cli.output import guarded_output, warn
from blossom_ray.errors import BlossomError, ClientError, InputError, ScenarioError
from blossom_ray.text import brief

__all__ = [
    "app", "cluster", "data", "doctor", "init", "run", "runs", "scenarios", "sweeps",
]  # fmt: skip

_LONGEST_USAGE = 300


def run(signals: Sequence[int]) -> int:
    """Run the command of this process's arguments, which `signals` have interrupted as they come; its exit code."""
    with guarded_output() as output:
        exit_code = _run(signals)
        output.flush()
        if output.failure is not None and exit_code == 0:
            warn(f"error: standard output: {output.failure}")
            exit_code = 1
    # Only a command that has used Ray has it loaded.
    if (cluster := sys.modules.get("blossom_ray.runtime.cluster")) is not None:
        cluster.leave_without_head(exit_code)
    return exit_code


def _run(signals: Sequence[int]) -> int:
    """The command's exit code, after its message where it has failed."""
    try:
        with completion.bash_words():
            ended = app(standalone_mode=False)
        exit_code = ended if isinstance(ended, int) else 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        return 128 + signals[0] if signals and exit_code == 130 else exit_code
    except BaseException as error:
        # An interrupt may come out as another error of what it has interrupted.
        if not signals:
            return _failed(error)
        exit_code = 130
    if signals and exit_code == 130:
        warn("interrupted")
        return 128 + signals[0]
    return exit_code


def _failed(error: BaseException) -> int:
    match error:
        case ScenarioError():
            message = str(error)
        case ClientError():
            message = f"error: {error}\n\n{error.details}".rstrip()
        case BlossomError():
            message = f"error: {error}"
        case _ if hasattr(error, "show"):  # Typer's own, of the command line
            shown = StringIO()
            error.show(shown)
            message = "\n".join(brief(line, _LONGEST_USAGE) for line in shown.getvalue().splitlines())
        case typer.Abort():
            message = "Aborted"
        case MemoryError() | RuntimeError() if _is_out_of_memory(error):
            message = f"error: there is not enough memory: {error}".rstrip(": ")
        case OSError(errno=errno.ENOSPC | errno.EPIPE | errno.EIO | errno.EBADF as number, filename=None):
            message = f"error: standard output: {os.strerror(number)}"
        case PermissionError(filename=str() as path):
            error = InputError(f"{path}: {error.strerror}; expected a path that you may use")
            message = f"error: {error}"
        case _:
            message = "".join(traceback.format_exception(error)).rstrip("\n")
    warn(message)
    return getattr(error, "exit_code", 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch or NumPy got no memory; PyTorch raises what it raises for everything else."""
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
