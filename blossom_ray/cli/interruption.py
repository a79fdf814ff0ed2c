"""Ctrl-C and SIGTERM while a run goes on."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blossom_ray.cli.output import OutputGoneError, fail, warn

# Signals that follow the first one so soon mean the same: an impatient hand, or a terminal and a scheduler at once.
_IMPATIENCE_S = 2.0


@dataclass
class Interruption:
    """What an interrupt finds: the numbers of the signals so far, and the run folder, once there is one.

    Attributes:
        since: When the first signal came, in seconds of the monotonic clock.
        farewell: What to say at the end instead of what is said about a run folder.
        is_graceful: Whether rounds are running, which may end before the command does.
    """

    signals: list[int] = field(default_factory=list)
    since: float = 0.0
    folder: Path | None = None
    farewell: str | None = None
    is_graceful: bool = False

    @property
    def kept(self) -> Path | None:
        """The run folder, once there is a run in it."""
        return self.folder if self.folder is not None and (self.folder / "manifest.json").exists() else None

    def is_asked(self) -> bool:
        """Whether the run is to end after the round in progress."""
        return bool(self.signals)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """End the command on Ctrl-C or SIGTERM with a message and 130 or 143, after the run has cleaned up."""
    interruption = Interruption()

    def interrupt(signum: int, _frame: object) -> None:
        is_first = not interruption.signals
        interruption.signals.append(signum)
        if is_first:
            interruption.since = time.monotonic()
            if interruption.is_graceful:
                warn("\nfinishing the round in progress; Ctrl-C again ends it at once")
            else:
                raise KeyboardInterrupt
        elif time.monotonic() - interruption.since > _IMPATIENCE_S:
            raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    except OutputGoneError as error:
        kept = interruption.kept
        raise error if kept is None else OutputGoneError(f"{error.cause}; go on with: {_resume(kept)}") from error
    except BaseException as error:
        # In the middle of an import, an interrupt may come out as another error.
        if not isinstance(error, KeyboardInterrupt) and (not interruption.signals or interruption.is_graceful):
            raise
        # The process is about to end; one more signal would only add a traceback.
        before = dict.fromkeys(before, signal.SIG_IGN)
        # Ray raises its own KeyboardInterrupt in place of ours, so the signal is told by what was noted.
        exit_code = 128 + (interruption.signals or [signal.SIGINT])[0]
        if interruption.farewell is not None:
            fail(interruption.farewell, exit_code)
        folder = interruption.kept
        if folder is None:
            fail("interrupted before the run began", exit_code)
        fail(
            f"interrupted; complete rounds are kept in {folder}\n"
            f'look at them with: python -c "import blossom_ray; print(blossom_ray.Run.open({str(folder)!r}).rounds)"\n'
            f"go on with: {_resume(folder)}",
            exit_code,
        )
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _resume(folder: Path) -> str:
    return f"blossom-ray resume {shlex.quote(str(folder))}"
