"""When two scenarios are the same simulation: all that a run's numbers follow from, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from blossom_ray.core.section import plain_tree
from blossom_ray.scenario.tree import ScenarioTree

_EACH = "*"
_ADDED_LATER: dict[tuple[str, ...], Any] = {
    ("data", "validation_fraction"): 0.0,
    ("model", "fusion", "norm"): "none",
    ("model", "encoders", _EACH, "weights"): None,
    ("model", "fusion", "weights"): None,
    ("model", "head", "weights"): None,
    ("evaluation", "per_class"): "final",
    ("data", "client_column"): None,
    ("data", "recording_column"): None,
    ("data", "split_names"): {},
    ("data", "standardize"): False,
    ("evaluation", "fine_tune", "last"): 1,
    ("evaluation", "split"): "test",
    ("evaluation", "unseen"): {"start": "initial"},
    ("stop",): None,
    ("training", "optimizer", "blocks"): {},
    ("algorithm",): {"kind": "fedavg"},
    ("training", "loss"): {"kind": "task"},
    ("training", "transform"): {},
    ("data", "observed"): {},
    ("data", "without_modality"): "refuse",
    ("data", "modalities", _EACH, "nan"): "refuse",
    ("data", "modalities", _EACH, "kind"): "numbers",
    ("datasets", _EACH, "modalities", _EACH, "kind"): "numbers",
    ("clients", _EACH, "observed"): {},
    ("clients", _EACH, "observed_draw"): "independent",
    ("data", "partition", "unseen"): (),
    ("data", "partition", "shots"): None,
    ("clients", _EACH, "role"): "train",
    ("clients", _EACH, "rows"): "shared",
    ("clients", _EACH, "shots"): None,
    ("tasks",): None,
    ("datasets",): None,
    ("tasks", _EACH, "data"): None,
    ("server", "task_weights"): "samples",
    ("clients", _EACH, "task"): None,
    ("tasks", _EACH, "loss_weight"): 1.0,
    ("data", "partition", "labels"): None,
    ("data", "modalities"): None,
    ("data", "modalities", _EACH, "scale"): "none",
    ("data", "modalities", _EACH, "over"): "client",
    ("datasets", _EACH, "modalities"): None,
    ("datasets", _EACH, "modalities", _EACH, "scale"): "none",
    ("datasets", _EACH, "modalities", _EACH, "over"): "client",
}
"""Keys that scenarios once did not have, with the value that says the same: runs of then are simulations of now.

`*` stands for each entry of a list or a map.
"""


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
        for section in _branches(tree, path):
            if key in section and section[key] == default:
                del section[key]
    plain: dict[str, Any] = json.loads(
        json.dumps(tree, default=lambda value: str(getattr(value, "__qualname__", repr(type(value)))))
    )
    return plain


def _branches(tree: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sections at a path; none where it leads nowhere, as in what another kind of data set has."""
    if not path:
        yield from [tree] if isinstance(tree, dict) else []
    elif path[0] == _EACH:
        for branch in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
            yield from _branches(branch, path[1:])
    elif isinstance(tree, dict) and path[0] in tree:
        yield from _branches(tree[path[0]], path[1:])


def identity(scenario: ScenarioTree) -> str:
    """SHA-256 (hex) over `numbers_tree`: equal for scenarios that give the same numbers on the same data."""
    return hashlib.sha256(json.dumps(numbers_tree(scenario), sort_keys=True).encode()).hexdigest()
