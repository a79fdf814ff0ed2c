"""Runs at the same time, in one folder and on one machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from blossom_ray import Run, Scenario, simulate
from blossom_ray.reading.writer import scenario_yaml

PATIENCE_S = 240.0


@pytest.mark.ray
@pytest.mark.slow
def test_runs_at_the_same_time_do_not_disturb_each_other(
    small_scenario: Scenario, tmp_path: Path, warm_processes: None
) -> None:
    """One with a Ray session of its own, two without Ray, of one scenario, into one folder."""
    scenario = small_scenario.override(
        {"rounds": 30, "checkpoint.every": 2, "sharing": "private-head", "execution.clients_per_actor": 5}
    )
    (tmp_path / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    command = [sys.executable, "-m", "blossom_ray", "simulate", "scenario.yaml", "--set"]
    processes = [
        subprocess.Popen(
            [*command, f"execution.runtime={runtime}"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for runtime in ("ray", "local", "local")
    ]
    try:
        ends = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    runs = [Run.open(folder) for folder in (tmp_path / "runs" / "small").iterdir()]
    assert sorted(run.manifest["runtime"] for run in runs) == ["local", "local", "ray"]
    digest = simulate(scenario).manifest["digest"]
    assert [run.manifest["digest"] for run in runs] == [digest] * 3
    assert [run.rounds["round"].to_list() for run in runs] == [list(range(31))] * 3
