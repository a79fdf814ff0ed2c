"""Ctrl-C and SIGTERM: what is left of a run that somebody ends, and what one on Ray opens until then."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from held import HOLD, IMPORTING, held_in

from blossom_ray import Run, Scenario
from blossom_ray.reading.writer import scenario_yaml

pytestmark = pytest.mark.slow

ENDLESS = """\
name: endless
rounds: 1000000
data:
  dataset: synthetic
  samples: 90
  classes: 3
  modalities: {acc: {shape: [8, 2]}}
clients: [{count: 3, modalities: [acc]}]
model: {encoders: {acc: {kind: mlp, hidden: [8], dim: 6}}}
execution: {runtime: local, clients_per_actor: 3}
"""
# SIGINT is made heard again, which shells switch off for what they run in the background.
COMMAND = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from blossom_ray.cli import main
main()
"""
PATIENCE_S = 120.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `blossom-ray simulate` in a process group of its own, as a shell does, with a folder for its files."""
    (tmp_path / "endless.yaml").write_text(ENDLESS, encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    environment = os.environ | IMPORTING | {"TMPDIR": str(tmp_path / "temporary")}
    environment.pop("RAY_ADDRESS", None)
    # Ray's sockets need a short path.
    environment["RAY_TMPDIR"] = tempfile.gettempdir()
    with ExitStack() as stack:

        def run(*options: str, code: str = COMMAND) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", code, "simulate", "endless.yaml", *options],
                cwd=tmp_path, env=environment, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def is_left(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """Addresses on which any of these processes listens."""
    found = set()
    for each in processes:
        try:
            connections = each.net_connections(kind="inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def wait_for(condition: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.05)


def wait_for_round(process: subprocess.Popen[str], round_index: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(rf"round +{round_index}/", line):
            return
    raise AssertionError(f"ended before round {round_index}: {process.communicate()[1]}")


def assert_interrupted(process: subprocess.Popen[str], folder: Path, exit_code: int, *, fewest_rounds: int) -> None:
    """The contract: code, message, folder with complete rounds, and nothing else left."""
    _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == exit_code, message
    (kept,) = (folder / "runs" / "endless").iterdir()
    where, how, on = message.splitlines()[-3:]
    assert where == f"interrupted; complete rounds are kept in {kept.relative_to(folder)}"
    assert on == f"go on with: blossom-ray resume {kept.relative_to(folder)}"
    # `python` as in an activated environment.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    advice = how.partition("with: ")[2]
    shown = subprocess.run(
        advice, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    run = Run.open(kept)
    assert f"shape: ({run.rounds.height}, " in shown.stdout
    assert run.status == "interrupted"
    rounds = run.rounds["round"].to_list()
    assert rounds == list(range(len(rounds)))
    assert len(rounds) >= fewest_rounds
    assert run.clients.height == 3 * len(rounds)
    assert not [
        path
        for path in kept.iterdir()
        if path.suffix not in (".parquet", ".yaml", ".json") and path.name not in ("checkpoints", "log.jsonl")
    ]
    assert list((folder / "temporary").glob("blossom-ray-*")) == []


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("warm_processes")
def test_an_interrupt_between_rounds(number: signal.Signals, exit_code: int, start: Start, tmp_path: Path) -> None:
    process = start()
    wait_for_round(process, 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert_interrupted(process, tmp_path, exit_code, fewest_rounds=3)
    assert not any(map(is_left, children))


@pytest.mark.usefixtures("warm_processes")
def test_an_impatient_hand_does_not_break_the_cleaning_up(start: Start, tmp_path: Path) -> None:
    process = start()
    wait_for_round(process, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert_interrupted(process, tmp_path, 130, fewest_rounds=3)


@pytest.mark.usefixtures("warm_processes")
def test_one_more_after_the_cleaning_up_adds_nothing(start: Start, tmp_path: Path) -> None:
    process = start()
    wait_for_round(process, 2)
    process.send_signal(signal.SIGINT)
    (folder,) = (tmp_path / "runs" / "endless").iterdir()
    wait_for(lambda: Run.open(folder).status == "interrupted", "the run to end")
    process.send_signal(signal.SIGINT)
    assert_interrupted(process, tmp_path, 130, fewest_rounds=3)


def test_an_interrupt_before_the_first_round(start: Start, tmp_path: Path) -> None:
    """Right after the run folder came: torch is being imported, or the data prepared."""
    process = start("--set", "data.samples=300000", "--set", "data.modalities.acc.shape=[64, 4]")
    wait_for(lambda: list(tmp_path.glob("runs/endless/*/manifest.json")), "the run folder")
    process.send_signal(signal.SIGINT)
    assert_interrupted(process, tmp_path, 130, fewest_rounds=0)


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
@pytest.mark.slow
def test_ray_listens_on_loopback_alone_and_is_gone_after_ctrl_c(start: Start, tmp_path: Path) -> None:
    """A terminal sends it to the whole process group; Ray's own processes take no notice, so that the round ends."""
    process = start("--set", "execution.runtime=ray")
    wait_for_round(process, 1)
    below = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in below)
    scripts = {Path(word).name for child in below for word in child.cmdline()}
    assert not scripts & {"dashboard.py", "monitor.py", "log_monitor.py"}, "nobody looks at what they tell"
    addresses = listening([psutil.Process(process.pid), *below])
    assert addresses, "Ray's own processes listen, so some address must be found"
    assert {address for address in addresses if not is_loopback(address)} == set()
    os.killpg(process.pid, signal.SIGINT)
    assert_interrupted(process, tmp_path, 130, fewest_rounds=2)
    (kept,) = (tmp_path / "runs" / "endless").iterdir()
    assert list((kept / "checkpoints").glob("*/checkpoint.json")), "the last round has a checkpoint"
    wait_for(lambda: not any(map(is_left, below)), "Ray's processes to end")


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_may_take_ray_along(start: Start, tmp_path: Path) -> None:
    """A scheduler sends it to every process, and Ray ends before the round in progress does, which never will here."""
    scenario = tmp_path / "endless.yaml"
    scenario.write_text(scenario_yaml(held_in(3, Scenario.load(scenario))), encoding="utf-8")
    (tmp_path / HOLD).touch()
    process = start("--set", "execution.runtime=ray")
    wait_for_round(process, 2)
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert_interrupted(process, tmp_path, 143, fewest_rounds=3)
    wait_for(lambda: not any(map(is_left, below)), "Ray's processes to end")


# SIGTERM at the moment when Ray starts the first process of its own.
TERMINATED = f"""\
import os, sys
def interrupt(event, arguments):
    if event == "subprocess.Popen" and "gcs_server" in str(arguments[0]):
        os.kill(os.getpid(), {int(signal.SIGTERM)})
sys.addaudithook(interrupt)
{COMMAND}"""


@pytest.mark.ray
def test_sigterm_while_ray_starts_is_ours(start: Start, tmp_path: Path) -> None:
    process = start("--set", "execution.runtime=ray", code=TERMINATED)
    assert_interrupted(process, tmp_path, 143, fewest_rounds=0)
