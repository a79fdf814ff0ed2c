"""The README and the pages under docs/ as the tests see them: fenced blocks, and the commands in these."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
CLI_REFERENCE = "docs/cli-reference.md"

_FENCE = re.compile(r"^(?:<!-- (not run|exit code): ([^>]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = "blossom-ray"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: The page's name in the repository.
        line: Where the block begins, from 1.
        language: What stands behind the fence.
        text: Its lines.
        not_run: Why it is not run, from a comment before it; "" if it is.
        exit_code: What its commands end with, from a comment before it.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[Command]:
        """Every `blossom-ray ...` command in a bash block, in order."""
        if self.language != "bash":
            return []
        lines = re.split(r"&&|\||;|\n", re.sub(r"\\\n\s*", " ", self.text))
        words = [shlex.split(line, comments=True) for line in lines]
        return [command for line in words if (command := _command(line)) is not None]


@dataclass(frozen=True)
class Command:
    """A command line: what stands behind the program's name, and the file that its output goes to, or None."""

    arguments: tuple[str, ...]
    output: str | None

    def __str__(self) -> str:
        return shlex.join([_PROGRAM, *self.arguments])


def _command(words: list[str]) -> Command | None:
    """The command in a line, wherever the program lies and whatever starts it."""
    names = [Path(word).name for word in words]
    if _PROGRAM not in names:
        return None
    arguments = words[names.index(_PROGRAM) + 1 :]
    if ">" in arguments:
        arguments, (output,) = arguments[: arguments.index(">")], arguments[arguments.index(">") + 1 :]
        return Command(tuple(arguments), output)
    return Command(tuple(arguments), None)


def page_name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def fenced_blocks() -> list[Block]:
    """All fenced blocks, by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            comment, said, language, content = match.groups()
            line = text.count("\n", 0, match.start(3)) + 1
            not_run = said if comment == "not run" else ""
            exit_code = int(said) if comment == "exit code" else 0
            found.append(Block(page_name(page), line, language, content, not_run, exit_code))
    return found


def prose(page: Path) -> str:
    """A page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
