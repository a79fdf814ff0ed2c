"""What a folder of a run or a sweep says, checked like a scenario before anything relies on it.

Such a folder may come from elsewhere, or from another version: keys that are not known are passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

from blossom_ray.core.phrases import shown
from blossom_ray.core.section import Section
from blossom_ray.errors import Problem, RunFolderError
from blossom_ray.reading.messages import findings
from blossom_ray.text import is_unicode

# Deeper ones are none of ours, and too deep for what walks through them.
_MOST_LEVELS = 100


class ReadBack(Section):
    """Base of what is read back: no silent conversion of types, and no complaint about keys of other versions."""

    model_config = ConfigDict(extra="ignore")


_Kind = TypeVar("_Kind", bound=ReadBack)


def read_back(kind: type[_Kind], tree: Any, path: Path) -> _Kind:
    """What a file says, or the first thing that is wrong with it.

    Args:
        kind: What it should say.
        tree: What it holds, as plain values.
        path: The file, for the message.

    Raises:
        RunFolderError: It says something else.
    """
    if not isinstance(tree, dict):
        raise RunFolderError(f"{path}: {shown(tree)}; expected a mapping")
    if (strangeness := _strangeness(tree)) is not None:
        raise RunFolderError(f"{path}: {strangeness}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        found = findings(error.errors(include_url=False)[:1], kind)[0]
        raise RunFolderError(str(Problem(*found, file=str(path)))) from error


def _strangeness(tree: Any) -> str | None:
    """Why what handles text or nested values later on would stumble over this."""
    here = [tree]
    for _ in range(_MOST_LEVELS):
        here = [inner for value in here for inner in _inside(value)]
        if any(isinstance(value, str) and not is_unicode(value) for value in here):
            return "has text with half a character (a lone surrogate); expected Unicode"
        if not here:
            return None
    return f"is nested too deeply; expected at most {_MOST_LEVELS} levels"


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []
