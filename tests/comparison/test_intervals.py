"""Student t against published tables, the bootstrap against numbers that one can count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.comparison.intervals import bootstrap_interval, t_interval, t_quantile

# Table of the t distribution in Abramowitz and Stegun 1964, 26.10, and any textbook since.
TABLE = {
    (0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 3): 3.182, (0.975, 4): 2.776, (0.975, 9): 2.262,
    (0.975, 10): 2.228, (0.975, 29): 2.045, (0.975, 30): 2.042, (0.975, 120): 1.980,
    (0.95, 1): 6.314, (0.95, 2): 2.920, (0.95, 5): 2.015, (0.995, 4): 4.604, (0.995, 60): 2.660, (0.9, 7): 1.415,
}  # fmt: skip


@pytest.mark.parametrize("place", TABLE)
def test_the_quantiles_of_the_table(place: tuple[float, int]) -> None:
    assert t_quantile(*place) == pytest.approx(TABLE[place], abs=5.01e-4)


def test_quantiles_with_a_formula_of_their_own() -> None:
    # One degree of freedom is Cauchy's distribution; for two, t = x sqrt(2 / (1 - x^2)) with x = 2 p - 1.
    for probability in (0.6, 0.9, 0.975, 0.999):
        assert t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-11)
        x = 2 * probability - 1
        assert t_quantile(probability, 2) == pytest.approx(x * math.sqrt(2 / (1 - x * x)), rel=1e-11)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5001, 0.9999), st.integers(1, 200))
def test_quantiles_are_symmetric_and_fall_with_the_degrees_of_freedom(probability: float, degrees: int) -> None:
    quantile = t_quantile(probability, degrees)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-quantile, rel=1e-9)
    assert t_quantile(probability, degrees + 1) < quantile


def test_the_interval_of_three_values_by_hand() -> None:
    # Mean 2, s = 1, so half = 4.3027 / sqrt(3).
    low, high = t_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert t_interval([5.0, 5.0]) == (5.0, 5.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_has_no_interval(values: list[float]) -> None:
    assert t_interval(values) is None


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    covered = [low <= 0 <= high for low, high in (t_interval(list(row)) or (1.0, 1.0) for row in draws)]
    assert 0.935 < np.mean(covered) < 0.965


def test_the_bootstrap_of_two_clients_takes_their_scores_as_limits() -> None:
    # Both clients once (half of all draws) or one of them twice (a quarter each): 2.5 % lies at the ends.
    assert bootstrap_interval(np.array([0.2, 0.6]), np.array([1.0, 3.0]), seed=0) == pytest.approx((0.2, 0.6))


def test_the_bootstrap_is_that_of_a_normal_mean_for_many_clients() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, size=2000)
    low, high = bootstrap_interval(scores, np.ones(2000), seed=3) or (0.0, 0.0)
    expected = 1.96 * scores.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((scores.mean() - expected, scores.mean() + expected), abs=0.1 * expected)


def test_pairs_are_resampled_together() -> None:
    # The scheme is 10 % better at every client, so in every resample: clients drawn apart would not give that.
    baseline = np.array([0.1, 0.5, 0.9, 0.3])
    weights = np.array([10.0, 20.0, 30.0, 40.0])
    both = np.stack([1.1 * baseline, baseline])
    for sign in (1, -1):
        found = bootstrap_interval(both, np.stack([weights, weights]), seed=0, gain_sign=sign)
        assert found == pytest.approx((10 * sign, 10 * sign))


def test_draws_follow_from_the_seed_alone() -> None:
    scores, weights = np.linspace(0, 1, 7), np.ones(7)
    assert bootstrap_interval(scores, weights, seed=5) == bootstrap_interval(scores, weights, seed=5)
    assert bootstrap_interval(scores, weights, seed=5) != bootstrap_interval(scores, weights, seed=6)


def test_where_the_bootstrap_says_nothing() -> None:
    assert bootstrap_interval(np.array([0.4]), np.array([1.0]), seed=0) is None
    zero_baseline = np.array([[0.4, 0.5], [0.0, 0.9]])
    assert bootstrap_interval(zero_baseline, np.ones((2, 2)), seed=0, gain_sign=1) is None
