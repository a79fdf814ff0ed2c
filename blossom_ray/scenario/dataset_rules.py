"""What several data sets cannot say together, and who has which."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from blossom_ray.core.blocks import Block, Scope
from blossom_ray.core.locations import is_uri
from blossom_ray.core.phrases import accepted, did_you_mean, listed, one_of, shown
from blossom_ray.core.scores import LearnedTask
from blossom_ray.core.section import Custom, Finding
from blossom_ray.core.structure import Hint
from blossom_ray.data.division.options import ClientGroup, GivenPartition
from blossom_ray.data.sets.base import DataSection
from blossom_ray.models.options import Model
from blossom_ray.scenario.rules import rule
from blossom_ray.scenario.sections import Stop
from blossom_ray.scenario.tree import ScenarioTree


@rule
def _one_of_both(sections: Mapping[str, Any]) -> Iterator[Finding]:
    if not {"data", "datasets"} <= sections.keys():
        return
    if sections["data"] is not None and sections["datasets"] is not None:
        yield Finding("datasets", "are given, while there is data", "one of the two")
    if sections["data"] is None and sections["datasets"] is None:
        hint = Hint(ScenarioTree).child("data")
        assert hint is not None, "scenarios have data"
        yield Finding("data", "is missing", accepted(hint))


@rule
def _data_of_tasks(learned: Mapping[str, LearnedTask], sections: Mapping[str, Any]) -> Iterator[Finding]:
    datasets = sections.get("datasets")
    for task, each in learned.items():
        path = f"tasks.{task}.data"
        if datasets is None:
            if each.data is not None and "datasets" in sections:
                yield Finding(path, f"{shown(each.data)}, while there are no datasets", "null, or datasets by name")
        elif each.data is None and len(datasets) > 1:
            where, found = (path, "is null") if task else ("tasks", "are not there")
            yield Finding(where, f"{found}, while there are the data sets {listed(datasets)}", one_of(datasets))
        elif each.data is not None and each.data not in datasets:
            yield Finding(path, shown(each.data), one_of(datasets) + did_you_mean(each.data, datasets))
    named = {each.data for each in learned.values()}
    for name in datasets or () if len(datasets or ()) > 1 and None not in named else ():
        if name not in named:
            yield Finding(f"datasets.{name}", "is a data set that no task has", f"a task with data: {name}")


@rule
def _one_data_set_per_client(
    clients: tuple[ClientGroup, ...], learned: Mapping[str, LearnedTask], datasets: Mapping[str, DataSection]
) -> Iterator[Finding]:
    for index, group in enumerate(clients):
        own = [name for name in datasets if any(learned[task].data == name for task in group.tasks if task in learned)]
        if len(own) > 1:
            found = f"is [{', '.join(group.tasks)}], of the data sets {listed(own)}"
            yield Finding(f"clients.{index}.task", found, "tasks of one data set, whose samples have one shape")


@rule
def _joined_encoders(
    datasets: Mapping[str, DataSection],
    learned: Mapping[str, LearnedTask],
    clients: tuple[ClientGroup, ...],
    model: Model,
    scopes: Mapping[str, Scope],
) -> Iterator[Finding]:
    """What an encoder's parameters follow from are the arguments of its module. Other data are looked at by a run."""
    for modality, encoder in model.encoders.items():
        if isinstance(encoder, Custom) or scopes[Block("encoder", modality)] is not Scope.SHARED:
            continue
        found: dict[str, tuple[int, ...]] = {}
        for group in clients:
            for name in {learned[task].data or "" for task in group.tasks if task in learned} & datasets.keys():
                shape = datasets[name].input_shapes([modality]).get(modality) if modality in group.modalities else None
                if shape is not None and not any((*encoder.conflicts(), *encoder.misfits(shape))):
                    found[name] = shape
        (first, one), *others = [*found.items()] or [("", ())]
        for name, other in others:
            made = [encoder.module(shape) for shape in (one, other)] if one != other else []
            if len({repr((each.args, each.keywords)) for each in made}) > 1:
                told = f"is shared by the data sets {first} and {name}, whose samples have the shapes"
                expected = (
                    "an encoder for any length (conv1d, gru, conv-gru), samples of one shape, or the scope same-task"
                )
                yield Finding(f"model.encoders.{modality}", f"{told} {[*one]} and {[*other]}", expected)


@rule
def _same_data_twice(datasets: Mapping[str, DataSection]) -> Iterator[Finding]:
    """Test rows of the one would be training rows of the other."""
    seen: dict[object, str] = {}
    for name, data in datasets.items():
        path, factory = getattr(data, "path", None), getattr(data, "factory", None)
        if path is None and factory is None:
            continue
        place = path if path is None or is_uri(path) else os.path.realpath(os.path.expanduser(path))
        source = place or (factory, repr(getattr(data, "options", None)))
        if (first := seen.setdefault(source, name)) != name:
            key = "factory" if path is None else "path"
            found = f"is that of datasets.{first}, so one's test rows would be the other's training rows"
            yield Finding(f"datasets.{name}.{key}", found, "one data set with two tasks")


@rule
def _validation_of_stop(
    stop: Stop, learned: Mapping[str, LearnedTask], datasets: Mapping[str, DataSection]
) -> Iterator[Finding]:
    task = (stop.metric or "").removeprefix("validation/").partition("/")[0]
    name = learned[task].data if task in learned else None
    if len(datasets) == 1 or name is None or name not in datasets:
        return
    if datasets[name].validation_fraction == 0 and not isinstance(datasets[name].partition, GivenPartition):
        found = f"{shown(stop.metric)}, while datasets.{name}.validation_fraction is 0"
        yield Finding("stop.metric", found, f"datasets.{name}.validation_fraction above 0, or a score of another task")


@rule
def _compat_of_datasets(compat: str, datasets: Mapping[str, DataSection]) -> Iterator[Finding]:
    yield Finding("compat", f"is {compat!r}, while there are the data sets {listed(datasets)}", "null, or data")
