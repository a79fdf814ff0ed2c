"""Names of tasks in scores: what a column is about, and what of it is one task's."""

from __future__ import annotations

import pytest

from blossom_ray.core.scores import find_score, of_task, split_scoring
from blossom_ray.studies.comparison.scores import score_of


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("stress/rmse", "rmse"),
        ("validation/fine_tuned/stress/rmse_p10/acc+gyro", "rmse"),
        ("activity/loss", "loss"),
        ("accuracy/rmse", "accuracy"),  # a modality may be called so, a task may not
        ("stress/train_loss", "loss"),
    ],
)
def test_a_score_is_found_behind_the_name_of_its_task(column: str, name: str) -> None:
    found = find_score(column)
    assert found is not None
    assert found.name == name


def test_an_error_of_a_task_is_no_share_of_which_more_is_better() -> None:
    assert (score_of("stress/rmse").lower_is_better, score_of("stress/rmse").is_share) == (True, False)
    assert score_of("held_out/stress/r2/acc").is_signed
    assert find_score("stress/nothing") is None


def test_what_a_task_has_of_a_summary_goes_by_the_names_of_a_run_without_tasks() -> None:
    metrics = {
        "activity/train_loss": 0.5, "activity/accuracy": 0.6, "activity/accuracy/acc": 0.7, "who/accuracy": 0.1,
        "validation/fine_tuned/activity/accuracy_p10": 0.2, "held_out/activity/accuracy/acc": 0.3,
    }  # fmt: skip
    assert of_task(metrics, "activity") == {
        "train_loss": 0.5, "accuracy": 0.6, "accuracy/acc": 0.7,
        "validation/fine_tuned/accuracy_p10": 0.2, "held_out/accuracy/acc": 0.3,
    }  # fmt: skip
    assert of_task(metrics, "who") == {"accuracy": 0.1}
    assert of_task(metrics, "") == metrics
    assert split_scoring("validation/fine_tuned/activity/accuracy") == ("validation/fine_tuned/", "activity/accuracy")
