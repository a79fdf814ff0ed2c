"""The packaged scenarios with several tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, simulate

FOLDER = REPOSITORY / "scenarios" / "tasks"


def test_generated_data_have_a_classification_and_a_regression() -> None:
    run = simulate(Scenario.load(FOLDER / "generated.yaml", {"rounds": 1, "data.samples": 200}))
    assert {"shape/accuracy", "strength/rmse", "held_out/strength/r2/acc+gyro"} <= run.final.keys()


@pytest.mark.data
def test_uci_har_tells_what_is_done_and_who_it_is(small_uci_har: Path) -> None:
    fewer = {"rounds": 1, "data.path": str(small_uci_har), "execution.runtime": "local"}
    run = simulate(Scenario.load(FOLDER / "uci-har.yaml", fewer))
    tasks = run.manifest["data"]["tasks"]
    assert (tasks["activity"]["num_classes"], tasks["who"]["num_classes"]) == (6, 21)
    assert not any(name.startswith("held_out/who") for name in run.final)
    assert any(note.startswith("who: the held-out set has other classes") for note in run.manifest["notes"])
