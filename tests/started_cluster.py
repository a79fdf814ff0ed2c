"""A Ray cluster as an administrator starts it: `ray start` for each node, here all on this machine, behind a token."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

PATIENCE_S = 240.0
# Seconds instead of half a minute until a node that gives no sign of life counts as dead.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
}
PROGRAMS = Path(sys.executable).parent


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]


@dataclass
class StartedCluster:
    """A running cluster, with the environment in which commands find it."""

    address: str
    dashboard: str
    environment: dict[str, str]
    folder: Path
    programs: Path
    has_islands: bool
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def hidden(self) -> Path:
        """A folder that is another one on each node but the head, if `has_islands`."""
        return self.folder / "hidden"

    @staticmethod
    def host(node: int) -> str:
        """Where a node's processes listen: each on a loopback address of its own. Ray would replace 127.0.0.1."""
        return f"127.0.0.{node + 2}"

    def start_node(self, *options: str) -> subprocess.Popen[bytes]:
        """Start one more node, and wait until the cluster counts it."""
        before = self.num_alive() if self.nodes else 0
        agent, grpc, runtime, metrics = free_ports(4)
        host = self.host(len(self.nodes))
        # What the head writes into `hidden` is not there for the other nodes, as on machines without a common disk.
        hide = f'mount -t tmpfs tmpfs {self.hidden} && exec "$@"'
        island = ["unshare", "--mount", "sh", "-c", hide, "island"] if self.has_islands and self.nodes else []
        command = [
            *island, str(self.programs / "ray"), "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={host}", f"--temp-dir={self.folder}/{len(self.nodes)}",
            "--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}", *options,
        ]  # fmt: skip
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(
                command, env=self.environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )
        self.nodes.append(node)
        give_up = time.monotonic() + PATIENCE_S
        while self.num_alive() <= before:
            assert node.poll() is None, (self.folder / f"node-{len(self.nodes) - 1}.log").read_text()
            assert time.monotonic() < give_up, "the node does not come up"
            time.sleep(0.2)
        return node

    def num_alive(self) -> int:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        try:
            answer = requests.get(f"{self.dashboard}/nodes?view=summary", headers=headers, timeout=30)
            nodes = answer.json()["data"]["summary"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def take_down(self, node: subprocess.Popen[bytes]) -> None:
        """What a machine that goes down does: every process of the node is gone at once."""
        with suppress(psutil.NoSuchProcess):
            processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()

    def blossom(self, *arguments: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "blossom_ray", *arguments]
        environment = self.environment | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes)


@contextmanager
def started_cluster(num_cpus: int = 1, programs: Path = PROGRAMS) -> Iterator[StartedCluster]:
    """A head node of so many cores, listening on loopback alone; the token is known through the environment only.

    `programs` is the folder of the programs that it runs: those of a virtual environment.
    """
    port, dashboard, client = free_ports(3)
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as name:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {  # of the nodes, and so of the actors on them
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "HOME": name,
            "HOLD": f"{name}/hold",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_raylet_start_wait_time_s": f"{PATIENCE_S:.0f}",
        }
        host = StartedCluster.host(0)
        addresses = (f"{host}:{port}", f"http://{host}:{dashboard}")
        may_mount = ["unshare", "--mount", "true"]
        has_islands = (
            shutil.which("unshare") is not None and not subprocess.run(may_mount, capture_output=True).returncode
        )
        cluster = StartedCluster(*addresses, environment, Path(name), programs, has_islands)
        cluster.hidden.mkdir()
        try:
            cluster.start_node(
                "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-host={host}",
                f"--ray-client-server-port={client}", f"--num-cpus={num_cpus}",
                f"--system-config={json.dumps(HEALTH)}",
            )  # fmt: skip
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                cluster.take_down(node)
