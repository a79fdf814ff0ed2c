import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.evaluations import ClientEvaluation, EvaluationColumns, joined_evaluations
from blossom_ray.core.records import RoundRecord
from blossom_ray.errors import DataError
from blossom_ray.runs.tables import table_rows
from blossom_ray.tasks.classification import Classification, classification_scores, confusion_matrix
from blossom_ray.tasks.summary import summarize, total, trained_summary


def test_confusion_matrix_has_true_classes_as_rows():
    confusion = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion.dtype == np.int64


def test_scores_by_hand():
    # Class 0: 3 true, 2 right, 2 predicted. Class 1: 1 true, right. Class 2: absent, predicted once.
    confusion = np.array([[2, 0, 1], [0, 1, 0], [0, 0, 0]])
    # accuracy 3/4; recalls 2/3 and 1; F1 4/5 (2*2 / (3 + 2)) and 1.
    assert classification_scores(confusion) == pytest.approx(
        {
            "accuracy": 0.75,
            "balanced_accuracy": (2 / 3 + 1) / 2,
            "macro_f1_present": (0.8 + 1) / 2,
            "macro_f1_all": (0.8 + 1) / 3,
        }
    )


def test_a_perfect_classifier_under_label_skew_reaches_one_over_present_classes_only():
    scores = classification_scores(np.diag([4, 0, 0, 0]))
    assert scores["macro_f1_present"] == 1.0
    assert scores["macro_f1_all"] == 0.25


def test_a_present_class_that_is_never_predicted_counts_zero():
    assert classification_scores(np.array([[3, 0], [1, 0]]))["balanced_accuracy"] == 0.5


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60),
)
@settings(deadline=None, max_examples=30)
def test_scores_agree_with_torchmetrics(pairs):
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    true, predicted = torch.from_numpy(labels), torch.from_numpy(predictions)
    confusion = confusion_matrix(labels, predictions, 5)
    np.testing.assert_array_equal(
        confusion, reference.multiclass_confusion_matrix(predicted, true, num_classes=5).numpy()
    )
    scores = classification_scores(confusion)
    assert scores["accuracy"] == pytest.approx(float((true == predicted).float().mean()), abs=1e-6)
    f1 = reference.multiclass_f1_score(predicted, true, num_classes=5, average="none").numpy()
    recall = reference.multiclass_recall(predicted, true, num_classes=5, average="none").numpy()
    present = np.unique(labels)
    assert scores["balanced_accuracy"] == pytest.approx(float(recall[present].mean()), abs=1e-6)
    assert scores["macro_f1_present"] == pytest.approx(float(f1[present].mean()), abs=1e-6)
    assert scores["macro_f1_all"] == pytest.approx(float(f1.mean()), abs=1e-6)


@given(data=st.data(), cut=st.integers(0, 30))
@settings(deadline=None, max_examples=20)
def test_confusion_matrices_of_parts_add_up(data, cut):
    classes = st.lists(st.integers(0, 2), min_size=30, max_size=30)
    labels, predictions = np.array(data.draw(classes)), np.array(data.draw(classes))
    parts = [confusion_matrix(labels[part], predictions[part], 3) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(sum(parts), confusion_matrix(labels, predictions, 3))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 1], "labels run from 0 to 3; expected 0 to 2"),
        ([0, 1], [-1, 1], "predictions run from -1 to 1; expected 0 to 2"),
        ([0, 1], [0], r"labels have shape \(2,\) and predictions \(1,\)"),
    ],
)
def test_confusion_matrix_refuses(labels, predictions, message):
    with pytest.raises(DataError, match=message):
        confusion_matrix(np.array(labels), np.array(predictions), 3)


def test_scores_refuse_an_empty_or_odd_matrix():
    with pytest.raises(DataError, match="holds no sample"):
        classification_scores(np.zeros((3, 3), dtype=np.int64))
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        classification_scores(np.ones((2, 3), dtype=np.int64))


def clients_with_predictions(num_clients: int, *, diverged: tuple[int, ...] = ()):
    draw = np.random.default_rng(num_clients)
    sizes = draw.integers(1, 9, num_clients)
    labels = [draw.integers(0, 5, size) for size in sizes]
    predictions = [draw.integers(0, 5, size) for size in sizes]
    for client in diverged:
        predictions[client][0] = -1
    return labels, predictions


@pytest.mark.parametrize("diverged", [(), (0, 3)])
@pytest.mark.parametrize("most_cells", [2**20, 60])
def test_many_clients_are_scored_at_once_as_each_alone(diverged, most_cells, monkeypatch):
    monkeypatch.setattr("blossom_ray.tasks.classification._MOST_CELLS", most_cells)
    rules, (labels, predictions) = Classification(), clients_with_predictions(40, diverged=diverged)
    tallies = [rules.tally(*own, 5) for own in zip(labels, predictions, strict=True)]
    tally, scores = rules.tally_all(labels, predictions, 5)
    expected = total(tallies)
    assert (tally.num_examples, tally.num_undefined) == (expected.num_examples, expected.num_undefined)
    assert tally.counts.keys() == expected.counts.keys()
    assert all((tally.counts[name] == counts).all() for name, counts in expected.counts.items())
    for client, own in enumerate(tallies):
        found = {name: values[client] for name, values in scores.items()}
        np.testing.assert_equal(found, rules.scores(own))


def test_columns_of_evaluations_are_summarized_and_written_as_single_ones_are():
    rules, (labels, predictions) = Classification(), clients_with_predictions(40)
    tally, scores = rules.tally_all(labels, predictions, 5)
    single = tuple(
        ClientEvaluation(
            2 * client, len(own[0]), 0.25 * client, rules.scores(rules.tally(*own, 5)), 8, 0.5 * client, client % 3
        )
        for client, own in enumerate(zip(labels, predictions, strict=True))
    )
    columns = EvaluationColumns(
        client=2 * np.arange(40),
        num_examples=np.array([*map(len, labels)]),
        loss=0.25 * np.arange(40),
        scores=scores,
        bytes_down=np.full(40, 8),
        seconds=0.5 * np.arange(40),
        rounds_trained=np.arange(40) % 3,
        task="",
    )
    assert columns == single
    assert columns[-1] == single[-1]
    assert joined_evaluations([columns[20:], columns[:20]]) == single
    assert joined_evaluations([columns[20:], single[:20]]) == single
    sets, pooled = ["acc", "acc+gyro"] * 20, rules.scores(tally)
    assert summarize(columns, sets, pooled) == summarize(single, sets, pooled)
    assert trained_summary(columns, sets, [*pooled]) == trained_summary(single, sets, [*pooled])
    profiles = [ClientProfile(client, ("acc",)) for client in range(80)]
    for more in ({}, {"validation": single[3:9]}):
        one, other = (RoundRecord(1, None, (), (), own, {}, (), fine_tuned=own, **more) for own in (single, columns))
        assert table_rows(other, profiles) == table_rows(one, profiles)
        assert other.num_evaluated == one.num_evaluated
