"""Checks across sections: values that are right in themselves and cannot stand together. A rule is one function.

What one section can see by itself is its own method `conflicts`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeVar

from blossom_ray.algorithms.options import OF_CLASSES, OF_PLAIN_STEPS, AlgorithmOption, Server
from blossom_ray.algorithms.server_optimizers import FedAvg
from blossom_ray.clients.options import Training, ignored_keys
from blossom_ray.core.blocks import (
    ANY_ENCODER,
    CENTRAL,
    HEAD,
    SCHEME_NAMES,
    Block,
    ClientProfile,
    Scope,
    SharingScheme,
    model_blocks,
    scope_key,
)
from blossom_ray.core.locations import is_uri
from blossom_ray.core.phrases import did_you_mean, listed, one_of, shown
from blossom_ray.core.scores import OTHER_COLUMNS, PREFIXES, SCORES, SUFFIXES, LearnedTask, Task, task_prefix
from blossom_ray.core.section import Finding, find_conflicts
from blossom_ray.data.division.options import (
    ClientGroup,
    DirichletPartition,
    GivenPartition,
    IidPartition,
    Observed,
    ObservedShares,
    by_split,
    of_held_out,
)
from blossom_ray.data.options import Data
from blossom_ray.data.sets.base import Download, OwnData
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.sets.table import TableData
from blossom_ray.errors import InputError
from blossom_ray.models.options import Model, place_of
from blossom_ray.models.weights import checked_sum
from blossom_ray.scenario.sections import Evaluation, Execution, Stop
from blossom_ray.scenario.tree import REFERENCE

_RULES: list[tuple[tuple[str, ...], Callable[..., Iterator[Finding]]]] = []
_Rule = TypeVar("_Rule", bound=Callable[..., Iterator[Finding]])


def _rule(check: _Rule) -> _Rule:
    """A rule, which runs where all sections that its parameters name are there and right in themselves.

    Beside the sections, a parameter can be `from_data` (the text, in the place of `clients`), `num_clients` (those that
    train), `num_parts` (those that share the data set's samples), `learned` (by task, as `ScenarioTree.learned`),
    `scopes` (by block), and `sections` (all of them).
    """
    code = check.__code__
    _RULES.append((code.co_varnames[: code.co_argcount], check))
    return check


def cross_problems(sections: Mapping[str, Any]) -> list[Finding]:
    """Everything that does not fit together, within sections and across them.

    Args:
        sections: The top-level values of a scenario that are right in themselves. A check runs where all that it
            compares is there.
    """
    found = [finding for name, section in sections.items() for finding in find_conflicts(section, name)]
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
    for needed, check in _RULES:
        if all(name in known for name in needed):
            found += check(*(known[name] for name in needed))
    return found


def missing_data(sections: Mapping[str, Any]) -> list[Finding]:
    """What a run needs on this machine and does not find; the scenario of a run that is over does without.

    Args:
        sections: As for `cross_problems`.
    """
    data, found = sections.get("data"), missing_weights(sections)
    if not isinstance(data, Download | TableData) or data.path is None:
        return found
    if is_uri(data.path) or os.path.exists(os.path.expanduser(data.path)):
        return found
    return [Finding("data.path", f"{shown(data.path)}, which does not exist", data.facts.download), *found]


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
    evaluation, expected = sections.get("evaluation"), "data.validation_fraction above 0"
    if evaluation is not None and evaluation.split == "validation":
        yield Finding("evaluation.split", "is 'validation', and no client has a validation split", expected)
    if sections.get("stop") is not None:
        yield Finding("stop", "asks for validation splits, and no client has one", f"{expected}, or null")


@_rule
def _task(data: Data, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    known = data.facts.labels
    for name, task in learned.items():
        where = f"tasks.{name}"
        if task.labels is None or task.labels == next(iter(known), None):
            for finding in data.task_problems(task.kind):
                yield finding._replace(path=f"{where}.kind") if name and finding.path == "task" else finding
        elif known and task.labels not in known:
            yield Finding(f"{where}.labels", shown(task.labels), one_of(known) + did_you_mean(task.labels, known))
        elif known and task.kind not in known[task.labels]:
            found = f"is {task.kind!r}, which the labels {task.labels!r} do not serve"
            yield Finding(f"{where}.kind", found, one_of(known[task.labels]))
        if task.labels in _OF_SUBJECTS:
            if data.split in ("subject", "common-subject"):
                found = (
                    f"is {task.labels!r}, while data.split is {data.split!r}, which tests on others than it trains on"
                )
                yield Finding(f"{where}.labels", found, "other labels, or another data.split")
            if isinstance(data, SyntheticData) and data.subjects is None:
                yield Finding(
                    f"{where}.labels", f"is {task.labels!r}, while data.subjects is null", "a number of subjects"
                )
        if task.class_names is not None and not isinstance(data, TableData):
            found = f"is given, while data.dataset is {data.dataset!r}, which has names of its own"
            yield Finding(f"{where}.class_names", found, "null")


_OF_SUBJECTS = ("subject", "speaker")


@_rule
def _generated_labels(data: Data, tasks: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    """Generated labels are of one kind; those that have a name are of a classification."""
    if not isinstance(data, SyntheticData):
        return
    kinds = ["classification" for task in tasks.values() if task.labels is not None]
    kinds += [task.kind for task in tasks.values() if task.labels is None]
    for name, task in tasks.items():
        if task.labels is None and task.kind != kinds[0]:
            yield Finding(f"tasks.{name}.kind", f"is {task.kind!r}, while other labels are of a {kinds[0]}", kinds[0])


@_rule
def _task_names(tasks: Mapping[str, LearnedTask], task: Task, model: Model) -> Iterator[Finding]:
    if task != "classification":
        yield Finding("task", f"is {task!r}, while there are tasks, each of its own kind", "no task beside tasks")
    scores = {score.name for scores in SCORES.values() for score in scores}
    scorings = {word for prefix in PREFIXES for word in prefix.split("/")}
    for name in tasks:
        if name in scores | scorings | OTHER_COLUMNS | {"test", "unseen", *model.encoders}:
            yield Finding(f"tasks.{name}", "is the name of a score, a column or a modality, too", "another name")


@_rule
def _client_tasks(learned: Mapping[str, LearnedTask], clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    names = [name for name in learned if name]
    for index, group in enumerate(clients):
        path = f"clients.{index}.task"
        if group.task is not None and group.task not in names:
            expected = one_of(names) + did_you_mean(group.task, names) if names else "null, or tasks by name"
            yield Finding(path, shown(group.task) + ("" if names else ", while there are no tasks"), expected)
        if group.task is None and len(names) > 1:
            yield Finding(path, f"is null, while there are the tasks {listed(names)}", "one of them")
    for name in names if len(names) > 1 else ():
        if all(group.task != name for group in clients):
            yield Finding(f"tasks.{name}", "is a task that no client has", "clients with this task")


@_rule
def _tasks_from_data(from_data: str, tasks: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    if len(tasks) > 1:
        found = f"is {from_data!r}, while there are the tasks {listed(tasks)}"
        yield Finding("clients", found, "groups of clients, each with its task")


@_rule
def _skewed_labels(data: Data, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    labels = data.partition.labels if isinstance(data.partition, DirichletPartition) else None
    if labels is None:
        return
    path, known = "data.partition.labels", data.facts.labels or [task.labels for task in learned.values()]
    if "" in learned:
        yield Finding(path, f"is {labels!r}, while there are no tasks", "null")
    elif labels not in known:
        yield Finding(path, shown(labels), one_of(name for name in known if name is not None))


@_rule
def _task_scopes(sharing: str | Mapping[str, str], learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    for block, scope in () if isinstance(sharing, str) else sharing.items():
        if "" in learned and "same-task" in scope:
            yield Finding(f"sharing.{block}", f"is {scope!r}, while there are no tasks", "another scope, or tasks")


@_rule
def _metrics_of_tasks(evaluation: Evaluation, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    if evaluation.metrics and len(kinds := {task.kind for task in learned.values()}) > 1:
        found = f"are given, while the tasks are of the kinds {listed(sorted(kinds))}, whose labels differ"
        yield Finding("evaluation.metrics", found, "none, or tasks of one kind")


@_rule
def _from_data(data: Data, from_data: str) -> Iterator[Finding]:
    if not isinstance(data.partition, GivenPartition):
        found = f"is {from_data!r}, while data.partition.kind is {data.partition.kind!r}"
        yield Finding("clients", found, "groups of clients, or data.partition: {kind: given}")


@_rule
def _given(data: Data) -> Iterator[Finding]:
    if isinstance(data.partition, GivenPartition) and not isinstance(data, OwnData):
        found = f"is 'given', while data.dataset is {data.dataset!r}, which does not say whose its samples are"
        yield Finding("data.partition.kind", found, "another kind, or dataset: table or custom")


@_rule
def _unseen_last(clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    """Clients that never train have the last ids, so that they move no other's; last those of the held-out part."""
    order = [(group.role == "unseen", group.rows == "held-out") for group in clients]
    for index, (before, here) in enumerate(pairwise(order)):
        if here < before:
            what = "role: unseen" if before[0] > here[0] else "rows: held-out"
            expected = "groups that train first, then unseen ones, then those with rows: held-out"
            yield Finding(f"clients.{index + 1}", f"stands behind a group with {what}", expected)
    if all(group.role == "unseen" for group in clients):
        yield Finding("clients", "has no group that trains", "one with role: train")


@_rule
def _unseen_blocks(model: Model, clients: tuple[ClientGroup, ...], scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    """Blocks that a client which never trains shares with nobody who does would stay as they were drawn."""
    shared = {block: scope for block, scope in scopes.items() if scope not in (Scope.PRIVATE, Scope.FROZEN)}
    if model.norm_statistics == "same-modalities":
        shared["running statistics"] = Scope.SAME_MODALITIES

    def instances(group: ClientGroup) -> dict[str, tuple[str, ...]]:
        profile = ClientProfile(0, tuple(sorted(group.modalities)), group.group, task=group.task or "")
        lacked = {Block("encoder", modality) for modality in model.encoders.keys() - group.modalities}
        own = {block: scope for block, scope in shared.items() if block not in lacked}
        of_task: dict[str, str] = {HEAD: profile.task}
        return {block: (scope_key(scope, profile), of_task.get(block, "")) for block, scope in own.items()}

    trained = {item for group in clients if group.role == "train" for item in instances(group).items()}
    for index, group in enumerate(clients):
        alone = [block for block, key in instances(group).items() if (block, key) not in trained]
        if group.role == "unseen" and alone:
            found = f"is of unseen clients that share {listed(alone)} with no client that trains"
            expected = "modalities, group and task as clients that train have, or private blocks"
            yield Finding(f"clients.{index}", found, expected)


@_rule
def _unseen_start(
    evaluation: Evaluation, clients: tuple[ClientGroup, ...], scopes: Mapping[str, Scope]
) -> Iterator[Finding]:
    if evaluation.unseen.start == "initial":
        return
    path, found = "evaluation.unseen.start", "is 'group-average', while"
    unseen = [group for group in clients if group.role == "unseen"]
    if not unseen:
        yield Finding(path, f"{found} all clients train", "'initial', or clients with role: unseen")
    if Scope.PRIVATE not in scopes.values():
        yield Finding(path, f"{found} sharing makes no block private", "'initial', or private blocks")
    trained = {(group.modality_set, group.group, group.task) for group in clients if group.role == "train"}
    for group in unseen:
        if (kind := (group.modality_set, group.group, group.task)) not in trained:
            what = f"unseen clients ({', '.join(filter(None, kind))})"
            yield Finding(path, f"{found} no client that trains is as {what}", "'initial', or such clients")


@_rule
def _modalities(model: Model, clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    owned: dict[str, None] = {}
    for index, group in enumerate(clients):
        for position, modality in enumerate(group.modalities):
            if group.role == "train":
                owned[modality] = None
            if modality not in model.encoders:
                path = f"clients.{index}.modalities.{position}"
                yield Finding(path, shown(modality), _with_encoder(modality, model))
    for modality in model.encoders:
        if modality not in owned:
            expected = f"a modality that clients own: {listed(owned)}" + did_you_mean(modality, owned)
            yield Finding(f"model.encoders.{modality}", "is an encoder that no client can train", expected)


def _with_encoder(name: str, model: Model) -> str:
    return f"a modality with an encoder: {listed(model.encoders)}" + did_you_mean(name, model.encoders)


@_rule
def _observed(data: Data, model: Model) -> Iterator[Finding]:
    yield from _shares("data.observed", data.observed, model.encoders)


@_rule
def _observed_by_groups(clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    for index, group in enumerate(clients):
        path = f"clients.{index}.observed"
        yield from _shares(path, group.observed, group.modalities)
        for name, shares in group.observed.items():
            if of_held_out(shares) < 1:
                found = f"is {of_held_out(shares):g}, while the held-out set is one for all clients"
                yield Finding(f"{path}.{name}.held_out", found, f"it under data.observed.{name}")


def _shares(path: str, observed: Observed, modalities: Iterable[str]) -> Iterator[Finding]:
    for name, shares in observed.items():
        if name not in modalities:
            expected = f"a modality that these clients own: {listed(modalities)}" + did_you_mean(name, modalities)
            yield Finding(f"{path}.{name}", "is not one", expected)
        elif by_split(shares)[0] == 0:
            place = f"{path}.{name}.train" if isinstance(shares, ObservedShares) else f"{path}.{name}"
            yield Finding(place, "is 0", f"more than 0, or clients without {name} in their modalities")


@_rule
def _gaps_and_dropout(data: Data, training: Training, sections: Mapping[str, Any]) -> Iterator[Finding]:
    groups = sections.get("clients")
    given = [data.observed, *(group.observed for group in groups or () if not isinstance(groups, str))]
    if training.modality_dropout > 0 and any(min(by_split(one)) < 1 for shares in given for one in shares.values()):
        found = f"is {training.modality_dropout:g}, while observed leaves modalities out of rows already"
        yield Finding("training.modality_dropout", found, "0, or no observed below 1")


@_rule
def _data_modalities(data: Data, model: Model) -> Iterator[Finding]:
    if isinstance(data, SyntheticData):
        for name in data.modalities:
            if name not in model.encoders:
                expected = _with_encoder(name, model)
                yield Finding(f"data.modalities.{name}", "is a modality without an encoder", expected)
    if isinstance(data, Download):
        known = data.shapes
        for name in model.encoders:
            if name not in known:
                found = f"is an encoder of a modality that {data.dataset} does not have"
                expected = one_of(known) + did_you_mean(name, known)
                yield Finding(f"model.encoders.{name}", found, expected)


@_rule
def _encoder_shapes(data: Data, model: Model) -> Iterator[Finding]:
    for name, shape in data.input_shapes(model.encoders).items():
        for finding in model.encoders[name].misfits(shape, name):
            yield finding._replace(path=f"model.encoders.{name}.{finding.path}")


@_rule
def _fractions(data: Data) -> Iterator[Finding]:
    if data.test_fraction + data.validation_fraction >= 1:
        found = (
            f"is {data.validation_fraction:g}, which beside data.test_fraction {data.test_fraction:g} leaves no samples"
        )
        yield Finding("data.validation_fraction", found + " to train on", "two fractions that sum to less than 1")


@_rule
def _draws(data: Data) -> Iterator[Finding]:
    """What the reference's code cannot draw."""
    if data.draws != "reference":
        return
    partition = data.partition
    if not isinstance(partition, IidPartition | DirichletPartition):
        found = f"is {partition.kind!r}, while data.draws is 'reference'"
        yield Finding("data.partition.kind", found, "'iid' or 'dirichlet'")
    elif isinstance(partition, DirichletPartition) and partition.equal_sizes:
        yield Finding("data.partition.equal_sizes", "is true, while data.draws is 'reference'", "false")
    if data.split != "sample":
        yield Finding("data.split", f"is {data.split!r}, while data.draws is 'reference'", "'sample'")
    if data.validation_fraction:
        found = f"is {data.validation_fraction:g}, while data.draws is 'reference', which has no validation split"
        yield Finding("data.validation_fraction", found, "0, or data.draws: seed")


@_rule
def _client_counts(data: Data, num_parts: int) -> Iterator[Finding]:
    partition = data.partition
    num_splits = 3 if data.validation_fraction else 2
    if partition.kind == "subject":
        found_subjects = data.num_subjects
        each = num_splits if data.split in ("subject", "common-subject") else 1
        if found_subjects is not None and found_subjects < each * num_parts:
            found = f"is 'subject', while {found_subjects} subjects stand against {num_parts} clients"
            why = f", for data.split: {data.split} puts whole subjects into each split" if each > 1 else ""
            yield Finding("data.partition.kind", found, f"at least {each} per client{why}")
    if isinstance(data, SyntheticData):
        if data.samples < num_splits * num_parts:
            expected = f"at least {num_splits * num_parts}, {num_splits} for each of {num_parts} clients"
            yield Finding("data.samples", f"is {data.samples}", expected)
        elif (fewest := getattr(partition, "min_samples", 0)) * num_parts > data.samples:
            found = f"is {fewest} for each of {num_parts} clients"
            expected = f"at most {data.samples // num_parts}, since data.samples is {data.samples}"
            yield Finding("data.partition.min_samples", found, expected)


@_rule
def _sharing_map(
    sharing: str | Mapping[str, str], model: Model, learned: Mapping[str, LearnedTask]
) -> Iterator[Finding]:
    if isinstance(sharing, str):
        return
    blocks = model_blocks(model.encoders)
    known = _named_blocks(model, learned)
    for block in sharing:
        if block not in known:
            expected = one_of(known) + did_you_mean(block, known)
            yield Finding(f"sharing.{block}", "is not a block of this model", expected)
    scheme = SharingScheme.of(sharing)
    uncovered = [
        block
        for block in blocks
        if block not in scheme.scopes and not (block.kind == "encoder" and ANY_ENCODER in scheme.scopes)
    ]
    if uncovered:
        each = f"a scope for every block: {listed(blocks)} ({ANY_ENCODER} stands for every encoder)"
        yield Finding("sharing", f"says nothing about {listed(uncovered)}", each)


def _named_blocks(model: Model, learned: Mapping[str, LearnedTask]) -> tuple[str, ...]:
    """What a map by block may name."""
    return (ANY_ENCODER, *model_blocks(model.encoders), *(Block("head", name) for name in learned if name))


@_rule
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


@_rule
def _cohort(server: Server, num_clients: int) -> Iterator[Finding]:
    size = server.clients_per_round
    if isinstance(size, int) and size > num_clients:
        expected = f"at most {num_clients}, the number of clients"
        yield Finding("server.clients_per_round", f"is {size}", expected)


@_rule
def _cohorts_of_tasks(
    server: Server, learned: Mapping[str, LearnedTask], clients: tuple[ClientGroup, ...]
) -> Iterator[Finding]:
    sizes, path = server.clients_per_round, "server.clients_per_round"
    if not isinstance(sizes, Mapping):
        return
    names = [name for name in learned if name]
    for name, size in sizes.items():
        own = [group.count for group in clients if group.role == "train" and group.task in (None, name)]
        if name not in names:
            found = f"is of the task {name!r}, " + ("which there is not" if names else "while there are no tasks")
            yield Finding(f"{path}.{name}", found, one_of(names) if names else "a fraction or a number of clients")
        elif isinstance(size, int) and size > sum(own):
            yield Finding(f"{path}.{name}", f"is {size}", f"at most {sum(own)}, the number of its clients")
    if missing := [name for name in names if name not in sizes]:
        yield Finding(path, f"says nothing about {listed(missing)}", "a fraction or a number for each task")


@_rule
def _task_weights(server: Server, learned: Mapping[str, LearnedTask], algorithm: AlgorithmOption) -> Iterator[Finding]:
    if server.task_weights == "samples":
        return
    found = f"is {server.task_weights!r}, while "
    if len(learned) < 2:
        yield Finding("server.task_weights", f"{found}there are no several tasks", "'samples'")
    if algorithm.kind != "fedavg":
        found += f"algorithm.kind is {algorithm.kind!r}, for which a client has one weight"
        yield Finding("server.task_weights", found, "'samples', or fedavg")


@_rule
def _stop_rounds(stop: Stop, rounds: int) -> Iterator[Finding]:
    if stop.min_rounds > rounds:
        yield Finding("stop.min_rounds", f"is {stop.min_rounds}", f"at most {rounds}, the number of rounds")


@_rule
def _stop_metric(
    stop: Stop, learned: Mapping[str, LearnedTask], evaluation: Evaluation, clients: tuple[ClientGroup, ...]
) -> Iterator[Finding]:
    known: list[str] = []
    examples: list[str] = []
    for task, section in learned.items():
        own, sets = tuple(evaluation.metrics), {group.modality_set for group in clients if group.task in (None, task)}
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


@_rule
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


@_rule
def _loss(training: Training, learned: Mapping[str, LearnedTask], data: Data) -> Iterator[Finding]:
    for task in learned.values():
        num_classes = data.classes if isinstance(data, SyntheticData) and task.labels in (None, "class") else None
        for finding in training.loss.misfits(task.kind, num_classes):
            yield finding._replace(path=f"training.loss.{finding.path}")


@_rule
def _transforms(training: Training, model: Model) -> Iterator[Finding]:
    for name in training.transform:
        if name not in model.encoders:
            expected = f"a modality with an encoder: {listed(model.encoders)}" + did_you_mean(name, model.encoders)
            yield Finding(f"training.transform.{name}", "is of a modality without an encoder", expected)


@_rule
def _transform_shapes(training: Training, data: Data, model: Model) -> Iterator[Finding]:
    for name, shape in data.input_shapes(name for name in training.transform if name in model.encoders).items():
        for finding in training.transform[name].misfits(shape, name):
            yield finding._replace(path=f"training.transform.{name}.{finding.path}")


@_rule
def _optimizer_blocks(training: Training, model: Model, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    known = _named_blocks(model, learned)
    for block in training.optimizer.blocks:
        if block not in known:
            expected = one_of(known) + did_you_mean(block, known)
            yield Finding(f"training.optimizer.blocks.{block}", "is not a block of this model", expected)


@_rule
def _actor_per_client(training: Training, execution: Execution) -> Iterator[Finding]:
    if execution.runtime == "local" or execution.clients_per_actor != 1 or training.engine == "auto":
        return
    if training.may_stack:
        found = "is 1, while training.engine is 'vectorized', which keeps a chunk of clients in one actor"
        yield Finding("execution.clients_per_actor", found, "auto or a larger number, or training.engine: sequential")


def _scopes(sections: Mapping[str, Any]) -> dict[str, Scope]:
    """The scope of every block; empty where `model` or `sharing` is wrong."""
    model, sharing = sections.get("model"), sections.get("sharing")
    if model is None or sharing is None or (isinstance(sharing, str) and sharing not in SCHEME_NAMES):
        return {}
    try:
        scheme = SharingScheme.of(sharing).with_frozen(model.frozen_blocks)
        return {block: scheme.scope(block) for block in model_blocks(model.encoders)}
    except KeyError:
        return {}  # a block without a scope is a problem of its own


@_rule
def _central(sharing: str | Mapping[str, str], sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Where one model is trained there is nothing to average, to weigh or to keep by client."""
    if sharing != CENTRAL:
        return
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
    if sections.get("tasks") is not None:
        yield Finding(
            "tasks", "are there, while sharing is 'central', which trains one model", "null, or another scheme"
        )
    kind = getattr(sections.get("algorithm"), "kind", "fedavg")
    if kind != "fedavg":
        yield Finding("algorithm.kind", f"is {kind!r}, while sharing is 'central'", "'fedavg'")
    model = sections.get("model")
    if model is not None and model.missing == "prototype":
        yield Finding("model.missing", "is 'prototype', while sharing is 'central'", "another rule")


@_rule
def _passes(algorithm: AlgorithmOption, training: Training) -> Iterator[Finding]:
    yield from ignored_keys(algorithm, training)


@_rule
def _classes(algorithm: AlgorithmOption, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    for name, task in learned.items():
        if task.kind != "classification" and algorithm.kind in OF_CLASSES:
            where = f"tasks.{name}.kind" if name else "task"
            found = f"is {algorithm.kind!r}, which has a place for each class, while {where} is {task.kind!r}"
            yield Finding("algorithm.kind", found, "another kind, or task: classification")


@_rule
def _plain_steps(algorithm: AlgorithmOption, training: Training, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    averaged = [block for block, scope in scopes.items() if scope not in (Scope.PRIVATE, Scope.FROZEN)]
    if algorithm.kind in OF_PLAIN_STEPS and not all(training.optimizer.of(block).is_plain for block in averaged):
        found = f"has momentum or is no sgd, while algorithm.kind is {algorithm.kind!r}, which counts plain steps"
        yield Finding("training.optimizer", found, "{kind: sgd, momentum: 0} for each block that is averaged")


@_rule
def _alternation(training: Training, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    if training.alternate is None:
        return
    trained = {scope for scope in scopes.values() if scope is not Scope.FROZEN}
    if Scope.PRIVATE not in trained or trained == {Scope.PRIVATE}:
        found = f"alternates between private blocks and others, while {'no' if trained - {Scope.PRIVATE} else 'every'} "
        expected = "a sharing scheme with private blocks and others, such as private-head, or null"
        yield Finding("training.alternate", found + "block is private", expected)


@_rule
def _entropies(learned: Mapping[str, LearnedTask], server: Server) -> Iterator[Finding]:
    for task in learned.values():
        if server.weighting == "entropy" and task.kind != "classification":
            found = f"is 'entropy', while the task is {task.kind!r}, which has no probabilities of classes"
            yield Finding("server.weighting", found, "'samples' or 'uniform'")


@_rule
def _weights_of_blocks(algorithm: AlgorithmOption, server: Server) -> Iterator[Finding]:
    if server.weighting == "observed" and algorithm.kind != "fedavg":
        found = f"is 'observed', by which a client's blocks weigh differently, while algorithm is {algorithm.kind!r}"
        yield Finding("server.weighting", found, "'samples' or 'uniform', or algorithm: fedavg")


@_rule
def _tuned_blocks(evaluation: Evaluation, scopes: Mapping[str, Scope]) -> Iterator[Finding]:
    section = evaluation.fine_tune
    if section is None or section.blocks == "all":
        return
    tuned = section.blocks.split("-")
    if all(scopes[block] is Scope.FROZEN for block in tuned):
        found = f"is {section.blocks!r}, while sharing freezes what it would tune"
        yield Finding("evaluation.fine_tune.blocks", found, "'all', or blocks that are not frozen")


@_rule
def _prototypes_in_training(model: Model, training: Training) -> Iterator[Finding]:
    if model.missing != "prototype":
        return
    if training.must_stack:
        found = "asks for 'vectorized', while model.missing is 'prototype'"
        yield Finding("training.engine", found, "'sequential' or 'auto'")
    if training.modality_dropout > 0:
        found = f"is {training.modality_dropout}, while model.missing is 'prototype'"
        expected = "0: a client is not sent the prototypes of its own modalities"
        yield Finding("training.modality_dropout", found, expected)


@_rule
def _prototypes_of_encoders(
    model: Model, clients: tuple[ClientGroup, ...], scopes: Mapping[str, Scope]
) -> Iterator[Finding]:
    if model.missing != "prototype":
        return
    for modality in model.encoders:
        scope = scopes[Block("encoder", modality)]
        is_lacked = any(modality not in group.modalities for group in clients)
        if is_lacked and scope not in (Scope.SHARED, Scope.FROZEN):
            found = f"is 'prototype', while encoder/{modality} has the scope {scope}, so its copies embed differently"
            yield Finding("model.missing", found, "shared or frozen encoders, or another rule")


@_rule
def _compat(compat: str, sections: Mapping[str, Any]) -> Iterator[Finding]:
    for path, value in REFERENCE.items():
        name, key = path.split(".")
        if name not in sections:
            continue
        found = getattr(sections[name], key)
        wanted = value["kind"] if isinstance(value, Mapping) else value
        if getattr(found, "kind", found) != wanted:
            text = f"{shown(getattr(found, 'kind', found))}, while compat is {compat!r}"
            yield Finding(path, text, f"{wanted!r}, or no compat")
