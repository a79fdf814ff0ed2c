"""A client's own train and test split, by sample or by whole subject."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import IntArray, Targets
from blossom_ray.data.partition import PartitionError
from blossom_ray.scenario.sections import Data
from blossom_ray.seeding import Purpose, generator

_ALL_CLIENTS = 1
"""What stands in the round's place of the key of a draw that all clients share; their own draws have 0."""


def split_rows(rows: IntArray, spec: Data, targets: Targets, seed: int, client: int) -> tuple[IntArray, IntArray]:
    """Divide one client's rows into a train and a test part.

    By sample: floor(`test_fraction` * n) rows are drawn for the test part, at least 1 and at most n - 1. By
    subject: whole subjects are drawn until the test part has at least `test_fraction` of the rows; one subject is
    always left for training. Where samples share recordings, a split by sample puts each recording on one side of
    the splits of all clients: `test_fraction` of the recordings are drawn for testing, and a client's test part is
    what it has of them, so its size follows the fraction only on average.

    Args:
        rows: The client's rows, (n,) int64.
        spec: The scenario's `data` section; `split` and `test_fraction` count.
        targets: Subjects and recordings of all rows of the data set; labels do not count.
        seed: The scenario's seed.
        client: The client's id.

    Returns:
        Train rows and test rows, each sorted, int64; neither is empty.

    Raises:
        PartitionError: Fewer than two rows, a split by subject without at least two subjects, or rows whose
            recordings are all on one side.
    """
    if len(rows) < 2:
        raise PartitionError(
            "data.partition",
            f"leaves client {client} with {len(rows)} samples",
            "at least 2 samples per client, one to train on and one to test on",
        )
    draw = generator(seed, Purpose.SPLIT, 0, client)
    in_test = np.zeros(len(rows), np.bool_)
    if spec.split == "sample" and targets.recordings is not None:
        in_test = _whole_recordings(rows, spec.test_fraction, targets.recordings, seed, client)
    elif spec.split == "sample":
        # The tolerance is for products such as 0.29 * 100, which floating point puts just below 29.
        num_test = math.floor(spec.test_fraction * len(rows) + 1e-9)
        num_test = min(max(num_test, 1), len(rows) - 1)
        in_test[draw.permutation(len(rows))[:num_test]] = True
    else:
        in_test = _whole_subjects(rows, spec.test_fraction, targets.subjects, draw, client)
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


def _whole_recordings(
    rows: IntArray, test_fraction: float, recordings: IntArray, seed: int, client: int
) -> npt.NDArray[np.bool_]:
    num_recordings = int(recordings.max()) + 1
    # The draw of no client: what one of them tests with, no other may train on, since blocks are shared.
    order = generator(seed, Purpose.SPLIT, _ALL_CLIENTS).permutation(num_recordings)
    is_test = np.zeros(num_recordings, np.bool_)
    is_test[order[: math.floor(test_fraction * num_recordings + 1e-9)]] = True
    in_test = is_test[recordings[rows]]
    if in_test.all() or not in_test.any():
        side = "training" if in_test.all() else "testing"
        raise PartitionError(
            "data.partition",
            f"leaves client {client} without a recording for {side}",
            "larger parts, or fewer clients; recordings stand on one side of all clients' splits",
        )
    return in_test
