"""What data, tasks and clients cannot say together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from blossom_ray.clients.options import Training
from blossom_ray.core.blocks import CENTRAL_PER_TASK, Block, ClientProfile, Scope, SharingScheme, model_blocks
from blossom_ray.core.phrases import did_you_mean, listed, one_of, shown
from blossom_ray.core.scores import OTHER_COLUMNS, PREFIXES, LearnedTask, Score, Task, find_score
from blossom_ray.core.section import Finding
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
from blossom_ray.models.options import Model
from blossom_ray.scenario.rules import rule
from blossom_ray.scenario.sections import Evaluation


@rule
def _task(data: Data, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    known = data.facts.labels
    for name, task in learned.items():
        where = f"tasks.{name}"
        if task.labels is not None and known and task.labels not in known:
            yield Finding(f"{where}.labels", shown(task.labels), one_of(known) + did_you_mean(task.labels, known))
        elif task.labels is not None and known and task.kind not in known[task.labels]:
            found = f"is {task.kind!r}, which the labels {task.labels!r} do not serve"
            yield Finding(f"{where}.kind", found, one_of(known[task.labels]))
        elif task.labels in (None, next(iter(known), None)):
            for finding in data.task_problems(task.kind):
                yield finding._replace(path=f"{where}.kind") if name and finding.path == "task" else finding
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


@rule
def _generated_labels(data: Data, tasks: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    """Generated labels are of one kind; those that have a name are of a classification."""
    if not isinstance(data, SyntheticData):
        return
    kinds = ["classification" for task in tasks.values() if task.labels is not None]
    kinds += [task.kind for task in tasks.values() if task.labels is None]
    for name, task in tasks.items():
        if task.labels is None and task.kind != kinds[0]:
            yield Finding(f"tasks.{name}.kind", f"is {task.kind!r}, while other labels are of a {kinds[0]}", kinds[0])


@rule
def _task_names(
    tasks: Mapping[str, LearnedTask], task: Task, model: Model, evaluation: Evaluation
) -> Iterator[Finding]:
    if task != "classification":
        yield Finding("task", f"is {task!r}, while there are tasks, each of its own kind", "no task beside tasks")
    own = [Score(name, name) for name in evaluation.metrics]
    scorings = {word for prefix in PREFIXES for word in prefix.split("/")}
    for name in tasks:
        if name in scorings | OTHER_COLUMNS | {"test", *model.encoders} or find_score(name, own) is not None:
            yield Finding(f"tasks.{name}", "is the name of a score, a column or a modality, too", "another name")


@rule
def _client_tasks(learned: Mapping[str, LearnedTask], clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    names = [name for name in learned if name]
    for index, group in enumerate(clients):
        path = f"clients.{index}.task"
        for task in group.tasks:
            if task not in names:
                expected = one_of(names) + did_you_mean(task, names) if names else "null, or tasks by name"
                yield Finding(path, shown(task) + ("" if names else ", while there are no tasks"), expected)
        if group.task is None and len(names) > 1:
            yield Finding(path, f"is null, while there are the tasks {listed(names)}", "one of them")
    for name in names if len(names) > 1 else ():
        if all(name not in group.tasks for group in clients):
            yield Finding(f"tasks.{name}", "is a task that no client has", "clients with this task")
    for name, section in learned.items():
        if section.loss_weight != 1 and not any(len(group.tasks) > 1 for group in clients):
            found = (
                f"is {section.loss_weight:g}, while all clients have one task, whose learning rate is tasks.{name}.lr"
            )
            yield Finding(f"tasks.{name}.loss_weight", found, "1, or clients with several tasks")


@rule
def _tasks_from_data(from_data: str, tasks: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    if len(tasks) > 1:
        found = f"is {from_data!r}, while there are the tasks {listed(tasks)}"
        yield Finding("clients", found, "groups of clients, each with its task")


@rule
def _skewed_labels(data: Data, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    labels = data.partition.labels if isinstance(data.partition, DirichletPartition) else None
    if labels is None:
        return
    path, known = "data.partition.labels", data.facts.labels or [task.labels for task in learned.values()]
    if "" in learned:
        yield Finding(path, f"is {labels!r}, while there are no tasks", "null")
    elif labels not in known:
        yield Finding(path, shown(labels), one_of(name for name in known if name is not None))


@rule
def _task_scopes(sharing: str | Mapping[str, str], learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    if sharing == CENTRAL_PER_TASK and "" in learned:
        yield Finding("sharing", f"is {sharing!r}, while there are no tasks", "'central', or tasks")
    for block, scope in () if isinstance(sharing, str) else sharing.items():
        if "" in learned and "same-task" in scope:
            yield Finding(f"sharing.{block}", f"is {scope!r}, while there are no tasks", "another scope, or tasks")


@rule
def _encoders_of_tasks(sharing: str | Mapping[str, str], clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    several = next((group.tasks for group in clients if len(group.tasks) > 1), ())
    if sharing == CENTRAL_PER_TASK and several:
        found = f"is {sharing!r}, while clients have the tasks {listed(several)}"
        yield Finding("sharing", found, "'central', or clients with one task each")
    for block, scope in () if isinstance(sharing, str) or not several else sharing.items():
        if "same-task" in scope and Block.named(block).kind == "encoder":
            found = f"is {scope!r}, while clients with the tasks {listed(several)} have one encoder for all of them"
            yield Finding(f"sharing.{block}", found, "a scope without same-task, or clients with one task each")


@rule
def _metrics_of_tasks(evaluation: Evaluation, learned: Mapping[str, LearnedTask]) -> Iterator[Finding]:
    if evaluation.metrics and len(kinds := {task.kind for task in learned.values()}) > 1:
        found = f"are given, while the tasks are of the kinds {listed(sorted(kinds))}, whose labels differ"
        yield Finding("evaluation.metrics", found, "none, or tasks of one kind")


@rule
def _from_data(data: Data, from_data: str) -> Iterator[Finding]:
    if not isinstance(data.partition, GivenPartition):
        found = f"is {from_data!r}, while data.partition.kind is {data.partition.kind!r}"
        yield Finding("clients", found, "groups of clients, or data.partition: {kind: given}")


@rule
def _given(data: Data) -> Iterator[Finding]:
    if isinstance(data.partition, GivenPartition) and not isinstance(data, OwnData):
        found = f"is 'given', while data.dataset is {data.dataset!r}, which does not say whose its samples are"
        yield Finding("data.partition.kind", found, "another kind, or dataset: table or custom")


@rule
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


@rule
def _unseen_shots(data: Data, clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    """Shots of given clients are for those that the data give, who have them in their groups once these are known."""
    shots = getattr(data.partition, "shots", None)
    for index, group in enumerate(clients):
        if shots is not None and group.role == "unseen" and group.shots != shots:
            found = f"is {'null' if group.shots is None else group.shots}, while data.partition.shots is {shots}"
            yield Finding(f"clients.{index}.shots", found, f"{shots}, or data.partition.shots: null")


@rule
def _unseen_blocks(
    model: Model, clients: tuple[ClientGroup, ...], sharing: str | Mapping[str, str], scopes: Mapping[str, Scope]
) -> Iterator[Finding]:
    """Blocks that a client which never trains shares with nobody who does would stay as they were drawn."""
    del scopes  # there are some: sharing and model are right
    scheme = SharingScheme.of(sharing).with_frozen(model.frozen_blocks)

    def instances(group: ClientGroup) -> dict[str, tuple[Scope, str]]:
        profile = ClientProfile(0, tuple(sorted(group.modalities)), group.group, tasks=group.tasks or ("",))
        blocks = model_blocks(profile.modalities, profile.tasks, scheme.fusions(profile.tasks))
        held = (scheme.instance(block, profile) for block in blocks)
        own: dict[str, tuple[Scope, str]] = {
            str(i.name): (i.scope, i.key) for i in held if i.scope not in (Scope.PRIVATE, Scope.FROZEN)
        }
        if model.norm_statistics == "same-modalities":
            own["running statistics"] = Scope.SAME_MODALITIES, profile.modality_set
        return own

    trained = {item for group in clients if group.role == "train" for item in instances(group).items()}
    for index, group in enumerate(clients):
        alone = [block for block, key in instances(group).items() if (block, key) not in trained]
        if group.role == "unseen" and alone:
            found = f"is of unseen clients that share {listed(alone)} with no client that trains"
            expected = "modalities, group and task as clients that train have, or private blocks"
            yield Finding(f"clients.{index}", found, expected)


@rule
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

    def kind_of(group: ClientGroup) -> tuple[str, str, str]:
        return group.modality_set, group.group, "+".join(group.tasks)

    trained = {kind_of(group) for group in clients if group.role == "train"}
    for group in unseen:
        if (kind := kind_of(group)) not in trained:
            what = f"unseen clients ({', '.join(filter(None, kind))})"
            yield Finding(path, f"{found} no client that trains is as {what}", "'initial', or such clients")


@rule
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


@rule
def _observed(data: Data, model: Model) -> Iterator[Finding]:
    yield from _shares("data.observed", data.observed, model.encoders)


@rule
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


@rule
def _gaps_and_dropout(data: Data, training: Training, sections: Mapping[str, Any]) -> Iterator[Finding]:
    groups = sections.get("clients")
    given = [data.observed, *(group.observed for group in groups or () if not isinstance(groups, str))]
    if training.modality_dropout > 0 and any(by_split(one)[0] < 1 for shares in given for one in shares.values()):
        found = f"is {training.modality_dropout:g}, while observed leaves modalities out of training rows already"
        yield Finding("training.modality_dropout", found, "0, or no observed below 1 in training")


@rule
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


@rule
def _encoder_shapes(data: Data, model: Model) -> Iterator[Finding]:
    for name, shape in data.input_shapes(model.encoders).items():
        for finding in model.encoders[name].misfits(shape, name):
            yield finding._replace(path=f"model.encoders.{name}.{finding.path}")


@rule
def _fractions(data: Data) -> Iterator[Finding]:
    if data.test_fraction + data.validation_fraction >= 1:
        found = (
            f"is {data.validation_fraction:g}, which beside data.test_fraction {data.test_fraction:g} leaves no samples"
        )
        yield Finding("data.validation_fraction", found + " to train on", "two fractions that sum to less than 1")


@rule
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


@rule
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
