"""From a scenario to a federation that can be run: data loaded, divided, written as shards; the clients' plan."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blossom_ray.algorithms.selection import Population
from blossom_ray.authoring import AlgorithmServer, holdings, with_algorithm
from blossom_ray.clients.losses import CustomLoss, Objective
from blossom_ray.clients.options import EngineName
from blossom_ray.clients.plan import ClientPlan, TaskPlan
from blossom_ray.clients.transforms import build_transforms
from blossom_ray.core.blocks import CENTRAL, FUSION, Block, ClientProfile, Scope, SharingScheme
from blossom_ray.core.phrases import listed
from blossom_ray.core.records import Scoring
from blossom_ray.core.section import Custom
from blossom_ray.data.dataset import Dataset, LabelColumn, LeftOut
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.labelling import check_labels, labelled_lines, labelled_rows, without_unlabelled
from blossom_ray.data.division.observation import observation_digest, observation_of, observe, observe_held_out
from blossom_ray.data.division.standardization import standardized
from blossom_ray.data.sets.base import OwnData
from blossom_ray.data.shards import ShardIndex, ShardReader, pack, pack_held_out, write_held_out, write_shards
from blossom_ray.data.summary import ObservedRows, observed_rows
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.scenario.identity import numbers_tree


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


@dataclass(frozen=True)
class Preparation:
    """Everything that a runtime and the loop need, small enough to be sent to every process.

    Attributes:
        scenario: The scenario.
        plan: What every client goes by.
        population: The clients and their chunks.
        shards: Where their shards lie.
        num_held_out: Samples of the held-out global test set, which lies beside them; 0 where there is none to score.
        fingerprint: SHA-256 (hex) of the data; with `tasks`, over those of all tasks.
        partition: SHA-256 (hex) over which rows each client has for training, validation and testing.
        left_out: What is not in the data, and rows that no client has, by reason.
        notes: What else is to be known of the data and their division, in a line each.
        task_facts: By task its classes and what it has of the data.
        client_names: What the user's data call each client, or its subjects; empty where samples are dealt.
        seconds_per_sample: Seconds that a training sample takes, by modality set and engine; empty where nobody timed.
        observation: SHA-256 (hex) over what is observed in which rows; "" where all clients observe all that they own.
        observed: By modality and split, in how many rows it is observed; of those that some owner lacks in some row.
    """

    scenario: Scenario
    plan: ClientPlan
    population: Population
    shards: ShardIndex
    num_held_out: int
    fingerprint: str
    partition: str
    left_out: tuple[LeftOut, ...] = ()
    client_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    task_facts: Mapping[str, TaskFacts] = field(default_factory=dict)
    seconds_per_sample: Mapping[str, Mapping[EngineName, float]] = field(default_factory=dict)
    observation: str = ""
    observed: Mapping[str, Mapping[str, ObservedRows]] = field(default_factory=dict)

    @cached_property
    def algorithm(self) -> AlgorithmServer | None:
        """The algorithm as it acts on the server; None: federated averaging."""
        if self.plan.author is None:
            return None
        return AlgorithmServer(self.plan, holdings(self.plan, self.population, self.shards.num_train))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached."""
        return {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}

    @property
    def has_held_out(self) -> bool:
        """Whether there is a held-out global test set to score."""
        return self.num_held_out > 0

    @property
    def has_validation(self) -> bool:
        """Whether some client has a validation split."""
        return bool(self.shards.num_validation.any())

    def profiles_on_server(self) -> tuple[ClientProfile, ...]:
        """One client of each kind, or all that train where the server has something for each client alone."""
        kinds, unseen = self.population.representatives(), self.population.unseen_representatives()
        has_own = any(part.instance.scope is Scope.CLIENT for one in kinds for part in self.plan.extra_parts(one))
        return (*(self.population.trained if has_own else kinds), *unseen)

    def costs(self) -> list[float]:
        """What a round of each client costs, in seconds or another unit common to all.

        Training samples times the seconds of one where these were measured for every modality set, else times the
        number of modalities.
        """
        found = self.seconds_per_sample
        seconds = {name: times[self.plan.engines[name]] for name, times in found.items() if times}
        are_measured = len(seconds) == len(self.scenario.modality_sets)
        weights = np.empty(len(self.population.profiles))
        for profile in self.population.profiles:
            weights[profile.index] = seconds[profile.modality_set] if are_measured else len(profile.modalities)
        return [float(cost) for cost in self.shards.num_train * weights]

    def stacked_chunks(self) -> frozenset[int]:
        """Indices of the chunks whose clients are stacked, and so must stay together."""
        engines, profiles = self.plan.engines, self.population.profiles
        return frozenset(
            chunk.index
            for chunk in self.population.chunks
            if engines[profiles[chunk.clients[0]].modality_set] == "vectorized"
        )

    def open_shards(self, buffers: Mapping[str, np.ndarray] | None = None) -> ShardReader:
        """Read shards in this process: from the memory-mapped files, or from `buffers` of `pack_shards`."""
        return ShardReader(self.shards, buffers)

    def pack_shards(self, clients: Sequence[int]) -> dict[str, np.ndarray]:
        """These clients' rows of their own modalities, and the held-out set in these, as Arrow data in memory."""
        held_out = pack_held_out(self.shards, clients) if self.has_held_out else {}
        return {**pack(self.shards, clients), **held_out}

    def facts(self) -> dict[str, object]:
        """What a run that goes on from a checkpoint must agree with: all that its numbers follow from."""
        tree = numbers_tree(self.scenario)
        if self.scenario.training.engine == "auto":
            tree["training"]["engine"] = dict(self.plan.engines)
        return {"scenario": tree, "data_fingerprint": self.fingerprint}


def prepare(scenario: Scenario, folder: Path) -> Preparation:
    """Load, divide and shard the data of a scenario.

    Args:
        scenario: The scenario.
        folder: An empty folder for the shards; it must outlive the run.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the scenario asks.
        InputError: Loss, transforms or own code do not fit the data.
    """
    population = Population(
        tuple(scenario.profiles()), scenario.execution.chunk_size, scenario.server.clients_per_round
    )
    data, learned = scenario.data, scenario.learned
    dataset = data.open_learned(scenario.modalities, scenario.seed, learned).load()
    by_task = {name: data.labelled(dataset, task.labels) for name, task in learned.items()}
    for name, own in by_task.items():
        own.check_task(learned[name].kind, learned[name].labels)
    sets = tuple(profile.modalities for profile in population.profiles)
    targets = data.labelled(dataset, data.skewed_labels(learned)).targets
    divided = build_federation(data, targets, scenario.num_clients, scenario.seed, sets, scenario.unseen_groups)
    dataset = labelled_by_task(dataset, by_task)
    labelled = labelled_rows(dataset, [*learned])
    to_learn = without_unlabelled(divided, population.profiles, labelled)
    federation = observe(to_learn, data, targets, scenario.groups, scenario.seed)
    check_labels(federation, population.profiles, labelled, divided)
    num_unused = dataset.num_samples - divided.num_samples - divided.num_beyond
    unused = {
        "samples that no client has (data.partition)": num_unused,
        "samples of unseen clients beyond their shots": divided.num_beyond,
    }
    for split, rows in divided.splits.items():
        num_left = len(to_learn.splits[split].flat)
        unused[f"{split} rows without a label that their client learns"] = len(rows.flat) - num_left
        reason = f"{split} rows in which their client observes no modality (data.without_modality)"
        unused[reason] = num_left - len(federation.splits[split].flat)
    overlap = federation.overlap(dataset.pieces)
    given_notes = () if targets.clients is None else targets.clients.notes
    facts = {name: _task_facts(name, own, divided, population) for name, own in by_task.items()}
    fingerprint = joint_fingerprint([own.fingerprint for own in facts.values()])
    tasks = {
        name: TaskPlan(
            task.kind,
            by_task[name].num_classes,
            task.lr,
            has_held_out=by_task[name].has_held_out_labels,
            loss_weight=task.loss_weight,
            is_partial=name in labelled,
        )
        for name, task in learned.items()
    }
    del by_task  # before their inputs are there a second time
    if isinstance(data, OwnData) and data.standardize:
        dataset = standardized(dataset, federation, population.profiles)
    _try_training(scenario, tasks, dataset.input_shapes)
    held_out = None if scenario.evaluation.held_out == "never" else dataset.held_out
    views: list[Dataset] = []
    view_of = np.zeros(scenario.num_clients, np.int64)
    with_labels = [name for name, task in tasks.items() if task.has_held_out]
    _check_held_out_labels(scenario, with_labels)
    if held_out is not None and with_labels:
        views, view_of = observe_held_out(held_out, data, scenario.groups, scenario.seed)
        task_sets = sorted({profile.tasks for profile in population.profiles})
        write_held_out(views, folder, dataset=dataset, tasks=task_sets)
    observed = observed_rows(federation, population.trained, views, view_of[: len(population.trained)].tolist())
    _check_gaps(scenario, observed)
    is_partial = federation is not to_learn or any(view is not held_out for view in views)
    for name, known in facts.items() if is_partial else ():
        members = [profile for profile in population.profiles if name in profile.tasks]
        numbers = dict.fromkeys(view_of[[profile.index for profile in members]].tolist()) if views else ()
        seen = [views[number] for number in numbers]
        facts[name] = replace(known, observation=observation_of(members, to_learn, federation, seen, held_out))
    shards = write_shards(dataset, federation, population.profiles, folder, view_of)
    plan = client_plan(scenario, population, dataset.input_shapes, tasks, observed, observed)
    return Preparation(
        scenario=scenario,
        plan=plan,
        population=population,
        shards=shards,
        num_held_out=0 if held_out is None or not with_labels else held_out.num_samples,
        fingerprint=fingerprint,
        partition=divided.digest(),
        left_out=dataset.left_out + tuple(LeftOut(what, number) for what, number in unused.items() if number > 0),
        task_facts=facts,
        notes=(
            *dataset.notes,
            *given_notes,
            *(() if overlap is None else (str(overlap),)),
            *_unseen_notes(scenario, plan, population, divided),
            *_task_notes(scenario, with_labels),
            *labelled_lines(federation, population.trained, labelled),
        ),
        client_names=federation.names,
        observation=observation_digest(federation, views) if is_partial else "",
        observed=observed,
    )


def client_plan(
    scenario: Scenario,
    population: Population,
    input_shapes: Mapping[str, tuple[int, ...]],
    tasks: Mapping[str, TaskPlan],
    observed: Mapping[str, Mapping[str, ObservedRows]],
    sparse: Iterable[str],
) -> ClientPlan:
    """What every client of a scenario goes by.

    Args:
        scenario: The scenario.
        population: Its clients.
        input_shapes: Shape of one sample by modality.
        tasks: What the clients of each task learn.
        observed: As in `Preparation`.
        sparse: The modalities that some sample of an owner lacks.

    Raises:
        InputError: A block does not fit its input, or own code does not do what it should.
    """
    engines: dict[str, EngineName] = {}
    if scenario.training.engine != "auto":
        engines = {name: scenario.training.engine_of(name) for name in scenario.modality_sets}
    plan = ClientPlan(
        model=scenario.model,
        training=scenario.training,
        scheme=_with_frozen_code(scenario, input_shapes, tasks),
        seed=scenario.seeds.training,
        input_shapes=input_shapes,
        tasks=tasks,
        evaluation_batch_size=scenario.evaluation.batch_size,
        num_rounds=scenario.rounds,
        fine_tune=scenario.evaluation.fine_tune,
        unseen_start=scenario.evaluation.unseen.start,
        metrics=scenario.evaluation.metrics,
        weighting=scenario.server.weighting,
        engines=engines,
        sparse=tuple(sorted(sparse)),
        sparse_in_training=() if scenario.sharing == CENTRAL else _lacking_in_training(observed),
    )
    plan = replace(plan, prototypes=_prototypes(plan, population))
    plan = replace(plan, split_blocks=_split_blocks(plan, population))
    return plan if scenario.algorithm.kind == "fedavg" else with_algorithm(plan, scenario.algorithm, population)


def _unseen_notes(
    scenario: Scenario, plan: ClientPlan, population: Population, federation: Federation
) -> Iterator[str]:
    """What to say of clients that never train: what of them is untrained, and who has too few samples."""
    score = f"{Scoring.UNSEEN.prefix}{scenario.judge[0]}"
    kinds = population.unseen_representatives()
    averaged = {str(name) for profile in kinds for name in plan.private_averages(profile)}
    if averaged:
        what = f"unseen clients begin with means of the private {listed(sorted(averaged))}"
        yield f"{what} of those that train: private blocks left their clients in sum"
    if parts := {part for profile in kinds for part in plan.own_parts(profile)} - averaged:
        is_scored = plan.model.norm_statistics != "local"
        then = f"and {score} is with these" if is_scored else "so they are scored after it alone"
        yield f"unseen clients: before fine-tuning their own {listed(sorted(parts))} have initial values, {then}"
    shots = [group.shots or 0 for group in scenario.unseen_groups for _ in range(group.count)]
    counts = federation.train.counts[len(population.trained) :].tolist()
    if short := [count for count, wanted in zip(counts, shots, strict=True) if count < wanted]:
        yield f"{len(short)} of {len(shots)} unseen clients have fewer samples than shots, the fewest {min(short)}"


def joint_fingerprint(of_tasks: Sequence[str]) -> str:
    """SHA-256 (hex) of data with the labels of several tasks, from those with the labels of each."""
    return of_tasks[0] if len(of_tasks) == 1 else hashlib.sha256("".join(of_tasks).encode()).hexdigest()


def _task_facts(name: str, dataset: Dataset, federation: Federation, population: Population) -> TaskFacts:
    """What is known of the data of a task."""
    partition = federation.only([profile.index for profile in population.profiles if name in profile.tasks])
    return TaskFacts(tuple(dataset.class_names), dataset.fingerprint(), partition.digest())


def labelled_by_task(dataset: Dataset, by_task: Mapping[str, Dataset]) -> Dataset:
    """The data set, and its held-out set, with the labels of each task as the label column of its name."""
    if "" in by_task:
        return dataset
    columns = {name: LabelColumn(own.labels, own.class_names, own.known) for name, own in by_task.items()}
    tests = {name: own.held_out for name, own in by_task.items() if own.held_out is not None}
    held_out = dataset.held_out
    if held_out is not None:
        held_out_columns = {name: LabelColumn(own.labels, own.class_names, own.known) for name, own in tests.items()}
        held_out = replace(held_out, label_columns=held_out_columns)
    return replace(dataset, label_columns=columns, held_out=held_out)


def _check_held_out_labels(scenario: Scenario, held_out: Collection[str]) -> None:
    """Refuse clients whose samples are of the held-out part, and whose task has no labels there.

    Raises:
        InputError: There are some.
    """
    for index, group in enumerate(scenario.groups):
        for task in group.tasks or tuple(scenario.learned) if group.rows == "held-out" else ():
            if task not in held_out:
                found = f"clients.{index}.rows is 'held-out', where the task {task!r} has other classes"
                raise InputError(f"{found}; expected 'shared', or another task")


def _task_notes(scenario: Scenario, held_out: Collection[str]) -> Iterator[str]:
    """What is to be known of tasks whose labels the held-out set does not have."""
    for name in scenario.learned:
        if held_out and name not in held_out and scenario.evaluation.held_out != "never":
            yield f"{name}: the held-out set has other classes, so there are no held-out scores of this task"


def _try_training(
    scenario: Scenario, tasks: Mapping[str, TaskPlan], input_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Build what clients train with, so that what does not fit is known before a round begins."""
    import torch

    from blossom_ray.tasks.learned import only

    training = scenario.training
    for name, task in tasks.items():
        Objective(training.loss, only(task.kind, task.num_outputs), torch.device("cpu"))
        if isinstance(training.loss, CustomLoss) and task.is_partial and task.kind != "classification":
            whose = f"labels of {name}" if name else "labels"
            found = (
                f"training.loss is own code, which is not told which {whose} a sample lacks, and some samples lack some"
            )
            raise InputError(f"{found}; expected another loss")
    build_transforms(training.transform, input_shapes, scenario.modalities)


def _with_frozen_code(
    scenario: Scenario, input_shapes: Mapping[str, tuple[int, ...]], tasks: Mapping[str, TaskPlan]
) -> SharingScheme:
    """The scheme, with the scope `frozen` for own code whose parameters come frozen: nobody trains or averages it."""
    from blossom_ray.models.build import build_block

    model, scheme = scenario.model, scenario.scheme
    sections: dict[Block, object] = {Block("encoder", name): section for name, section in model.encoders.items()}
    sections |= {FUSION: model.fusion, **{Block("head", name): model.head for name in tasks}}
    frozen: list[Block] = []
    for name, section in sections.items():
        if isinstance(section, Custom):
            num_outputs = tasks[name.of if name.kind == "head" else next(iter(tasks))].num_outputs
            block = build_block(name, model, input_shapes, num_outputs, scenario.seeds.training)
            parameters = list(block.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                frozen.append(name)
    return scheme.with_frozen(frozen)


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
    if scenario.training.modality_dropout and (in_training := _lacking_in_training(sparse)):
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


def _lacking_in_training(observed: Mapping[str, Mapping[str, ObservedRows]]) -> tuple[str, ...]:
    """The modalities that some training sample of an owner lacks."""
    return tuple(sorted(name for name, rows in observed.items() if rows["train"].observed < rows["train"].rows))


def _prototypes(plan: ClientPlan, population: Population) -> tuple[str, ...]:
    """The modalities that some client, or a sample, lacks, where prototypes stand for them."""
    kinds = (*population.representatives(), *population.unseen_representatives())
    held = (name for profile in kinds for name in plan.held_blocks(profile))
    return tuple(sorted({name.of for name in held if name.kind == "prototype"}))


def _split_blocks(plan: ClientPlan, population: Population) -> frozenset[str]:
    """The blocks whose running statistics are instances of their own, as `ClientPlan.split_blocks` has them."""
    from blossom_ray.models.build import build_block
    from blossom_ray.models.flat import block_layout

    model = plan.model
    sparse = {Block("encoder", name) for name in plan.sparse_in_training}
    if model.norm_statistics != "same-modalities" and not sparse:
        return frozenset()
    holders: defaultdict[Block, set[str]] = defaultdict(set)
    for profile in population.representatives():
        for name, instance in plan.held_blocks(profile).items():
            is_common = instance.scope in _OF_SEVERAL_SETS and name.kind != "prototype"
            if is_common or (name in sparse and instance.scope in _OF_ONE_SET):
                holders[name].add(profile.modality_set)

    def has_statistics(name: Block) -> bool:
        num_outputs = plan.tasks[name.of if name.kind == "head" else next(iter(plan.tasks))].num_outputs
        block = build_block(name, model, plan.input_shapes, num_outputs, plan.seed)
        return len(block_layout(block, model.norm_statistics).buffers) > 0

    return frozenset(
        name
        for name, sets in holders.items()
        if (name in sparse or (len(sets) > 1 and model.norm_statistics == "same-modalities")) and has_statistics(name)
    )


_OF_SEVERAL_SETS = (Scope.SHARED, Scope.SAME_TASK, Scope.GROUP)
_OF_ONE_SET = (Scope.SAME_MODALITIES, Scope.SAME_MODALITIES_AND_TASK)
