import numpy as np
import pytest

from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.errors import DataError
from blossom_ray.tasks.classification import classification_scores
from blossom_ray.tasks.summary import personalization_gain, summarize


def evaluation(client, num_examples, loss, confusion):
    scores = classification_scores(confusion)
    return ClientEvaluation(client, num_examples, loss, scores, bytes_down=0, seconds=0.0)


def test_summary_by_hand():
    # Clients of 1, 2 and 5 samples: accuracies 1, 0.5, 0.2; losses 1, 2, 4.
    confusions = [np.array([[1, 0], [0, 0]]), np.array([[1, 1], [0, 0]]), np.array([[1, 2], [2, 0]])]
    evaluations = [
        evaluation(client, int(confusion.sum()), loss, confusion)
        for client, (confusion, loss) in enumerate(zip(confusions, (1.0, 2.0, 4.0), strict=True))
    ]
    summary = summarize(evaluations, ["acc+gyro", "gyro", "acc+gyro"], classification_scores(sum(confusions)))
    expected = {
        "loss": (1 * 1 + 2 * 2 + 5 * 4) / 8,
        "loss_p10": 1.2,  # 1 + 0.2 (2 - 1)
        "loss_p50": 2.0,
        "loss_p90": 3.6,  # 2 + 0.8 (4 - 2)
        "loss/acc+gyro": (1 + 20) / 6,
        "loss/gyro": 2.0,
        "accuracy": 3 / 8,
        "accuracy_pooled": 3 / 8,
        "accuracy_p10": 0.26,  # 0.2 + 0.2 (0.5 - 0.2)
        "accuracy_p50": 0.5,
        "accuracy_p90": 0.9,  # 0.5 + 0.8 (1 - 0.5)
        "accuracy/acc+gyro": (1 + 1) / 6,
        "accuracy/gyro": 0.5,
        # Pooled [[3, 3], [2, 0]]: recalls 1/2 and 0; F1 of class 0 is 6 / (6 + 5).
        "balanced_accuracy_pooled": 0.25,
        "macro_f1_present_pooled": 3 / 11,
        "macro_f1_all_pooled": 3 / 11,
        # Clients: F1 of class 0 is 1, 2/3, 2/6; class 1 is present in the last only, with 0.
        "macro_f1_present": (1 + 2 * 2 / 3 + 5 * 1 / 6) / 8,
        "macro_f1_all": (1 / 2 + 2 * 1 / 3 + 5 * 1 / 6) / 8,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert "loss_pooled" not in summary
    assert len(summary) == 6 + 4 * 7


def test_weighted_accuracy_is_pooled_accuracy():
    generator = np.random.default_rng(0)
    confusions = generator.integers(0, 9, size=(12, 4, 4))
    evaluations = [evaluation(k, int(c.sum()), 0.0, c) for k, c in enumerate(confusions)]
    summary = summarize(evaluations, ["a"] * 12, classification_scores(confusions.sum(axis=0)))
    assert summary["accuracy"] == pytest.approx(summary["accuracy_pooled"])


def test_modality_sets_come_in_sorted_order():
    evaluations = [evaluation(k, 1, 0.0, np.array([[1]])) for k in range(3)]
    summary = summarize(evaluations, ["gyro", "acc", "acc+gyro"], classification_scores(np.array([[3]])))
    assert [name for name in summary if name.startswith("loss/")] == [
        "loss/acc",
        "loss/acc+gyro",
        "loss/gyro",
    ]


def test_a_diverged_client_makes_the_mean_infinite_without_a_warning():
    evaluations = [evaluation(k, 1, loss, np.array([[1]])) for k, loss in enumerate([1.0, np.inf, 2.0])]
    summary = summarize(evaluations, ["acc"] * 3, classification_scores(np.array([[3]])))
    assert summary["loss"] == np.inf
    assert summary["loss_p10"] == pytest.approx(1.2)
    assert summary["accuracy"] == 1.0


def test_no_evaluation_gives_no_metrics():
    assert summarize([], [], {}) == {}


def test_personalization_gain_by_hand():
    assert personalization_gain(0.75, 0.6) == pytest.approx(25.0)
    assert personalization_gain(0.45, 0.6) == pytest.approx(-25.0)
    assert np.isnan(personalization_gain(0.5, 0.0))


def test_summary_refuses_clients_without_samples():
    empty = ClientEvaluation(0, 0, 0.0, classification_scores(np.array([[1]])), bytes_down=0, seconds=0.0)
    with pytest.raises(DataError, match="have no test samples"):
        summarize([empty], ["acc"], classification_scores(np.array([[1]])))
