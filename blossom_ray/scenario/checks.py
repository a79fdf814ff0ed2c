"""Checks across sections: values that are right in themselves and cannot stand together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blossom_ray.algorithms.options import Server
from blossom_ray.clients.options import CosineSchedule, Sgd, Training
from blossom_ray.core.blocks import ANY_ENCODER, SharingScheme, block_names, encoder_block, is_encoder
from blossom_ray.core.locations import is_uri
from blossom_ray.core.phrases import Finding, did_you_mean, listed, one_of, shown
from blossom_ray.core.scores import OTHER_COLUMNS, SCORES, SUFFIXES, Task
from blossom_ray.data.facts import DATASETS, num_subjects, shapes_of
from blossom_ray.data.options import (
    CustomData,
    Data,
    Downloaded,
    PtbXlData,
    SyntheticData,
    SyntheticModality,
    TableData,
)
from blossom_ray.data.partition_options import (
    ClientGroup,
    DirichletPartition,
    GivenPartition,
    IidPartition,
    Partition,
    QuantityPartition,
)
from blossom_ray.models.options import Model
from blossom_ray.scenario.algorithm_checks import algorithm_problems
from blossom_ray.scenario.compat import compat_problems
from blossom_ray.scenario.sections import Evaluation, Execution, Stop

# Ten million labels are 80 MB, and a few copies of them are needed to divide them over clients.
_MOST_SAMPLES = 10_000_000
_MOST_VALUES_OF_A_SAMPLE = 100_000_000
_LEAST_SHARE = 0.0001
_DEFAULT_SHAPES: dict[str, tuple[int, ...]] = {
    "sequence": (64, 3),
    "image": (1, 16, 16),
    "vector": (32,),
}
_AXES = {
    "sequence": "2 numbers (time, channels)",
    "image": "3 numbers (channels, height, width)",
    "vector": "1 number (features)",
}


def cross_problems(sections: Mapping[str, Any]) -> list[Finding]:
    """Everything that does not fit together.

    Args:
        sections: The top-level values of a scenario that are right in themselves. A check runs where all that it
            compares is there.
    """
    found: list[Finding] = []
    if isinstance(sections.get("clients"), str):
        found += _from_data(sections.get("data"))
        sections = {name: section for name, section in sections.items() if name != "clients"}
    data, clients, model = sections.get("data"), sections.get("clients"), sections.get("model")
    if data is not None:
        found += _data(data)
        found += _fractions(data)
        found += _draws(data)
        found += _given(data)
    if data is not None and "task" in sections:
        found += _task(data, sections["task"])
    if isinstance(data, PtbXlData) and "task" in sections:
        found += _ptb_xl_task(data, sections["task"])
    if model is not None and clients is not None:
        found += _modalities(model, clients)
    if model is not None:
        found += model.problems({} if data is None else _well_shaped(data, model))
    if model is not None and data is not None:
        found += _data_modalities(data, model)
    if data is not None and clients is not None:
        found += _client_counts(data, sum(group.count for group in clients))
    if model is not None and isinstance(sections.get("sharing"), Mapping):
        found += _sharing_map(sections["sharing"], model)
    if clients is not None and isinstance(sections.get("sharing"), Mapping):
        found += _group_labels(sections["sharing"], clients)
    if clients is not None and "server" in sections:
        found += _cohort(sections["server"], sum(group.count for group in clients))
    if "training" in sections:
        found += _training(sections["training"])
    if "evaluation" in sections:
        found += _fine_tuning_rounds(sections["evaluation"])
        found += _held_out_rounds(sections["evaluation"])
        found += _metric_names(sections["evaluation"])
    if sections.get("stop") is not None:
        found += _stop(sections["stop"], sections)
    found += algorithm_problems(sections)
    found += compat_problems(sections)
    if clients is not None and "training" in sections:
        found += _engines(sections["training"], clients)
    if "execution" in sections:
        found += _gpu_share(sections["execution"])
    if "training" in sections and "execution" in sections:
        found += _actor_per_client(sections["training"], sections["execution"])
    return found


def missing_data(sections: Mapping[str, Any]) -> list[Finding]:
    """What a run needs on this machine and does not find; the scenario of a run that is over does without.

    Args:
        sections: As for `cross_problems`.
    """
    data = sections.get("data")
    if not isinstance(data, Downloaded | TableData) or data.path is None or _exists(data.path):
        return []
    return [Finding("data.path", f"{shown(data.path)}, which does not exist", DATASETS[data.dataset].download)]


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


def input_shapes(data: Data, modalities: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shape of one sample by modality, where the scenario alone tells it."""
    match data:
        case SyntheticData():
            default = SyntheticModality()
            listed_modalities = {name: data.modalities.get(name, default) for name in modalities}
            return {name: section.shape or _DEFAULT_SHAPES[section.kind] for name, section in listed_modalities.items()}
        case CustomData() | TableData():
            return {}
        case _:
            shapes = shapes_of(data)
            return {name: shapes[name] for name in modalities if name in shapes}


def _data(data: Data) -> Iterator[Finding]:
    if isinstance(data, SyntheticData):
        yield from _synthetic(data)
    if isinstance(data, Downloaded) and data.path is None:
        facts = DATASETS[data.dataset]
        yield Finding("data.path", "is null", f"{facts.download}; get it from {facts.page}")


def _task(data: Data, task: Task) -> Iterator[Finding]:
    tasks = DATASETS[data.dataset].tasks
    if task not in tasks:
        yield Finding("task", f"{shown(task)}, which the labels of {data.dataset} do not serve", one_of(tasks))
    if isinstance(data, SyntheticData):
        limit, what = (data.targets, "targets") if task == "regression" else (data.classes, "classes")
        for name, modality in data.modalities.items():
            groups = modality.distinguishable_classes
            if groups is not None and groups > limit:
                expected = f"at most {limit}, the number of {what}"
                yield Finding(f"data.modalities.{name}.distinguishable_classes", f"is {groups}", expected)


def _ptb_xl_task(data: PtbXlData, task: str) -> Iterator[Finding]:
    suited = {"single": "classification", "multi": "multilabel"}
    if suited[data.labels] != task:
        expected = " or ".join(f"{labels!r} with task: {name}" for labels, name in suited.items())
        yield Finding("data.labels", f"is {data.labels!r}, while task is {task!r}", expected)


def _from_data(data: Data | None) -> Iterator[Finding]:
    if data is not None and not isinstance(data.partition, GivenPartition):
        found = f"is 'from-data', while data.partition.kind is {data.partition.kind!r}"
        yield Finding("clients", found, "groups of clients, or data.partition: {kind: given}")


def _given(data: Data) -> Iterator[Finding]:
    if isinstance(data.partition, GivenPartition) and not isinstance(data, TableData | CustomData):
        found = f"is 'given', while data.dataset is {data.dataset!r}, which does not say whose its samples are"
        yield Finding("data.partition.kind", found, "another kind, or dataset: table or custom")


def _exists(path: str) -> bool:
    try:
        return is_uri(path) or Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long for a file, a folder that may not be entered, no such home
        return False


def _synthetic(data: SyntheticData) -> Iterator[Finding]:
    for key, number in (("samples", data.samples), ("held_out_samples", data.held_out_samples)):
        if number > _MOST_SAMPLES:
            yield Finding(f"data.{key}", shown(number), f"at most {_MOST_SAMPLES:,}; larger data come in as own data")
    for key, number in (("classes", data.classes), ("subjects", data.subjects or 0)):
        if number > data.samples:
            yield Finding(f"data.{key}", shown(number), f"at most {data.samples}, the number of samples")
    yield from _synthetic_sizes(data)
    for name, modality in data.modalities.items():
        path = f"data.modalities.{name}"
        if modality.shape is not None and len(modality.shape) != len(_DEFAULT_SHAPES[modality.kind]):
            expected = f"{_AXES[modality.kind]} for the kind {modality.kind}"
            yield Finding(f"{path}.shape", shown(modality.shape), expected)
    if data.subjects is None:
        for key, value in (("split", data.split), ("partition.kind", data.partition.kind)):
            if value in ("subject", "common-subject"):
                found = f"is {value!r}, while data.subjects is null"
                yield Finding(f"data.{key}", found, "a number of subjects in data.subjects, or another choice")


def _synthetic_sizes(data: SyntheticData) -> Iterator[Finding]:
    for name, modality in data.modalities.items():
        num_values = math.prod(modality.shape or _DEFAULT_SHAPES[modality.kind])
        if num_values > _MOST_VALUES_OF_A_SAMPLE:
            expected = f"at most {_MOST_VALUES_OF_A_SAMPLE:,} values in a sample"
            yield Finding(f"data.modalities.{name}.shape", shown(modality.shape), expected)


def _modalities(model: Model, clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    owned: dict[str, None] = {}
    for index, group in enumerate(clients):
        for position, modality in enumerate(group.modalities):
            owned[modality] = None
            if modality not in model.encoders:
                expected = f"a modality with an encoder: {listed(model.encoders)}"
                near = did_you_mean(modality, model.encoders)
                yield Finding(f"clients.{index}.modalities.{position}", shown(modality), expected + near)
    for modality in model.encoders:
        if modality not in owned:
            expected = f"a modality that clients own: {listed(owned)}" + did_you_mean(modality, owned)
            yield Finding(f"model.encoders.{modality}", "is an encoder that no client can train", expected)


def _data_modalities(data: Data, model: Model) -> Iterator[Finding]:
    if isinstance(data, SyntheticData):
        for name in data.modalities:
            if name not in model.encoders:
                expected = f"a modality with an encoder: {listed(model.encoders)}"
                near = did_you_mean(name, model.encoders)
                yield Finding(f"data.modalities.{name}", "is a modality without an encoder", expected + near)
    if isinstance(data, Downloaded):
        known = shapes_of(data)
        for name in model.encoders:
            if name not in known:
                found = f"is an encoder of a modality that {data.dataset} does not have"
                expected = one_of(known) + did_you_mean(name, known)
                yield Finding(f"model.encoders.{name}", found, expected)


def _well_shaped(data: Data, model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes that the scenario tells, but for those that are themselves found wrong."""
    shapes = input_shapes(data, model.encoders)
    if isinstance(data, SyntheticData):
        axes = {name: len(_DEFAULT_SHAPES[modality.kind]) for name, modality in data.modalities.items()}
        shapes = {name: shape for name, shape in shapes.items() if len(shape) == axes.get(name, len(shape))}
    return shapes


def _fractions(data: Data) -> Iterator[Finding]:
    if data.test_fraction + data.validation_fraction >= 1:
        found = (
            f"is {data.validation_fraction:g}, which beside data.test_fraction {data.test_fraction:g} leaves no samples"
        )
        yield Finding("data.validation_fraction", found + " to train on", "two fractions that sum to less than 1")


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


def _client_counts(data: Data, num_clients: int) -> Iterator[Finding]:
    partition = data.partition
    num_splits = 3 if data.validation_fraction else 2
    if partition.kind == "subject":
        found_subjects = num_subjects(data)
        each = num_splits if data.split in ("subject", "common-subject") else 1
        if found_subjects is not None and found_subjects < each * num_clients:
            found = f"is 'subject', while {found_subjects} subjects stand against {num_clients} clients"
            why = f", for data.split: {data.split} puts whole subjects into each split" if each > 1 else ""
            yield Finding("data.partition.kind", found, f"at least {each} per client{why}")
    if isinstance(data, SyntheticData):
        if data.samples < num_splits * num_clients:
            expected = f"at least {num_splits * num_clients}, {num_splits} for each of {num_clients} clients"
            yield Finding("data.samples", f"is {data.samples}", expected)
        elif _min_samples(partition) * num_clients > data.samples:
            found = f"is {_min_samples(partition)} for each of {num_clients} clients"
            expected = f"at most {data.samples // num_clients}, since data.samples is {data.samples}"
            yield Finding("data.partition.min_samples", found, expected)


def _min_samples(partition: Partition) -> int:
    match partition:
        case DirichletPartition() | QuantityPartition():
            return partition.min_samples
        case _:
            return 0


def _sharing_map(sharing: Mapping[str, str], model: Model) -> Iterator[Finding]:
    blocks = block_names(model.encoders)
    known = (ANY_ENCODER, *blocks)
    for block in sharing:
        if block not in known:
            expected = one_of(known) + did_you_mean(block, known)
            yield Finding(f"sharing.{block}", "is not a block of this model", expected)
    scheme = SharingScheme.of(sharing)
    uncovered = [
        block
        for block in blocks
        if block not in scheme.scopes and not (is_encoder(block) and ANY_ENCODER in scheme.scopes)
    ]
    if uncovered:
        each = f"a scope for every block: {listed(blocks)} ({ANY_ENCODER} stands for every encoder)"
        yield Finding("sharing", f"says nothing about {listed(uncovered)}", each)


def _group_labels(sharing: Mapping[str, str], clients: tuple[ClientGroup, ...]) -> Iterator[Finding]:
    for index, group in enumerate(clients):
        blocks = [block for block, scope in sharing.items() if scope == "group" and _may_hold(group, block)]
        if blocks and not group.group:
            found = f"is empty, while sharing gives {listed(blocks)} the scope group"
            yield Finding(f"clients.{index}.group", found, "a label for every group of clients")


def _may_hold(group: ClientGroup, block: str) -> bool:
    return block == ANY_ENCODER or not is_encoder(block) or block in map(encoder_block, group.modalities)


def _cohort(server: Server, num_clients: int) -> Iterator[Finding]:
    size = server.clients_per_round
    if isinstance(size, int) and size > num_clients:
        expected = f"at most {num_clients}, the number of clients"
        yield Finding("server.clients_per_round", f"is {size}", expected)


def _fine_tuning_rounds(evaluation: Evaluation) -> Iterator[Finding]:
    section = evaluation.fine_tune
    if section is not None and section.every is not None and section.every % evaluation.every:
        expected = f"a multiple of {evaluation.every}, since evaluation.every is {evaluation.every}"
        yield Finding("evaluation.fine_tune.every", f"is {section.every}", expected)


def _held_out_rounds(evaluation: Evaluation) -> Iterator[Finding]:
    if evaluation.split == "validation" and evaluation.held_out == "every":
        found = "is 'every', while evaluation.split is 'validation', which scores the held-out set once"
        yield Finding("evaluation.held_out", found, "'final' or 'never'")


def _stop(stop: Stop, sections: Mapping[str, Any]) -> Iterator[Finding]:
    rounds = sections.get("rounds")
    if rounds is not None and stop.min_rounds > rounds:
        yield Finding("stop.min_rounds", f"is {stop.min_rounds}", f"at most {rounds}, the number of rounds")
    if stop.metric is None or not {"task", "evaluation", "clients"} <= sections.keys():
        return
    own, sets = tuple(sections["evaluation"].metrics), {group.modality_set for group in sections["clients"]}
    pooled = [score.name for score in SCORES[sections["task"]]]
    names = ["loss", *pooled, *own]
    plain = [*names, *(f"{name}{suffix}" for name in names for suffix in SUFFIXES if suffix != "_pooled")]
    known = [*plain, *(f"{name}_pooled" for name in pooled), *(f"{name}/{one}" for name in names for one in sets)]
    metric = stop.metric.removeprefix("validation/")
    if metric not in known:
        expected = f"a score on the clients' validation splits, such as {listed(names)}"
        yield Finding("stop.metric", shown(stop.metric), expected + did_you_mean(metric, known))


def _metric_names(evaluation: Evaluation) -> Iterator[Finding]:
    taken = OTHER_COLUMNS | {score.name for scores in SCORES.values() for score in scores}
    for name in evaluation.metrics:
        path = f"evaluation.metrics.{name}"
        if name in taken:
            yield Finding(path, "is the name of a column that runs have already", "another name")
        if name.endswith(SUFFIXES):
            yield Finding(path, f"ends with one of {listed(SUFFIXES)}, as summaries over clients do", "another name")


def _training(training: Training) -> Iterator[Finding]:
    optimizer, schedule = training.optimizer, training.schedule
    if training.min_batch_size > training.batch_size:
        expected = f"at most {training.batch_size}, the batch size"
        yield Finding("training.min_batch_size", f"is {training.min_batch_size}", expected)
    if isinstance(optimizer, Sgd) and optimizer.nesterov and optimizer.momentum == 0:
        found = "is true, while momentum is 0"
        yield Finding("training.optimizer.nesterov", found, "false, or a momentum above 0")
    if isinstance(schedule, CosineSchedule) and schedule.min_lr > optimizer.lr:
        expected = f"at most {optimizer.lr}, the learning rate of the optimizer"
        yield Finding("training.schedule.min_lr", f"is {schedule.min_lr}", expected)


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


def _gpu_share(execution: Execution) -> Iterator[Finding]:
    share = execution.client_resources.num_gpus
    if 0 < share < _LEAST_SHARE:
        expected = f"0, or at least {_LEAST_SHARE}, the smallest part of a GPU that Ray gives"
        yield Finding("execution.client_resources.num_gpus", f"is {share:g}", expected)


def _actor_per_client(training: Training, execution: Execution) -> Iterator[Finding]:
    if execution.runtime == "local" or execution.clients_per_actor != 1 or training.engine == "auto":
        return
    if training.may_stack:
        found = "is 1, while training.engine is 'vectorized', which keeps a chunk of clients in one actor"
        yield Finding("execution.clients_per_actor", found, "auto or a larger number, or training.engine: sequential")
