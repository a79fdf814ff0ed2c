"""What model, sharing, algorithm, training and evaluation cannot say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blossom_ray.algorithms.options import OF_CLASSES, OF_PLAIN_STEPS, AlgorithmOption, Server
from blossom_ray.algorithms.server_optimizers import FedAvg
from blossom_ray.clients.options import Training, ignored_keys
from blossom_ray.core.blocks import (
    ANY_ENCODER,
    ANY_FUSION,
    CENTRAL,
    CENTRAL_SCHEMES,
    FUSION,
    Block,
    BlockKind,
    Scope,
    SharingScheme,
    model_blocks,
)
from blossom_ray.core.phrases import did_you_mean, listed, one_of, shown
from blossom_ray.core.scores import SCORES, SUFFIXES, LearnedTask, task_prefix
from blossom_ray.core.section import Finding
from blossom_ray.data.division.options import (
    ClientGroup,
)
from blossom_ray.data.options import Data
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.models.encoder_options import EmbeddingEncoder
from blossom_ray.models.options import Model
from blossom_ray.scenario.rules import rule
from blossom_ray.scenario.sections import Evaluation, Execution, Stop
from blossom_ray.scenario.tree import REFERENCE


@rule
def _sharing_map(
    sharing: str | Mapping[str, str], model: Model, learned: Mapping[str, LearnedTask]
) -> Iterator[Finding]:
    if isinstance(sharing, str):
        return
    blocks = model_blocks(model.encoders)
    known = (*_named_blocks(model, learned), *([] if "" in learned else [ANY_FUSION]))
    for block in sharing:
        if block not in known:
            expected = one_of(known) + did_you_mean(block, known)
            yield Finding(f"sharing.{block}", "is not a block of this model", expected)
    scheme = SharingScheme.of(sharing)
    uncovered = [
        block for block in blocks if block not in scheme.scopes and Block(block.kind, "*") not in scheme.scopes
    ]
    if uncovered:
        each = f"a scope for every block: {listed(blocks)} ({ANY_ENCODER} stands for every encoder)"
        yield Finding("sharing", f"says nothing about {listed(uncovered)}", each)


def _named_blocks(model: Model, learned: Mapping[str, LearnedTask]) -> tuple[str, ...]:
    """What a map by block may name."""
    of_tasks = (Block(kind, name) for kind in _OF_TASK for name in learned if name)
    return (ANY_ENCODER, *model_blocks(model.encoders), *of_tasks)


_OF_TASK: tuple[BlockKind, ...] = ("fusion", "head")


@rule
def _group_labels(sharing: str | Mapping[str, str], clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    if isinstance(sharing, str):
        return
    for index, group in enumerate(clients):
        of_group = [block for block, scope in sharing.items() if scope == "group"]
        blocks = [
            block
            for block in map(Block.named, of_group)
            if block == ANY_ENCODER or block.kind != "encoder" or block.of in group.modalities
        ]
        if blocks and not group.group:
            found = f"is empty, while sharing gives {listed(blocks)} the scope group"
            yield Finding(f"clients.{index}.group", found, "a label for every group of clients")


@rule
def _cohort(server: Server, num_clients: int) -> Iterator[Finding]:
    size = server.clients_per_round
    if isinstance(size, int) and size > num_clients:
        expected = f"at most {num_clients}, the number of clients"
        yield Finding("server.clients_per_round", f"is {size}", expected)


@rule
def _cohorts_of_tasks(
    server: Server, learned: Mapping[str, LearnedTask], clients: tuple[ClientGroup, ...]
) -> Iterator[Finding]:
    sizes, path = server.clients_per_round, "server.clients_per_round"
    if not isinstance(sizes, Mapping):
        return
    names = [name for name in learned if name]
    for name, size in sizes.items():
        own = [group.count for group in clients if group.role == "train" and name in (group.tasks or (name,))]
        if name not in names:
            found = f"is of the task {name!r}, " + ("which there is not" if names else "while there are no tasks")
            yield Finding(f"{path}.{name}", found, one_of(names) if names else "a fraction or a number of clients")
        elif isinstance(size, int) and size > sum(own):
            yield Finding(f"{path}.{name}", f"is {size}", f"at most {sum(own)}, the number of its clients")
    if missing := [name for name in names if name not in sizes]:
        yield Finding(path, f"says nothing about {listed(missing)}", "a fraction or a number for each task")
    if several := next((group.tasks for group in clients if len(group.tasks) > 1), ()):
        found = f"has a number for each task, while clients have the tasks {listed(several)} at once"
        yield Finding(path, found, "one number for all clients")


@rule
def _task_weights(server: Server, learned: Mapping[str, LearnedTask], algorithm: AlgorithmOption) -> Iterator[Finding]:
    if server.task_weights == "samples":
        return
    found = f"is {server.task_weights!r}, while "
    if len(learned) < 2:
        yield Finding("server.task_weights", f"{found}there are no several tasks", "'samples'")
    if algorithm.kind != "fedavg":
        found += f"algorithm.kind is {algorithm.kind!r}, for which a client has one weight"
        yield Finding("server.task_weights", found, "'samples', or fedavg")


@rule
def _stop_rounds(stop: Stop, rounds: int) -> Iterator[Finding]:
    if stop.min_rounds > rounds:
        yield Finding("stop.min_rounds", f"is {stop.min_rounds}", f"at most {rounds}, the number of rounds")


@rule
def _stop_metric(
    stop: Stop, learned: Mapping[str, LearnedTask], evaluation: Evaluation, clients: tuple[ClientGroup, ...]
) -> Iterator[Finding]:
    known: list[str] = []
    examples: list[str] = []
    for task, section in learned.items():
        own, sets = (
            tuple(evaluation.metrics),
            {group.modality_set for group in clients if task in (group.tasks or (task,))},
        )
        pooled = [score.name for score in SCORES[section.kind]]
        names = ["loss", *pooled, *own]
        plain = [*names, *(f"{name}{suffix}" for name in names for suffix in SUFFIXES if suffix != "_pooled")]
        plain += [*(f"{name}_pooled" for name in pooled), *(f"{name}/{one}" for name in names for one in sets)]
        known += [f"{task_prefix(task)}{name}" for name in plain]
        examples += [f"{task_prefix(task)}{name}" for name in names]
    if stop.metric is None:
        if len(learned) > 1:
            found = f"is null, while there are the tasks {listed(learned)}"
            yield Finding("stop.metric", found, f"a score of one of them, such as {examples[1]!r}")
        return
    metric = stop.metric.removeprefix("validation/")
    if metric not in known:
        expected = f"a score on the clients' validation splits, such as {listed(examples)}"
        yield Finding("stop.metric", shown(stop.metric), expected + did_you_mean(metric, known))


@rule
def _engines(training: Training, clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    if isinstance(training.engine, str):
        return
    known = tuple(sorted({group.modality_set for group in clients}))
    unknown = [name for name in training.engine if name not in known]
    for name in unknown:
        expected = one_of(known) + did_you_mean(name, known)
        yield Finding(f"training.engine.{name}", "is not a modality set of the clients", expected)
    missing = [name for name in known if name not in training.engine]
    if missing and not unknown:
        yield Finding("training.engine", f"says nothing about {listed(missing)}", "an engine for every modality set")


@rule
def _loss(training: Training, learned: Mapping[str, LearnedTask], data: Data) -> Iterator[Finding]:
    for task in learned.values():
        num_classes = data.classes if isinstance(data, SyntheticData) and task.labels in (None, "class") else None
        for finding in training.loss.misfits(task.kind, num_classes):
            yield finding._replace(path=f"training.loss.{finding.path}")


@rule
def _transforms(training: Training, model: Model) -> Iterator[Finding]:
    for name in training.transform:
        if name not in model.encoders:
            expected = f"a modality with an encoder: {listed(model.encoders)}" + did_you_mean(name, model.encoders)
            yield Finding(f"training.transform.{name}", "is of a modality without an encoder", expected)
        elif isinstance(model.encoders[name], EmbeddingEncoder):
            found = f"is given, while model.encoders.{name} takes numbers of tokens, which no transform knows"
            yield Finding(f"training.transform.{name}", found, "none for this modality")


@rule
def _transform_shapes(training: Training, data: Data, model: Model) -> Iterator[Finding]:
    for name, shape in data.input_shapes(name for name in training.transform if name in model.encoders).items():
        for finding in training.transform[name].misfits(shape, name):
            yield finding._replace(path=f"training.transform.{name}.{finding.path}")


@rule
def _optimizer_blocks(training: Training, model: Model, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    known = _named_blocks(model, learned)
    for block in training.optimizer.blocks:
        if block not in known:
            expected = one_of(known) + did_you_mean(block, known)
            yield Finding(f"training.optimizer.blocks.{block}", "is not a block of this model", expected)


@rule
def _actor_per_client(training: Training, execution: Execution) -> Iterator[Finding]:
    if execution.runtime == "local" or execution.clients_per_actor != 1 or training.engine == "auto":
        return
    if training.may_stack:
        found = (
            f"is 1, while training.engine is {training.asked_to_stack!r}, which keeps a chunk of clients in one actor"
        )
        yield Finding("execution.clients_per_actor", found, "auto or a larger number, or training.engine: sequential")


@rule
def _central(sharing: str | Mapping[str, str], sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Where one model is trained there is nothing to average, to weigh or to keep by client."""
    if sharing not in CENTRAL_SCHEMES:
        return
    plain: dict[str, tuple[object, str]] = {
        "training.keep_optimizer_state": (False, "false"),
        "training.proximal_mu": (0.0, "0"),
        "training.min_batch_size": (1, "1"),
        "server.clients_per_round": (1.0, "1.0"),
        "server.weighting": ("samples", "'samples'"),
        "server.task_weights": ("samples", "'samples'"),
        "server.optimizer": (FedAvg(kind="fedavg"), "'fedavg' with a learning rate of 1"),
        "model.norm_statistics": ("shared", "'shared'"),
    }
    for path, (value, expected) in plain.items():
        section, key = path.split(".")
        found = getattr(sections.get(section), key, value)
        if found != value:
            yield Finding(path, f"{shown(getattr(found, 'kind', found))}, while sharing is {sharing!r}", expected)
    datasets, tasks = sections.get("datasets") or (), sections.get("tasks") or {}
    if sharing == CENTRAL and len(datasets) > 1:
        found = f"are {listed(datasets)}, while sharing is 'central', whose one model has samples of one data set"
        yield Finding("datasets", found, "one data set, or 'central-per-task'")
    for name, section in tasks.items():
        if sharing == CENTRAL and len(tasks) > 1 and section.lr is not None:
            found = f"is {section.lr:g}, while sharing is 'central', which trains one model for all tasks"
            yield Finding(f"tasks.{name}.lr", found, "null, or 'central-per-task'")
    kind = getattr(sections.get("algorithm"), "kind", "fedavg")
    if kind != "fedavg":
        yield Finding("algorithm.kind", f"is {kind!r}, while sharing is {sharing!r}", "'fedavg'")
    model = sections.get("model")
    if model is not None and model.missing == "prototype":
        yield Finding("model.missing", f"is 'prototype', while sharing is {sharing!r}", "another rule")


@rule
def _passes(algorithm: AlgorithmOption, training: Training) -> Iterator[Finding]:
    yield from ignored_keys(algorithm, training)


@rule
def _classes(
    algorithm: AlgorithmOption, learned: Mapping[str, LearnedTask], clients: tuple[ClientGroup, ...]
) -> Iterator[Finding]:
    several = next((group.tasks for group in clients if len(group.tasks) > 1), ())
    if several and algorithm.kind in OF_CLASSES:
        found = f"is {algorithm.kind!r}, which has a place for each class of one task, while clients have "
        yield Finding("algorithm.kind", f"{found}{listed(several)}", "another kind, or clients with one task each")
    for name, task in learned.items():
        if task.kind != "classification" and algorithm.kind in OF_CLASSES:
            where = f"tasks.{name}.kind" if name else "task"
            found = f"is {algorithm.kind!r}, which has a place for each class, while {where} is {task.kind!r}"
            yield Finding("algorithm.kind", found, "another kind, or task: classification")


@rule
def _plain_steps(algorithm: AlgorithmOption, training: Training, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    averaged = [block for block, scope in scopes.items() if scope not in (Scope.PRIVATE, Scope.FROZEN)]
    if algorithm.kind in OF_PLAIN_STEPS and not all(training.optimizer.of(block).is_plain for block in averaged):
        found = f"has momentum or is no sgd, while algorithm.kind is {algorithm.kind!r}, which counts plain steps"
        yield Finding("training.optimizer", found, "{kind: sgd, momentum: 0} for each block that is averaged")


@rule
def _alternation(training: Training, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    if training.alternate is None:
        return
    trained = {scope for scope in scopes.values() if scope is not Scope.FROZEN}
    if Scope.PRIVATE not in trained or trained == {Scope.PRIVATE}:
        found = f"alternates between private blocks and others, while {'no' if trained - {Scope.PRIVATE} else 'every'} "
        expected = "a sharing scheme with private blocks and others, such as private-head, or null"
        yield Finding("training.alternate", found + "block is private", expected)


@rule
def _entropies(
    learned: Mapping[str, LearnedTask], server: Server, clients: tuple[ClientGroup, ...]
) -> Iterator[Finding]:
    several = next((group.tasks for group in clients if len(group.tasks) > 1), ())
    if server.weighting == "entropy" and several:
        found = f"is 'entropy', while clients have the tasks {listed(several)}, whose outputs are of several kinds"
        yield Finding("server.weighting", found, "'samples' or 'uniform', or clients with one task each")
    for task in learned.values():
        if server.weighting == "entropy" and task.kind != "classification":
            found = f"is 'entropy', while the task is {task.kind!r}, which has no probabilities of classes"
            yield Finding("server.weighting", found, "'samples' or 'uniform'")


@rule
def _weights_of_blocks(algorithm: AlgorithmOption, server: Server) -> Iterator[Finding]:
    if server.weighting == "observed" and algorithm.kind != "fedavg":
        found = f"is 'observed', by which a client's blocks weigh differently, while algorithm is {algorithm.kind!r}"
        yield Finding("server.weighting", found, "'samples' or 'uniform', or algorithm: fedavg")


@rule
def _tuned_blocks(evaluation: Evaluation, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    section = evaluation.fine_tune
    if section is None or section.blocks == "all":
        return
    tuned = section.blocks.split("-")
    if all(scopes[block] is Scope.FROZEN for block in tuned):
        found = f"is {section.blocks!r}, while sharing freezes what it would tune"
        yield Finding("evaluation.fine_tune.blocks", found, "'all', or blocks that are not frozen")


@rule
def _prototypes_in_training(model: Model, training: Training) -> Iterator[Finding]:
    if model.missing != "prototype":
        return
    if training.asked_to_stack:
        found = f"asks for {training.asked_to_stack!r}, while model.missing is 'prototype'"
        yield Finding("training.engine", found, "'sequential' or 'auto'")
    if training.modality_dropout > 0:
        found = f"is {training.modality_dropout}, while model.missing is 'prototype'"
        expected = "0: a client is not sent the prototypes of its own modalities"
        yield Finding("training.modality_dropout", found, expected)


@rule
def _prototypes_of_encoders(
    model: Model, clients: tuple[ClientGroup, ...], scopes: Mapping[str, Scope], learned: Mapping[str, LearnedTask]
) -> Iterator[Finding]:
    if model.missing != "prototype":
        return
    is_within = ANY_FUSION in scopes or scopes[FUSION] in (
        Scope.PRIVATE,
        Scope.SAME_TASK,
        Scope.SAME_MODALITIES_AND_TASK,
    )

    def data_set(group: ClientGroup) -> str | None:
        """Clients of others do not lack what it has, unless a fusion is of both."""
        return learned[group.tasks[0]].data if is_within and group.tasks and group.tasks[0] in learned else None

    for modality in model.encoders:
        scope = scopes[Block("encoder", modality)]
        owners = {data_set(group) for group in clients if modality in group.modalities}
        is_lacked = any(modality not in group.modalities and data_set(group) in owners for group in clients)
        if is_lacked and scope not in (Scope.SHARED, Scope.FROZEN):
            found = f"is 'prototype', while encoder/{modality} has the scope {scope}, so its copies embed differently"
            yield Finding("model.missing", found, "shared or frozen encoders, or another rule")


@rule
def _compat(compat: str, sections: Mapping[str, Any]) -> Iterator[Finding]:
    for path, value in REFERENCE.items():
        name, key = path.split(".")
        if sections.get(name) is None:
            continue
        found = getattr(sections[name], key)
        wanted = value["kind"] if isinstance(value, Mapping) else value
        if getattr(found, "kind", found) != wanted:
            text = f"{shown(getattr(found, 'kind', found))}, while compat is {compat!r}"
            yield Finding(path, text, f"{wanted!r}, or no compat")
