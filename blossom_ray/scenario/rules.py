"""Rules between sections of a scenario: a function each, which says what it needs by the names of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from blossom_ray.core.section import Finding

RULES: list[tuple[tuple[str, ...], Callable[..., Iterator[Finding]]]] = []


_Rule = TypeVar("_Rule", bound=Callable[..., Iterator[Finding]])


def rule(check: _Rule) -> _Rule:
    """A rule, which runs where all sections that its parameters name are there and right in themselves.

    Beside the sections, a parameter can be `from_data` (the text, in the place of `clients`), `num_clients` (those that
    train), `num_parts` (those that share the data set's samples), `learned` (by task, as `ScenarioTree.learned`),
    `scopes` (by block), and `sections` (all of them).
    """
    code = check.__code__
    RULES.append((code.co_varnames[: code.co_argcount], check))
    return check
