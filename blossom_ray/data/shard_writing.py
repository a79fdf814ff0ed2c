"""Clients' shards and the held-out set onto disk, where a reader of shards finds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.label_rows import label_rows
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.labelling import column_of, is_partial
from blossom_ray.data.shard_files import (
    gaps_name,
    held_out_place,
    inputs_name,
    key_of,
    labels_name,
    scale_name,
    write_batches,
)
from blossom_ray.data.shards import ShardIndex, numbered
from blossom_ray.data.stored import Rows, Scale, StoredRows, as_seen
from blossom_ray.data.targets import IntArray, Labels

_MOST_FLOATS = 2**30
"""Bytes of a modality's samples as float32 above which what is kept as bytes stays so in its file."""


def write_shards(
    dataset: Dataset,
    federation: Federation,
    profiles: Sequence[ClientProfile],
    folder: Path,
    views: IntArray | None = None,
    name: str = "",
    scales: Mapping[str, Mapping[int, Scale]] = MappingProxyType({}),
) -> ShardIndex:
    """Write every client's samples; of those that the data set has on disk a little is in memory at once.

    Args:
        dataset: With the modalities of all clients, and in `label_columns` the labels of each task by its name.
        federation: Rows of each client, and what it observes in them.
        profiles: The clients in the order of their ids.
        folder: Made if it does not exist; files of the same name are replaced.
        views: As in `ShardIndex`; None: all clients see the held-out set in the same way.
        name: Of the data set, where there are several in one folder.
        scales: Of modalities that each owner scales by numbers of its own, these by client.

    Raises:
        RunFolderError: The files cannot be written.
    """
    rows = [federation.rows(client) for client in range(len(profiles))]
    places = [federation.located(dataset, client) for client in range(len(profiles))]
    sources = [*{id(part): part for part, _ in places}.values()]
    labels, batches, gaps, own_scales = {}, {}, {}, {}
    for tasks in sorted({profile.tasks for profile in profiles}):
        together = "+".join(tasks)
        has = np.array([profile.tasks == tasks for profile in profiles])
        own_places = [places[client] for client in np.flatnonzero(has)]
        parts = {id(part): _labels_of(part, tasks, dataset) for part, _ in own_places}
        write_batches(
            folder / labels_name(together),
            next(iter(parts.values())),
            (parts[id(part)][own] for part, own in own_places),
        )
        labels[together] = numbered(has)
    for modality, samples in dataset.inputs.items():
        observed = federation.observed.get(modality)
        owns = np.array([modality in profile.modalities for profile in profiles])
        by_client, key = scales.get(modality, {}), key_of(modality, name)
        owned = (
            as_seen(
                part.inputs[modality], own, None if observed is None else observed[rows[client]], by_client.get(client)
            )
            for client, (part, own) in enumerate(places)
            if owns[client]
        )
        stay_bytes = _stay_bytes([part.inputs[modality] for part in sources])
        write_batches(folder / inputs_name(key), samples, owned, stay_bytes=stay_bytes)
        batches[key] = numbered(owns)
        if by_client:
            found = [np.stack(by_client[client]) for client in np.flatnonzero(owns).tolist()]
            write_batches(folder / scale_name(key), found[0], found)
            own_scales[key] = batches[key]
        if observed is not None:
            lacks = np.array([owner and not observed[own].all() for owner, own in zip(owns, rows, strict=True)])
            masks = (observed[rows[client]].view(np.uint8) for client in np.flatnonzero(lacks))
            write_batches(folder / gaps_name(key), observed.view(np.uint8), masks)
            gaps[key] = numbered(lacks)
    return ShardIndex(
        folder=folder,
        batches=batches,
        num_train=federation.train.counts,
        num_validation=federation.validation.counts,
        num_test=federation.test.counts,
        gaps=gaps,
        views=np.zeros(len(profiles), np.int64) if views is None else views,
        labels=labels,
        scales=own_scales,
    )


def write_held_out(
    held_out: Sequence[Dataset],
    folder: Path,
    *,
    dataset: Dataset | None = None,
    tasks: Collection[tuple[str, ...]] = (("",),),
    name: str = "",
) -> None:
    """Write the held-out global test set beside the shards in `folder`.

    Args:
        held_out: The set as clients see it, for each way in which they do.
        folder: Where `write_shards` writes.
        dataset: What that is given, for what the labels are of which the set has none; needed with several tasks.
        tasks: Those that clients have together.
        name: As in `write_shards`.

    Raises:
        RunFolderError: The files cannot be written.
    """
    for number, view in enumerate(held_out):
        place = held_out_place(number)
        for modality, samples in view.inputs.items():
            file = folder / (place + inputs_name(key_of(modality, name)))
            write_batches(file, samples, [samples], stay_bytes=_stay_bytes([samples]))
        for modality, observed in view.observed.items():
            own = observed.view(np.uint8)
            write_batches(folder / (place + gaps_name(key_of(modality, name))), own, [own])
        for together in tasks:
            if any(column_of(view, task) is not None for task in together):
                labels = _labels_of(view, together, dataset or view)
                write_batches(folder / (place + labels_name("+".join(together))), labels, [labels])


def _labels_of(part: Dataset, tasks: Sequence[str], dataset: Dataset) -> Labels:
    """The labels of some tasks in a part of a data set, as `Samples` has them; those that it lacks are not known."""
    found = []
    for task in tasks:
        column, like = column_of(part, task), column_of(dataset, task)
        assert like is not None, "the data set has the labels of all tasks"
        if column is None:
            labels = np.zeros((part.num_samples, *like.labels.shape[1:]), like.labels.dtype)
            column = LabelColumn(labels, like.class_names, np.zeros(labels.shape, bool))
        found.append(column)
    if len(found) == 1 and not is_partial(dataset, tasks[0]):
        return found[0].labels
    return label_rows([(column.labels, column.known) for column in found])


def _stay_bytes(parts: Collection[Rows]) -> bool:
    """Whether these samples are bytes, of one meaning, and many."""
    factors = {part.factor if isinstance(part, StoredRows) and part.is_of_bytes else None for part in parts}
    return len(factors) == 1 and None not in factors and sum(part.nbytes for part in parts) > _MOST_FLOATS
