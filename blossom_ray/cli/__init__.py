"""The `blossom-ray` command: puts a scenario, a runtime and a view together. One module per group of commands.

Here: the console script, and Ctrl-C and SIGTERM for as long as a command has no handling of its own. Next to nothing
is imported, since a Ctrl-C ends in a traceback before its handler is in place.
"""

from __future__ import annotations

import gc
import os
import signal

TYPE_CHECKING = False  # as in the package
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from blossom_ray.cli.commands import app

__all__ = ["app", "main"]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


def main() -> NoReturn:
    """Run the command line; ends the process, by `SystemExit`."""
    _received.clear()
    _handle(_end)
    # An import makes many objects and no garbage. Python would look through all of them again and again meanwhile.
    gc.set_threshold(100_000, 50, 50)
    try:
        os.getcwd()
    except OSError as error:
        # Libraries would say it in words of their own while they are imported.
        message = (
            f"error: the working directory cannot be used ({error.strerror}); expected one that is there: cd first"
        )
        os.write(2, f"{message}\n".encode())
        raise SystemExit(2) from None
    from blossom_ray.cli import commands

    try:
        _handle(_interrupt)
        exit_code = commands.run(_received)
    finally:
        # Nothing is left to be tidied up that the end of the process does not see to.
        _handle(_end)
    raise SystemExit(exit_code)


def _handle(handler: signal._HANDLER) -> None:
    for signum in _SIGNALS:
        # A shell ignores Ctrl-C for what it runs in the background.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)


def _end(signum: int, _frame: object) -> None:
    """Say so and end: an exception could be lost, or changed into another one, in the middle of an import."""
    try:  # noqa: SIM105 # contextlib would have to be imported
        os.write(2, b"interrupted\n")
    except OSError:
        pass
    os._exit(128 + signum)


def _interrupt(signum: int, frame: object) -> None:
    """Have the command tidy up and end; a second signal ends it at once."""
    if _received:
        _end(signum, frame)
    _received.append(signum)
    raise KeyboardInterrupt


def __getattr__(name: str) -> Any:
    if name == "app":
        from blossom_ray.cli import commands

        return commands.app
    raise AttributeError(f"module 'blossom_ray.cli' has no attribute {name!r}")
