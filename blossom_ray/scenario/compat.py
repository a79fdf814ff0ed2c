"""The key `compat`: settings that repeat the mathematics of published code, filled in and watched over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blossom_ray.core.phrases import shown
from blossom_ray.core.section import Finding

_REFERENCE: dict[str, Any] = {
    "data.draws": "reference",
    "model.missing": "zero-input",
    "training.schedule": {"kind": "constant"},
    "training.min_batch_size": 2,
}
_OPTIONAL_SECTIONS = ("training",)


def apply_compat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's tree with what its `compat` asks for in the places that say nothing.

    Args:
        tree: A scenario as plain values. Not modified. Sections that are not mappings are left as they are.
    """
    tree = dict(tree)
    if tree.get("compat") != "blossom-reference":
        return tree
    for path, value in _REFERENCE.items():
        name, key = path.split(".")
        section = tree.get(name, {} if name in _OPTIONAL_SECTIONS else None)
        if isinstance(section, Mapping):
            tree[name] = {key: value, **section}
    return tree


def compat_conflicts(compat: str, sections: Mapping[str, Any]) -> Iterator[Finding]:
    """What contradicts `compat: blossom-reference`.

    Args:
        compat: The scenario's `compat`.
        sections: The top-level values of a scenario that are right in themselves.
    """
    for path, value in _REFERENCE.items():
        name, key = path.split(".")
        if name not in sections:
            continue
        found = getattr(sections[name], key)
        wanted = value["kind"] if isinstance(value, Mapping) else value
        if getattr(found, "kind", found) != wanted:
            text = f"{shown(getattr(found, 'kind', found))}, while compat is {compat!r}"
            yield Finding(path, text, f"{wanted!r}, or no compat")
