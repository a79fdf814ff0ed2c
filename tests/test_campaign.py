"""The fault campaign of `benchmarks/faults.py`, short: random kills, the bits of an undisturbed run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_disturbed_runs_have_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    script = str(REPOSITORY / "benchmarks" / "faults.py")
    short = ["--undisturbed", "1", "--rounds", "6", "--kills", "1"]

    def campaign(runs: int) -> tuple[str, list[dict[str, Any]]]:
        command = [sys.executable, script, "--out", str(tmp_path / "faults"), "--runs", str(runs), *short]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "faults" / "campaign.jsonl").read_text(encoding="utf-8").splitlines()
        return done.stdout, [json.loads(line) for line in lines]

    table, outcomes = campaign(3)
    assert [(outcome["run"], outcome["planned"]) for outcome in outcomes] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert all(outcome["identical"] for outcome in outcomes), outcomes
    assert any(outcome["faults"] for outcome in outcomes)
    assert "| runs bit-identical to the undisturbed one | 3 |" in table
    assert campaign(0) == (table, outcomes)
