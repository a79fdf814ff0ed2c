"""Checks across sections of what a federated algorithm asks for: sharing, training and evaluation together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blossom_ray.algorithms.options import FedAvg, Server
from blossom_ray.clients.options import Training
from blossom_ray.core.blocks import CENTRAL, SCHEME_NAMES, Scope, SharingScheme, block_names, encoder_block
from blossom_ray.core.phrases import Finding, shown
from blossom_ray.data.partition_options import ClientGroup
from blossom_ray.models.options import Model
from blossom_ray.scenario.sections import Evaluation


def algorithm_problems(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything in `sharing`, `training` and `evaluation` that does not fit together.

    Args:
        sections: The top-level values of a scenario that are right in themselves. A check runs where all that it
            compares is there.
    """
    training, evaluation = sections.get("training"), sections.get("evaluation")
    scopes = _scopes(sections)
    if "task" in sections and "server" in sections:
        yield from _entropies(sections["task"], sections["server"])
    if scopes and training is not None:
        yield from _alternation(training, scopes)
    if scopes and evaluation is not None:
        yield from _tuned_blocks(evaluation, scopes)
    model, clients = sections.get("model"), sections.get("clients")
    if sections.get("sharing") == CENTRAL:
        yield from _central(sections)
    if training is not None:
        yield from _engine(training)
        if model is not None:
            yield from _prototypes_in_training(model, training)
    if scopes and model is not None and clients is not None:
        yield from _prototypes_of_encoders(model, clients, scopes)


def _scopes(sections: Mapping[str, Any]) -> dict[str, Scope]:
    """The scope of every block; empty where `model` or `sharing` is wrong."""
    model, sharing = sections.get("model"), sections.get("sharing")
    if model is None or sharing is None or (isinstance(sharing, str) and sharing not in SCHEME_NAMES):
        return {}
    try:
        scheme = SharingScheme.of(sharing)
        return {block: scheme.scope(block) for block in block_names(model.encoders)}
    except KeyError:
        return {}  # a block without a scope is a problem of its own


def _central(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Where one model is trained there is nothing to average, to weigh or to keep by client."""
    plain: dict[str, tuple[object, str]] = {
        "training.keep_optimizer_state": (False, "false"),
        "training.proximal_mu": (0.0, "0"),
        "training.min_batch_size": (1, "1"),
        "server.clients_per_round": (1.0, "1.0"),
        "server.weighting": ("samples", "'samples'"),
        "server.optimizer": (FedAvg(kind="fedavg"), "'fedavg' with a learning rate of 1"),
        "model.norm_statistics": ("shared", "'shared'"),
    }
    for path, (value, expected) in plain.items():
        section, key = path.split(".")
        found = getattr(sections.get(section), key, value)
        if found != value:
            yield Finding(path, f"{shown(getattr(found, 'kind', found))}, while sharing is 'central'", expected)
    model = sections.get("model")
    if model is not None and model.missing == "prototype":
        yield Finding("model.missing", "is 'prototype', while sharing is 'central'", "another rule")


def _alternation(training: Training, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    if training.alternate is None:
        return
    trained = {scope for scope in scopes.values() if scope is not Scope.FROZEN}
    if Scope.PRIVATE not in trained or trained == {Scope.PRIVATE}:
        found = f"alternates between private blocks and others, while {'no' if trained - {Scope.PRIVATE} else 'every'} "
        expected = "a sharing scheme with private blocks and others, such as private-head, or null"
        yield Finding("training.alternate", found + "block is private", expected)


def _entropies(task: str, server: Server) -> Iterator[Finding]:
    if server.weighting == "entropy" and task != "classification":
        found = f"is 'entropy', while the task is {task!r}, which has no probabilities of classes"
        yield Finding("server.weighting", found, "'samples' or 'uniform'")


def _tuned_blocks(evaluation: Evaluation, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    section = evaluation.fine_tune
    if section is None or section.blocks == "all":
        return
    tuned = section.blocks.split("-")
    if all(scopes[block] is Scope.FROZEN for block in tuned):
        found = f"is {section.blocks!r}, while sharing freezes what it would tune"
        yield Finding("evaluation.fine_tune.blocks", found, "'all', or blocks that are not frozen")


def _stacks(training: Training) -> bool:
    """Whether the scenario insists on stacks, for all clients or for some."""
    return "vectorized" in ([training.engine] if isinstance(training.engine, str) else training.engine.values())


def _engine(training: Training) -> Iterator[Finding]:
    if _stacks(training) and training.modality_dropout > 0:
        found = f"asks for 'vectorized', while training.modality_dropout is {training.modality_dropout}"
        yield Finding("training.engine", found, "'sequential' or 'auto', or a modality_dropout of 0")
    if _stacks(training) and training.min_batch_size > 1:
        found = f"asks for 'vectorized', while training.min_batch_size is {training.min_batch_size}"
        yield Finding("training.engine", found, "'sequential' or 'auto', or a min_batch_size of 1")


def _prototypes_in_training(model: Model, training: Training) -> Iterator[Finding]:
    if model.missing != "prototype":
        return
    if _stacks(training):
        found = "asks for 'vectorized', while model.missing is 'prototype'"
        yield Finding("training.engine", found, "'sequential' or 'auto'")
    if training.modality_dropout > 0:
        found = f"is {training.modality_dropout}, while model.missing is 'prototype'"
        expected = "0: a client is not sent the prototypes of its own modalities"
        yield Finding("training.modality_dropout", found, expected)


def _prototypes_of_encoders(
    model: Model, clients: tuple[ClientGroup, ...], scopes: Mapping[str, Scope]
) -> Iterator[Finding]:
    if model.missing != "prototype":
        return
    for modality in model.encoders:
        scope = scopes[encoder_block(modality)]
        is_lacked = any(modality not in group.modalities for group in clients)
        if is_lacked and scope not in (Scope.SHARED, Scope.FROZEN):
            found = f"is 'prototype', while encoder/{modality} has the scope {scope}, so its copies embed differently"
            yield Finding("model.missing", found, "shared or frozen encoders, or another rule")
