"""The words of messages and of the reference: what is accepted, what was found, which name is nearest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from blossom_ray.core.structure import Hint, literal_values, section_fields

MAX_SHOWN_CHARACTERS = 60

_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, '.', '_' and '-', starting with a letter or digit",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "letters, digits, '.', '_' and '-', starting with a letter or digit",
    r"^[A-Za-z][A-Za-z0-9_]*$": "letters, digits and '_', starting with a letter",
}


def accepted(hint: Hint) -> str:
    """What a value may be, as a phrase that completes "expected ..."."""
    if hint.is_only_null:
        return "null"
    if hint.kinds:
        return f"a mapping with the key {hint.discriminator!r}: {one_of(hint.kinds)}"
    if is_factory(hint):
        return "'module:attribute' of a callable"
    if hint.members:
        words = [accepted(member) for member in hint.members]
        return " or ".join([*words, "null"] if hint.is_nullable else words)
    if literals := literal_values(hint):
        return one_of(literals)
    if hint.section is not None:
        return f"a mapping with the keys {listed(section_fields(hint.section))}"
    return _accepted_plain(hint)


def _accepted_plain(hint: Hint) -> str:
    if hint.type is bool:
        return "true or false"
    if hint.type in (int, float):
        return " ".join(("an integer" if hint.type is int else "a number", *_range(hint)))
    if hint.type is str:
        pattern = hint.constraint("pattern")
        words = "text" if pattern is None else _PATTERNS.get(pattern, f"text that matches {pattern}")
        longest = hint.constraint("max_length")
        return words if longest is None else f"{words}, at most {longest} characters"
    if hint.type is Any or hint.item is None:
        return "any value"
    at_least_one = " with at least one entry" if hint.constraint("min_length") else ""
    if get_origin(hint.type) is tuple:
        return f"a list{at_least_one}, each {accepted(hint.item)}"
    return f"a mapping{at_least_one}" + ("" if hint.item.type is Any else f", each value {accepted(hint.item)}")


MOST = {1_000_000_000: "1,000,000,000", 1e38: "1e38"}
"""What no count and no rate exceeds, and how it is written; larger ones overflow somewhere below."""


def _range(hint: Hint) -> list[str]:
    bounds = [
        (hint.constraint("ge"), "of at least"),
        (hint.constraint("gt"), "above"),
        (hint.constraint("le"), "at most"),
        (hint.constraint("lt"), "below"),
    ]
    # The bounds of all counts and rates are said where they are overstepped: in each phrase they would be noise.
    given = [(value, text) for value, text in bounds if value is not None and value not in MOST]
    words = [f"{text} {'2^63' if value == 2**63 else f'{value:g}'}" for value, text in given]
    return [" and ".join(words)] if words else []


def is_factory(hint: Hint) -> bool:
    """Whether this is a callable, or text that names one."""
    return any(get_origin(member) is Callable or member is Callable for member in get_args(hint.type))


def shown(value: Any) -> str:
    """A value as a phrase that completes "<path> ...": "is 0", "is '20'", "is a list of 12 entries"."""
    if isinstance(value, Mapping):
        return "is a mapping" if value else "is an empty mapping"
    if isinstance(value, list | tuple):
        if not value:
            return "is an empty list"
        is_flat = all(item is None or isinstance(item, str | bool | int | float) for item in value)
        text = f"[{', '.join(_scalar(item) for item in value)}]" if is_flat else ""
        return f"is {text}" if 0 < len(text) <= MAX_SHOWN_CHARACTERS else f"is a list of {len(value)} entries"
    return f"is {_scalar(value)}"


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(shortened(value))
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return str(value)
    return f"of type {type(value).__name__}"


def shortened(text: str) -> str:
    """A text of at most 60 characters, its end replaced by points where it is longer."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 3]}..."


def listed(names: Iterable[Any]) -> str:
    """Names in their order, with commas."""
    return ", ".join(str(name) for name in names)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, each with its full stop; line breaks become spaces. "et al." ends none."""
    yield from filter(None, re.split(r"(?<=[.?!])(?<! al\.) (?=[A-Z`])", " ".join(text.split())))


def one_of(names: Iterable[Any]) -> str:
    """Names as "one of a, b", or the name alone where there is one."""
    names = tuple(names)
    return f"one of {listed(names)}" if len(names) > 1 else listed(names)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The nearest known name as "; did you mean 'x'?", or "" where none is near."""
    near = difflib.get_close_matches(str(name)[:200], tuple(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
