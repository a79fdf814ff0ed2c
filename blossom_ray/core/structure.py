"""The shape of a scenario as data: which keys a section has, which kinds a union has, what lies at a path.

Reads the annotations of the sections, so that messages, overrides and the reference need no list of their own.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Discriminator
from pydantic.fields import FieldInfo

from blossom_ray.core.section import Section

Part = str | int


@dataclass(frozen=True)
class Hint:
    """One annotation, taken apart.

    Attributes:
        type: The annotation without `Annotated`.
        metadata: Its constraints, such as `Ge(ge=1)`.
        discriminator: The key that chooses the member of a union of sections (`kind`, `dataset`), or None.
    """

    type: Any
    metadata: tuple[Any, ...] = ()
    discriminator: str | None = None

    @classmethod
    def of(cls, annotation: Any) -> Hint:
        """The hint of an annotation."""
        if get_origin(annotation) is not Annotated:
            return cls(annotation)
        base, *notes = get_args(annotation)
        metadata: list[Any] = []
        discriminator = None
        for note in notes:
            if isinstance(note, FieldInfo):
                metadata += note.metadata
                discriminator = discriminator or _text(note.discriminator)
            elif isinstance(note, Discriminator):  # a function, where a value need not name its kind
                discriminator = "kind"
            else:
                metadata.append(note)
        return cls(base, tuple(metadata), discriminator)

    @property
    def section(self) -> type[Section] | None:
        """The section itself, where this is one."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, Section) else None

    @property
    def members(self) -> tuple[Hint, ...]:
        """The members of a union without `None`; empty where this is no union."""
        if get_origin(self.type) not in (Union, types.UnionType):
            return ()
        return tuple(Hint.of(member) for member in get_args(self.type) if member is not types.NoneType)

    @property
    def is_nullable(self) -> bool:
        """Whether null is accepted."""
        return self.type in (None, types.NoneType) or types.NoneType in get_args(self.type)

    @property
    def is_only_null(self) -> bool:
        """Whether nothing but null is accepted."""
        return self.type in (None, types.NoneType)

    @property
    def kinds(self) -> dict[str, type[Section]]:
        """The sections of a union by the value of its discriminator; empty where this is no such union."""
        if self.discriminator is None:
            return {}
        sections = (member.section for member in self.members)
        return {
            get_args(section.model_fields[self.discriminator].annotation)[0]: section
            for section in sections
            if section is not None
        }

    @property
    def default_kind(self) -> str | None:
        """The kind of a value that names none; None where it must."""
        key = str(self.discriminator)
        return next((kind for kind, section in self.kinds.items() if not section.model_fields[key].is_required()), None)

    @property
    def key(self) -> Hint | None:
        """The keys of a map, or None where this is no map."""
        return Hint.of(get_args(self.type)[0]) if get_origin(self.type) is dict else None

    @property
    def item(self) -> Hint | None:
        """The values of a map or the items of a list, be it one member of a union; None where this is neither."""
        if get_origin(self.type) is dict:
            return Hint.of(get_args(self.type)[1])
        if get_origin(self.type) is tuple:
            return Hint.of(get_args(self.type)[0])
        return next((member.item for member in self.members if member.item is not None), None)

    def constraint(self, name: str) -> Any:
        """The value of a constraint (`ge`, `gt`, `le`, `lt`, `min_length`, `pattern`), or None."""
        values = (getattr(note, name, None) for note in self.metadata)
        return next((value for value in values if value is not None), None)

    def child(self, part: Part) -> Hint | None:
        """What lies under one key or index, or None where nothing is known. Not for unions by discriminator."""
        if self.section is not None:
            return section_fields(self.section).get(str(part))
        if get_origin(self.type) is tuple and not isinstance(part, int):
            return None
        if not self.members:
            return self.item
        children = (member.child(part) for member in self.members)
        return next((child for child in children if child is not None), None)

    def chosen(self, value: Any) -> Hint | None:
        """This hint, or for a union by discriminator the member that `value` chooses (None: no such member)."""
        if self.discriminator is None:
            return self
        kind = value.get(self.discriminator, self.default_kind) if isinstance(value, Mapping) else None
        section = self.kinds.get(kind) if isinstance(kind, str) else None
        return None if section is None else Hint(section)


def field_hint(field: FieldInfo) -> Hint:
    """The hint of a section's field."""
    return Hint(field.annotation, tuple(field.metadata), _text(field.discriminator))


def section_fields(section: type[Section]) -> dict[str, Hint]:
    """The fields of a section by name; the discriminator, which every member of a union has, first."""
    names = sorted(section.model_fields, key=lambda name: name not in ("kind", "dataset"))
    return {name: field_hint(section.model_fields[name]) for name in names}


def hint_at(root: type[Section], parts: Sequence[Part], tree: Any) -> Hint | None:
    """What a path of a plain tree accepts, or None where the path leaves what is known.

    Args:
        root: The section of the whole tree.
        parts: Keys and indices.
        tree: Plain values; they choose the members of unions on the way.
    """
    hint: Hint | None = Hint(root)
    for part in parts:
        hint = None if hint is None else hint.chosen(tree)
        hint = None if hint is None else hint.child(part)
        tree = child_value(tree, part)
    return hint


def child_value(tree: Any, part: Part) -> Any:
    """The value under one key or index, or None."""
    if isinstance(tree, Mapping):
        return tree.get(part)
    if isinstance(tree, list | tuple) and isinstance(part, int) and 0 <= part < len(tree):
        return tree[part]
    return None


def split_path(path: str, tree: Any) -> tuple[Part, ...]:
    """The parts of a dotted path: integers where `tree` has a list, keys that hold a point kept whole.

    Args:
        path: Such as `clients.0.count`; "" for the whole tree.
        tree: Plain values that decide how the path is read.
    """
    parts: list[Part] = []
    words = path.split(".") if path else []
    while words:
        width = 1
        part: Part = words[0]
        if isinstance(tree, Mapping):
            widths = range(len(words), 1, -1)
            width = next((width for width in widths if ".".join(words[:width]) in tree), 1)
            part = ".".join(words[:width])
        elif isinstance(tree, list | tuple) and words[0].isascii() and words[0].isdecimal():
            part = int(words[0]) if len(words[0]) < 10 else words[0]
        parts.append(part)
        words, tree = words[width:], child_value(tree, part)
    return tuple(parts)


def join_path(parts: Sequence[Part]) -> str:
    """The dotted path of some parts."""
    return ".".join(str(part) for part in parts)


def literal_values(hint: Hint) -> tuple[Any, ...]:
    """The values of a `Literal`; empty where this is none."""
    return get_args(hint.type) if get_origin(hint.type) is Literal else ()


def _text(discriminator: Any) -> str | None:
    return discriminator if isinstance(discriminator, str) else None


def meaning_of(section: type[Section], name: str) -> str:
    """What the source says about a key, in a string below it; empty where it says nothing.

    Few commands ask, so the sources are read when they do: pydantic's `use_attribute_docstrings` reads those of all
    sections in every process, which takes longer than all else that it does with them.
    """
    own = section.model_fields[name].description
    found = (_strings_below(owner).get(name) for owner in section.__mro__ if issubclass(owner, Section))
    return own or next((text for text in found if text is not None), "")


@cache
def _strings_below(section: type[Section]) -> dict[str, str]:
    """The strings below the annotations of a class's own keys."""
    classes = _classes_of(section.__module__)
    body = classes[section.__qualname__].body if section.__qualname__ in classes else []
    return {
        key.target.id: inspect.cleandoc(below.value.value)
        for key, below in pairwise(body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


@cache
def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):  # no source at hand
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
