from __future__ import annotations

import math
import operator
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from blossom_ray.core.scores import SCORES
from blossom_ray.errors import DataError
from blossom_ray.tasks.regression import Regression

RULES = Regression()
LABELS = np.array([[1, 10], [2, 10], [3, 10]], np.float32)
OUTPUTS = np.array([[1, 12], [3, 10], [1, 10]], np.float32)


def test_loss_by_hand() -> None:
    outputs, targets = torch.from_numpy(OUTPUTS), torch.from_numpy(LABELS)
    assert RULES.loss(outputs, targets, reduction="none").tolist() == [2.0, 0.5, 2.0]
    assert RULES.loss(outputs, targets, reduction="sum").item() == 4.5
    assert RULES.loss(outputs, targets, reduction="mean").item() == 1.5


def test_scores_by_hand() -> None:
    # Errors of target 0: 0, 1, -2, its labels spread by 2 about 2; of target 1: 2, 0, 0, and it never varies.
    scores = RULES.scores(RULES.tally(LABELS, OUTPUTS, 2))
    assert scores == pytest.approx({"rmse": math.sqrt(9 / 6), "mae": 5 / 6, "r2": 1 - 5 / 2})
    assert list(scores) == [score.name for score in SCORES["regression"]]


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 16777217.0])
def test_labels_that_do_not_vary_have_no_r2(value: float) -> None:
    tallies = [RULES.tally(np.full((n, 1), value, np.float32), np.ones((n, 1), np.float32), 1) for n in (1, 3, 7)]
    for tally in (*tallies, reduce(operator.add, tallies)):
        assert RULES.scores(tally)["r2"] is None


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    num_targets=st.integers(1, 3),
    shift=st.sampled_from([0.0, 5.0, 1e4]),
)
@settings(deadline=None, max_examples=40)
def test_pooled_scores_agree_with_scikit_learn(seed: int, sizes: list[int], num_targets: int, shift: float) -> None:
    draw = np.random.default_rng(seed)
    labels = (shift + draw.standard_normal((sum(sizes) + 1, num_targets))).astype(np.float32)
    outputs = (shift + draw.standard_normal(labels.shape)).astype(np.float32)
    cuts = np.cumsum(sizes)
    parts = zip(np.split(labels, cuts), np.split(outputs, cuts), strict=True)
    scores = RULES.scores(reduce(operator.add, (RULES.tally(*part, num_targets) for part in parts)))
    truth, predicted = labels.astype(np.float64), outputs.astype(np.float64)
    squared = reference.root_mean_squared_error(truth.ravel(), predicted.ravel())
    assert scores["rmse"] == pytest.approx(squared, rel=1e-5)
    assert scores["mae"] == pytest.approx(reference.mean_absolute_error(truth, predicted), rel=1e-5)
    assert scores["r2"] == pytest.approx(reference.r2_score(truth, predicted), rel=1e-5, abs=1e-6)


def test_no_bit_of_a_score_tells_the_order_of_the_clients() -> None:
    draw = np.random.default_rng(1)
    tallies = [RULES.tally(draw.standard_normal((7, 2)), draw.standard_normal((7, 2)), 2) for _ in range(9)]
    first = reduce(operator.add, tallies)
    second = reduce(operator.add, [reduce(operator.add, tallies[5:]), *tallies[:5][::-1]])
    assert RULES.scores(first) == RULES.scores(second)


def test_a_diverged_model_has_no_scores() -> None:
    scores = RULES.scores(RULES.tally(LABELS[:, :1], np.array([[np.inf], [1], [2]], np.float32), 1))
    assert all(score is not None and math.isnan(score) for score in scores.values())


def test_shapes_that_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels have shape \(3, 2\) and predictions \(3, 1\); expected \(N, 2\)"):
        RULES.tally(LABELS, OUTPUTS[:, :1], 2)
