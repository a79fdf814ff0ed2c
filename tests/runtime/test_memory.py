"""Memory that runs out: that of the machine, and Ray's object store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from clusters import assert_same_as_undisturbed, cluster_of, simulated

from blossom_ray import Run, Scenario

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Takes a lot of memory in training, the first time or every time, until its process is killed.
GREEDY = """\
import os
import time
from pathlib import Path

import torch

GIBIBYTES = {gibibytes}


class Greedy(torch.nn.Module):
    def __init__(self, input_dim, num_outputs, once):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, num_outputs)
        self.once = Path(once) if once else None

    def forward(self, fused):
        if self.training and "ON_THE_CLUSTER" in os.environ and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            hoard = [bytearray(os.urandom(2**20)) * 64 for _ in range(16 * GIBIBYTES)]
            time.sleep(60)
        return self.linear(fused)
"""
GIBIBYTES = 6


@pytest.fixture
def scenario(small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.chdir(tmp_path)
    return small_scenario.override(
        {
            "sharing": "private-head",
            "execution": {
                "runtime": "ray",
                "chunk_size": 2,
                "clients_per_actor": 5,
                "client_resources": {"num_cpus": 0.5},
            },
        }
    )


def greedy(scenario: Scenario, once: str) -> Scenario:
    Path("own.py").write_text(GREEDY.format(gibibytes=GIBIBYTES), encoding="utf-8")
    return scenario.override({"model.head": {"kind": "custom", "factory": "own:Greedy", "options": {"once": once}}})


@contextmanager
def greedily() -> Iterator[None]:
    """What is started within imports own code from here, and takes memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ON_THE_CLUSTER", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        yield


def memory_monitor() -> dict[str, float]:
    """Ray kills when the machine uses half of `GIBIBYTES` more than now."""
    memory = psutil.virtual_memory()
    if memory.available < (GIBIBYTES + 2) * 2**30:
        pytest.skip(f"takes {GIBIBYTES + 2} GiB of free memory")
    used = memory.total - memory.available
    return {"memory_usage_threshold": (used + GIBIBYTES * 2**29) / memory.total, "memory_monitor_refresh_ms": 100}


def test_a_client_that_fits_at_the_second_try_changes_no_bit(scenario: Scenario, tmp_path: Path) -> None:
    placed = greedy(scenario, str(tmp_path / "once"))
    with greedily(), cluster_of({"num_cpus": 2}, system_config=memory_monitor()) as (address, _):
        exit_code, message, folder = simulated(placed, address)
    assert exit_code == 0, message
    run = Run.open(folder)
    assert "was killed because the machine ran out of memory" in set(run.failures["cause"])
    assert_same_as_undisturbed(run, placed)


def test_a_client_that_never_fits_ends_the_run_with_one_cause_and_one_hint(scenario: Scenario) -> None:
    placed = greedy(scenario, "").override({"failures.max_retries": 0})
    with greedily(), cluster_of({"num_cpus": 2}, system_config=memory_monitor()) as (address, _):
        exit_code, message, _ = simulated(placed, address)
    assert exit_code == 1
    cause, hint = message.splitlines()
    assert cause.startswith("error: round 1, training: actor 0 with client ")
    assert cause.endswith("was lost once because it was killed because the machine ran out of memory")
    assert hint.startswith("hint: fewer actors")


def test_a_model_larger_than_the_object_store_changes_no_bit(scenario: Scenario) -> None:
    """Five versions of two encoders of 40 MB, and their sums of 80 MB, pass through a store of 80 MB."""
    encoder = {"kind": "mlp", "hidden": [3160, 3160], "dim": 6}
    placed = scenario.override({"model.encoders": {"acc": encoder, "gyro": encoder}, "data.samples": 60})
    with cluster_of({"num_cpus": 2}) as (address, _):
        exit_code, message, folder = simulated(placed, address)
    assert exit_code == 0, message
    assert_same_as_undisturbed(Run.open(folder), placed)
