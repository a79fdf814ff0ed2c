"""A run that goes on in another process: its rounds as they come, and its end."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from conftest import Command
from runtime.clusters import assert_same_as_undisturbed

from blossom_ray import Run, RunError, Scenario, simulate
from blossom_ray.core.records import Failure, RoundRecord
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.background import OUTPUT_FILE, PROCESS_FILE, start, stop
from blossom_ray.runs.following import follow
from blossom_ray.runs.session import record_run
from blossom_ray.runs.writer import RunWriter

pytestmark = pytest.mark.slow

PATIENCE_S = 120.0

# Own code of a scenario: training fails where the variable FAIL is set, and waits while the file HOLD is there.
HEAD = """\
import os
import time
from pathlib import Path

import torch


class Head(torch.nn.Module):
    def __init__(self, input_dim, num_outputs):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, num_outputs)

    def forward(self, fused):
        if self.training and "FAIL" in os.environ:
            raise ValueError("not today")
        while self.training and Path(os.environ.get("HOLD", "/none/such")).exists():
            time.sleep(0.05)
        return self.linear(fused)
"""
# Python imports it before all else: the process of a run stops there, with its number in a file.
HELD = """\
import os, sys, time

if "runs.background import main" in sys.orig_argv[2]:
    with open("held.partial", "w") as file:
        file.write(str(os.getpid()))
    os.rename("held.partial", "held")
    time.sleep(600)
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"waited for {what}"
        time.sleep(0.05)


def as_in_tables(record: RoundRecord) -> RoundRecord:
    """A record without what tables do not hold."""
    training = tuple(dataclasses.replace(each, drift={}) for each in record.training)
    return dataclasses.replace(record, training=training, actors=(), classes=())


def test_records_from_tables_are_those_that_were_written(small_scenario: Scenario, tmp_path: Path) -> None:
    failure = Failure("training", (1, 3), None, "it failed", "dropped")
    written = [
        dataclasses.replace(as_in_tables(record), failures=(failure, failure) if record.round_index == 1 else ())
        for record in simulate(small_scenario, stream=True)
    ]
    writer = RunWriter(tmp_path / "run", scenario_yaml(small_scenario), {})
    records = follow(tmp_path / "run", poll_s=0.01)
    profiles = tuple(small_scenario.profiles())
    for record in written:
        writer.write(record, profiles)
        assert next(records) == record
    writer.close("finished")
    assert list(records) == []
    assert list(follow(tmp_path / "run")) == written


def test_a_run_whose_process_is_gone_is_told(small_scenario: Scenario, tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom blossom_ray.runs.writer import RunWriter\n"
        "RunWriter(Path(sys.argv[1]), sys.argv[2], {})\nos._exit(0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), scenario_yaml(small_scenario)]
    subprocess.run(command, check=True)
    with pytest.raises(RunError, match=r"run: the process of this run is gone, after round -1\nhint: go on with: blos"):
        list(follow(tmp_path / "run"))
    with pytest.raises(RunFolderError, match="does not exist"):
        list(follow(tmp_path / "none"))


@pytest.fixture
def endless(small_scenario: Scenario, tmp_path: Path) -> Iterator[tuple[Scenario, Path, int]]:
    """A run in the background that does not end by itself: scenario, folder, process."""
    scenario = small_scenario.override({"rounds": 1_000_000, "checkpoint.every": 1})
    folder = tmp_path / "run"
    folder.mkdir()
    pid = start(scenario, folder)
    yield scenario, folder, pid
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def has_ended(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_run_in_the_background_goes_on_until_it_is_stopped(endless: tuple[Scenario, Path, int]) -> None:
    scenario, folder, pid = endless
    assert os.getsid(pid) == pid != os.getsid(0)
    records = follow(folder, poll_s=0.05)
    assert [next(records).round_index for _ in range(3)] == [0, 1, 2]
    records.close()
    assert Run.open(folder).status == "running"
    with pytest.raises(RunFolderError, match="its run is going on in another process; expected one that has ended"):
        start(scenario, folder)
    assert stop(folder) == pid
    assert [record.round_index for record in follow(folder, poll_s=0.05)][:3] == [0, 1, 2]
    wait_for(lambda: has_ended(pid), "the process to end")
    assert Run.open(folder).status == "interrupted"
    assert not (folder / PROCESS_FILE).exists()
    assert (folder / OUTPUT_FILE).read_text() == ""
    with pytest.raises(InputError, match=r"no run goes on there in the background; expected one that --detach has"):
        stop(folder)


@pytest.mark.usefixtures("warm_processes")
def test_a_run_goes_on_in_the_background_where_it_was_stopped(small_scenario: Scenario, tmp_path: Path) -> None:
    """Whoever follows it finds it running, not ended as it was before."""
    folder = tmp_path / "run"
    with closing(record_run(small_scenario, folder)) as records:
        next(records)
    assert Run.open(folder).status == "interrupted"
    start(small_scenario, folder)
    assert [record.round_index for record in follow(folder)] == [0, 1, 2]
    assert_same_as_undisturbed(Run.open(folder), small_scenario)


def test_a_run_that_cannot_begin_is_told_by_whoever_starts_it(small_scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunWriter(folder, scenario_yaml(small_scenario), {}).close("interrupted")
    with (tmp_path / "run" / "manifest.json").open("w") as manifest:
        manifest.write("no JSON")
    with pytest.raises(RunError, match=rf"^{re.escape(str(folder))}/manifest\.json: cannot be read: Expecting value"):
        start(small_scenario, folder)


def test_a_process_that_dies_before_its_run_begins_is_told_with_all_that_it_printed(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "psutil.py").write_text("raise ImportError('not for us')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(
        RunError, match=r"ended before the run began\nhint: it printed: Traceback(?s:.*)ImportError: not for"
    ):
        start(small_scenario, folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"pid": 2**22 + 1, "host": socket.gethostname()},
            "the process of its run is gone; go on with",
        ),
        ({"pid": os.getpid(), "host": socket.gethostname()}, "the process of its run is gone"),
        ({"pid": os.getpid(), "host": "elsewhere"}, "goes on on elsewhere; expected to be asked there"),
        ({"pid": 2}, r"process\.json: host is missing; expected text"),
        ({"pid": 2, "host": 3}, r"process\.json: host is 3; expected text"),
        ({"host": "elsewhere"}, r"process\.json: pid is missing; expected an integer above 1"),
        *(
            (
                {"pid": pid, "host": socket.gethostname()},
                rf"process\.json: pid is {re.escape(shown)}; expected an integer",
            )
            for pid, shown in (
                (1, "1"),
                (0, "0"),
                (-1, "-1"),
                (1e999, "inf"),
                (7.0, "7.0"),
                (True, "true"),
                ("7", "'7'"),
                (None, "null"),
                ([7], "[7]"),
                (10**40, "an integer of 133 bits"),
            )
        ),
        ([], r"process\.json: is an empty list; expected a mapping"),
        ([[[]]], r"process\.json: is a list of 1 entries; expected a mapping"),
    ],
)
def test_no_other_process_is_stopped(entry: object, message: str, tmp_path: Path) -> None:
    (tmp_path / PROCESS_FILE).write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        stop(tmp_path)


def test_a_process_without_arguments_is_not_stopped(tmp_path: Path) -> None:
    """One of the kernel's, or one that has ended and was not waited for."""
    child = subprocess.Popen(["true"])
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "the child to end")
    entry = {"pid": child.pid, "host": socket.gethostname()}
    (tmp_path / PROCESS_FILE).write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(InputError, match="the process of its run is gone"):
        stop(tmp_path)
    child.wait()


@pytest.mark.usefixtures("warm_processes")
def test_detach_attach_and_stop_as_commands(small_scenario: Scenario, command: Command) -> None:
    Path("scenario.yaml").write_text(scenario_yaml(small_scenario), encoding="utf-8")
    outcome = command("simulate", "scenario.yaml", "--detach", "--track", "tensorboard:boards")
    assert outcome.exit_code == 0, outcome.err
    (folder,) = Path("runs/small").iterdir()
    assert outcome.out.splitlines()[0].startswith(f"{folder} goes on in process ")
    assert f"blossom-ray attach {folder}" in outcome.out
    outcome = command("attach", str(folder))
    assert outcome.exit_code == 0, outcome.err
    assert [line.split()[1] for line in outcome.out.splitlines() if line.startswith("round ")] == ["0/2", "1/2", "2/2"]
    assert "small, private-head-fusion, 5 clients, 2 rounds: finished" in outcome.out
    wait_for(lambda: not (folder / PROCESS_FILE).exists(), "the process to end")
    assert command("stop", str(folder)).exit_code == 2
    lines = [json.loads(line) for line in command("attach", str(folder), "--json").out.splitlines()]
    assert [line.get("round") for line in lines] == [0, 1, 2, None]
    assert lines[-1] == {"run": str(folder), "status": "finished"}
    assert len([*Path("boards/small", folder.name).glob("events.out.tfevents.*")]) == 1


def with_own_head(scenario: Scenario, **settings: object) -> Scenario:
    """A scenario with own code in the working directory, where its file is, too."""
    Path("attachment_head.py").write_text(HEAD, encoding="utf-8")
    scenario = scenario.override({"model.head": {"kind": "custom", "factory": "attachment_head:Head"}, **settings})
    Path("scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    return scenario


def test_attach_tells_why_a_run_failed(
    small_scenario: Scenario, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command that ran it does."""
    monkeypatch.setenv("FAIL", "1")
    with_own_head(small_scenario)
    assert command("simulate", "scenario.yaml").exit_code == 1
    (folder,) = Path("runs/small").iterdir()
    outcome = command("attach", str(folder))
    assert outcome.exit_code == 1
    assert outcome.err.startswith("error: client 0, round 1: ")
    assert outcome.err.endswith("ValueError: not today\n")
    assert "Traceback (most recent call last)" in outcome.err


def test_commands_say_what_is_no_run(command: Command) -> None:
    Path("empty").mkdir()
    for name in ("attach", "stop"):
        outcome = command(name, "no-such")
        assert (outcome.exit_code, outcome.out) == (2, "")
    assert command("attach", "empty").err == "error: empty: has no manifest.json; expected a run folder\n"


def left(folder: Path) -> list[str]:
    """What attach says at Ctrl-C, once it has shown a round."""
    seen = folder.with_name("seen")
    command = f"exec {sys.executable} -m blossom_ray attach {folder} > {seen}"
    with subprocess.Popen(["sh", "-c", command], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: seen.exists() and "round " in seen.read_text(), "a round to be shown")
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    return str(message).splitlines()


def test_ctrl_c_ends_the_watching_alone(endless: tuple[Scenario, Path, int]) -> None:
    _, folder, pid = endless
    assert left(folder) == [
        "",
        f"the run goes on; watch it again: blossom-ray attach {folder}",
        f"end it: blossom-ray stop {folder}",
    ]
    assert not has_ended(pid)
    psutil.Process(pid).suspend()  # it is still there when it is asked again
    assert stop(folder) == stop(folder) == pid
    psutil.Process(pid).resume()
    wait_for(lambda: has_ended(pid), "the process to end")


@pytest.mark.usefixtures("warm_processes")
def test_a_run_of_another_terminal_is_watched_and_ended_there(small_scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with closing(record_run(small_scenario, folder)) as records:
        next(records)
        assert left(folder) == ["", f"the run goes on; watch it again: blossom-ray attach {folder}"]
        assert [record.round_index for record in records] == [1, 2]


def test_ctrl_c_before_the_run_began_leaves_no_process(small_scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(scenario_yaml(small_scenario), encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(HELD, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "blossom_ray", "simulate", "scenario.yaml", "--detach"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for((tmp_path / "held").exists, "the process of the run")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "interrupted before the run began\n")
    pid = int((tmp_path / "held").read_text())
    wait_for(lambda: has_ended(pid), "the process to end")


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_session_of_its_own_outlives_the_terminal_and_ends_with_the_run(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = with_own_head(small_scenario, execution={"runtime": "ray", "clients_per_actor": 5})
    hold = tmp_path / "hold"
    hold.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = f"{sys.executable} -m blossom_ray simulate scenario.yaml --detach; sleep {PATIENCE_S}"
    with subprocess.Popen(
        ["sh", "-c", command],
        env={**environment, "HOLD": str(hold)}, start_new_session=True, stdout=subprocess.PIPE, text=True,
    ) as terminal:  # fmt: skip
        assert terminal.stdout is not None
        found = re.match(r"(runs/\S+) goes on in process (\d+)$", terminal.stdout.readline())
        os.killpg(terminal.pid, signal.SIGHUP)
        os.killpg(terminal.pid, signal.SIGKILL)
    assert found is not None
    folder, process = Path(found[1]), psutil.Process(int(found[2]))
    records = follow(folder)
    try:
        assert next(records).round_index == 0
        session = process.children(recursive=True)
        assert "raylet" in {each.name() for each in session}
    finally:
        hold.unlink()
    assert [record.round_index for record in records] == [1, 2]
    assert_same_as_undisturbed(Run.open(folder), scenario)
    assert psutil.wait_procs([process, *session], timeout=PATIENCE_S)[1] == []
