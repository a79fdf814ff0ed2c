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
    write_rows,
)
from blossom_ray.data.shards import ShardIndex, first_rows
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
    rows, owners = federation.all_rows()
    sizes = np.bincount(owners, minlength=len(profiles))
    labels, inputs, gaps, own_scales = {}, {}, {}, {}
    for tasks in sorted({profile.tasks for profile in profiles}):
        together = "+".join(tasks)
        has = np.array([profile.tasks == tasks for profile in profiles])
        own = rows[has[owners]]
        values = np.concatenate([_labels_of(part, tasks, dataset) for part in _with_rows(dataset, own)])[own]
        write_rows(folder / labels_name(together), values, [values], len(own))
        labels[together] = first_rows(has, sizes)
    for modality, samples in dataset.inputs.items():
        owns = np.array([modality in profile.modalities for profile in profiles])
        is_own = owns[owners]
        own = rows[is_own]
        by_client, key = scales.get(modality, {}), key_of(modality, name)
        parts, stay_bytes = _to_write([part.inputs[modality] for part in _with_rows(dataset, own)])
        stored = StoredRows.of(*parts)
        # Each client's in its own scale, which whoever reads bytes sees to.
        is_apart = bool(by_client) and not stay_bytes
        stretches = np.split(own, np.cumsum(sizes[owns])[:-1]) if is_apart else [own]
        own_scale = [by_client.get(client) for client in np.flatnonzero(owns).tolist()] if is_apart else [None]
        observed = federation.observed.get(modality)
        seen = (
            as_seen(stored, each, None if observed is None else observed[each], scale)
            for each, scale in zip(stretches, own_scale, strict=True)
        )
        write_rows(folder / inputs_name(key), samples, seen, len(own), stay_bytes=stay_bytes)
        inputs[key] = first_rows(owns, sizes)
        if by_client:
            found = np.stack([by_client[client] for client in np.flatnonzero(owns).tolist()])
            write_rows(folder / scale_name(key), found, [found], len(found))
            own_scales[key] = first_rows(owns, np.ones_like(sizes))
        if observed is not None:
            has = observed[own]
            write_rows(folder / gaps_name(key), has, [has], len(has))
            gaps[key] = np.bincount(owners[is_own], ~has, len(profiles)) > 0
    return ShardIndex(
        folder=folder,
        inputs=inputs,
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
            parts, stay_bytes = _to_write([samples])
            write_rows(file, samples, parts, len(samples), stay_bytes=stay_bytes)
        for modality, observed in view.observed.items():
            write_rows(folder / (place + gaps_name(key_of(modality, name))), observed, [observed], len(observed))
        for together in tasks:
            if any(column_of(view, task) is not None for task in together):
                labels = _labels_of(view, together, dataset or view)
                write_rows(folder / (place + labels_name("+".join(together))), labels, [labels], len(labels))


def _with_rows(dataset: Dataset, rows: IntArray) -> list[Dataset]:
    """The parts of a data set that have these rows; those of the held-out part count on."""
    parts = [dataset]
    if (rows >= dataset.num_samples).any():
        assert dataset.held_out is not None, "there are rows of it"
        parts.append(dataset.held_out)
    return parts


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


def _to_write(parts: Sequence[Rows]) -> tuple[Sequence[Rows], bool]:
    """Samples as they are written, and whether that is as bytes: where they are kept so, of one meaning, and many."""
    kept = [part for part in parts if isinstance(part, StoredRows) and part.is_of_bytes]
    is_alike = len(kept) == len(parts) and len({part.factor for part in kept}) == 1
    if is_alike and sum(part.nbytes for part in kept) > _MOST_FLOATS:
        return [part.as_kept() for part in kept], True
    return parts, False
