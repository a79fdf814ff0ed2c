"""Runs on a cluster of separate `ray start` nodes on this machine: joined, and reached by jobs from elsewhere."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runtime.clusters import assert_same_as_undisturbed
from started_cluster import PATIENCE_S, StartedCluster, started_cluster

from blossom_ray import Run, Scenario
from blossom_ray.reading.writer import scenario_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

# Training waits while the file is there that HOLD names, from the round `after` on in an actor of two clients.
HEAD = """\
import os
import time
from pathlib import Path

import torch


trained = set()


class Held(torch.nn.Module):
    def __init__(self, input_dim, num_outputs, after=0):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, num_outputs)
        self.after = after

    def forward(self, fused):
        if self.training:
            trained.add(torch.initial_seed())  # of its own for each client and round
            while len(trained) > 2 * self.after and Path(os.environ.get("HOLD", "/none/such")).exists():
                time.sleep(0.05)
        return self.linear(fused)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[StartedCluster]:
    """A head and a worker of one core each."""
    with started_cluster() as started:
        started.start_node(f"--address={started.address}", "--num-cpus=1")
        yield started


@pytest.fixture
def scenario(small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """Three actors of half a core; own code and a table in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held_head.py").write_text(HEAD, encoding="utf-8")
    rows = [[float((row * step) % 7) for step in range(4)] for row in range(90)]
    table = {"acc": rows, "gyro": rows[::-1], "label": [row % 3 for row in range(90)]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    scenario = small_scenario.override(
        {
            "rounds": 5,
            "sharing": "private-head",
            "data": {"dataset": "table", "path": "table.parquet"},
            "model.head": {"kind": "custom", "factory": "held_head:Held"},
            "execution": {
                "runtime": "ray", "chunk_size": 2, "clients_per_actor": 2, "client_resources": {"num_cpus": 0.5},
            },
        }
    )  # fmt: skip
    (tmp_path / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    return scenario


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, out, err


def only_run(folder: Path) -> Run:
    (path,) = (folder / "small").iterdir()
    return Run.open(path)


def test_a_node_comes_and_another_one_goes(cluster: StartedCluster, scenario: Scenario, tmp_path: Path) -> None:
    hold = Path(cluster.environment["HOLD"])
    hold.touch()
    after = ("--set", "model.head.options={after: 2}")
    process = cluster.blossom("simulate", "scenario.yaml", *after, "--address", cluster.address, cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"round +2/", line):
            break
    else:
        raise AssertionError(ended(process)[2])
    cluster.start_node(f"--address={cluster.address}", "--num-cpus=1")
    cluster.take_down(cluster.nodes[1])
    hold.unlink()
    exit_code, _, message = ended(process)
    assert exit_code == 0, message
    run = only_run(tmp_path / "runs")
    assert_same_as_undisturbed(run, scenario)
    assert set(run.failures["action"]) == {"repeated"}


class Files(SimpleHTTPRequestHandler):
    """Hands out the files of the working directory, and keeps quiet about it."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """Where the files of the working directory are to be had over HTTP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_run_goes_on_when_its_terminal_is_gone(
    cluster: StartedCluster, scenario: Scenario, uri: str, tmp_path: Path
) -> None:
    """One that has its data from a URI."""
    hold = Path(cluster.environment["HOLD"])
    hold.touch()
    arguments = ("scenario.yaml", "--set", f"data.path={uri}/table.parquet", "--address", cluster.address)
    simulate = shlex.join([sys.executable, "-m", "blossom_ray", "simulate", *arguments])
    with subprocess.Popen(
        ["sh", "-c", f"{simulate} --detach; sleep {PATIENCE_S}"],
        cwd=tmp_path, env=cluster.environment, start_new_session=True, stdout=subprocess.PIPE, text=True,
    ) as terminal:  # fmt: skip
        assert terminal.stdout is not None
        found = re.match(r"(runs/\S+) goes on in process \d+$", terminal.stdout.readline())
        os.killpg(terminal.pid, signal.SIGHUP)
        os.killpg(terminal.pid, signal.SIGKILL)
    assert found is not None
    watching = cluster.blossom("attach", found[1], "--json", cwd=tmp_path)
    hold.unlink()
    exit_code, out, message = ended(watching)
    assert exit_code == 0, message
    assert [json.loads(line).get("round") for line in out.splitlines()] == [0, 1, 2, 3, 4, 5, None]
    assert_same_as_undisturbed(only_run(tmp_path / "runs"), scenario)


def test_a_job_and_its_run_folder(cluster: StartedCluster, scenario: Scenario, tmp_path: Path) -> None:
    """From a folder that the cluster does not know, with own code and data, and the way back."""
    at = ("--address", cluster.dashboard)
    arguments = ("submit", "scenario.yaml", "--follow", "--seed", "7", *at)
    exit_code, out, message = ended(cluster.blossom(*arguments, cwd=tmp_path))
    assert exit_code == 0, message + out
    assert re.search(r"^round +5/5", out, re.MULTILINE)
    shown = r"takes \d+ files along, \S+ MiB \(scenario \S+, data \S+, own code \S+, blossom_ray \S+\)\n"
    found = re.match(shown + r"  blossom-ray-job\.yaml\n  table\.parquet\n  held_head\.py\njob (\S+) at ", out)
    assert found is not None, out
    job = found[1]
    exit_code, out, message = ended(cluster.blossom("jobs", "fetch", job, *at, cwd=tmp_path))
    assert (exit_code, out.endswith(": finished\n")) == (0, True), message
    run = only_run(tmp_path / "runs")
    on_the_node = Path(cluster.environment["HOME"], "blossom-ray-jobs", job)
    fetched = [run.path.parent, *run.path.parent.rglob("*")]
    assert [path for path in (on_the_node, *fetched) if path.stat().st_mode & 0o077] == []
    assert run.scenario == scenario.override({"seed": 7})
    assert_same_as_undisturbed(run, scenario.override({"seed": 7}))
    exit_code, out, _ = ended(cluster.blossom("jobs", "list", "--json", *at, cwd=tmp_path))
    newest = json.loads(out.splitlines()[0])
    assert (newest["id"], newest["status"], newest["metadata"]["seed"]) == (job, "SUCCEEDED", "7")


def test_a_job_that_is_stopped_leaves_its_rounds(cluster: StartedCluster, scenario: Scenario, tmp_path: Path) -> None:
    at = ("--address", cluster.dashboard)
    arguments = ("submit", "scenario.yaml", "--json", "--follow", "--set", "rounds=100000", *at)
    follower = cluster.blossom(*arguments, cwd=tmp_path)
    assert follower.stdout is not None
    job = json.loads(follower.stdout.readline())["job"]
    assert any(re.match(r"round +2/", line) for line in follower.stdout), ended(follower)[2]
    exit_code, _, message = ended(cluster.blossom("jobs", "fetch", job, *at, cwd=tmp_path))
    assert exit_code == 0, message
    snapshot = only_run(tmp_path / "runs")
    assert (snapshot.status, snapshot.rounds["round"].to_list()[:3]) == ("running", [0, 1, 2])
    exit_code, out, message = ended(cluster.blossom("jobs", "stop", job, *at, cwd=tmp_path))
    assert (exit_code, out) == (0, f"{job}: asked to end\n"), message
    exit_code, _, message = ended(follower)
    assert exit_code == 1
    assert message.startswith(f"error: job {job} ended as STOPPED")
    exit_code, _, message = ended(cluster.blossom("jobs", "fetch", job, *at, cwd=tmp_path))
    assert exit_code == 0, message
    assert only_run(tmp_path / "runs").rounds.height >= snapshot.rounds.height


def test_checkpoints_need_a_folder_that_all_nodes_see(
    cluster: StartedCluster, scenario: Scenario, tmp_path: Path
) -> None:
    if not cluster.has_islands:
        pytest.skip("no right to mount a folder for one node alone")
    arguments = ("--address", cluster.address, "--out", str(cluster.hidden))
    exit_code, _, message = ended(cluster.blossom("simulate", "scenario.yaml", *arguments, cwd=tmp_path))
    assert exit_code == 1
    run = only_run(cluster.hidden)
    cause, hint = message.splitlines()
    where = rf"error: {re.escape(str(run.path))}: actor \d is on another node, where this folder is not"
    assert re.match(where, cause)
    assert hint == "hint: --out with a folder that all nodes share, or checkpoint.every: 0"
    assert run.rounds.height == 0


def test_a_wrong_token_is_refused_at_once(cluster: StartedCluster, scenario: Scenario, tmp_path: Path) -> None:
    for arguments in (
        ("simulate", "scenario.yaml", "--address", cluster.address),
        ("jobs", "list", "--address", cluster.dashboard),
    ):
        exit_code, _, message = ended(cluster.blossom(*arguments, cwd=tmp_path, RAY_AUTH_TOKEN="wrong" * 10))
        assert exit_code == 1
        where = arguments[-1]
        cause, hint = message.splitlines()
        assert cause == f"error: the Ray cluster at {where} asks for a token, and there is none here or a wrong one"
        assert hint.startswith("hint: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, ")


OTHER_VERSION = """\
import sys
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
before = gcs.internal_kv_get(b"CLUSTER_METADATA", b"cluster")
print(before.decode())
gcs.internal_kv_put(b"CLUSTER_METADATA", sys.argv[2].encode() or before, True, b"cluster")
"""


def test_another_version_is_one_message(cluster: StartedCluster, scenario: Scenario, tmp_path: Path) -> None:
    def announce(metadata: str) -> str:
        command = [sys.executable, "-c", OTHER_VERSION, cluster.address, metadata]
        done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    before = announce('{"ray_version": "2.0.0", "python_version": "3.8.1"}')
    try:
        exit_code, _, message = ended(
            cluster.blossom("simulate", "scenario.yaml", "--address", cluster.address, cwd=tmp_path)
        )
    finally:
        announce(before)
    assert exit_code == 1
    cause, hint = message.splitlines()
    assert cause.startswith(
        f"error: the Ray cluster at {cluster.address} has Ray 2.0.0 on Python 3.8.1, and here is Ray "
    )
    assert hint.startswith("hint: install the same versions here, or use blossom-ray submit")
