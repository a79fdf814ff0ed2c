"""The Ray session of a run: what it opens on the machine."""

import ipaddress
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from blossom_ray import Scenario
from blossom_ray.errors import RunError
from blossom_ray.runtime.cluster import session
from blossom_ray.scenario.writer import scenario_yaml


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and all of its descendants listen."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        try:
            connections = each.net_connections(kind="inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("192.0.2.2", False), ("::ffff:192.0.2.2", False),
    ],
)  # fmt: skip
def test_what_counts_as_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) == expected


@pytest.mark.ray
def test_a_run_on_one_machine_listens_on_loopback_alone(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario = small_scenario.override(
        {"rounds": 100_000, "execution.runtime": "ray", "execution.clients_per_actor": 5}
    )
    (tmp_path / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "blossom_ray", "simulate", "scenario.yaml"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment | {"RAY_TMPDIR": tempfile.gettempdir()},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(re.match(r"round +1/", line) for line in process.stdout), "it ended before its first round"
            addresses = listening(psutil.Process(process.pid))
        finally:
            process.terminate()
            process.communicate()
    assert addresses, "Ray's own processes listen, so some address must be found"
    assert {address for address in addresses if not is_loopback(address)} == set()


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(RunError, match="no Ray cluster could be joined at nowhere") as caught, session():
        pass
    assert str(caught.value).count("\nhint: ") == 1
