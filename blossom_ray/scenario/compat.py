"""The key `compat`: settings that repeat the mathematics of published code, filled in and watched over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REFERENCE: dict[str, Any] = {
    "data.draws": "reference",
    "model.missing": "zero-input",
    "training.schedule": {"kind": "constant"},
    "training.min_batch_size": 2,
}
"""What `compat: blossom-reference` asks for, by dotted path."""
_OPTIONAL_SECTIONS = ("training",)


def apply_compat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's tree with what its `compat` asks for in the places that say nothing.

    Args:
        tree: A scenario as plain values. Not modified. Sections that are not mappings are left as they are.
    """
    tree = dict(tree)
    if tree.get("compat") != "blossom-reference":
        return tree
    for path, value in REFERENCE.items():
        name, key = path.split(".")
        section = tree.get(name, {} if name in _OPTIONAL_SECTIONS else None)
        if isinstance(section, Mapping):
            tree[name] = {key: value, **section}
    return tree
