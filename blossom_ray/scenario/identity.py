"""When two scenarios are the same simulation: all that a run's numbers follow from, and nothing else."""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from typing import Any

from blossom_ray.core.section import plain_tree
from blossom_ray.scenario.tree import ScenarioTree

_ADDED_LATER: dict[tuple[str, ...], Any] = {
    ("data", "validation_fraction"): 0.0,
    ("model", "fusion", "norm"): "none",
    ("evaluation", "per_class"): "final",
    ("data", "client_column"): None,
    ("data", "recording_column"): None,
    ("data", "standardize"): False,
    ("evaluation", "split"): "test",
    ("stop",): None,
    ("training", "optimizer", "blocks"): {},
    ("algorithm",): {"kind": "fedavg"},
    ("training", "loss"): {"kind": "task"},
    ("training", "transform"): {},
}
"""Keys that scenarios once did not have, with the value that says the same: runs of then are simulations of now."""


def numbers_tree(scenario: ScenarioTree) -> dict[str, Any]:
    """The settings that a run's numbers follow from, defaults spelled out, as JSON values.

    Without the name, `checkpoint`, `failures`, all of `execution` but `chunk_size`, and keys of later versions at their
    defaults, or where they say no more than another key. Callables appear by their qualified name: two processes have
    no more in common.
    """
    tree = plain_tree(scenario, defaults=True)
    for place_only in ("name", "checkpoint", "failures"):
        del tree[place_only]
    tree["execution"] = {"chunk_size": scenario.execution.chunk_size}
    if scenario.seeds.training == scenario.seeds.federation:
        del tree["training_seed"]
    for (*path, key), default in _ADDED_LATER.items():
        section = reduce(lambda branch, name: branch[name], path, tree)
        if key in section and section[key] == default:
            del section[key]
    plain: dict[str, Any] = json.loads(
        json.dumps(tree, default=lambda value: str(getattr(value, "__qualname__", repr(type(value)))))
    )
    return plain


def identity(scenario: ScenarioTree) -> str:
    """SHA-256 (hex) over `numbers_tree`: equal for scenarios that give the same numbers on the same data."""
    return hashlib.sha256(json.dumps(numbers_tree(scenario), sort_keys=True).encode()).hexdigest()
