"""A run that goes on in another process: its rounds as they come, and its end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Command
from runtime.clusters import assert_same_as_undisturbed

from blossom_ray import Run, RunError, Scenario, simulate
from blossom_ray.attachment import followed
from blossom_ray.background import OUTPUT_FILE, PROCESS_FILE, start, stop
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.records import Failure, RoundRecord
from blossom_ray.results import RunWriter
from blossom_ray.scenario.writer import scenario_yaml

PATIENCE_S = 120.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"waited for {what}"
        time.sleep(0.05)


def as_in_tables(record: RoundRecord) -> RoundRecord:
    """A record without what tables do not hold."""
    training = tuple(dataclasses.replace(each, drift={}) for each in record.training)
    return dataclasses.replace(record, training=training, actors=())


def test_records_from_tables_are_those_that_were_written(small_scenario: Scenario, tmp_path: Path) -> None:
    failure = Failure("training", (1, 3), None, "it failed", "dropped")
    written = [
        dataclasses.replace(as_in_tables(record), failures=(failure, failure) if record.round_index == 1 else ())
        for record in simulate(small_scenario, stream=True)
    ]
    writer = RunWriter(tmp_path / "run", scenario_yaml(small_scenario), {})
    records = followed(tmp_path / "run", poll_s=0.01)
    profiles = tuple(small_scenario.profiles())
    for record in written:
        writer.write(record, profiles)
        assert next(records) == record
    writer.close("finished")
    assert list(records) == []
    assert list(followed(tmp_path / "run")) == written


def test_a_run_whose_process_is_gone_is_told(small_scenario: Scenario, tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom blossom_ray.results import RunWriter\n"
        "RunWriter(Path(sys.argv[1]), sys.argv[2], {})\nos._exit(0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), scenario_yaml(small_scenario)]
    subprocess.run(command, check=True)
    with pytest.raises(RunError, match=r"run: the process of this run is gone, after round -1\nhint: go on with: blos"):
        list(followed(tmp_path / "run"))
    with pytest.raises(RunFolderError, match="does not exist"):
        list(followed(tmp_path / "none"))


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


def ended(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_run_in_the_background_goes_on_until_it_is_stopped(endless: tuple[Scenario, Path, int]) -> None:
    _, folder, pid = endless
    assert os.getsid(pid) == pid != os.getsid(0)
    records = followed(folder, poll_s=0.05)
    assert [next(records).round_index for _ in range(3)] == [0, 1, 2]
    records.close()
    assert Run.open(folder).status == "running"
    assert stop(folder) == pid
    assert [record.round_index for record in followed(folder, poll_s=0.05)][:3] == [0, 1, 2]
    wait_for(lambda: ended(pid), "the process to end")
    run = Run.open(folder)
    assert run.status == "interrupted"
    assert not (folder / PROCESS_FILE).exists()
    assert (folder / OUTPUT_FILE).read_text() == ""
    with pytest.raises(InputError, match=r"no run goes on there in the background; expected one that --detach has"):
        stop(folder)


def test_a_run_in_the_background_has_the_same_numbers(small_scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    start(small_scenario, folder)
    assert [record.round_index for record in followed(folder)] == [0, 1, 2]
    assert_same_as_undisturbed(Run.open(folder), small_scenario)


def test_a_run_that_cannot_begin_is_told_by_whoever_starts_it(small_scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunWriter(folder, scenario_yaml(small_scenario), {}).close("interrupted")
    with (tmp_path / "run" / "manifest.json").open("w") as manifest:
        manifest.write("no JSON")
    with pytest.raises(RunError, match=r"^the run ended before it began: error: .*manifest\.json: cannot be read"):
        start(small_scenario, folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"pid": 2**22 + 1, "created": 0.0, "host": socket.gethostname()},
            "the process of its run is gone; go on with",
        ),
        ({"pid": os.getpid(), "created": 0.0, "host": socket.gethostname()}, "the process of its run is gone"),
        ({"pid": os.getpid(), "created": 0.0, "host": "elsewhere"}, "goes on on elsewhere; expected to be asked there"),
        ({"pid": 1}, "no run goes on there in the background"),
    ],
)
def test_no_other_process_is_stopped(entry: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / PROCESS_FILE).write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        stop(tmp_path)


def test_detach_attach_and_stop_as_commands(small_scenario: Scenario, command: Command) -> None:
    Path("scenario.yaml").write_text(scenario_yaml(small_scenario), encoding="utf-8")
    outcome = command("simulate", "scenario.yaml", "--detach")
    assert outcome.exit_code == 0, outcome.err
    (folder,) = Path("runs/small").iterdir()
    assert outcome.out.splitlines()[0].startswith(f"{folder} goes on in process ")
    assert f"blossom-ray attach {folder}" in outcome.out
    outcome = command("attach", str(folder))
    assert outcome.exit_code == 0, outcome.err
    assert [line.split()[1] for line in outcome.out.splitlines() if line.startswith("round ")] == ["0/2", "1/2", "2/2"]
    assert "small, private-head-fusion, 5 clients, 2 rounds: finished" in outcome.out
    assert command("stop", str(folder)).exit_code == 2
    lines = [json.loads(line) for line in command("attach", str(folder), "--json").out.splitlines()]
    assert [line.get("round") for line in lines] == [0, 1, 2, None]
    assert lines[-1] == {"run": str(folder), "status": "finished"}
