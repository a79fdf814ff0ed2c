"""A client's own train and test split, by sample or by whole subject."""

from __future__ import annotations

import math

import numpy as np

from blossom_ray.data.dataset import IntArray
from blossom_ray.data.partition import PartitionError
from blossom_ray.scenario.sections import Data
from blossom_ray.seeding import Purpose, generator


def split_rows(
    rows: IntArray, spec: Data, subjects: IntArray | None, seed: int, client: int
) -> tuple[IntArray, IntArray]:
    """Divide one client's rows into a train and a test part.

    By sample: floor(`test_fraction` * n) rows are drawn for the test part, at least 1 and at most n - 1. By
    subject: whole subjects are drawn until the test part has at least `test_fraction` of the rows; one subject is
    always left for training.

    Args:
        rows: The client's rows, (n,) int64.
        spec: The scenario's `data` section; `split` and `test_fraction` count.
        subjects: Subjects of all rows of the data set, (N,) int64, or None.
        seed: The scenario's seed.
        client: The client's id.

    Returns:
        Train rows and test rows, each sorted, int64; neither is empty.

    Raises:
        PartitionError: Fewer than two rows, or a split by subject without at least two subjects.
    """
    if len(rows) < 2:
        raise PartitionError(
            "data.partition",
            f"leaves client {client} with {len(rows)} samples",
            "at least 2 samples per client, one to train on and one to test on",
        )
    draw = generator(seed, Purpose.SPLIT, 0, client)
    in_test = np.zeros(len(rows), np.bool_)
    if spec.split == "sample":
        # The tolerance is for products such as 0.29 * 100, which floating point puts just below 29.
        num_test = math.floor(spec.test_fraction * len(rows) + 1e-9)
        num_test = min(max(num_test, 1), len(rows) - 1)
        in_test[draw.permutation(len(rows))[:num_test]] = True
    else:
        in_test = _whole_subjects(rows, spec.test_fraction, subjects, draw, client)
    return np.sort(rows[~in_test]), np.sort(rows[in_test])


def _whole_subjects(
    rows: IntArray,
    test_fraction: float,
    subjects: IntArray | None,
    draw: np.random.Generator,
    client: int,
) -> np.ndarray:
    if subjects is None:
        raise PartitionError(
            "data.split",
            "is 'subject', but the samples belong to no subject",
            "'sample', or a data set with subjects",
        )
    _, positions, sizes = np.unique(subjects[rows], return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise PartitionError(
            "data.split",
            f"is 'subject', but client {client} has samples of one subject alone",
            "'sample', or at least two subjects per client",
        )
    order = draw.permutation(len(sizes))
    enough = np.cumsum(sizes[order]) >= test_fraction * len(rows) - 1e-9
    num_test_subjects = min(int(enough.argmax()) + 1, len(sizes) - 1)
    return np.isin(positions, order[:num_test_subjects])
