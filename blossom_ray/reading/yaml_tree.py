"""YAML 1.2 to plain values with line numbers, refusing what a scenario file has no use for.

ruamel.yaml gives the parsing events; values follow the core schema of YAML 1.2 (`yes` is text, `1e-3` a number, a
date is text) and nothing is ever constructed from a tag. Depth and size after expansion of aliases are limited, so
a hostile file costs no more than a large one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

from blossom_ray.core.phrases import listed, shortened, shown
from blossom_ray.core.structure import Part, child_value, join_path
from blossom_ray.errors import Problem
from blossom_ray.text import brief, is_unicode

MAX_DEPTH = 50
MAX_NODES = 100_000
MAX_KEYS = 5_000
_MAX_DIGITS = 100

Scalar = str | int | float | bool | None

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TAB_AS_INDENTATION = re.compile(r"[-?: ]*\t")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Node:
    """A value and where it stands.

    Attributes:
        content: A scalar, or the nodes of a mapping or list.
        line: Line of its key, or of itself as an entry of a list, from 1.
        size: Nodes in it, aliases expanded, itself included.
        height: Levels of mappings and lists in it.
    """

    content: Scalar | dict[str, Node] | list[Node]
    line: int
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """The value as dicts, lists and scalars, nothing of it shared."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content

    def at(self, parts: tuple[Part, ...]) -> tuple[Node, bool]:
        """The node at a path, or the deepest one on the way to it; and whether it is the one asked for."""
        node = self
        for part in parts:
            child = child_value(node.content, part)
            if not isinstance(child, Node):
                return node, False
            node = child
        return node, True


@dataclass(frozen=True)
class Document:
    """A parsed text. `root` is None where it could not be parsed; `problems` may also stand beside a root."""

    root: Node | None
    problems: tuple[Problem, ...]


class _UnreadableError(Exception):
    """The text cannot be read any further."""

    def __init__(self, found: str, expected: str, line: int | None, path: str = "") -> None:
        super().__init__(found)
        self.problem = Problem(path, found, expected, line=line)


def parse_yaml(text: str) -> Document:
    """Parse one YAML 1.2 document. Never raises for wrong content; a text without content is null."""
    builder = _Builder(text)
    try:
        return Document(builder.document(), tuple(builder.problems))
    except _UnreadableError as error:
        problem = error.problem
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"has the control character U+{ord(text[error.position]):04X}"
        problem = Problem("", found, "YAML 1.2 text", line=line)
    except (YAMLError, ValueError, OverflowError) as error:
        problem = _syntax_problem(error, text)
    return Document(None, (*builder.problems, problem))


def resolve_scalar(text: str) -> Scalar:
    """The value of an unquoted scalar by the core schema of YAML 1.2.

    Raises:
        ValueError: An integer of more than 100 digits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"an integer of {len(text)} digits")
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Scanner(Scanner):
    """ruamel's scanner, and tabs where YAML 1.2 has them as white space: between tokens, but not in indentation."""

    def scan_to_next_token(self) -> None:
        is_after_tab = False
        while True:
            super().scan_to_next_token()
            if self.reader.peek() != "\t":
                break
            while self.reader.peek() in " \t":
                self.reader.forward()
            # The rest of the line has a token, which must not begin a block; a comment or nothing else is skipped.
            is_after_tab = self.reader.peek() not in "#\0\r\n\x85\u2028\u2029"
        if is_after_tab and not self.flow_level:
            self.allow_simple_key = False

    def scan_plain_spaces(self, indent: Any, start_mark: Any) -> Any:
        reader = self.reader
        length = 0
        while reader.peek(length) in " \t":
            length += 1
        if "\t" not in reader.prefix(length):
            return super().scan_plain_spaces(indent, start_mark)
        if reader.peek(length) in "\r\n\x85\u2028\u2029":
            reader.forward(length)
            return super().scan_plain_spaces(indent, start_mark)
        spaces = reader.prefix(length)
        reader.forward(length)
        return [spaces]


class _Builder:
    """Nodes from ruamel's events, one document."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        parser = YAML(typ="safe", pure=True)
        parser.Scanner = _Scanner
        self._events: Iterator[Any] = iter(parser.parse(text))
        self._anchors: dict[str, Node] = {}
        self._num_nodes = 0

    def document(self) -> Node:
        root = None
        for event in self._events:
            if not isinstance(event, DocumentStartEvent):
                continue
            line = event.start_mark.line + 1
            if root is not None:
                raise _UnreadableError("holds a second YAML document", "one document in a file", line)
            if event.version not in (None, (1, 2)):
                found = f"asks for YAML {'.'.join(str(number) for number in event.version)}"
                raise _UnreadableError(found, "YAML 1.2", line)
            root = self._node(next(self._events), (), line=None)
        return root or Node(None, 1)

    def _node(self, event: Any, parts: tuple[Part, ...], line: int | None) -> Node:
        """The node that starts with `event`; `line` is that of its key, or None where it has none."""
        own_line = event.start_mark.line + 1
        line = line or own_line
        if isinstance(event, AliasEvent):
            node = self._aliased(event, parts, own_line)
            return dataclasses.replace(node, line=line)
        self._count(1, own_line)
        if event.tag is not None:
            found = f"has the tag {shortened(event.tag.replace('tag:yaml.org,2002:', '!!'))!r}"
            raise _UnreadableError(found, "plain values without tags", own_line, join_path(parts))
        if isinstance(event, ScalarEvent):
            node = Node(self._scalar(event, parts, own_line), line)
        else:
            _check_depth(len(parts) + 1, own_line)
            if isinstance(event, MappingStartEvent):
                node = self._mapping(parts, line)
            else:
                assert isinstance(event, SequenceStartEvent), f"unexpected {event}"
                children: list[Node] = []
                while not isinstance(event_below := next(self._events), SequenceEndEvent):
                    children.append(self._node(event_below, (*parts, len(children)), None))
                node = _container(children, children, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _mapping(self, parts: tuple[Part, ...], line: int) -> Node:
        children: dict[str, Node] = {}
        lines: dict[str, list[int]] = {}
        num_keys = 0
        while not isinstance(event := next(self._events), MappingEndEvent):
            key_line = event.start_mark.line + 1
            num_keys += 1
            if num_keys > MAX_KEYS:
                expected = f"at most {MAX_KEYS:,} of them"
                raise _UnreadableError("has too many keys", expected, key_line, join_path(parts))
            key = self._node(event, (*parts, "?"), None).content
            node = self._node(next(self._events), (*parts, key if isinstance(key, str) else "?"), key_line)
            if not isinstance(key, str):
                self._report(parts, f"has a key that {shown(key)}", "text as keys, in quotes if need be", key_line)
                continue
            if key == "<<" and isinstance(event, ScalarEvent) and not event.style:
                self._report(parts, "has a merge key '<<'", "keys written out; YAML 1.2 has no merging", key_line)
                continue
            children.setdefault(key, node)
            lines.setdefault(key, []).append(key_line)
        for key, places in lines.items():
            if len(places) > 1:
                found = f"is given {len(places)} times, in lines {listed(places[:-1])} and {places[-1]}"
                self._report((*parts, key), found, "each key once", places[1])
        return _container(children, list(children.values()), line)

    def _aliased(self, event: AliasEvent, parts: tuple[Part, ...], line: int) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            name = shortened(event.anchor)
            found, expected = f"has the alias *{name}", f"a finished &{name} above it"
            raise _UnreadableError(found, expected, line, join_path(parts))
        self._count(node.size, line)
        _check_depth(len(parts) + node.height, line)
        return node

    def _scalar(self, event: ScalarEvent, parts: tuple[Part, ...], line: int) -> Scalar:
        text: str = event.value
        if not is_unicode(text):
            raise _UnreadableError("has half of a surrogate pair", "Unicode text", line, join_path(parts))
        if event.style or not event.implicit[0]:
            return text
        try:
            return resolve_scalar(text)
        except ValueError as error:
            expected = f"at most {_MAX_DIGITS} digits"
            raise _UnreadableError(f"is {error}", expected, line, join_path(parts)) from None

    def _count(self, num_nodes: int, line: int) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > MAX_NODES:
            found = "holds too many values, with its aliases expanded"
            raise _UnreadableError(found, f"at most {MAX_NODES:,} values", line)

    def _report(self, parts: tuple[Part, ...], found: str, expected: str, line: int) -> None:
        self.problems.append(Problem(join_path(parts), found, expected, line=line))


def _container(content: dict[str, Node] | list[Node], children: list[Node], line: int) -> Node:
    size = 1 + sum(node.size for node in children)
    return Node(content, line, size, 1 + max((node.height for node in children), default=0))


def _check_depth(depth: int, line: int) -> None:
    if depth > MAX_DEPTH:
        raise _UnreadableError("is nested too deeply", f"at most {MAX_DEPTH} levels", line)


def _syntax_problem(error: Exception, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = None if mark is None else mark.line + 1
    begun = "" if mark is None else text.splitlines()[mark.line : mark.line + 1]
    if begun and _TAB_AS_INDENTATION.match(begun[0]):
        return Problem("", "has a tab where indentation counts", "spaces there", line=line)
    words = (error.problem or error.context) if isinstance(error, MarkedYAMLError) else str(error)
    if r"found '\t'" in str(words):  # after the | of a block of text, in a directive, after a tag
        return Problem("", "has a tab where a space must stand", "a space there", line=line)
    found = f"is not valid YAML ({brief(' '.join(str(words).split()))})"
    return Problem("", found, "YAML 1.2, indented with spaces", line=line)
