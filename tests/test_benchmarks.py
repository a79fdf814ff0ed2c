"""The benchmarks that need no peers and no data still run, on a few clients, and say what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY


def output(script: str, *arguments: str) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_overhead(warm_processes: None) -> None:
    text = output("overhead.py", "--runtime", "local", "--clients", "4", "--rounds", "5")
    expected = (
        r"4 clients, packed per actor, local: [\d.]+ ms a client \(.+, 2 rounds\), [\d.]+ ms of processor time.+\n"
    )
    assert re.fullmatch(expected, text)


def test_round_profile_covers_the_phases_of_a_round() -> None:
    changes = ("--set", "clients.0.count=8", "--set", "data.samples=1288", "--set", "evaluation.clients=0.2")
    text = output("round_profile.py", str(REPOSITORY / "benchmarks" / "w1.yaml"), "--rounds", "4", *changes)
    assert text.startswith("16 clients trained, ")
    parts = re.findall(r"^\| (.+) \| [\d.]+ \| ([\d.]+)% \|$", text, re.MULTILINE)
    assert sum(float(part) for _, part in parts) == pytest.approx(100, abs=2)
    assert {"backward", "optimizer", "open shards", "sums within chunks", "server step"} <= {name for name, _ in parts}


def test_own_modules(warm_processes: None) -> None:
    text = output("own_modules.py", "--clients", "4", "--rounds", "1")
    assert re.match(r"4 clients, 1 rounds; after round 1 blocks differ by [\d.]+e-\d+\n", text)
    assert len(re.findall(r"^\| .+ \| [\d.]+ \| [\d.]+ \| [\d.]+ to [\d.]+ \|$", text, re.MULTILINE)) == 3


def test_core_without_ray() -> None:
    text = output("gpu_core.py", "--device", "cpu", "--largest", "2", "--repeats", "1", "--steps", "1", "--only", "mlp")
    assert "no GPU: one thread of the processor" in text
    assert re.search(r"^chunk size found: [12] \(", text, re.MULTILINE)
