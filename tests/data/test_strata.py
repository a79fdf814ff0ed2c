from __future__ import annotations

import numpy as np
import pytest

from blossom_ray.data.targets import strata, targets_of


def test_a_sample_is_in_the_stratum_of_its_rarest_class() -> None:
    # Class 0 has three samples, class 1 two, class 2 one; the last sample has none.
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32)
    found, number = strata(labels)
    assert found.tolist() == [1, 0, 2, 3]
    assert (found.dtype, number) == (np.int64, 4)


def test_of_two_classes_as_rare_the_first_counts() -> None:
    assert strata(np.array([[1, 1], [1, 1]], np.float32))[0].tolist() == [0, 0]


def test_a_number_is_in_its_tenth() -> None:
    labels = np.stack([np.arange(20)[::-1], np.zeros(20)], axis=1).astype(np.float32)
    found, number = strata(labels)
    assert found.tolist() == [9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert number == 10


def test_equal_numbers_share_a_stratum() -> None:
    found, _ = strata(np.array([[2.5]] * 7 + [[9.0]], np.float32))
    assert len(set(found[:7].tolist())) == 1
    assert found[7] > found[0]


@pytest.mark.parametrize("value", [0.0, 1.0, 3.5])
def test_one_value_for_all(value: float) -> None:
    found, number = strata(np.full((4, 1), value, np.float32))
    assert len(set(found.tolist())) == 1
    assert 0 <= found[0] < number


def test_classes_are_their_own_strata() -> None:
    labels, subjects = np.array([2, 0, 2]), np.array([5, 5, 6])
    targets = targets_of(labels, 4, subjects)
    assert (targets.labels.tolist(), targets.num_classes, targets.subjects) == ([2, 0, 2], 4, subjects)
    assert targets_of(np.eye(3, dtype=np.float32), 3, None).labels.tolist() == [0, 1, 2]
