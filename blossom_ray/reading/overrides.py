"""Values set by dotted path on a plain tree, before it is validated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

from blossom_ray.core.phrases import listed, shown
from blossom_ray.core.section import Finding
from blossom_ray.core.structure import Part, child_value, field_hint, hint_at, join_path, section_fields, split_path
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.reading.yaml_tree import parse_yaml, resolve_scalar
from blossom_ray.scenario.tree import ScenarioTree
from blossom_ray.text import is_unicode

Parsed = TypeVar("Parsed")


def parse_each(parse: Callable[[str], Parsed], texts: Iterable[str]) -> tuple[list[Parsed], list[Problem]]:
    """What some texts say, and what is wrong with others."""
    parsed: list[Parsed] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            parsed.append(parse(text))
        except ScenarioError as error:
            problems += error.problems
    return parsed, problems


def parse_assignment(text: str, option: str = "--set") -> tuple[str, Any]:
    r"""A command line's `KEY=VALUE` as dotted path and value.

    The value is read as YAML 1.2. What starts with `{`, `[` or a quote is a mapping, a list or quoted text; anything
    else is one scalar, taken as it stands: `0.01` is a number, `true` a boolean, `null` and nothing at all are null,
    and `../a b/UCI HAR Dataset.zip` or `C:\data\a.zip` are text.

    Args:
        text: Such as `training.optimizer.lr=0.01`.
        option: The option that it was given to; problems name it.

    Raises:
        ScenarioError: No `=`, an empty path or part of one, a value that is not valid YAML, or text that is not
            Unicode.
    """
    path, equals, written = (part.strip() for part in text.partition("="))
    fault = None
    if not is_unicode(text):
        fault = "is not UTF-8 text", "KEY=VALUE in UTF-8"
    elif not equals:
        fault = "has no '='", "KEY=VALUE, such as training.optimizer.lr=0.01"
    elif not all(path.split(".")):
        fault = "has an empty key", "keys joined by points, such as training.optimizer.lr=0.01"
    if fault is not None:
        raise ScenarioError((Problem("", *fault, source=f"{option} {text}"),))
    source = f"{option} {path}"
    if written[:1] not in ("{", "[", '"', "'") or not written:
        try:
            return path, resolve_scalar(written)
        except ValueError as error:
            raise ScenarioError((Problem(path, f"is {error}", "fewer digits", source=source),)) from None
    document = parse_yaml(written)
    if document.root is None or document.problems:
        raise ScenarioError(
            tuple(
                Problem(join_path([part for part in (path, problem.path) if part]), problem.found,
                        problem.expected, source=source)
                for problem in document.problems
            )
        )  # fmt: skip
    return path, document.root.plain()


def apply_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """A copy of a plain tree with some values replaced, in the order given.

    Sections that do not exist are made; where such a section is a choice between kinds, it starts with the default
    kind, so that `training.optimizer.lr` can be set in a file that says nothing about the optimizer.

    A new kind (`model.fusion.kind`, `training.optimizer.kind`, `data.dataset`) keeps those keys of the old kind that
    the new one has too, and drops the others, since they stood there for the old kind. Keys that another override
    gives are never dropped: they are refused if the new kind does not have them.

    Args:
        tree: Plain values. Not modified.
        overrides: Value by dotted path. Integers index lists: `clients.0.count`.

    Returns:
        The new tree, and a finding for each override whose path leads nowhere.
    """
    changed: dict[str, Any] = dict(tree)
    problems: list[Finding] = []
    for path, value in overrides.items():
        parts = split_path(path, changed)
        if not parts or "" in parts:
            problems.append(Finding(path, "has an empty key", "keys joined by points"))
            continue
        if not (_is_unicode(path) and _is_unicode(value)):
            problems.append(Finding(path, "has half of a surrogate pair", "Unicode text"))
            continue
        named = overrides.get("datasets", changed.get("datasets"))
        if parts[0] == "data" and parts[1:] and changed.get("data") is None and isinstance(named, Mapping) and named:
            places = listed([join_path(("datasets", name, *parts[1:])) for name in named])
            problems.append(Finding(path, "leads nowhere, since the data sets have names", f"one of {places}"))
            continue
        try:
            changed = _Override(changed, overrides).replace(changed, parts, value, ())
        except _PathError as error:
            problems.append(Finding(path, *error.args))
    return changed, problems


def _is_unicode(value: Any) -> bool:
    """Whether all text in it can be encoded; half of a surrogate pair makes pydantic break off its checks."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    return all(map(_is_unicode, value)) if isinstance(value, list | tuple) else True


class _PathError(Exception):
    """An override's path leads nowhere: what was found, and what is expected."""


@dataclass(frozen=True)
class _Override:
    """One override at work.

    Attributes:
        root: The whole tree before it; it tells which kinds its sections have.
        overrides: All overrides.
    """

    root: Mapping[str, Any]
    overrides: Mapping[str, Any]

    def replace(self, tree: Any, parts: Sequence[Part], value: Any, above: tuple[Part, ...]) -> Any:
        """`tree`, which stands at `above`, with `value` at `parts` below it. Nothing is modified in place."""
        if not parts:
            return value
        part, rest, here = parts[0], parts[1:], (*above, parts[0])
        if isinstance(tree, list | tuple):
            if not isinstance(part, int) or part >= len(tree):
                found = f"leads nowhere, since {join_path(above)} is a list of {len(tree)} entries"
                raise _PathError(found, "an index, counted from 0")
            entries = list(tree)
            entries[part] = self.replace(entries[part], rest, value, here)
            return entries
        if not isinstance(tree, Mapping):
            found = f"leads nowhere, since {join_path(above)} {shown(tree)}"
            raise _PathError(found, "the path of a key in a section")
        below = tree.get(part)
        if rest and below is None:
            below = self._new_section(here)
        mapping = {**tree, part: self.replace(below, rest, value, here)}
        return mapping if rest else self._without_old_kind(mapping, tree.get(part), above, part)

    def _new_section(self, parts: tuple[Part, ...]) -> dict[str, Any]:
        """An empty section, or one with its default kind where `parts` is a choice between kinds."""
        owner = hint_at(ScenarioTree, parts[:-1], self.root)
        owner = None if owner is None else owner.chosen(reduce(child_value, parts[:-1], self.root))
        field = owner.section.model_fields.get(str(parts[-1])) if owner is not None and owner.section else None
        key = None if field is None else field_hint(field).discriminator
        if field is None or key is None or field.is_required() or field.default is None:
            return {}
        return {key: getattr(field.default, key)}

    def _without_old_kind(
        self, mapping: dict[Any, Any], old: Any, above: tuple[Part, ...], part: Part
    ) -> dict[Any, Any]:
        hint = hint_at(ScenarioTree, above, self.root)
        kind = mapping[part]
        if hint is None or hint.discriminator != part or kind == old or not isinstance(kind, str):
            return mapping
        if kind not in hint.kinds:
            return mapping
        fields = section_fields(hint.kinds[kind])
        return {
            key: value
            for key, value in mapping.items()
            if (key in fields and not fields[key].is_only_null) or self._is_given((*above, key))
        }

    def _is_given(self, parts: tuple[Part, ...]) -> bool:
        """Whether an override gives the value at `parts`, or one below it."""
        return any(split_path(path, self.root)[: len(parts)] == parts for path in self.overrides)
