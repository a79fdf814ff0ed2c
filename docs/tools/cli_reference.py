"""The reference of the command line, from what `--help` says: python docs/tools/cli_reference.py (`make docs`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from blossom_ray.cli import app

_INTRODUCTION = """\
# Command line

<!-- Generated from blossom_ray/cli/: make docs -->

`blossom-ray COMMAND --help`, or `-h`, says the same on a terminal. Exit codes: 0 done, 1 the run failed, 2 bad input,
130 or 143 ended by Ctrl-C or SIGTERM. With `--json` a command prints JSON for machines, one object per line.
`python -m blossom_ray` is the same command. It has the options
"""
_NAME = "blossom-ray"
Command = Any  # a class of click or of Typer's own copy of it, as Typer's version has it


def cli_reference() -> str:
    """The whole page: a list of all commands, then a section for each."""
    root: Command = typer.main.get_command(app)
    context = typer.Context(root, info_name=_NAME)
    commands = [*_commands(root, context, _NAME)]
    index = [f"- [`{name}`](#{_anchor(name)}): {_text(_first(command.help))}" for name, command, _ in commands]
    listed = ["and the commands\n", *index, ""]
    sections = [line for found in commands for line in _section(*found)]
    return "\n".join([_INTRODUCTION, *_options(root, context), *listed, *sections]).rstrip()


def _commands(group: Command, context: Any, name: str) -> Iterator[tuple[str, Command, Any]]:
    """The commands of a group and of the groups in it, in the order of help, with their whole names."""
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        inner = typer.Context(command, parent=context, info_name=word)
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, inner, f"{name} {word}")
        else:
            yield f"{name} {word}", command, inner


def _section(name: str, command: Command, context: Any) -> Iterator[str]:
    yield f"## `{name}`\n"
    yield f"{_text(command.help or '')}\n"
    yield f"```bash\n{(command.epilog or '').removeprefix('Example: ')}\n```\n"
    yield from _options(command, context)


def _options(command: Command, context: Any) -> Iterator[str]:
    """Arguments and options with what they mean; `--help`, which all have, is left out."""
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    rows = [f"- `{left}`: {_text(right)}" for left, right in records if "--help" not in left]
    if rows:
        yield "\n".join(rows) + "\n"


def _first(help_text: str | None) -> str:
    """The first sentence of a help text, or what comes before its first colon."""
    return re.split(r"(?<=[.:;])\s", help_text or "", maxsplit=1)[0].rstrip(".:;")


def _text(text: str) -> str:
    """Help as Markdown: outside of code, angle brackets are no tags. Lines are joined within a paragraph."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"(?<!\n)\n(?!\n)", " ", text))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts).strip()


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


if __name__ == "__main__":
    print(cli_reference())
