"""From pydantic's errors to findings in the words of a scenario's author."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from blossom_ray.core.blocks import SCHEME_NAMES
from blossom_ray.core.phrases import MOST, accepted, did_you_mean, is_factory, listed, one_of, shown
from blossom_ray.core.section import Finding, Section
from blossom_ray.core.structure import Hint, Part, join_path, literal_values, section_fields

_KEY = "[key]"
# Where the words made from the annotation are right but of little help.
_EXPECTED = {
    "server.clients_per_round": "a fraction such as 0.1 or a number of clients such as 10",
    "sharing": f"one of {', '.join(SCHEME_NAMES)}, or a mapping from block to scope",
}


@dataclass(frozen=True)
class _ErrorPath:
    """Where an error stands: the path without pydantic's tags, and the hints there and one level up."""

    parts: tuple[Part, ...]
    hint: Hint | None
    parent: Hint | None
    entered_unions: tuple[tuple[Part, ...], ...]
    """Unions with a member that has the value's shape: the error stands inside of it."""
    is_key: bool = False
    open_union: tuple[Part, ...] | None = None
    """The union whose member failed as a whole, such as a number that is neither of two kinds of number."""


def findings(errors: Sequence[ErrorDetails], root: type[Section]) -> list[Finding]:
    """One finding per mistake, in pydantic's order.

    A value that fits no member of a union is reported once, and not at all where a member has its shape and the
    mistake stands inside (`sharing: {head: privat}` is a mistake in the map, not a scheme of unknown name).

    Args:
        errors: What `ValidationError.errors()` gives.
        root: The section that was validated.
    """
    placed = [(_error_path(error["loc"], root), error) for error in errors]
    entered = {union for place, _ in placed for union in place.entered_unions}
    kept = [
        _finding(place, error)
        for place, error in placed
        if place.open_union not in entered and not _is_consequence(error)
    ]
    return list(dict.fromkeys(kept))


def _error_path(loc: tuple[Part, ...], root: type[Section]) -> _ErrorPath:
    hint: Hint | None = Hint(root)
    parent: Hint | None = None
    parts: list[Part] = []
    entered: list[tuple[Part, ...]] = []
    rest = list(loc)
    while rest:
        part = rest.pop(0)
        if part == _KEY:
            return _ErrorPath(tuple(parts), parent and parent.key, parent, tuple(entered), is_key=True)
        if hint is not None and hint.kinds:
            hint = Hint(hint.kinds[str(part)])
            continue
        if hint is not None and len(hint.members) > 1:
            if not rest:
                return _ErrorPath(tuple(parts), hint, parent, tuple(entered), open_union=tuple(parts))
            entered.append(tuple(parts))
            # The tag names the member in pydantic's words; the next part tells which member it is in ours. One that no
            # member knows is an unknown key of a section, whose name is the tag.
            named = [member for member in hint.members if member.section and member.section.__name__ == part]
            known = (member for member in hint.members if member.child(rest[0]) is not None)
            hint = next(known, named[0] if named else None)
            continue
        parts.append(part)
        # The one member of `X | None`, for which pydantic has no tag.
        parent = hint.members[0] if hint is not None and len(hint.members) == 1 else hint
        hint = None if hint is None else hint.child(part)
    return _ErrorPath(tuple(parts), hint, parent, tuple(entered))


def _is_consequence(error: ErrorDetails) -> bool:
    """Whether a list is called too short only because its entries are wrong."""
    value = error["input"]
    if error["type"] != "too_short" or not isinstance(value, list | tuple | Mapping):
        return False
    return len(value) >= int(error["ctx"]["min_length"])


def _finding(place: _ErrorPath, error: ErrorDetails) -> Finding:
    path, hint, value = join_path(place.parts), place.hint, error["input"]
    expected = _EXPECTED.get(path) or (accepted(hint) if hint is not None else "another value")
    match error["type"]:
        case "missing":
            return Finding(path, "is missing", expected)
        case "extra_forbidden":
            assert place.parent is not None, "only sections refuse keys"
            assert place.parent.section is not None, "only sections refuse keys"
            known = section_fields(place.parent.section)
            near = did_you_mean(place.parts[-1], known)
            return Finding(path, "is not a known key", f"one of {listed(known)}{near}")
        case "union_tag_not_found" | "union_tag_invalid" if hint is not None:
            return _unknown_kind(path, hint, value)
        case "literal_error" if hint is not None and place.open_union is None:
            near = did_you_mean(value, map(str, literal_values(hint))) if isinstance(value, str) else ""
            return Finding(path, shown(value), expected + near)
        case "literal_error" if path == "sharing":
            return Finding(path, shown(value), expected)
        case "value_error" if hint is not None and not is_factory(hint):
            return Finding(path, shown(value), str(error["ctx"]["error"]))
        case _ if place.is_key:
            return Finding(path, "is not a valid name", expected)
        case "less_than_equal" if (most := MOST.get(error["ctx"]["le"])) is not None:
            return Finding(path, shown(value), f"{expected} and at most {most}")
        case _:
            return Finding(path, shown(value), expected)


def _unknown_kind(path: str, hint: Hint, value: Any) -> Finding:
    key = str(hint.discriminator)
    found = value.get(key) if isinstance(value, Mapping) else None
    near = did_you_mean(found, hint.kinds) if isinstance(found, str) else ""
    is_missing = isinstance(value, Mapping) and key not in value
    return Finding(f"{path}.{key}", "is missing" if is_missing else shown(found), one_of(hint.kinds) + near)
