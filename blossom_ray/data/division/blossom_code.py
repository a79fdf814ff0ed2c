"""Partition and split as the paper's code draws them: flwr-datasets and torch with seed 42, whatever the scenario's.

    shuffle    rows in the order of numpy default_rng(42).permutation
    iid        consecutive rows; the first parts are one larger
    dirichlet  per class in label order, proportions over the parts from one default_rng(42), all drawn again until
               every part has `min_samples`; then each part is shuffled. flwr-datasets takes the classes in the order in
               which they first appear in the hosted file, which is not known
    split      torch.randperm with seed 42 in each part; the last floor(test_fraction n) are the test split

Which part a client gets follows from the scenario's seed; the reference draws that anew in each run.

Source: github.com/DaSH-Lab-CSIS/blossom at 7d737d7, dataloader.py; flwr-datasets 0.5.0, IidPartitioner and
DirichletPartitioner.
"""

from __future__ import annotations

import numpy as np

from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.data.division.options import DirichletPartition, Division, IidPartition
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.division.split import Split
from blossom_ray.data.targets import IntArray, Targets

_SEED = 42
_MAX_DRAWS = 11


def reference_splits(data: Division, targets: Targets, num_clients: int, seed: int) -> list[Split]:
    """Train and test rows of each client.

    Args:
        data: The scenario's `data` section; an iid or Dirichlet partition, split by sample.
        targets: Labels of the data set.
        num_clients: Number of clients, >= 1.
        seed: The scenario's seed; it matches parts to clients.

    Returns:
        For each client its train rows and its test rows; nothing is for validation.

    Raises:
        PartitionError: The partition cannot be met, or leaves a client without a test sample.
    """
    order = np.random.default_rng(_SEED).permutation(len(targets.labels)).astype(np.int64)
    match data.partition:
        case IidPartition():
            parts = [order[rows] for rows in np.array_split(np.arange(len(order)), num_clients)]
        case DirichletPartition(equal_sizes=False):
            rows = _dirichlet(data.partition, targets.labels[order], targets.num_classes, num_clients)
            parts = [order[part] for part in rows]
        case other:
            found = f"is {other.kind!r}, which the reference's code does not draw"
            raise PartitionError("data.partition.kind", found, "'iid', or 'dirichlet' without equal_sizes")
    matching = generator(seed, Purpose.MATCHING).permutation(num_clients)
    splits = {int(client): _split(part, data.test_fraction) for client, part in zip(matching, parts, strict=True)}
    return [splits[client] for client in range(num_clients)]


def _dirichlet(spec: DirichletPartition, labels: IntArray, num_classes: int, num_parts: int) -> list[IntArray]:
    draw = np.random.default_rng(_SEED)
    classes = [np.flatnonzero(labels == label) for label in range(num_classes)]
    sizes = np.zeros(num_parts, np.int64)
    for _ in range(_MAX_DRAWS):
        parts: list[list[int]] = [[] for _ in range(num_parts)]
        for rows in classes:
            if len(rows) == 0:  # the reference draws for the classes that it finds
                continue
            proportions = draw.dirichlet(np.full(num_parts, spec.alpha))
            cuts = (np.cumsum(proportions) * len(rows)).astype(np.int64)[:-1]
            for part, own in zip(parts, np.split(rows, cuts), strict=True):
                part.extend(own.tolist())
        sizes = np.array([len(part) for part in parts])
        if sizes.min() >= spec.min_samples:
            for part in parts:
                draw.shuffle(part)
            return [np.array(part, np.int64) for part in parts]
    raise PartitionError(
        "data.partition.alpha",
        f"is {spec.alpha:g}, which leaves a client with {sizes.min()} samples ({_MAX_DRAWS} draws tried)",
        "a larger alpha, fewer clients or more samples, or a smaller data.partition.min_samples",
    )


def _split(rows: IntArray, test_fraction: float) -> Split:
    # The data layer does without torch but for this one generator.
    import torch

    num_train = len(rows) - int(test_fraction * len(rows))
    if not 0 < num_train < len(rows):
        raise PartitionError(
            "data.test_fraction",
            f"is {test_fraction:g}, which leaves a client with {len(rows)} samples without a "
            f"{'test' if num_train else 'training'} sample",
            "fewer clients, more samples, or another fraction",
        )
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED)).numpy()
    return Split(np.sort(rows[drawn[:num_train]]), rows[:0], np.sort(rows[drawn[num_train:]]))
