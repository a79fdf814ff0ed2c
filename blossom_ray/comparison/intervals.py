"""Intervals of means: Student t over seeds, and a bootstrap over the clients of one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blossom_ray.seeding import Purpose, generator

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]

NUM_RESAMPLES = 10_000
# Counts drawn at once: 16 MB of them, however many clients there are.
_COUNTS_AT_ONCE = 2_000_000


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """The interval mean ± t s / sqrt(n) for the mean of independent values, s with n - 1.

    Args:
        values: One per seed, finite.
        level: The chance that such an interval covers the true mean, above 0 and below 1.

    Returns:
        Low and high; None for fewer than two values, which say nothing about their spread.

    Source: Student 1908, "The probable error of a mean".
    """
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = t_quantile(0.5 + level / 2, len(values) - 1) * math.sqrt(variance / len(values))
    return mean - half, mean + half


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """The quantile of Student's t distribution, to about 1e-12 of itself.

    Args:
        probability: Above 0 and below 1.
        degrees_of_freedom: At least 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, the distribution as a finite sum in the angle
    atan(t / sqrt(degrees of freedom)); its inverse by bisection, which the sum, growing with the angle, allows.
    """
    inside = abs(2 * probability - 1)
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        if _central_probability(middle, degrees_of_freedom) < inside:
            low = middle
        else:
            high = middle
    return math.copysign(math.tan(low) * math.sqrt(degrees_of_freedom), probability - 0.5)


def bootstrap_interval(
    values: FloatArray, weights: FloatArray, seed: int, level: float = 0.95, *, gain_sign: int | None = None
) -> Interval | None:
    """The percentile interval of a weighted mean over clients, or of the gain of one such mean over another.

    Clients are drawn with replacement, 10,000 times; both sides of a gain get the same clients each time.

    Args:
        values: (clients,) scores, or (2, clients): those of a scheme, then those of the baseline.
        weights: Test samples of each, shaped alike, above 0.
        seed: The seed of the run, which fixes the draws.
        level: Share of the resamples inside.
        gain_sign: None for the mean. 1 for the gain in percent of its baseline, -1 where lower scores are better.

    Returns:
        Low and high; None for fewer than two clients, or where a resampled baseline is 0.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    num_clients = values.shape[-1]
    if num_clients < 2:
        return None
    draws = generator(seed, Purpose.BOOTSTRAP)
    shares = np.full(num_clients, 1 / num_clients)
    found: list[FloatArray] = []
    at_once = max(1, _COUNTS_AT_ONCE // num_clients)
    for start in range(0, NUM_RESAMPLES, at_once):
        counts = draws.multinomial(num_clients, shares, size=min(at_once, NUM_RESAMPLES - start)).astype(np.float64)
        means = (counts @ (weights * values).T) / (counts @ weights.T)
        if gain_sign is not None:
            if not means[:, 1].all():
                return None
            means = gain_sign * 100 * (means[:, 0] - means[:, 1]) / np.abs(means[:, 1])
        found.append(means)
    low, high = np.percentile(np.concatenate(found), [50 - 50 * level, 50 + 50 * level])
    return float(low), float(high)


def _central_probability(angle: float, degrees_of_freedom: int) -> float:
    """P(|T| < t) with t = tan(angle) sqrt(degrees of freedom)."""
    is_odd = degrees_of_freedom % 2 == 1
    cosine = math.cos(angle)
    term = cosine if is_odd else 1.0
    total = 0.0
    for index in range(1 if is_odd else 0, degrees_of_freedom - 1, 2):
        total += term
        term *= cosine * cosine * (index + 1) / (index + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
