"""Checks across sections: values that are right in themselves and cannot stand together.

What one section can see by itself is its own method `conflicts`; a rule between sections is a function in
`data_rules.py`, `dataset_rules.py` or `training_rules.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from blossom_ray.core.blocks import (
    SCHEME_NAMES,
    Block,
    Scope,
    SharingScheme,
    model_blocks,
)
from blossom_ray.core.locations import is_uri
from blossom_ray.core.phrases import shown
from blossom_ray.core.scores import LearnedTask
from blossom_ray.core.section import Finding, find_conflicts
from blossom_ray.data.federated import renamed
from blossom_ray.data.sets.base import DataSection, Download
from blossom_ray.data.sets.table import TableData
from blossom_ray.errors import InputError
from blossom_ray.models.options import place_of
from blossom_ray.models.weights import checked_sum
from blossom_ray.scenario import data_rules, dataset_rules, training_rules  # noqa: F401  # their rules
from blossom_ray.scenario.rules import RULES


def cross_problems(sections: Mapping[str, Any]) -> list[Finding]:
    """Everything that does not fit together, within sections and across them.

    Args:
        sections: The top-level values of a scenario that are right in themselves. A check runs where all that it
            compares is there.
    """
    found = [
        finding for name, section in sections.items() for finding in find_conflicts(section, name) if name != "datasets"
    ]
    own_data = data_sets(sections)
    for name, data in own_data.items() if "" not in own_data else ():
        found += _of_data_set(find_conflicts(data, "data"), name, data)
    if isinstance(sections.get("clients"), str):
        sections = {"from_data" if name == "clients" else name: section for name, section in sections.items()}
    known = {name: section for name, section in sections.items() if section is not None} | {"sections": sections}
    if "clients" in known:
        groups = known["clients"]
        known["num_clients"] = sum(group.count for group in groups if group.role == "train")
        known["num_parts"] = sum(group.count for group in groups if group.rows == "shared")
    if "task" in sections and "tasks" in sections:
        known["learned"] = sections["tasks"] or {"": LearnedTask(kind=sections["task"])}
    if scopes := _scopes(sections):
        known["scopes"] = scopes
    parts = {name: _part(known, name, data) for name, data in own_data.items()}
    for needed, check in RULES:
        for name, own in parts.items() if "data" in needed else [("", known)]:
            if all(key in own for key in needed):
                found += _of_data_set(check(*(own[key] for key in needed)), name, own.get("data"))
    return found


def data_sets(sections: Mapping[str, Any]) -> dict[str, DataSection]:
    """The data sets by name, "" for `data`; none where they are wrong.

    Args:
        sections: As for `cross_problems`.
    """
    several, only = sections.get("datasets"), sections.get("data")
    return several or ({} if only is None else {"": only})


def _part(known: Mapping[str, Any], name: str, data: DataSection) -> dict[str, Any]:
    """What rules about `data` are told of one of several data sets: its tasks, clients and modalities alone."""
    if not name:
        return dict(known)
    part = {key: value for key, value in known.items() if key not in ("learned", "tasks", "num_parts", "num_clients")}
    tasks = {task: each for task, each in known.get("learned", {}).items() if each.data in (name, None)}
    if tasks:
        part |= {"learned": tasks, **({"tasks": tasks} if "tasks" in known else {})}
    if groups := [group for group in known.get("clients", ()) if not group.tasks or {*group.tasks} & {*tasks}]:
        part["num_clients"] = sum(group.count for group in groups if group.role == "train")
        part["num_parts"] = sum(group.count for group in groups if group.rows == "shared")
        owned = {modality for group in groups for modality in group.modalities}
        if "model" in known:
            encoders = {key: encoder for key, encoder in known["model"].encoders.items() if key in owned}
            part["model"] = known["model"].model_copy(update={"encoders": encoders})
    return {**part, "data": data}


def _of_data_set(findings: Iterable[Finding], name: str, data: DataSection | None) -> Iterator[Finding]:
    """Findings about `data` in the words of a scenario with several of them."""
    for finding in findings:
        yield finding if data is None else Finding(*(renamed(text, name, data) for text in finding))


def missing_data(sections: Mapping[str, Any]) -> list[Finding]:
    """What a run needs on this machine and does not find; the scenario of a run that is over does without.

    Args:
        sections: As for `cross_problems`.
    """
    found = missing_weights(sections)
    for name, data in data_sets(sections).items():
        if not isinstance(data, Download | TableData) or data.path is None or is_uri(data.path):
            continue
        if not os.path.exists(os.path.expanduser(data.path)):
            path = renamed("data.path", name, data)
            found.append(Finding(path, f"{shown(data.path)}, which does not exist", data.facts.download))
    return found


def missing_weights(sections: Mapping[str, Any]) -> list[Finding]:
    """Files with values of blocks that cannot be read, or are not those that the scenario means.

    Args:
        sections: As for `cross_problems`.
    """
    model, findings = sections.get("model"), []
    for block, weights in model.pretrained.items() if model is not None else ():
        try:
            checked_sum(weights)
        except InputError as error:
            found, _, expected = str(error).partition("; expected ")
            findings.append(
                Finding(f"{place_of(block)}.weights.path", f"{shown(weights.path)}, which {found}", expected)
            )
    return findings


def missing_validation(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """What asks for the clients' validation splits, where no client has one.

    Args:
        sections: As for `cross_problems`.
    """
    evaluation, whose = sections.get("evaluation"), "datasets.<name>" if sections.get("datasets") else "data"
    expected = f"{whose}.validation_fraction above 0"
    if evaluation is not None and evaluation.split == "validation":
        yield Finding("evaluation.split", "is 'validation', and no client has a validation split", expected)
    if sections.get("stop") is not None:
        yield Finding("stop", "asks for validation splits, and no client has one", f"{expected}, or null")


def _scopes(sections: Mapping[str, Any]) -> dict[str, Scope]:
    """The scope of every block; empty where `model` or `sharing` is wrong."""
    model, sharing = sections.get("model"), sections.get("sharing")
    if model is None or sharing is None or (isinstance(sharing, str) and sharing not in SCHEME_NAMES):
        return {}
    try:
        scheme = SharingScheme.of(sharing).with_frozen(model.frozen_blocks)
        # Beside those of all tasks the blocks of single tasks that a map names.
        of_tasks = [name for name in map(Block.named, scheme.scopes) if name.kind in ("fusion", "head")]
        return {block: scheme.scope(block) for block in (*model_blocks(model.encoders), *of_tasks)}
    except KeyError:
        return {}  # a block without a scope is a problem of its own
