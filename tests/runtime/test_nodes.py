"""A Ray cluster of two nodes on this machine, one of which is killed: the run goes on, or ends so that it can go on."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import PATIENCE_S, assert_same_as_undisturbed, cluster_of, resume, simulated

from blossom_ray import Run, Scenario

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Imported by the actors from the working directory. On the cluster, they wait in the training of the sixth round until
# it has been disturbed, and say so in a file with the number of their raylet.
HEAD = """\
import os
import time
from pathlib import Path

import torch

trained = set()


class Held(torch.nn.Module):
    def __init__(self, input_dim, num_outputs):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, num_outputs)

    def forward(self, fused):
        if self.training:
            trained.add(torch.initial_seed())  # of its own for each of two clients and each round
            hold = Path(os.environ.get("HOLD", "/none/such"))
            while len(trained) > 2 * 5 and hold.exists():
                hold.with_name(f"held-{os.environ['RAY_RAYLET_PID']}").touch()
                time.sleep(0.02)
        return self.linear(fused)
"""
# Seconds instead of half a minute until a node that gives no sign of life counts as dead.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
    "gcs_rpc_server_reconnect_timeout_s": 10,
}


@pytest.fixture
def scenario(small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """Three actors of two clients, eight rounds, a checkpoint every second one, private heads."""
    (tmp_path / "held_head.py").write_text(HEAD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return small_scenario.override(
        {
            "rounds": 8,
            "clients.1.count": 2,
            "sharing": "private-head",
            "model.head": {"kind": "custom", "factory": "held_head:Held"},
            "checkpoint.every": 2,
            "execution": {
                "runtime": "ray",
                "chunk_size": 2,
                "clients_per_actor": 2,
                "client_resources": {"num_cpus": 0.5},
            },
        }
    )


def raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def take_down(node: Any) -> None:
    """What a machine that goes down does: every process of the node is gone at once, and its workers see that."""
    processes = [psutil.Process(each.process.pid) for kind in node.all_processes.values() for each in kind]
    for process in [*processes, *raylet(node).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def disturbed(
    scenario: Scenario, cpus: tuple[float, float], strike: Callable[[list[Any]], None]
) -> tuple[int, str, Path]:
    """A run on two nodes with so many cores, disturbed in its sixth round."""
    hold = Path("hold").absolute()
    hold.touch()

    def disturb(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        if not any(re.match(r"round +5/", line) for line in process.stdout):
            raise AssertionError(f"ended before round 5: {process.communicate()[1]}")
        strike(nodes)
        hold.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLD", str(hold))
        patch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        with cluster_of(*({"num_cpus": each} for each in cpus), system_config=HEALTH) as (address, nodes):
            return simulated(scenario, address, disturb)


def kill_the_other_raylet(nodes: list[Any]) -> None:
    other = raylet(nodes[1])
    give_up = time.monotonic() + PATIENCE_S
    while not Path(f"held-{other.pid}").exists():
        assert time.monotonic() < give_up, "the second node has no actors to lose"
        time.sleep(0.05)
    other.kill()


def test_a_run_goes_on_without_a_lost_node(scenario: Scenario) -> None:
    exit_code, message, folder = disturbed(scenario, (2, 2), kill_the_other_raylet)
    assert exit_code == 0, message
    run = Run.open(folder)
    assert_same_as_undisturbed(run, scenario)
    assert set(run.failures["action"]) == {"repeated"}
    # Whether Ray misses the node first or the processes that go down with it is a matter of a moment.
    causes = {"went with its node, which died or cannot be reached", "died: its process ended unexpectedly"}
    assert set(run.failures["cause"]) <= causes
    assert run.failures.height > 0


@pytest.mark.long
def test_a_cluster_that_became_too_small_ends_the_run_so_that_it_can_go_on(scenario: Scenario) -> None:
    exit_code, message, folder = disturbed(scenario, (1, 1), kill_the_other_raylet)
    assert exit_code == 1
    cause, hint = message.splitlines()
    assert cause.startswith(
        "error: the cluster has become too small: 2 of this run's 3 client actors fit into 1 CPU cores"
    )
    assert hint.startswith("hint: bring the lost node back, or go on with what is left")
    assert Run.open(folder).status == "failed"
    resume(folder)
    assert_same_as_undisturbed(Run.open(folder), scenario)


def test_the_loss_of_the_node_with_the_driver_ends_the_run_so_that_it_can_go_on(scenario: Scenario) -> None:
    exit_code, message, folder = disturbed(scenario, (2, 2), lambda nodes: take_down(nodes[0]))
    assert exit_code == 1, message
    assert re.fullmatch(r"error: .*\nhint: .*\n", message), message
    resume(folder)
    assert_same_as_undisturbed(Run.open(folder), scenario)
