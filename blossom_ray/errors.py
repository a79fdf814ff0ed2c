"""The project's errors, one tree.

    BlossomError
    ├── InputError                 what the user gave cannot be used (exit code 2)
    │   ├── ScenarioError          every problem of a scenario, each with its place
    │   ├── DataError              a data set that is missing, damaged or of another shape than announced
    │   └── RunFolderError         a run folder that cannot be read or written
    └── RunError                   a run that started and could not go on (exit code 1)
        ├── ClientError            a client's own code raised, or its update is not finite
        ├── StorageError           what the run writes does not fit on the disk
        ├── ActorLostError         a Ray actor died
        │   └── DriverLostError     it was the one that runs the loop
        └── ActorTimeoutError      a Ray actor gave no answer in time

Errors cross process boundaries, so each one pickles through its plain arguments.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

from blossom_ray.text import brief, printable

_LONGEST_PATH = 4096
# Of one file, and in one of them how many more it has.
_MOST_PROBLEMS = 51

OWN_CODE_RAISES = (Exception, SystemExit, GeneratorExit)
"""What own code may raise without ending more than the run; an interrupt by the user is not among it."""
_NOT_OWN = (str(Path(__file__).parent), *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")))


class BlossomError(Exception):
    """The root of the tree. Its arguments are lines of text; names in them that hold a line break do not make two.

    `exit_code` is what the command line returns for it.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


def first_line(said: object) -> str:
    """The first line of a text, or of what an exception says: its type where it says nothing."""
    first = str(said).strip().partition("\n")[0]
    return first or (type(said).__name__ if isinstance(said, BaseException) else "")


def shown_error(error: BaseException) -> str:
    """An exception of own code as text: its type, what it says, and in its first line which line of code it was."""
    name = type(error).__name__
    try:
        said = f"{name}: {error}".rstrip(": ")
    except OWN_CODE_RAISES:
        said = f"{name}, which cannot be shown as text"
    first, line_break, rest = said.partition("\n")
    return f"{first}{_place(error)}{line_break}{rest}"


def _place(error: BaseException) -> str:
    """The innermost line of the user's code on an exception's way, in brackets; "" where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_NOT_OWN, "<frozen ")):
            folder = os.path.join(os.getcwd(), "")
            return f" ({frame.filename.removeprefix(folder)}:{frame.lineno}, in {frame.name})"
    return ""


class InputError(BlossomError):
    """Something that the user gave cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a scenario: where it stands, what was found, what is accepted.

    Attributes:
        path: Dotted path inside the scenario, such as `training.optimizer.lr`; "" for the whole file.
        found: What stands there, as a phrase that completes "<path> ...": "is 0", "is not a known key".
        expected: What is accepted, as a phrase that completes "expected ...".
        file: The scenario file, or None when the scenario did not come from a file.
        line: Line in `file`, from 1, or None when the value stands in no line (a default, an override).
        source: Where an override came from (`--set`, `--seed`), or None.
        note: What else a reader should know, in brackets at the end, or None.
    """

    path: str
    found: str
    expected: str
    file: str | None = None
    line: int | None = None
    source: str | None = None
    note: str | None = None

    def __str__(self) -> str:
        place = brief(self.source or "") or self.file or "scenario"
        if len(place) > _LONGEST_PATH:
            place = brief(place)
        if self.line is not None and self.source is None:
            place += f":{self.line}"
        subject = f"{brief(self.path)} {self.found}".strip()
        note = f" ({self.note})" if self.note else ""
        return printable(f"{place}: {subject}; expected {self.expected}{note}")


class ScenarioError(InputError):
    """A scenario that cannot be run, with all of its problems at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        shown = [str(problem) for problem in self.problems[:_MOST_PROBLEMS]]
        num_left = len(self.problems) - len(shown)
        return "\n".join([*shown, *([f"and {num_left:,} more"] if num_left else [])])


class DataError(InputError):
    """A data set that is missing, damaged, or not of the announced shape."""


class RunFolderError(InputError):
    """A run folder that cannot be read or written."""


class RunError(BlossomError):
    """A run that started and could not go on.

    Args:
        cause: What happened, in one line.
        hint: What the user can do about it, or "".
    """

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(cause, hint)
        self.cause, self.hint = cause, hint

    def __str__(self) -> str:
        # What a process printed, or several things that can be done, stand on lines of their own.
        hint = printable(self.hint, keep="\n")
        return "\n".join([printable(self.cause), *([f"hint: {hint}"] if hint else [])])


class ClientError(RunError):
    """A client's training or evaluation failed.

    Args:
        client: The client's id.
        round_index: The round in which it happened.
        cause: One line: the exception's type and text, or what is wrong with the update.
        hint: What the user can do about it, or "".
        details: The traceback inside the client's process, or "".
    """

    def __init__(self, client: int, round_index: int, cause: str, hint: str = "", details: str = "") -> None:
        super().__init__(cause, hint)
        # What it pickles through.
        self.args = (client, round_index, cause, hint, details)
        self.client, self.round_index, self.details = client, round_index, details

    def __str__(self) -> str:
        return f"client {self.client}, round {self.round_index}: {super().__str__()}"


class StorageError(RunError):
    """What the run writes does not fit on the disk, or the disk refuses it."""


class ActorLostError(RunError):
    """A Ray actor died while the run needed it."""


class DriverLostError(ActorLostError):
    """The actor that runs the loop died; the run can go on from its last checkpoint."""


class ActorTimeoutError(RunError):
    """A Ray actor gave no answer in the time that the scenario allows."""
