"""What commands print: the one way of text to standard output and standard error, and what a broken way means."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from typing import IO, TYPE_CHECKING, Any, NoReturn

from blossom_ray.errors import RunError
from blossom_ray.text import printable

if TYPE_CHECKING:
    from blossom_ray.core.records import BlockRound, RoundRecord

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class OutputGoneError(RunError):
    """Nobody reads standard output any more, as after `| head -1`."""


def say(*lines: object) -> None:
    """Print lines. A line break inside of one, such as that of a name, is shown and does not end it."""
    print("\n".join(printable(str(line)) for line in lines), flush=True)


def say_text(text: str) -> None:
    """Print a text that has its own line breaks, the last one included."""
    print(printable(text, keep="\n"), end="", flush=True)


def say_log(text: str) -> None:
    """Print what another program has printed, without its colours; a line that it has drawn anew becomes a new one."""
    say_text(_COLOURS.sub("", text).expandtabs().replace("\r\n", "\n").replace("\r", "\n"))


def print_json(values: Mapping[str, Any]) -> None:
    """Print one object on one line; infinity and NaN, which JSON does not have, become null."""
    from blossom_ray.runs.log import json_line

    print(json_line(values), flush=True)


def warn(message: str) -> None:
    """Say something on standard error."""
    print(printable(message, keep="\n"), file=sys.stderr, flush=True)


def fail(message: str, exit_code: int) -> NoReturn:
    """End the command with a message on standard error."""
    warn(message)
    raise SystemExit(exit_code)


class Output:
    """A standard stream that cannot be written without a word, and not with a traceback either.

    Where writing fails, what is printed from then on goes nowhere and the command goes on, so that a full disk behind
    `> log` ends no run; `failure` says why. Where the reader of standard output has gone, the command ends.
    """

    def __init__(self, stream: IO[str] | None, *, ends_without_reader: bool) -> None:
        self._stream, self._ends_without_reader = stream, ends_without_reader
        self.failure: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or note why not.

        Raises:
            OutputGoneError: The reader of standard output has gone; once.
        """
        if self._stream is None:
            self.failure = os.strerror(errno.EBADF)
        elif self.failure is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """As `write`."""
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _fail(self, error: OSError | ValueError) -> None:
        self.failure = getattr(error, "strerror", None) or str(error)
        with suppress(OSError, ValueError):
            # What is still in a buffer must not fail once more when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if isinstance(error, BrokenPipeError) and self._ends_without_reader:
            raise OutputGoneError(f"standard output: {self.failure}") from error


@contextmanager
def guarded_output() -> Iterator[Output]:
    """Put an `Output` in place of standard output, which is yielded, and of standard error."""
    for descriptor in (0, 1, 2):
        _occupy(descriptor)
    before = sys.stdin, sys.stdout, sys.stderr
    out = Output(before[1], ends_without_reader=True)
    sys.stdin = before[0] or open(0, closefd=False)  # noqa: SIM115 # as long as the process
    sys.stdout, sys.stderr = out, Output(before[2], ends_without_reader=False)
    for stream in (out, sys.stderr):
        # A file name may hold what a terminal's encoding does not have.
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield out
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _occupy(descriptor: int) -> None:
    """Have a descriptor that was closed lead nowhere, so that no file gets its number and with it what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def round_json(record: RoundRecord) -> dict[str, Any]:
    """Everything that a record holds, as JSON values; the summary metrics stand beside the other keys."""
    parts = (
        "training", "evaluation", "validation", "fine_tuned", "fine_tuned_validation", "classes", "failures", "actors",
    )  # fmt: skip
    return {
        "round": record.round_index,
        **record.metrics,
        "learning_rate": record.learning_rate,
        "seconds": dict(record.seconds),
        "cohort": list(record.cohort),
        "blocks": [_block(block) for block in record.blocks],
        **{name: _plain(getattr(record, name)) for name in parts},
        **{
            name: _plain(found) for name in ("plain", "unseen", "fine_tuned_unseen") if (found := getattr(record, name))
        },
        "stopped": None if record.stopped is None else asdict(record.stopped),
    }


def _block(block: BlockRound) -> dict[str, Any]:
    (values,) = _plain([block])
    instance = values.pop("instance")
    return {"block": instance.label, "scope": str(instance.scope), "key": instance.key, **values}


def _plain(entries: Iterable[Any]) -> list[dict[str, Any]]:
    found = [{field.name: getattr(entry, field.name) for field in fields(entry)} for entry in entries]
    for values in found:
        if "by_set" in values:
            values["by_set"] = {name: asdict(scores) for name, scores in values["by_set"].items()}
    return found
