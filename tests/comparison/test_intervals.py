"""Student t against SciPy's tests, Holm by hand, the intervals over clients against numbers that one can count."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from blossom_ray.core.scores import Score
from blossom_ray.studies.comparison import intervals
from blossom_ray.studies.comparison.intervals import (
    OfSides,
    gain,
    holm,
    interval_over_clients,
    points,
    t_interval,
    t_test,
)

SHARE = Score("a", "")
VALUES = st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=12)


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_scipy_has_the_same_interval_and_the_same_p(values: list[float]) -> None:
    assume(len(set(values)) > 1)
    judge = stats.ttest_1samp(values, 0)
    assert t_interval(values) == pytest.approx(judge.confidence_interval(0.95), rel=1e-9, abs=1e-9)
    assert t_test(values) == pytest.approx(judge.pvalue, rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0, 0.0], [0.5 - 0.3, 0.7 - 0.5]])
def test_differences_that_do_not_vary_have_no_p(values: list[float]) -> None:
    assert t_test(values) is None


def test_holm_by_hand() -> None:
    """Holm 1979: the smallest times 4, the next times 3, and so on, and none below the one before it."""
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.02, 0.9]) == pytest.approx([1.0, 0.06, 1.0])
    assert holm([None]) == [None]
    assert holm([]) == []


def test_the_interval_of_three_values_by_hand() -> None:
    # Mean 2, s = 1, so half = 4.3027 / sqrt(3).
    low, high = t_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert t_interval([5.0, 5.0]) == (5.0, 5.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_has_no_interval(values: list[float]) -> None:
    assert t_interval(values) is None


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("num_draws", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_intervals_cover_the_mean_as_often_as_they_say(num_draws: int, num_seeds: int) -> None:
    draws = np.random.default_rng(0).normal(loc=1.0, size=(num_draws, num_seeds))
    covered = [low <= 1 <= high for low, high in (t_interval(row) or (2.0, 2.0) for row in draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / num_draws))


def test_the_bootstrap_of_two_clients_takes_their_scores_as_limits() -> None:
    # Both clients once (half of all draws) or one of them twice (a quarter each): 2.5 % lies at the ends.
    assert interval_over_clients(np.array([0.2, 0.6]), np.array([1.0, 3.0]), seed=0) == pytest.approx((0.2, 0.6))


def test_the_bootstrap_is_that_of_a_normal_mean_for_many_clients() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, size=300)
    low, high = interval_over_clients(scores, np.ones(300), seed=3) or (0.0, 0.0)
    expected = 1.96 * scores.std() / math.sqrt(300)
    assert (low, high) == pytest.approx((scores.mean() - expected, scores.mean() + expected), abs=0.1 * expected)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, size=2000)
    expected = stats.norm.ppf(0.975) * scores.std(ddof=1) / math.sqrt(2000)
    limits = scores.mean() - expected, scores.mean() + expected
    assert interval_over_clients(scores, np.ones(2000), seed=3) == pytest.approx(limits)


@pytest.mark.parametrize("of_sides", [None, partial(points, SHARE), partial(gain, SHARE)])
def test_the_jackknife_and_the_bootstrap_agree(of_sides: OfSides | None, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(2)
    weights = draws.integers(1, 50, size=1000).astype(float)
    scores = np.clip(draws.normal(0.5, 0.2, size=(2, 1000)) + draws.normal(0, 0.1, size=1000), 0, 1)
    both = (scores[0], weights) if of_sides is None else (scores, np.stack([weights, weights]))
    normal = interval_over_clients(*both, seed=0, of_sides=of_sides) or (0.0, 0.0)
    monkeypatch.setattr(intervals, "MOST_RESAMPLED", 1000)
    resampled = interval_over_clients(*both, seed=0, of_sides=of_sides) or (0.0, 0.0)
    assert normal == pytest.approx(resampled, abs=0.04 * (resampled[1] - resampled[0]))


def test_pairs_are_resampled_together() -> None:
    # The scheme is 10 % better at every client, so in every resample: clients drawn apart would not give that.
    baseline = np.array([0.1, 0.5, 0.9, 0.3])
    weights = np.array([10.0, 20.0, 30.0, 40.0])
    both = np.stack([1.1 * baseline, baseline])
    for score in (Score("a", ""), Score("a", "", lower_is_better=True)):
        sign = -1 if score.lower_is_better else 1
        found = interval_over_clients(both, np.stack([weights, weights]), seed=0, of_sides=partial(gain, score))
        assert found == pytest.approx((10 * sign, 10 * sign))


def test_draws_follow_from_the_seed_alone() -> None:
    scores, weights = np.linspace(0, 1, 7), np.ones(7)
    assert interval_over_clients(scores, weights, seed=5) == interval_over_clients(scores, weights, seed=5)
    assert interval_over_clients(scores, weights, seed=5) != interval_over_clients(scores, weights, seed=6)


def test_where_the_bootstrap_says_nothing() -> None:
    assert interval_over_clients(np.array([0.4]), np.array([1.0]), seed=0) is None
    zero_baseline = np.array([[0.4, 0.5], [0.0, 0.9]])
    for sides in (zero_baseline, np.stack([np.ones(2000), np.zeros(2000)])):
        assert interval_over_clients(sides, np.ones_like(sides), 0, of_sides=lambda own, base: own / base - 1) is None
