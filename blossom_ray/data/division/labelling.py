"""Rows of which no label is known that their client would learn: left out, before what is observed is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.division.federation import ClientRows, Federation
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.targets import IntArray


def column_of(dataset: Dataset, task: str) -> LabelColumn | None:
    """The labels of a task, "" that of a scenario without `tasks`; None where the data set has none of them.

    Args:
        dataset: With the labels of each task by its name in `label_columns`.
        task: The task.
    """
    if task:
        return dataset.label_columns.get(task)
    return LabelColumn(dataset.labels, dataset.class_names, dataset.known)


def is_partial(dataset: Dataset, task: str) -> bool:
    """Whether some label of a task is not known, in the data set or in its held-out set."""
    parts = (dataset,) if dataset.held_out is None else (dataset, dataset.held_out)
    return any((column := column_of(part, task)) is not None and column.known is not None for part in parts)


def known_labels(dataset: Dataset, tasks: Sequence[str]) -> dict[str, IntArray]:
    """Of those tasks of which some label is not known, how many labels each row has; the held-out set's rows behind.

    Args:
        dataset: As in `column_of`.
        tasks: The tasks.
    """
    found = {}
    parts = (dataset,) if dataset.held_out is None else (dataset, dataset.held_out)
    for task in tasks:
        if is_partial(dataset, task):
            found[task] = np.concatenate([_num_known(part, column_of(part, task)) for part in parts])
    return found


def without_unlabelled(
    federation: Federation, profiles: Sequence[ClientProfile], labelled: Mapping[str, IntArray]
) -> Federation:
    """The federation without the rows that have no label of any task of their client; itself where there are none.

    Args:
        federation: Which client has which rows.
        profiles: The clients in the order of their ids.
        labelled: As `known_labels` gives it.
    """
    partial = [all(task in labelled for task in profile.tasks) for profile in profiles]
    if not any(partial):
        return federation
    kept = {}
    for split, rows in federation.splits.items():
        own = [
            np.logical_or.reduce([labelled[task][rows.of(profile.index)] > 0 for task in profile.tasks])
            if is_one
            else np.ones(int(rows.counts[profile.index]), np.bool_)
            for profile, is_one in zip(profiles, partial, strict=True)
        ]
        kept[split] = chosen(rows, np.concatenate(own))
    if all(len(kept[split].flat) == len(rows.flat) for split, rows in federation.splits.items()):
        return federation
    return replace(federation, train=kept["train"], validation=kept["validation"], test=kept["test"])


def check_labels(
    federation: Federation,
    profiles: Sequence[ClientProfile],
    labelled: Mapping[str, IntArray],
    before: Federation,
) -> None:
    """Refuse a client without a labelled row of one of its tasks, for anything that it had rows for.

    Args:
        federation: What is left to the clients.
        profiles: The clients in the order of their ids.
        labelled: As `known_labels` gives it.
        before: What they had before rows were left out.

    Raises:
        PartitionError: There is such a client; the first one.
    """
    for profile in profiles:
        for task in profile.tasks:
            if task not in labelled:
                continue
            for split, rows in federation.splits.items():
                had = int(before.splits[split].counts[profile.index])
                if had and not labelled[task][rows.of(profile.index)].any():
                    what = f"labels of {task} are" if task else "labels are"
                    found = f"leaves client {profile.index} with {had} {split} rows, of none of which {what} known"
                    raise PartitionError("data.partition", found, "a row with a label, or other clients for this task")


def labelled_lines(
    federation: Federation, profiles: Sequence[ClientProfile], labelled: Mapping[str, IntArray], dataset: Dataset
) -> Iterator[str]:
    """What to say of each task of which its clients lack some label: how many they have.

    Args:
        federation: What is left to the clients.
        profiles: The clients in the order of their ids.
        labelled: As `known_labels` gives it.
        dataset: What that was given.
    """
    for task, number in labelled.items():
        column, parts = column_of(dataset, task), []
        assert column is not None, "the data set has the labels of all tasks"
        width = column.labels[0].size
        members, lacks_some = [profile.index for profile in profiles if task in profile.tasks], False
        for split, rows in federation.splits.items():
            own = np.concatenate([rows.of(client) for client in members] or [rows.flat[:0]])
            if len(own):
                num_known, num_labels = int(number[own].sum()), len(own) * width
                parts.append(f"{num_known:,} of {num_labels:,} {split}")
                lacks_some |= num_known < num_labels
        if lacks_some:
            yield f"{f'{task}: ' if task else ''}{', '.join(parts)} labels of clients are known"


def left_out_lines(before: Federation, after: Federation) -> Iterator[tuple[str, int]]:
    """What `without_unlabelled` left out, and how many rows, by what they were for."""
    for split, rows in before.splits.items():
        if number := len(rows.flat) - len(after.splits[split].flat):
            yield f"{split} rows without a label that their client learns", number


def chosen(rows: ClientRows, is_chosen: BoolArray) -> ClientRows:
    """The rows of all clients that are chosen (n,)."""
    ends = np.concatenate([[0], np.cumsum(is_chosen)])[rows.ends]
    return ClientRows(rows.flat[is_chosen], ends.astype(np.int64))


def _num_known(part: Dataset, column: LabelColumn | None) -> IntArray:
    if column is None:
        return np.zeros(part.num_samples, np.int64)
    known = np.ones(column.labels.shape, np.bool_) if column.known is None else column.known
    number: IntArray = known.reshape(part.num_samples, -1).sum(axis=1, dtype=np.int64)
    return number
