"""A data set with those clients of a scenario that have its samples: how it is opened, and divided over them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.phrases import listed
from blossom_ray.core.scores import LearnedTask
from blossom_ray.core.seeding import named_seed
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.observation import observe
from blossom_ray.data.division.options import ClientGroup, Clients
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.sets.base import DataSection, DataSource
from blossom_ray.data.targets import Targets
from blossom_ray.errors import InputError


@dataclass(frozen=True)
class FederatedDataset:
    """One data set of a scenario with its clients, who count from 0 in all that is drawn about it.

    Attributes:
        data: Its section.
        modalities: Those that are read of it, sorted.
        clients: The groups of its clients, or `from-data`.
        seed: What data, partition, splits and gaps are drawn from.
        learned: By task, what its clients learn.
        name: What `datasets` calls it; "" for `data`.
        ids: The ids of its clients among all, in their order.
    """

    data: DataSection
    modalities: tuple[str, ...]
    clients: Clients
    seed: int
    learned: Mapping[str, LearnedTask]
    name: str = ""
    ids: tuple[int, ...] = ()

    @property
    def groups(self) -> tuple[ClientGroup, ...]:
        """The groups of its clients, once it is known who they are."""
        assert not isinstance(self.clients, str), "the scenario of a run has groups"
        return self.clients

    def open(self) -> DataSource:
        """The data set as a source, with the labels of all of its tasks; errors as `DataSection.open`."""
        return self.data.open_learned(self.modalities, self.seed, self.learned)

    def targets(self, dataset: Dataset) -> Targets:
        """What it is divided by, once it has been loaded."""
        return self.data.labelled(dataset, self.data.skewed_labels(self.learned)).targets

    def divide(self, targets: Targets) -> Federation:
        """Which client has which rows; errors as `build_federation`."""
        sets = [tuple(sorted(group.modalities)) for group in self.groups for _ in range(group.count)]
        unseen = [group for group in self.groups if group.role == "unseen"]
        return build_federation(self.data, targets, len(sets), self.seed, sets, unseen)

    def observe(self, federation: Federation, targets: Targets) -> Federation:
        """The federation with what clients observe, without the rows that are left out for it; errors as `observe`."""
        return observe(federation, self.data, targets, self.groups, self.seed)

    def profiles(self, everyone: Sequence[ClientProfile]) -> list[ClientProfile]:
        """Its clients among all of them, counted from 0."""
        own = (everyone[client] for client in self.ids)
        return [each if each.index == place else replace(each, index=place) for place, each in enumerate(own)]

    def in_words(self, text: str) -> str:
        """A text about `data` and clients that count from 0, in the scenario's words: `datasets.<name>`, and ids."""
        if not self.name:
            return text
        text = renamed(text, self.name, self.data)
        return re.sub(r"(?<!')\bclient (\d+)\b", lambda found: f"client {self.ids[int(found[1])]}", text)

    @contextmanager
    def told(self) -> Iterator[None]:
        """What is raised about the data set, in the scenario's words."""
        try:
            yield
        except PartitionError as error:
            if self.name:
                told = (error.path, error.found, error.expected)
                raise PartitionError(*map(self.in_words, told)) from error.__cause__
            raise
        except InputError as error:
            if self.name:
                raise type(error)(*(self.in_words(str(line)) for line in error.args)) from error.__cause__
            raise


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


def renamed(text: str, name: str, data: DataSection) -> str:
    """A text about `data` and its keys as one about `datasets.<name>`; as it is where the data set has no name."""
    keys = "|".join(type(data).model_fields)
    return re.sub(rf"^data$|(?<![\w./'-])data(?=\.({keys})\b)", f"datasets.{name}", text) if name else text


def federated_datasets(
    data_sets: Mapping[str, DataSection],
    modalities: tuple[str, ...],
    clients: Clients,
    seed: int,
    learned: Mapping[str, LearnedTask],
) -> tuple[FederatedDataset, ...]:
    """The data sets of a scenario with their clients, who have them by their tasks.

    A data set with a name has a seed of its own, which follows from the scenario's and the name: what is drawn about
    it depends neither on the other data sets nor on their clients.

    Args:
        data_sets: By name, "" for `data`.
        modalities: Those of the model. Of several data sets each is read in those that its clients own.
        clients: The scenario's.
        seed: Of the federation.
        learned: By task.

    Raises:
        PartitionError: Clients of several data sets are `from-data`.
    """
    if len(data_sets) == 1:
        ((name, data),) = data_sets.items()
        ids = () if isinstance(clients, str) else tuple(range(sum(group.count for group in clients)))
        return (FederatedDataset(data, modalities, clients, named_seed(seed, name), learned, name, ids),)
    if isinstance(clients, str):
        found = f"is {clients!r}, while there are the data sets {listed(data_sets)}"
        raise PartitionError("clients", found, "groups of clients, each with its task")
    whole = []
    for name, data in data_sets.items():
        tasks = {task: each for task, each in learned.items() if each.data == name}
        groups, own_ids, first = list[ClientGroup](), list[int](), 0
        for group in clients:
            if not tasks.keys().isdisjoint(group.tasks):
                groups.append(group)
                own_ids += range(first, first + group.count)
            first += group.count
        owned = tuple(sorted({modality for group in groups for modality in group.modalities} & {*modalities}))
        seed_of = named_seed(seed, name)
        whole.append(FederatedDataset(data, owned, tuple(groups), seed_of, tasks, name, tuple(own_ids)))
    return tuple(whole)
