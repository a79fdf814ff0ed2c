"""Damage as data: edits of bytes and of plain trees, drawn by Hypothesis and applied by pure functions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from hypothesis import settings
from hypothesis import strategies as st

from blossom_ray.errors import BlossomError

LONGEST_CASE_S = 20.0
"""Bound of one case on a busy machine; what a case takes on an idle one stands in docs/results/fuzz.md."""


def few(num_cases: int) -> settings:
    """The settings of the test suite: few cases, the same ones each time."""
    return settings(max_examples=num_cases, derandomize=True, deadline=None, database=None)


@dataclass(frozen=True)
class ByteEdit:
    """One damage to a file.

    Attributes:
        kind: What is done at the place.
        place: Any number; the position is this modulo the length.
        payload: Bytes that are written or inserted.
        length: How many bytes are flipped, removed or doubled.
    """

    kind: Literal["flip", "write", "insert", "remove", "cut", "double", "number"]
    place: int
    payload: bytes
    length: int


@dataclass(frozen=True)
class TreeEdit:
    """One damage to a plain tree.

    Attributes:
        kind: What is done to the node.
        node: Any number; it leads to a node, half of the numbers to one of the top.
        value: What takes its place, or is added below it.
        key: Key of what is added.
    """

    kind: Literal["replace", "delete", "add", "double", "wrap"]
    node: int
    value: Any
    key: str


HOSTILE_NUMBERS = (0, -1, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**99)
HOSTILE_FLOATS = (0.0, -0.0, 1e-320, 1e-12, 0.5, 1.0, 1e9, 1e300, float("inf"), float("-inf"), float("nan"))
HOSTILE_TEXTS = (
    "", " ", "0", "null", "~", "true", "yes", "1e400", ".nan", "../../evil", "/", "/dev/zero", "~nobody/x", "\n",
    "\x1b[2J", "\u202eabc", "\ud800", "é" * 200, "x" * 5000, "acc", "gyro", "custom", "uci-har", "synthetic",
    "subject", "dirichlet", "quantity", "conv1d", "conv2d", "gru", "group", "shared", "no.such.module:thing", "a:b:c",
    "a\0b", "*a", "&a", "<<",
)  # fmt: skip

Outcome = TypeVar("Outcome")

byte_edits = st.lists(
    st.builds(
        ByteEdit,
        st.sampled_from(("flip", "write", "insert", "remove", "cut", "double", "number")),
        st.integers(0, 2**32),
        st.binary(min_size=1, max_size=12) | st.sampled_from((b"\0" * 64, b"\xff" * 64, b"[" * 5000, b"9" * 5000)),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=3,
)
keys = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=10)
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(HOSTILE_NUMBERS)
    | st.integers()
    | st.sampled_from(HOSTILE_FLOATS)
    | st.floats()
    | keys
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
tree_edits = st.lists(
    st.builds(
        TreeEdit,
        st.sampled_from(("replace", "replace", "replace", "delete", "add", "double", "wrap")),
        st.integers(0, 2**40),
        values,
        keys,
    ),
    min_size=1,
    max_size=4,
)


def outcome(action: Callable[[], Outcome]) -> Outcome | BlossomError:
    """What an action returns, or the error of ours that it raises; any other goes on its way."""
    try:
        return action()
    except BlossomError as error:
        return error


def damaged(content: bytes, edits: Sequence[ByteEdit]) -> bytes:
    """The content after all edits."""
    for edit in edits:
        start = edit.place % (len(content) + 1)
        end = start + edit.length
        head, middle, tail = content[:start], content[start:end], content[end:]
        match edit.kind:
            case "flip":
                content = head + bytes(byte ^ (1 << edit.place % 8) for byte in middle) + tail
            case "write":
                content = head + edit.payload + content[start + len(edit.payload) :]
            case "insert":
                content = head + edit.payload + middle + tail
            case "remove":
                content = head + tail
            case "cut":
                content = head
            case "double":
                content = head + middle + middle + tail
            case "number":
                number = HOSTILE_NUMBERS[edit.place % len(HOSTILE_NUMBERS)] % 2**64
                content = head + number.to_bytes(8, "little") + content[start + 8 :]
    return content


def changed(tree: Any, edits: Sequence[TreeEdit]) -> Any:
    """A copy of a plain tree after all edits; keys are text."""
    root = {"root": copy.deepcopy(tree)}
    for edit in edits:
        place = _place(root, edit.node)
        if place is None:
            continue
        container, key = place
        below = container[key]
        match edit.kind:
            case "replace":
                container[key] = edit.value
            case "delete":
                del container[key]
            case "add" if isinstance(below, dict):
                below[edit.key] = edit.value
            case "add" if isinstance(below, list):
                below.append(edit.value)
            case "double" if isinstance(container, list):
                container.append(copy.deepcopy(below))
            case "wrap":
                container[key] = [below]
            case _:
                container[key] = edit.value
    return root.get("root")


def _place(tree: Any, number: int) -> tuple[Any, Any] | None:
    """A container and key of a tree, half of them at each level; None where there is nothing."""
    if not tree or not isinstance(tree, dict | list):
        return None
    container_keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    number, index = divmod(number, len(tree))
    number, goes_down = divmod(number, 2)
    below = _place(tree[container_keys[index]], number) if goes_down or "root" in tree else None
    return below or (tree, container_keys[index])
