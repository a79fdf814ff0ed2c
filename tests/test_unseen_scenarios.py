"""The packaged scenarios with clients that never train."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, simulate

FOLDER = REPOSITORY / "scenarios" / "unseen"


def test_on_generated_data_each_is_a_person_of_its_own() -> None:
    fewer = {"rounds": 1, "data.samples": 300, "data.held_out_samples": 180, "evaluation.fine_tune.epochs": 1}
    run = simulate(Scenario.load(FOLDER / "people.yaml", fewer))
    names = run.clients.filter(round=1).select("name", "role").rows()
    assert sorted(int(name) for name, role in names if role == "train") == [*range(10)]
    assert sorted(int(name) for name, role in names if role == "unseen") == [*range(10, 20)]
    assert run.final["unseen/fine_tuned/accuracy/acc+gyro"] is not None


@pytest.mark.data
def test_uci_har_has_its_test_subjects(small_uci_har: Path) -> None:
    fewer = {
        "rounds": 1,
        "data.path": str(small_uci_har),
        "execution.runtime": "local",
        "evaluation.fine_tune.epochs": 1,
    }
    run = simulate(Scenario.load(FOLDER / "uci-har.yaml", fewer))
    names = run.clients.filter(round=1, role="unseen")["name"].to_list()
    assert len({*names}) == 9
