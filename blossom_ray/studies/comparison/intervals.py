"""Gains, and what means and gains are worth: Student's t over seeds, Holm's correction, intervals over clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtr, stdtrit  # a tenth of what scipy.stats takes to import

from blossom_ray.core.scores import Score
from blossom_ray.core.seeding import Purpose, generator

Float64Array = npt.NDArray[np.float64]
Interval = tuple[float, float]
Number = TypeVar("Number", float, npt.NDArray[np.float64])
OfSides = Callable[[Any, Any], Any]
"""The gain or the points of two scores, or of two arrays of them."""

NUM_RESAMPLES = 10_000
MOST_RESAMPLED = 300
"""Of more clients the interval needs no resamples."""
_AT_ONCE = 1_000  # of them
# Differences that vary by less than this share of themselves vary by rounding alone.
_ROUNDING = 1e-9


def gain(score: Score, own: Number, base: Number) -> Number:
    """The gain in percent of the baseline's score, positive where the own one is better."""
    return (-1 if score.lower_is_better else 1) * 100 * (own - base) / abs(base)


def points(score: Score, own: Number, base: Number) -> Number:
    """The difference, positive where the own score is better: percent points of shares, else in the score's unit."""
    return (-1 if score.lower_is_better else 1) * (100 if score.is_share else 1) * (own - base)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """The interval mean ± t s / sqrt(n), s with n - 1, for the mean of independent, finite values, one per seed.

    `level` is the chance that such an interval covers the true mean. None for fewer than two values, which say nothing
    about their spread.

    Source: Student 1908, "The probable error of a mean".
    """
    if len(values) < 2:
        return None
    mean, error = _mean_and_error(values)
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * error
    return mean - half, mean + half


def t_test(differences: Sequence[float]) -> float | None:
    """The two-sided p of a paired t test: how often differences as far from 0 would come up, were their mean 0.

    None for fewer than two, one per seed, and for such that do not vary, which say nothing about how far they could.
    """
    if len(differences) < 2:
        return None
    mean, error = _mean_and_error(differences)
    if error <= _ROUNDING * abs(mean):
        return None
    return float(2 * stdtr(len(differences) - 1, -abs(mean) / error))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p of several comparisons, None for none, adjusted so that the chance of any false one stays below the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def interval_over_clients(
    values: Float64Array,
    weights: Float64Array,
    seed: int,
    level: float = 0.95,
    *,
    of_sides: OfSides | None = None,
) -> Interval | None:
    """The interval of a weighted mean over clients, or of what two such means make together.

    It is the percentile interval of a bootstrap: clients are drawn with replacement, 10,000 times; both sides get the
    same clients each time. Of more than 300 clients, where resampling takes long and its means are as good as
    normal, it is that of the jackknife: normal, with the error from leaving out each client once.

    Args:
        values: (clients,) scores, or (2, clients): those of a scheme, then those of the baseline.
        weights: Test samples of each, shaped alike, above 0.
        seed: The seed of the run, which fixes the draws.
        level: Share of the resamples inside.
        of_sides: The gain or the difference of two arrays of means; None: there is one side.

    Returns:
        Low and high; None for fewer than two clients, or where a resample has no finite value.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    num_clients = values.shape[-1]
    if num_clients < 2:
        return None
    sums = np.stack(np.atleast_2d(weights * values, weights))

    def made(totals: Float64Array) -> Float64Array:
        """(draws,) from (2, sides, draws): the sums of weighted scores, and of weights."""
        means = totals[0] / totals[1]
        return means[0] if of_sides is None else np.asarray(of_sides(means[0], means[1]))

    with np.errstate(divide="ignore", invalid="ignore"):
        if num_clients > MOST_RESAMPLED:
            whole = sums.sum(axis=-1, keepdims=True)
            center, without = made(whole)[0], made(whole - sums)
            half = ndtri(0.5 + level / 2) * math.sqrt((num_clients - 1) * np.var(without))
            low, high = center - half, center + half
            return (float(low), float(high)) if math.isfinite(half) else None
        draws = generator(seed, Purpose.BOOTSTRAP)
        shares = np.full(num_clients, 1 / num_clients)
        counts = (draws.multinomial(num_clients, shares, size=_AT_ONCE) for _ in range(NUM_RESAMPLES // _AT_ONCE))
        resamples = np.concatenate([made(sums @ each.T.astype(np.float64)) for each in counts])
    if not np.isfinite(resamples).all():
        return None
    low, high = np.percentile(resamples, [50 - 50 * level, 50 + 50 * level])
    return float(low), float(high)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean."""
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
