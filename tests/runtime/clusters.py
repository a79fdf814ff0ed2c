"""Ray clusters of a test's own, `blossom-ray` processes that join them, and comparison with an undisturbed run."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars.testing

from blossom_ray import Run, Scenario, simulate
from blossom_ray.reading.writer import scenario_yaml

PATIENCE_S = 240.0


@contextmanager
def cluster_of(*nodes: dict[str, Any], system_config: dict[str, Any] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A cluster on this machine, beside whatever session this process has: its address and its nodes, head first."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    small: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    try:
        head = cluster.add_node(_system_config=system_config or {}, **small, **nodes[0])
        others = [cluster.add_node(**small, **options) for options in nodes[1:]]
        yield cluster.address, [head, *others]
    finally:
        cluster.shutdown()


def blossom(*arguments: str, address: str | None = None) -> subprocess.Popen[str]:
    """The command, in the working directory, with the cluster that it joins."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if address is not None:
        environment["RAY_ADDRESS"] = address
    command = [sys.executable, "-m", "blossom_ray", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def simulated(
    scenario: Scenario, address: str, disturb: Callable[[subprocess.Popen[str]], None] = lambda _: None
) -> tuple[int, str, Path]:
    """Simulate on a cluster: exit code, what was printed on stderr, and the run folder."""
    Path("scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    with blossom("simulate", "scenario.yaml", address=address) as process:
        try:
            disturb(process)
            _, message = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    (folder,) = Path("runs/small").iterdir()
    return process.returncode, message, folder


def resume(folder: Path) -> None:
    """Go on with a run without Ray."""
    with blossom("resume", str(folder), "--set", "execution.runtime=local") as process:
        _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, message


def assert_same_as_undisturbed(run: Run, scenario: Scenario) -> None:
    expected = simulate(scenario.override({"execution.runtime": "local"}))
    assert run.status == "finished"
    assert run.manifest["digest"] == expected.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        frame, other = getattr(run, name), getattr(expected, name)
        timed = [column for column in other.columns if "seconds" in column]
        polars.testing.assert_frame_equal(frame.drop(timed), other.drop(timed), check_exact=True)
