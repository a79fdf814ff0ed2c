"""Scores of single classes: by hand, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from blossom_ray.tasks import task_rules
from blossom_ray.tasks.base import Tally
from blossom_ray.tasks.summary import class_scores

RULES = task_rules("classification")


def test_by_hand() -> None:
    """Three samples of class 0, of which one is taken for 1; one of class 2, taken for 0; none of class 1."""
    tally = RULES.tally(np.array([0, 0, 0, 2]), np.array([0, 0, 1, 0]), 4)
    rows = class_scores("test", {"acc": tally}, RULES, ["a", "b", "c", "d"], with_total=False)
    assert [(row.index, row.name, row.num_true, row.num_predicted, row.num_correct) for row in rows] == [
        (0, "a", 3, 3, 2), (1, "b", 0, 1, 0), (2, "c", 1, 0, 0), (3, "d", 0, 0, 0),
    ]  # fmt: skip
    assert [row.recall for row in rows] == [2 / 3, None, 0.0, None]
    assert [row.precision for row in rows] == [2 / 3, 0.0, None, None]
    assert [row.f1 for row in rows] == [4 / 6, 0.0, 0.0, None]
    assert [row.predicted_as for row in rows] == [{0: 2, 1: 1}, {}, {0: 1}, {}]
    assert {row.auroc for row in rows} == {None}


@given(seed=st.integers(0, 2**32), num_samples=st.integers(1, 60), num_classes=st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_a_classification_agrees_with_scikit_learn(seed: int, num_samples: int, num_classes: int) -> None:
    draw = np.random.default_rng(seed)
    labels, predicted = (draw.integers(0, num_classes, num_samples) for _ in range(2))
    counts = RULES.classes(RULES.tally(labels, predicted, num_classes))
    assert counts is not None
    classes = range(num_classes)
    np.testing.assert_array_equal(counts.confusion, reference.confusion_matrix(labels, predicted, labels=classes))
    theirs = reference.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=math.nan)
    for name, values in zip(("precision", "recall", "f1", "true"), theirs, strict=True):
        np.testing.assert_allclose(getattr(counts, name), values, rtol=1e-12, err_msg=name)


@given(seed=st.integers(0, 2**32), num_samples=st.integers(1, 40), num_classes=st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_a_multilabel_task_agrees_with_scikit_learn(seed: int, num_samples: int, num_classes: int) -> None:
    draw = np.random.default_rng(seed)
    labels = (draw.random((num_samples, num_classes)) < draw.random(num_classes)).astype(np.float32)
    logits = np.round(draw.standard_normal(labels.shape), 1).astype(np.float32)  # rounded: there are ties
    rules = task_rules("multilabel")
    counts = rules.classes(rules.tally(labels, logits, num_classes))
    assert counts is not None
    assert counts.confusion is None
    assert counts.auroc is not None
    matrices = reference.multilabel_confusion_matrix(labels, logits > 0)
    np.testing.assert_array_equal(counts.correct, matrices[:, 1, 1])
    np.testing.assert_array_equal(counts.true, matrices[:, 1].sum(axis=1))
    np.testing.assert_array_equal(counts.predicted, matrices[:, :, 1].sum(axis=1))
    for truth, values, area in zip(labels.T, logits.T, counts.auroc, strict=True):
        has_both = 0 < truth.sum() < num_samples
        assert (
            area == pytest.approx(reference.roc_auc_score(truth, values), abs=1e-12) if has_both else math.isnan(area)
        )


def test_a_set_with_outputs_that_are_not_finite_has_no_rows_nor_have_all_together() -> None:
    whole = RULES.tally(np.array([0, 1]), np.array([0, 1]), 2)
    tallies = {"gyro": Tally(3, num_undefined=1), "acc": whole}
    rows = class_scores("test", tallies, RULES, ["a", "b"], with_total=True)
    assert [(row.modalities, row.index) for row in rows] == [("acc", 0), ("acc", 1)]


def test_a_regression_has_no_classes() -> None:
    rules = task_rules("regression")
    tally = rules.tally(np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32), 1)
    assert class_scores("test", {"acc": tally}, rules, ["height"], with_total=True) == ()
