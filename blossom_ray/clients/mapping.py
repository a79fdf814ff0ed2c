"""Functions of one client, for many: mapped over all of them at once, or called for one after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from blossom_ray.algorithms.seam import Pass, Sent
from blossom_ray.errors import RunError

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Slot:
    """Where a tensor stood in what a function returned."""

    path: str


def _taken_apart(value: Any, found: dict[str, Tensor], path: str = "") -> Any:
    """The value with slots instead of its tensors, which go to `found`."""
    if isinstance(value, Tensor):
        found[path] = value
        return _Slot(path)
    if isinstance(value, Mapping):
        return type(value)({name: _taken_apart(v, found, f"{path}/{name}") for name, v in value.items()})  # type: ignore[call-arg]  # a dict or Tree
    if isinstance(value, Pass | Sent):
        parts = {
            each.name: _taken_apart(getattr(value, each.name), found, f"{path}.{each.name}") for each in fields(value)
        }
        return type(value)(**parts)
    if isinstance(value, list | tuple):
        return type(value)(_taken_apart(v, found, f"{path}/{at}") for at, v in enumerate(value))
    return value


def _put_together(value: Any, rows: Mapping[str, Tensor]) -> Any:
    if isinstance(value, _Slot):
        return rows[value.path]
    if isinstance(value, Mapping):
        return type(value)({name: _put_together(v, rows) for name, v in value.items()})  # type: ignore[call-arg]  # a dict or Tree
    if is_dataclass(value) and isinstance(value, Pass | Sent):
        return type(value)(**{each.name: _put_together(getattr(value, each.name), rows) for each in fields(value)})
    if isinstance(value, list | tuple):
        return type(value)(_put_together(v, rows) for v in value)
    return value


def mapped(function: Callable[[Any], Result], rows: Mapping[str, Any]) -> Result:
    """What a function gives for each client, all at once by `torch.vmap`; its tensors as rows.

    Args:
        function: Of one client's part of `rows`, with trees where they are.
        rows: By name nested maps of tensors, a row for each client.
    """
    shapes: list[Any] = []

    def one(own: Mapping[str, Any]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        shapes.append(_taken_apart(function(as_trees(own, rows)), found))
        return found

    found = torch.vmap(one, randomness="error")(plain(rows))
    together: Result = _put_together(shapes[0], found)
    return together


def one_by_one(method: str, function: Callable[[Any], Result], rows: Mapping[str, Any], count: int) -> Result:
    """The same, one client after the other.

    Raises:
        RunError: The function writes into what it was given, or what it gives differs in kind from client to client.
    """
    shapes: list[Any] = []
    found: defaultdict[str, list[Tensor]] = defaultdict(list)
    given = _leaves(rows)
    versions = [tensor._version for tensor in given]
    for k in range(count):
        own: dict[str, Tensor] = {}
        shapes.append(_taken_apart(function(_row(rows, k)), own))
        for path, tensor in own.items():
            found[path].append(tensor)
    if versions != [tensor._version for tensor in given]:
        raise RunError(f"algorithm: {method} writes into what it was given; expected new tensors")
    if any(shape != shapes[0] for shape in shapes):
        raise RunError(f"algorithm: {method} differs between clients of one kind; expected numbers as tensors")
    together: Result = _put_together(shapes[0], {path: torch.stack(own) for path, own in found.items()})
    return together


def _row(value: Any, k: int) -> Any:
    if isinstance(value, Mapping):
        return type(value)({name: _row(v, k) for name, v in value.items()})  # type: ignore[call-arg]  # a dict or Tree
    return value[k]


def plain(value: Any) -> Any:
    """Trees as dicts, which is what `torch.vmap` maps over."""
    return {name: plain(v) for name, v in value.items()} if isinstance(value, Mapping) else value


def as_trees(value: Any, like: Any) -> Any:
    """The inverse of `plain`, with trees where `like` has them."""
    if isinstance(value, Mapping):
        return type(like)({name: as_trees(v, like[name]) for name, v in value.items()})
    return value


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for v in value.values() for leaf in _leaves(v)] if isinstance(value, Mapping) else [value]
