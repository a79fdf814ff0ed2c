from __future__ import annotations

import math
import operator
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from blossom_ray.core.scores import SCORES
from blossom_ray.errors import DataError
from blossom_ray.tasks.multilabel import Multilabel

RULES = Multilabel()
# Class 0: positives at 2 and -1, negatives at 1 and -3: three of four pairs won; predicted at 2 and 1, one hit.
# Class 1: one positive, at 0.5, ties with one of three negatives and loses to none. Class 2: nobody has it.
LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], np.float32)
LOGITS = np.array([[2, 0.5, -1], [-1, 0.5, 1], [1, -2, -1], [-3, -2, -1]], np.float32)


def test_loss_by_hand() -> None:
    outputs, targets = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # -log(1/2) twice, then -log(1/2) and -log(3/4); mean over the two classes.
    expected = [math.log(2), (math.log(2) + math.log(4 / 3)) / 2]
    assert RULES.loss(outputs, targets, reduction="none").tolist() == pytest.approx(expected)
    assert RULES.loss(outputs, targets, reduction="sum").item() == pytest.approx(sum(expected))
    assert RULES.loss(outputs, targets, reduction="mean").item() == pytest.approx(sum(expected) / 2)


def test_scores_by_hand() -> None:
    tally = RULES.tally(LABELS, LOGITS, 3)
    assert {name: counts.tolist() for name, counts in tally.counts.items()} == {
        "hits": [1, 1, 0],
        "predicted": [2, 2, 1],
        "true": [2, 1, 0],
        "pairs": [4, 3, 0],
        "doubled_wins": [6, 5, 0],
        "exact": 1,
        "whole": 4,
    }
    assert RULES.scores(tally) == pytest.approx(
        {
            "macro_auroc": (3 / 4 + 5 / 6) / 2,
            "macro_f1_present": (2 / 4 + 2 / 3) / 2,
            "macro_f1_all": (2 / 4 + 2 / 3) / 3,
            "subset_accuracy": 1 / 4,
        }
    )


def test_scores_stand_in_the_order_of_the_tables() -> None:
    assert list(RULES.scores(RULES.tally(LABELS, LOGITS, 3))) == [score.name for score in SCORES["multilabel"]]


def test_what_the_samples_do_not_define_is_none() -> None:
    nothing = RULES.scores(RULES.tally(np.zeros((2, 2), np.float32), np.full((2, 2), -1, np.float32), 2))
    assert nothing == {"macro_auroc": None, "macro_f1_present": None, "macro_f1_all": 0, "subset_accuracy": 1}
    everything = RULES.scores(RULES.tally(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32), 1))
    assert everything == {"macro_auroc": None, "macro_f1_present": 1, "macro_f1_all": 1, "subset_accuracy": 1}


def test_a_logit_of_exactly_0_predicts_nothing() -> None:
    tally = RULES.tally(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), 1)
    assert tally.counts["predicted"].tolist() == [0]


@given(seed=st.integers(0, 2**32), num_samples=st.integers(1, 40), num_classes=st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_scores_agree_with_torchmetrics(seed: int, num_samples: int, num_classes: int) -> None:
    draw = np.random.default_rng(seed)
    labels = (draw.random((num_samples, num_classes)) < draw.random(num_classes)).astype(np.float32)
    logits = np.round(draw.standard_normal(labels.shape), 1).astype(np.float32)  # rounded: there are ties
    scores = RULES.scores(RULES.tally(labels, logits, num_classes))
    probabilities, truth = torch.sigmoid(torch.from_numpy(logits)), torch.from_numpy(labels).long()
    options = {"num_labels": num_classes, "average": "none"}
    f1 = reference.multilabel_f1_score(probabilities, truth, **options).reshape(-1).double()
    present = truth.any(dim=0)
    both = present & ~truth.all(dim=0)
    assert scores["macro_f1_all"] == pytest.approx(float(torch.where(present, f1, 0).mean()), abs=1e-6)
    assert scores["subset_accuracy"] == pytest.approx(
        float(reference.multilabel_exact_match(probabilities, truth, num_labels=num_classes)), abs=1e-6
    )
    if present.any():
        assert scores["macro_f1_present"] == pytest.approx(float(f1[present].mean()), abs=1e-6)
    if both.any():
        auroc = [reference.binary_auroc(probabilities[:, k], truth[:, k]) for k in both.nonzero().flatten().tolist()]
        assert scores["macro_auroc"] == pytest.approx(float(torch.stack(auroc).mean()), abs=1e-6)


def test_pairs_are_compared_within_clients_alone() -> None:
    # Each client ranks its two samples right; the second's logits are larger throughout.
    labels = np.array([[1], [0]], np.float32)
    clients = [RULES.tally(labels, np.array(logits, np.float32), 1) for logits in ([[1], [0]], [[6], [5]])]
    together = clients[0] + clients[1]
    assert together.num_examples == 4
    assert together.counts["pairs"].tolist() == [2]
    assert RULES.scores(together)["macro_auroc"] == 1
    pooled = RULES.tally(np.concatenate([labels, labels]), np.array([[1], [0], [6], [5]], np.float32), 1)
    assert RULES.scores(pooled)["macro_auroc"] == 3 / 4


def test_tallies_add_up_in_any_order() -> None:
    draw = np.random.default_rng(0)
    tallies = [
        RULES.tally((draw.random((5, 3)) < 0.4).astype(np.float32), draw.standard_normal((5, 3)), 3) for _ in range(4)
    ]
    assert RULES.scores(reduce(operator.add, tallies)) == RULES.scores(reduce(operator.add, tallies[::-1]))


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        (np.zeros((2, 3)), (2, 3), r"labels have shape \(2, 3\) and predictions \(2, 3\); expected \(N, 2\)"),
        (np.zeros((2, 2)), (3, 2), r"predictions \(3, 2\)"),
        (np.full((2, 2), 0.5), (2, 2), "neither 0 nor 1"),
    ],
)
def test_labels_that_are_refused(labels: np.ndarray, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RULES.tally(labels.astype(np.float32), np.zeros(shape, np.float32), 2)
