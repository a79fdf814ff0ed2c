"""One data set of a scenario for a run: loaded, divided over its clients, written as shards; several of them joined."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blossom_ray.clients.losses import CustomLoss, Objective
from blossom_ray.clients.plan import TaskPlan
from blossom_ray.clients.transforms import build_transforms
from blossom_ray.core.blocks import Block, ClientProfile, Scope
from blossom_ray.core.section import Custom
from blossom_ray.data.dataset import Dataset, LeftOut
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.labelling import (
    check_labels,
    known_labels,
    labelled_lines,
    left_out_lines,
    without_unlabelled,
)
from blossom_ray.data.division.observation import observation_digest, observation_of, observe_held_out
from blossom_ray.data.division.scaling import scaled, scales_of
from blossom_ray.data.federated import FederatedDataset, labelled_by_task
from blossom_ray.data.files.decoded import Kept
from blossom_ray.data.sets.base import OwnData
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.data.shard_writing import write_held_out, write_shards
from blossom_ray.data.shards import ShardIndex
from blossom_ray.data.stored import slices
from blossom_ray.data.summary import ObservedRows, deviations, observed_rows
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import InputError
from blossom_ray.models.encoder_options import EmbeddingEncoder
from blossom_ray.models.options import Model
from blossom_ray.reading.scenario import Scenario


@dataclass(frozen=True)
class TaskFacts:
    """What is known of the data of one task.

    Attributes:
        class_names: Name of each class, or of each target of a regression.
        fingerprint: SHA-256 (hex) of the data with its labels.
        partition: SHA-256 (hex) over which rows its clients have for training, validation and testing.
        observation: SHA-256 (hex) over what these observe in which rows; "" where they observe all that they own.
    """

    class_names: tuple[str, ...]
    fingerprint: str
    partition: str
    observation: str = ""


@dataclass(frozen=True, eq=False)
class LoadedDataset:
    """What is left of a data set once its clients have their shards; its clients count from 0.

    Attributes:
        name: What `datasets` calls it; "" for `data`.
        clients: The ids that its clients have among all.
        tasks: What they learn.
        facts: By task its classes and what it has of the data.
        input_shapes: Shape of one sample by modality.
        shards: Where their shards lie.
        num_held_out: Samples of its held-out set; 0 where there is none to score.
        partition: SHA-256 (hex) over which rows each client has for training, validation and testing.
        observation: SHA-256 (hex) over what is observed in which rows; "" where all clients observe all that they own.
        observed: As `summary.observed_rows`, of the clients that train.
        num_train: (num_clients,) int64: training rows of each client, those included that are left out for their gaps.
        client_names: As in `Federation`.
        left_out: What is not in it, and rows that no client has, by reason.
        notes: What else is to be known of it and its division, in a line each.
        label_notes: In how many rows labels are known that some rows lack.
        deviations: Of the modalities whose encoder may be of several data sets, and that clients do not scale each by
            itself.
        scales: As the manifest has them, by modality; empty where nothing is scaled, and with `standardize`.
    """

    name: str
    clients: tuple[int, ...]
    tasks: Mapping[str, TaskPlan]
    facts: Mapping[str, TaskFacts]
    input_shapes: Mapping[str, tuple[int, ...]]
    shards: ShardIndex
    num_held_out: int
    partition: str
    observation: str
    observed: Mapping[str, Mapping[str, ObservedRows]]
    num_train: IntArray
    client_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    label_notes: tuple[str, ...]
    deviations: Mapping[str, float]
    scales: Mapping[str, Mapping[str, object]]


def decode(scenario: Scenario) -> dict[str, tuple[Kept, ...]]:
    """Decode what data sets of a scenario leave to be decoded; by the place of a modality what is in the cache then.

    Raises:
        DataError: A value is refused; or a table, a file or the cache cannot be used.
    """
    found: dict[str, tuple[Kept, ...]] = {}
    for whole in scenario.federated:
        if isinstance(whole.data, TableData):
            with whole.told():
                source = whole.open()
                own = source.decode() if isinstance(source, Table) else {}
            found |= {whole.in_words(f"data.modalities.{name}"): kept for name, kept in own.items()}
    return found


def load_dataset(
    scenario: Scenario, whole: FederatedDataset, profiles: Sequence[ClientProfile], folder: Path
) -> LoadedDataset:
    """Load a data set, divide it over its clients, and write their shards.

    Args:
        scenario: The scenario.
        whole: One of its data sets.
        profiles: All of its clients in the order of their ids.
        folder: Where shards are written.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the scenario asks.
        InputError: Loss or transforms do not fit the data, or something cannot do with gaps.
    """
    with whole.told():
        return _loaded(scenario, whole, profiles, folder)


def _loaded(
    scenario: Scenario, whole: FederatedDataset, profiles: Sequence[ClientProfile], folder: Path
) -> LoadedDataset:
    data, learned, name = whole.data, whole.learned, whole.name
    own = whole.profiles(profiles)
    trained = [profile for profile in own if not profile.is_unseen]
    dataset = whole.open().load()
    by_task = {task: data.labelled(dataset, each.labels) for task, each in learned.items()}
    for task, labelled in by_task.items():
        labelled.check_task(learned[task].kind, learned[task].labels)
    targets = whole.targets(dataset)
    divided = whole.divide(targets)
    facts = {task: _task_facts(task, labelled, divided, own) for task, labelled in by_task.items()}
    dataset = labelled_by_task(dataset, by_task)
    has_label = known_labels(dataset, [*learned])
    to_learn = without_unlabelled(divided, own, has_label)
    federation = whole.observe(to_learn, targets)
    check_labels(federation, own, has_label, divided)
    num_unused = dataset.num_samples - divided.num_samples - divided.num_beyond
    unused = {
        "samples that no client has (data.partition)": num_unused,
        "samples of unseen clients beyond their shots": divided.num_beyond,
    }
    unused |= dict(left_out_lines(divided, to_learn))
    for split in divided.splits:
        num_left = len(to_learn.splits[split].flat)
        reason = f"{split} rows in which their client observes no modality (data.without_modality)"
        unused[reason] = num_left - len(federation.splits[split].flat)
    left_out = dataset.left_out + tuple(LeftOut(what, number) for what, number in unused.items() if number > 0)
    overlap = federation.overlap(dataset.pieces)
    given_notes = () if targets.clients is None else targets.clients.notes
    notes = (*dataset.notes, *given_notes, *(() if overlap is None else (str(overlap),)))
    tasks = {
        task: TaskPlan(
            each.kind,
            by_task[task].num_classes,
            each.lr,
            has_held_out=by_task[task].has_held_out_labels,
            loss_weight=each.loss_weight,
            is_partial=task in has_label,
            data=name,
        )
        for task, each in learned.items()
    }
    del by_task  # before their inputs are there a second time
    scales = scales_of(dataset, federation, own, data.scaling)
    dataset = scaled(dataset, scales.pooled)
    _try_training(scenario, tasks, dataset.input_shapes)
    _check_tokens(scenario.model, dataset)
    held_out = None if scenario.evaluation.held_out == "never" else dataset.held_out
    views: list[Dataset] = []
    view_of = np.zeros(len(own), np.int64)
    with_labels = [task for task, each in tasks.items() if each.has_held_out]
    _check_held_out_labels(scenario, tasks)
    if held_out is not None and with_labels:
        views, view_of = observe_held_out(held_out, data, whole.groups, whole.seed)
        task_sets = sorted({profile.tasks for profile in own})
        write_held_out(views, folder, dataset=dataset, tasks=task_sets, name=name)
    observed = observed_rows(federation, trained, views, view_of[: len(trained)].tolist())
    _check_gaps(scenario, observed)
    is_partial = federation is not to_learn or any(view is not held_out for view in views)
    for task, known in facts.items() if is_partial else ():
        members = [profile for profile in own if task in profile.tasks]
        numbers = dict.fromkeys(view_of[[profile.index for profile in members]].tolist()) if views else ()
        seen = [views[number] for number in numbers]
        facts[task] = replace(known, observation=observation_of(members, to_learn, federation, seen, held_out))
    return LoadedDataset(
        name=name,
        clients=whole.ids,
        tasks=tasks,
        facts=facts,
        input_shapes=dataset.input_shapes,
        shards=write_shards(dataset, federation, own, folder, view_of, name, scales.by_client),
        num_held_out=0 if held_out is None or not with_labels else held_out.num_samples,
        partition=divided.digest(),
        observation=observation_digest(federation, views) if is_partial else "",
        observed=observed,
        num_train=divided.train.counts,
        client_names=federation.names,
        left_out=tuple(replace(entry, what=_of(name, whole.in_words(entry.what))) for entry in left_out),
        notes=tuple(_of(name, whole.in_words(note)) for note in notes),
        label_notes=tuple(labelled_lines(federation, trained, has_label, dataset)),
        deviations=deviations(dataset, set(_in_common(scenario, dataset.inputs)) - scales.by_client.keys()),
        scales={} if isinstance(data, OwnData) and data.standardize else scales.described(data.scaling),
    )


def _in_common(scenario: Scenario, modalities: Iterable[str]) -> list[str]:
    """The modalities whose encoder clients of several data sets may have in common."""
    if len(scenario.data_sets) == 1:
        return []
    scopes = {name: scenario.scheme.scope(Block("encoder", name)) for name in modalities}
    apart = (Scope.PRIVATE, Scope.SAME_TASK, Scope.SAME_MODALITIES_AND_TASK)
    return [name for name, scope in scopes.items() if scope not in apart]


def _of(name: str, text: str) -> str:
    return f"{name}: {text}" if name else text


def joint_digest(digests: Sequence[str]) -> str:
    """SHA-256 (hex) of several digests; a single one as it is, and "" where all are."""
    if len(digests) == 1 or not any(digests):
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def joint_names(loaded: Sequence[LoadedDataset]) -> tuple[str, ...]:
    """What the data call each client; "" of those whose data do not, and nothing where none do."""
    named = [part for part in loaded if part.client_names]
    found = [""] * sum(len(part.clients) for part in loaded)
    for part in named:
        for client, name in zip(part.clients, part.client_names, strict=True):
            found[client] = name
    return tuple(found) if named else ()


def joint_observed(
    loaded: Sequence[LoadedDataset], profiles: Sequence[ClientProfile]
) -> dict[str, dict[str, ObservedRows]]:
    """In how many rows each modality is observed that some client of some data set lacks in some of its rows.

    Args:
        loaded: The data sets.
        profiles: All clients that train, in the order of their ids.
    """
    if len(loaded) == 1:
        return {modality: dict(rows) for modality, rows in loaded[0].observed.items()}
    found: dict[str, dict[str, ObservedRows]] = {}
    for modality in sorted({name for part in loaded for name in part.observed}):
        counts: dict[str, tuple[list[int], list[int]]] = {}
        for part in loaded:
            trained = [(place, client) for place, client in enumerate(part.clients) if client < len(profiles)]
            splits = {"train": part.shards.num_train, "validation": part.shards.num_validation}
            splits |= {"test": part.shards.num_test, "held_out": np.full(len(part.clients), part.num_held_out)}
            for split, numbers in splits.items():
                gaps = part.observed.get(modality, {}).get(split)
                rows, observed = counts.setdefault(split, ([0] * len(profiles), [0] * len(profiles)))
                for place, client in trained:
                    if modality in profiles[client].modalities:
                        rows[client] = int(numbers[place])
                        observed[client] = rows[client] if gaps is None else gaps.by_client[place]
        found[modality] = {split: ObservedRows.of(*own) for split, own in counts.items() if any(own[0])}
    return found


def _task_facts(name: str, dataset: Dataset, federation: Federation, profiles: Sequence[ClientProfile]) -> TaskFacts:
    """What is known of the data of a task, whose clients are some of those of its data set."""
    partition = federation.only([profile.index for profile in profiles if name in profile.tasks])
    return TaskFacts(tuple(dataset.class_names), dataset.fingerprint(), partition.digest())


def _check_held_out_labels(scenario: Scenario, tasks: Mapping[str, TaskPlan]) -> None:
    """Refuse clients whose samples are of the held-out part, and whose task has no labels there.

    Raises:
        InputError: There are some.
    """
    for index, group in enumerate(scenario.groups):
        for task in group.tasks or tuple(scenario.learned) if group.rows == "held-out" else ():
            if task in tasks and not tasks[task].has_held_out:
                found = f"clients.{index}.rows is 'held-out', where the task {task!r} has other classes"
                raise InputError(f"{found}; expected 'shared', or another task")


def _try_training(
    scenario: Scenario, tasks: Mapping[str, TaskPlan], input_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Build what clients train with, so that what does not fit is known before a round begins."""
    import torch

    from blossom_ray.tasks.learned import one_task

    training = scenario.training
    for name, task in tasks.items():
        Objective(training.loss, one_task(task.kind, task.num_outputs), torch.device("cpu"))
        if isinstance(training.loss, CustomLoss) and task.is_partial and task.kind != "classification":
            whose = f"labels of {name}" if name else "labels"
            found = (
                f"training.loss is own code, which is not told which {whose} a sample lacks, and some samples lack some"
            )
            raise InputError(f"{found}; expected another loss")
    build_transforms(training.transform, input_shapes, tuple(input_shapes))


def _check_tokens(model: Model, dataset: Dataset) -> None:
    """Refuse what an encoder of tokens has no vector for.

    Raises:
        InputError: There is some.
    """
    from blossom_ray.models.encoders import token_problem

    for name, encoder in model.encoders.items():
        if isinstance(encoder, EmbeddingEncoder) and name in dataset.inputs:
            for part in filter(None, (dataset, dataset.held_out)):
                values = part.inputs[name]
                # NaN stands where a client does not own the modality.
                pieces = (np.nan_to_num(values[rows]) for rows in slices(values))
                if (problem := token_problem(pieces, encoder.vocabulary)) is not None:
                    raise InputError(f"model.encoders.{name}: {name} {problem}")


def _check_gaps(scenario: Scenario, sparse: Mapping[str, Mapping[str, ObservedRows]]) -> None:
    """Refuse what cannot do without a modality in single samples.

    Args:
        scenario: The scenario.
        sparse: The modalities that some sample of an owner lacks, as `observed_rows`.

    Raises:
        InputError: Something cannot.
    """
    if not sparse:
        return
    model, lacking = scenario.model, f"while samples lack {', '.join(sparse)}"
    if scenario.training.modality_dropout and (in_training := lacking_in_training(sparse)):
        found = f"training.modality_dropout is {scenario.training.modality_dropout:g}"
        raise InputError(f"{found}, while training samples lack {', '.join(in_training)} already; expected 0")
    if isinstance(model.fusion, Custom) and model.missing == "mask":
        found = f"model.missing is 'mask' and model.fusion own code, which is not told what a sample lacks, {lacking}"
        raise InputError(f"{found}; expected another rule, or a fusion of another kind")
    scopes = {name: scenario.scheme.scope(Block("encoder", name)) for name in sparse}
    for name, scope in scopes.items() if model.missing == "prototype" else ():
        if scope not in (Scope.SHARED, Scope.FROZEN):
            found = f"model.missing is 'prototype', while samples lack {name} and encoder/{name} has the scope {scope}"
            raise InputError(f"{found}, so its copies embed differently; expected shared or frozen encoders")


def lacking_in_training(observed: Mapping[str, Mapping[str, ObservedRows]]) -> tuple[str, ...]:
    """The modalities that some training sample of an owner lacks."""
    return tuple(sorted(name for name, rows in observed.items() if rows["train"].observed < rows["train"].rows))
