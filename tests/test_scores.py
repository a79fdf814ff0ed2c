from __future__ import annotations

import pytest

from blossom_ray.core.scores import SCORES, TASKS, default_score, find_score


def test_each_task_has_scores_of_its_own_names() -> None:
    assert set(SCORES) == set(TASKS)
    for task in TASKS:
        names = [score.name for score in SCORES[task]]
        assert len(set(names)) == len(names)
        assert default_score(task).label


@pytest.mark.parametrize(
    ("metric", "name", "lower_is_better"),
    [
        ("accuracy", "accuracy", False),
        ("accuracy_p10", "accuracy", False),
        ("macro_f1_all/acc+gyro", "macro_f1_all", False),
        ("held_out/rmse/acc", "rmse", True),
        ("rmse_pooled", "rmse", True),
        ("fine_tuned/rmse_p50", "rmse", True),
        ("r2_p90", "r2", False),
        ("loss", "loss", True),
        ("train_loss", "loss", True),
    ],
)
def test_the_score_that_a_column_is_about(metric: str, name: str, lower_is_better: bool) -> None:
    score = find_score(metric)
    assert score is not None
    assert (score.name, score.lower_is_better) == (name, lower_is_better)


@pytest.mark.parametrize("metric", ["round", "bytes_up", "accuracies", "", "num_examples"])
def test_columns_that_are_about_no_score(metric: str) -> None:
    assert find_score(metric) is None
