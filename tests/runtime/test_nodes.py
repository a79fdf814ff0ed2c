"""A Ray cluster of two nodes on this machine, one of which is killed: the run goes on, or ends so that it can go on."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from blossom_ray import Run, Scenario, simulate
from blossom_ray.scenario.writer import scenario_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Imported by the actors from the working directory. Rounds are slow enough to be disturbed, on the cluster alone.
HEAD = """\
import os
import time

import torch


class Slow(torch.nn.Module):
    def __init__(self, input_dim, num_outputs):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, num_outputs)

    def forward(self, fused):
        if self.training:
            time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0")))
        return self.linear(fused)
"""
# Seconds instead of half a minute until a node that gives no sign of life counts as dead.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
PATIENCE_S = 240.0


@pytest.fixture
def scenario(small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """Three actors, eight rounds, a checkpoint every second one, private heads."""
    (tmp_path / "own.py").write_text(HEAD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return small_scenario.override(
        {
            "rounds": 8,
            "sharing": "private-head",
            "model.head": {"kind": "custom", "factory": "own:Slow"},
            "checkpoint.every": 2,
            "execution": {
                "runtime": "ray",
                "chunk_size": 2,
                "clients_per_actor": 2,
                "client_resources": {"num_cpus": 0.5},
            },
        }
    )


Nodes = Callable[[float, float], tuple[str, psutil.Process, psutil.Process]]


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Starts a cluster of two nodes with so many cores; its address and the two raylets, that of the head first."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("SECONDS_PER_STEP", "0.2")
    # Actors import own code from where the nodes were started.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with ExitStack() as stack:

        def start(head_cpus: float, other_cpus: float) -> tuple[str, psutil.Process, psutil.Process]:
            cluster = Cluster()
            stack.callback(cluster.shutdown)
            small: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
            head = cluster.add_node(num_cpus=head_cpus, _system_config=HEALTH, **small)
            other = cluster.add_node(num_cpus=other_cpus, **small)
            return cluster.address, raylet(head), raylet(other)

        yield start


def raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def client_actors(raylet: psutil.Process) -> int:
    return sum("ray::ClientActor" in " ".join(child.cmdline()) for child in raylet.children(recursive=True))


def blossom(*arguments: str, address: str | None = None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if address is not None:
        environment["RAY_ADDRESS"] = address
    command = [sys.executable, "-m", "blossom_ray", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_round(process: subprocess.Popen[str], round_index: int) -> None:
    assert process.stdout is not None
    if not any(re.match(rf"round +{round_index}/", line) for line in process.stdout):
        raise AssertionError(f"ended before round {round_index}: {process.communicate()[1]}")


def disturb(scenario: Scenario, address: str, victim: Callable[[], psutil.Process]) -> tuple[int, str, Path]:
    """Run, kill during the fifth round; exit code, what was printed on stderr, and the run folder."""
    Path("scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    with blossom("simulate", "scenario.yaml", address=address) as process:
        try:
            wait_for_round(process, 4)
            os.kill(victim().pid, signal.SIGKILL)
            _, message = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    (folder,) = Path("runs/small").iterdir()
    return process.returncode, message, folder


def resume(folder: Path) -> None:
    with blossom("resume", str(folder), "--set", "execution.runtime=local") as process:
        _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, message


def assert_same_as_undisturbed(run: Run, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECONDS_PER_STEP")
    expected = simulate(scenario.override({"execution.runtime": "local"}))
    assert run.status == "finished"
    assert run.manifest["digest"] == expected.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        frame, other = getattr(run, name), getattr(expected, name)
        timed = [column for column in other.columns if "seconds" in column]
        assert frame.drop(timed).equals(other.drop(timed)), name


def test_a_run_goes_on_without_a_lost_node(scenario: Scenario, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    address, _, other = nodes(2, 2)

    def victim() -> psutil.Process:
        assert client_actors(other) > 0, "the second node has actors to lose"
        return other

    exit_code, message, folder = disturb(scenario, address, victim)
    assert exit_code == 0, message
    run = Run.open(folder)
    assert_same_as_undisturbed(run, scenario, monkeypatch)
    assert set(run.failures["action"]) == {"repeated"}
    assert "went with its node, which died or cannot be reached" in set(run.failures["cause"])


def test_a_cluster_that_became_too_small_ends_the_run_so_that_it_can_go_on(
    scenario: Scenario, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _, other = nodes(1, 1)
    exit_code, message, folder = disturb(scenario, address, lambda: other)
    assert exit_code == 1
    assert "the cluster has become too small: 2 of this run's 3 client actors fit into 1 CPU cores" in message
    assert message.count("hint: ") == 1, message
    assert "Traceback" not in message
    assert Run.open(folder).status == "failed"
    resume(folder)
    assert_same_as_undisturbed(Run.open(folder), scenario, monkeypatch)


def test_the_loss_of_the_node_with_the_driver_ends_the_run_so_that_it_can_go_on(
    scenario: Scenario, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, head, _ = nodes(2, 2)
    exit_code, message, folder = disturb(scenario, address, lambda: head)
    assert exit_code == 1, message
    assert message.count("error: ") == 1
    assert message.count("hint: ") == 1, message
    assert "Traceback" not in message
    resume(folder)
    assert_same_as_undisturbed(Run.open(folder), scenario, monkeypatch)
