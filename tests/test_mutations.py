"""The campaign of `benchmarks/mutations.py`, short: no damage to a run folder gives a wrong result without a word."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_damaged_run_folders_are_told_or_give_the_same(tmp_path: Path, warm_processes: None) -> None:
    script = str(REPOSITORY / "benchmarks" / "mutations.py")
    command = [sys.executable, script, "--mutations", "8", "--seed", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    outcomes = [json.loads(line) for line in (tmp_path / "out" / "mutations.jsonl").read_text().splitlines()]
    assert [outcome for outcome in outcomes if outcome["wrong"]] == []
    assert done.returncode == 0, done.stderr
    assert len(outcomes) == 8
    assert "| **all** | 8 |" in done.stdout
