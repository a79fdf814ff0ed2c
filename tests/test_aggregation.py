import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.core.sums import Accumulator, PartialSum, weighted_sum


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def average(*updates: tuple[int, np.ndarray]) -> np.ndarray:
    accumulator = Accumulator()
    accumulator.add(weighted_sum(updates))
    return accumulator.result().average


def test_two_clients_by_hand() -> None:
    # (1 * [0, 4] + 3 * [4, 0]) / 4 = [3, 1]
    assert average((1, vector(0, 4)), (3, vector(4, 0))).tolist() == [3.0, 1.0]


def test_sums_are_float64_so_small_updates_are_not_lost() -> None:
    # In float32, 2^24 + 1 = 2^24: the second client would vanish.
    part = weighted_sum([(1, vector(2.0**24)), (1, vector(1.0))])
    assert part.total.tolist() == [2.0**24 + 1]
    assert part.weight == 2


def test_chunks_add_up_in_the_order_given() -> None:
    parts = [weighted_sum([(1, vector(1.0)), (2, vector(2.0))]), weighted_sum([(3, vector(5.0))])]
    accumulator = Accumulator()
    for part in parts:
        accumulator.add(part)
    assert accumulator.result().average.tolist() == [(1 + 4 + 15) / 6]


def test_what_is_given_is_not_modified() -> None:
    total = np.array([1.0])
    total.flags.writeable = False
    accumulator = Accumulator()
    accumulator.add(PartialSum(total, 1))
    accumulator.add(PartialSum(total, 1))
    assert total.tolist() == [1.0]


def test_a_block_without_contributors_has_no_average() -> None:
    with pytest.raises(ValueError, match="no client contributed"):
        Accumulator().result()
    with pytest.raises(ValueError, match="at least one update"):
        weighted_sum([])


updates = st.lists(st.tuples(st.integers(1, 10_000), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=20)


@given(updates)
@settings(deadline=None, max_examples=50)
def test_the_average_lies_between_the_clients(updates: list[tuple[int, float]]) -> None:
    result = average(*((n, vector(x)) for n, x in updates))[0]
    values = [float(np.float32(x)) for _, x in updates]
    assert min(values) - 1e-6 <= result <= max(values) + 1e-6


@given(updates, st.integers(2, 50))
@settings(deadline=None, max_examples=50)
def test_neither_order_nor_scale_of_weights_matters(updates: list[tuple[int, float]], scale: int) -> None:
    result = average(*((n, vector(x)) for n, x in updates))
    scaled = average(*((n * scale, vector(x)) for n, x in reversed(updates)))
    np.testing.assert_allclose(result, scaled, rtol=1e-12, atol=1e-9)


@given(st.floats(-1e3, 1e3, width=32), st.lists(st.integers(1, 1000), min_size=1, max_size=9))
@settings(deadline=None, max_examples=50)
def test_equal_clients_change_nothing(value: float, weights: list[int]) -> None:
    result = average(*((n, vector(value)) for n in weights)).astype(np.float32)
    np.testing.assert_allclose(result, vector(value), rtol=1e-6)
