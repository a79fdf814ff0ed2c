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

# Takes memory in training, the first time or every time, until Ray's monitor has enough of it.
GREEDY = """\
import os
import time
from pathlib import Path

import psutil
import torch


class Greedy(torch.nn.Module):
    def __init__(self, input_dim, num_outputs, once):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, num_outputs)
        self.once = Path(once) if once else None

    def forward(self, fused):
        if self.training and is_client_actor() and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            take_until_killed(int(os.environ["LIMIT_BYTES"]))
        return self.linear(fused)


def is_client_actor():
    return "ray::ClientActor" in " ".join(psutil.Process().cmdline())


def take_until_killed(limit_bytes):
    hoard = []
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and len(hoard) < 160:
        memory = psutil.virtual_memory()
        if memory.total - memory.available < limit_bytes + 2**29:
            hoard.append(b"1" * 2**26)
        else:
            time.sleep(0.1)
"""
# What a client takes before Ray's monitor kills it, less what Ray's own processes and others on the machine take.
TAKEN_BYTES = 4 * 2**30


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
    Path("own.py").write_text(GREEDY, encoding="utf-8")
    return scenario.override({"model.head": {"kind": "custom", "factory": "own:Greedy", "options": {"once": once}}})


@contextmanager
def narrow_cluster() -> Iterator[str]:
    """The address of a cluster that lets the machine use a little more memory than now, and imports own code."""
    memory = psutil.virtual_memory()
    if memory.available < 2 * TAKEN_BYTES:
        pytest.skip(f"takes {2 * TAKEN_BYTES / 2**30:g} GiB of free memory")
    limit = memory.total - memory.available + TAKEN_BYTES
    # Looked at once a second: the memory of a process that was killed must be back before the next look.
    monitor = {"memory_usage_threshold": limit / memory.total, "memory_monitor_refresh_ms": 1000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMIT_BYTES", str(limit))
        patch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        with cluster_of({"num_cpus": 2}, system_config=monitor) as (address, _):
            yield address


def test_a_client_that_fits_at_the_second_try_changes_no_bit(scenario: Scenario, tmp_path: Path) -> None:
    # Nobody is killed where others give back as much memory meanwhile: a second try, for a machine that has other work.
    for attempt in ("once", "once more"):
        placed = greedy(scenario, str(tmp_path / attempt))
        with narrow_cluster() as address:
            exit_code, message, folder = simulated(placed, address)
        assert exit_code == 0, message
        run = Run.open(folder)
        # Ray may choose the driver actor besides, whose successor knows nothing of what the table would have said.
        losses = [loss["cause"] for loss in run.manifest.get("driver_losses", [])]
        causes = [*run.failures["cause"], *losses]
        if causes:
            break
    assert any("was killed because the machine ran out of memory" in cause for cause in causes), causes
    assert_same_as_undisturbed(run, placed)


@pytest.mark.long
def test_a_client_that_never_fits_ends_the_run_with_one_cause_and_one_hint(scenario: Scenario) -> None:
    placed = greedy(scenario, "").override({"failures.max_retries": 0})
    with narrow_cluster() as address:
        exit_code, message, _ = simulated(placed, address)
    assert exit_code == 1
    cause, hint = message.splitlines()
    # Ray may choose the driver actor, too, which knows of no client.
    whose = ("error: round 1, training: actor 0 with client ", "error: the driver actor was killed ")
    assert cause.startswith(whose)
    assert cause.endswith("was killed because the machine ran out of memory")
    assert hint.startswith("hint: fewer actors")


def test_a_model_larger_than_the_object_store_changes_no_bit(scenario: Scenario) -> None:
    """Two versions of two encoders of 40 MB, and their sums of 80 MB, pass through a store of 80 MB."""
    encoder = {"kind": "mlp", "hidden": [3160, 3160], "dim": 6}
    changes = {"rounds": 1, "clients.0.count": 1, "clients.2.count": 1, "data.samples": 60}
    placed = scenario.override({"model.encoders": {"acc": encoder, "gyro": encoder}, **changes})
    with cluster_of({"num_cpus": 2}) as (address, _):
        exit_code, message, folder = simulated(placed, address)
    assert exit_code == 0, message
    assert_same_as_undisturbed(Run.open(folder), placed)
