"""From a scenario to a federation that can be run: data loaded, divided, written as shards; the clients' plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossom_ray.algorithms.selection import Population
from blossom_ray.authoring import AlgorithmServer, holdings, with_algorithm
from blossom_ray.clients.options import EngineName
from blossom_ray.clients.plan import ClientPlan, TaskPlan
from blossom_ray.core.blocks import CENTRAL_SCHEMES, FUSION, Block, BlockInstance, ClientProfile, Scope, SharingScheme
from blossom_ray.core.phrases import listed
from blossom_ray.core.records import Scoring
from blossom_ray.core.section import Custom
from blossom_ray.data.dataset import LeftOut
from blossom_ray.data.shards import ShardIndex, ShardReader, pack, pack_held_out
from blossom_ray.data.summary import ObservedRows, unit_notes
from blossom_ray.errors import InputError
from blossom_ray.models.options import place_of
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.loading import (
    LoadedDataset,
    TaskFacts,
    joint_digest,
    joint_names,
    joint_observed,
    lacking_in_training,
    load_dataset,
)
from blossom_ray.scenario.identity import numbers_tree

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Preparation:
    """Everything that a runtime and the loop need, small enough to be sent to every process.

    Attributes:
        scenario: The scenario.
        plan: What every client goes by.
        population: The clients and their chunks.
        shards: Where their shards lie.
        num_held_out: By the name of a data set the samples of its held-out global test set, which lies beside them; 0
            where there is none to score.
        fingerprint: SHA-256 (hex) of the data; with `tasks`, over those of all tasks.
        partition: SHA-256 (hex) over which rows each client has for training, validation and testing.
        left_out: What is not in the data, and rows that no client has, by reason.
        notes: What else is to be known of the data and their division, in a line each.
        task_facts: By task its classes and what it has of the data.
        client_names: What the user's data call each client, or its subjects; empty where samples are dealt.
        seconds_per_sample: Seconds that a training sample takes, by modality set and engine; empty where nobody timed.
        observation: SHA-256 (hex) over what is observed in which rows; "" where all clients observe all that they own.
        observed: By modality and split, in how many rows it is observed; of those that some owner lacks in some row.
        scales: By `modality`, or `<data set>/<modality>` with several data sets, what the manifest says of its scale.
    """

    scenario: Scenario
    plan: ClientPlan
    population: Population
    shards: ShardIndex
    num_held_out: Mapping[str, int]
    fingerprint: str
    partition: str
    left_out: tuple[LeftOut, ...] = ()
    client_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    task_facts: Mapping[str, TaskFacts] = field(default_factory=dict)
    seconds_per_sample: Mapping[str, Mapping[EngineName, float]] = field(default_factory=dict)
    observation: str = ""
    observed: Mapping[str, Mapping[str, ObservedRows]] = field(default_factory=dict)
    scales: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @cached_property
    def algorithm(self) -> AlgorithmServer | None:
        """The algorithm as it acts on the server; None: federated averaging."""
        if self.plan.author is None:
            return None
        holders = holdings(self.plan, self.population, self.shards.num_train)
        return AlgorithmServer(self.plan, self.population, holders)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached."""
        return {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}

    @property
    def has_held_out(self) -> bool:
        """Whether there is a held-out global test set to score."""
        return any(self.num_held_out.values())

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
            if engines[profiles[chunk.clients[0]].modality_set] != "sequential"
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
    profiles = population.profiles
    loaded = [load_dataset(scenario, whole, profiles, folder) for whole in scenario.federated]
    shards = ShardIndex.joined([(part.clients, part.shards) for part in loaded])
    observed = joint_observed(loaded, population.trained)
    # In the order of the scenario, whichever data sets they have.
    tasks = {name: part.tasks[name] for name in scenario.learned for part in loaded if name in part.tasks}
    facts = {name: part.facts[name] for name in scenario.learned for part in loaded if name in part.facts}
    plan = client_plan(
        scenario, population, {part.name: part.input_shapes for part in loaded}, tasks, observed, observed
    )
    return Preparation(
        scenario=scenario,
        plan=plan,
        population=population,
        shards=shards,
        num_held_out={part.name: part.num_held_out for part in loaded},
        fingerprint=joint_digest([own.fingerprint for own in facts.values()]),
        partition=joint_digest([part.partition for part in loaded]),
        left_out=tuple(entry for part in loaded for entry in part.left_out),
        task_facts=facts,
        notes=(
            *(note for part in loaded for note in part.notes),
            *_unseen_notes(scenario, plan, population, loaded),
            *_task_notes(scenario, tasks),
            *(note for part in loaded for note in part.label_notes),
            *unit_notes({part.name: part.deviations for part in loaded}),
        ),
        client_names=joint_names(loaded),
        observation=joint_digest([part.observation for part in loaded]),
        observed=observed,
        scales={
            f"{part.name}/{name}" if part.name else name: own for part in loaded for name, own in part.scales.items()
        },
    )


def client_plan(
    scenario: Scenario,
    population: Population,
    input_shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    tasks: Mapping[str, TaskPlan],
    observed: Mapping[str, Mapping[str, ObservedRows]],
    sparse: Iterable[str],
) -> ClientPlan:
    """What every client of a scenario goes by.

    Args:
        scenario: The scenario.
        population: Its clients.
        input_shapes: By data set the shape of one sample by modality.
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
        scheme=scenario.scheme,
        seed=scenario.seeds.training,
        input_shapes=_known_shapes(scenario.scheme, input_shapes),
        tasks=tasks,
        evaluation_batch_size=scenario.evaluation.batch_size,
        num_rounds=scenario.rounds,
        fine_tune=scenario.evaluation.fine_tune,
        unseen_start=scenario.evaluation.unseen.start,
        metrics=scenario.evaluation.metrics,
        weighting=scenario.server.weighting,
        engines=engines,
        sparse=tuple(sorted(sparse)),
        sparse_in_training=() if scenario.sharing in CENTRAL_SCHEMES else lacking_in_training(observed),
    )
    plan = replace(plan, scheme=_with_frozen_code(plan, population))
    if len(input_shapes) > 1:
        _check_joined(plan, population)
    plan = replace(plan, prototypes=_prototypes(plan, population))
    plan = replace(plan, split_blocks=_split_blocks(plan, population))
    return plan if scenario.algorithm.kind == "fedavg" else with_algorithm(plan, scenario.algorithm, population)


def _unseen_notes(
    scenario: Scenario, plan: ClientPlan, population: Population, loaded: Sequence[LoadedDataset]
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
    given = {client: int(count) for part in loaded for client, count in zip(part.clients, part.num_train, strict=True)}
    counts = [given[profile.index] for profile in population.unseen]
    if short := [count for count, wanted in zip(counts, shots, strict=True) if count < wanted]:
        yield f"{len(short)} of {len(shots)} unseen clients have fewer samples than shots, the fewest {min(short)}"


def _task_notes(scenario: Scenario, tasks: Mapping[str, TaskPlan]) -> Iterator[str]:
    """What is to be known of tasks whose labels the held-out set of their data does not have."""
    scored = {task.data for task in tasks.values() if task.has_held_out}
    for name, task in tasks.items():
        if task.data in scored and not task.has_held_out and scenario.evaluation.held_out != "never":
            yield f"{name}: the held-out set has other classes, so there are no held-out scores of this task"


def _known_shapes(
    scheme: SharingScheme, own: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """By data set the shape of a sample of each modality that its clients' models know.

    A fusion that clients of several data sets have in common knows the modalities of all of them; where a data set
    lacks one, its samples are as in the first one that has it.
    """
    is_of_one = scheme.fusions(["one"]) == ("one",) or scheme.scope(FUSION) is Scope.PRIVATE
    if len(own) == 1 or is_of_one:
        return own
    anywhere = {modality: shape for shapes in reversed([*own.values()]) for modality, shape in shapes.items()}
    return {name: dict(sorted({**anywhere, **shapes}.items())) for name, shapes in own.items()}


def _built(plan: ClientPlan, block: Block, profile: ClientProfile) -> nn.Module:
    """A block as clients of this one's kind hold it, with initial values."""
    from blossom_ray.models.build import build_block

    task = plan.tasks[block.of if block.kind == "head" else profile.tasks[0]]
    return build_block(block, plan.model, plan.shapes(profile), task.num_outputs, plan.seed)


def _with_frozen_code(plan: ClientPlan, population: Population) -> SharingScheme:
    """The scheme, with the scope `frozen` for own code whose parameters come frozen: nobody trains or averages it."""
    model, frozen = plan.model, dict[Block, bool]()
    sections: dict[str, object] = {"fusion": model.fusion, "head": model.head}
    for profile in population.representatives():
        for name in plan.held_blocks(profile):
            section = model.encoders[name.of] if name.kind == "encoder" else sections.get(name.kind)
            if isinstance(section, Custom) and name not in frozen:
                parameters = list(_built(plan, name, profile).parameters())
                frozen[name] = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    return plan.scheme.with_frozen(name for name, is_frozen in frozen.items() if is_frozen)


def _check_joined(plan: ClientPlan, population: Population) -> None:
    """Refuse blocks that clients of several data sets have in common, and whose parameters differ in shape.

    Raises:
        InputError: There is one.
    """
    seen: dict[BlockInstance, tuple[ClientProfile, dict[str, list[int]]]] = {}
    for profile in (*population.representatives(), *population.unseen_representatives()):
        data = plan.data_set(profile)
        for name, instance in plan.held_blocks(profile).items():
            if instance.is_private or (instance in seen and plan.data_set(seen[instance][0]) == data):
                continue
            tensors = _built(plan, name, profile).state_dict()
            shapes = {key: [*tensor.shape] for key, tensor in tensors.items()}
            first, others = seen.setdefault(instance, (profile, shapes))
            if different := [key for key in {**others, **shapes} if others.get(key) != shapes.get(key)]:
                key, sets = different[0], f"{plan.data_set(first)} and {data}"
                found = f"{name} has the scope {instance.scope} and is of the data sets {sets}"
                if name.kind == "encoder":
                    samples = (plan.shapes(each)[name.of] for each in (first, profile))
                    found += f", whose samples have the shapes {' and '.join(str([*shape]) for shape in samples)}"
                raise InputError(
                    f"{place_of(name)}: {found}: its {key} would have the shapes {others.get(key)} and "
                    f"{shapes.get(key)}; expected an encoder for any length (conv1d, gru, conv-gru), samples of one "
                    "shape, or the scope same-task"
                )


def _prototypes(plan: ClientPlan, population: Population) -> tuple[str, ...]:
    """The modalities that some client, or a sample, lacks, where prototypes stand for them."""
    kinds = (*population.representatives(), *population.unseen_representatives())
    held = (name for profile in kinds for name in plan.held_blocks(profile))
    return tuple(sorted({name.of for name in held if name.kind == "prototype"}))


def _split_blocks(plan: ClientPlan, population: Population) -> frozenset[str]:
    """The blocks whose running statistics are instances of their own, as `ClientPlan.split_blocks` has them."""
    from blossom_ray.models.flat import block_layout

    model = plan.model
    sparse = {Block("encoder", name) for name in plan.sparse_in_training}
    if model.norm_statistics != "same-modalities" and not sparse:
        return frozenset()
    holders: defaultdict[Block, set[str]] = defaultdict(set)
    holder: dict[Block, ClientProfile] = {}
    for profile in population.representatives():
        for name, instance in plan.held_blocks(profile).items():
            is_common = instance.scope in _OF_SEVERAL_SETS and name.kind != "prototype"
            if is_common or (name in sparse and instance.scope in _OF_ONE_SET):
                holders[name].add(profile.modality_set)
                holder[name] = profile

    def has_statistics(name: Block) -> bool:
        return len(block_layout(_built(plan, name, holder[name]), model.norm_statistics).buffers) > 0

    return frozenset(
        name
        for name, sets in holders.items()
        if (name in sparse or (len(sets) > 1 and model.norm_statistics == "same-modalities")) and has_statistics(name)
    )


_OF_SEVERAL_SETS = (Scope.SHARED, Scope.SAME_TASK, Scope.GROUP)
_OF_ONE_SET = (Scope.SAME_MODALITIES, Scope.SAME_MODALITIES_AND_TASK)
