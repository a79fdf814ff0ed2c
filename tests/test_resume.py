"""A run that was interrupted, failed or was killed goes on from its checkpoint to the same result."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import psutil
import pytest
from held import HOLD, IMPORTING, held_in
from safetensors import safe_open
from safetensors.numpy import save_file
from warm import Server

from blossom_ray import Run, Scenario, simulate
from blossom_ray.checkpoint import checksum
from blossom_ray.errors import RunFolderError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.resuming import unfinished_run
from blossom_ray.runs.session import record_run, resume_run

pytestmark = pytest.mark.slow


@pytest.fixture
def scenario(small_scenario: Scenario) -> Scenario:
    """Seven rounds with partial participation, a checkpoint every second one, all kinds of client state."""
    return small_scenario.override(
        {
            "rounds": 7,
            "sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "private"},
            "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
            "model.norm_statistics": "local",
            "training.optimizer": {"kind": "adam", "lr": 0.01},
            "training.schedule": {"kind": "cosine"},
            "training.keep_optimizer_state": True,
            "server": {"optimizer": {"kind": "fedadam"}, "clients_per_round": 3},
            "checkpoint.every": 2,
        }
    )


def assert_same(run: Run, other: Run) -> None:
    assert run.status == other.status == "finished"
    assert run.manifest["digest"] == other.manifest["digest"]
    for name in ("rounds", "clients", "blocks"):
        frame, expected = getattr(run, name), getattr(other, name)
        timed = [column for column in expected.columns if "seconds" in column]
        assert frame.drop(timed).equals(expected.drop(timed)), name
    for name in ("classes", "confusion"):
        # A run that goes on to more rounds keeps the rows of the one that was its last.
        frame, expected = (getattr(each, name).filter(round=run.scenario.rounds) for each in (run, other))
        assert not frame.is_empty()
        assert frame.equals(expected), name


def begin(scenario: Scenario, folder: Path, rounds: int) -> None:
    """Run some rounds, round 0 included, and break off in the middle of the next."""
    records = record_run(scenario, folder)
    for _ in range(rounds):
        next(records)
    records.close()


def finish(scenario: Scenario, folder: Path) -> Run:
    for _ in resume_run(scenario, folder):
        pass
    return Run.open(folder)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 7])
def test_resumed_equals_undisturbed(scenario: Scenario, tmp_path: Path, rounds: int) -> None:
    begin(scenario, tmp_path / "run", rounds)
    interrupted = Run.open(tmp_path / "run")
    assert (interrupted.status, interrupted.rounds.height) == ("interrupted", rounds)
    assert_same(finish(scenario, tmp_path / "run"), simulate(scenario, out=tmp_path / "whole"))


def test_resuming_twice_and_without_checkpoints_gives_the_same(scenario: Scenario, tmp_path: Path) -> None:
    begin(scenario, tmp_path / "run", 4)
    again = resume_run(scenario, tmp_path / "run")
    # Rounds 0 to 3 are done; the checkpoint of round 2 leads on to 3, once more, and to 4.
    assert [next(again).round_index for _ in range(2)] == [3, 4]
    again.close()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert_same(finish(scenario, tmp_path / "run"), simulate(scenario, out=tmp_path / "whole"))


def test_a_damaged_checkpoint_is_passed_over_and_said(scenario: Scenario, tmp_path: Path) -> None:
    begin(scenario, tmp_path / "run", 7)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "server.safetensors").write_bytes(b"no")
    run = finish(scenario, tmp_path / "run")
    assert_same(run, simulate(scenario, out=tmp_path / "whole"))
    (note,) = run.manifest["notes"]
    assert f"{newest.name}: damaged" in note


def test_stacked_chunks_resume_too(scenario: Scenario, tmp_path: Path) -> None:
    stacked = scenario.override({"training.engine": "vectorized"})
    begin(stacked, tmp_path / "run", 4)
    assert_same(finish(stacked, tmp_path / "run"), simulate(stacked, out=tmp_path / "whole"))


def test_several_tasks_and_data_sets_resume_too(scenario: Scenario, tmp_path: Path) -> None:
    heart = {
        "dataset": "synthetic",
        "samples": 40,
        "modalities": {"acc": {"shape": [8, 2]}},
        "validation_fraction": 0.2,
    }
    several = scenario.override(
        {
            "data": None,
            "datasets": {"main": scenario.data, "heart": heart},
            "tasks": {
                "shape": {"data": "main", "labels": "class"},
                "size": {"data": "main", "kind": "regression", "labels": "amplitude", "lr": 0.02},
                "pulse": {"data": "heart", "kind": "regression"},
            },
            "clients": [
                {"count": 2, "task": "shape", "modalities": ["acc"]},
                {"count": 1, "task": "size", "modalities": ["acc", "gyro"]},
                {"count": 2, "task": ["shape", "size"], "modalities": ["acc", "gyro"]},
                {"count": 2, "task": "pulse", "modalities": ["acc"]},
            ],
            "sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "private"},
            "server.clients_per_round": 4,
            "server.task_weights": "equal",
        }
    )
    begin(several, tmp_path / "run", 4)
    assert_same(finish(several, tmp_path / "run"), simulate(several, out=tmp_path / "whole"))


Change: TypeAlias = Callable[[dict[str, np.ndarray], dict[str, str]], None]
"""Of a checkpoint's tensors and metadata, in place."""


def forge(checkpoint: Path, file: str, change: Change) -> None:
    """Change a checkpoint's file and make all its checksums right again."""
    with safe_open(checkpoint / file, framework="numpy") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
    change(tensors, metadata)
    save_file(tensors, checkpoint / file, metadata)
    index = json.loads((checkpoint / "checkpoint.json").read_text())
    index["files"][file] = checksum(checkpoint / file)
    index["bytes"][file] = (checkpoint / file).stat().st_size
    del index["checksum"]
    index["checksum"] = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    (checkpoint / "checkpoint.json").write_text(json.dumps(index))


def place_of(metadata: Mapping[str, str], kind: str) -> int:
    """The first place where a file has what clients keep of the head."""
    return next(number for number, place in enumerate(json.loads(metadata["places"])) if place[:2] == [kind, "head"])


def reshaped(kind: str) -> Change:
    """What each client keeps of the head gets another shape."""

    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        name = f"{place_of(metadata, kind)}/values"
        tensors[name] = np.zeros((len(tensors[name]), 3, 2), np.float32)

    return change


def renamed(kind: str) -> Change:
    """What each client keeps of the head is of another block."""

    def change(_: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        places = json.loads(metadata["places"])
        places[place_of(metadata, kind)][1] = "tail"
        metadata["places"] = json.dumps(places)

    return change


def shortened(kind: str) -> Change:
    """A client's values of the head are missing, while its row is there."""

    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        name = f"{place_of(metadata, kind)}/values"
        tensors[name] = tensors[name][:-1].copy()

    return change


def replaced(key: str) -> Change:
    """A tensor of the server gets another shape."""

    def change(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
        (name, *_) = [name for name in tensors if key in name]
        tensors[name] = np.zeros((3, 2), np.float32)

    return change


CLIENTS, SERVER = "clients-0.safetensors", "server.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CLIENTS, reshaped("private"), r"client \d has private blocks {head: float32\[3, 2\]}; expected {head"),
        (CLIENTS, renamed("private"), r"client \d has private blocks {tail: .*}; expected {head: "),
        (CLIENTS, reshaped("local"), r"client \d has normalisation state of head {.*\[3, 2\].*}; expected {"),
        (CLIENTS, reshaped("optimizer"), r"client \d has optimizer state of head {.*}; expected {first_moment"),
        (
            CLIENTS,
            renamed("optimizer"),
            r"client \d has blocks with optimizer state {.*tail}; expected {.*head",
        ),
        (SERVER, replaced("0/values"), r"values of encoder/acc are float32\[3, 2\]; expected float32\["),
        (SERVER, replaced("0/optimizer"), r"momentum of encoder/acc are float32\[3, 2\]; expected float64\["),
    ],
)
def test_a_forged_checkpoint_is_refused(
    scenario: Scenario, tmp_path: Path, file: str, change: Change, message: str
) -> None:
    begin(scenario, tmp_path / "run", 4)
    forge(tmp_path / "run" / "checkpoints" / "000002", file, change)
    with pytest.raises(RunFolderError, match="000002: is no checkpoint of this run.*" + message):
        finish(scenario, tmp_path / "run")


def test_a_file_of_clients_whose_parts_do_not_fit_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    begin(scenario, tmp_path / "run", 4)
    forge(tmp_path / "run" / "checkpoints" / "000002", CLIENTS, shortened("private"))
    with pytest.raises(RunFolderError, match=r"clients-0\.safetensors"):
        finish(scenario, tmp_path / "run")


def test_another_scenario_is_refused_with_the_difference_and_nothing_is_lost(
    scenario: Scenario, tmp_path: Path
) -> None:
    begin(scenario, tmp_path / "run", 5)
    with pytest.raises(RunFolderError, match=r"training\.batch_size is 16 in the run and 8 now"):
        finish(scenario.override({"training.batch_size": 8}), tmp_path / "run")
    assert Run.open(tmp_path / "run").rounds.height == 5
    assert finish(scenario, tmp_path / "run").status == "finished"


SCORINGS: list[dict[str, Any]] = [
    {},
    {"evaluation.every": 3},
    {"evaluation.fine_tune": {"epochs": 1}},
    {"evaluation.held_out": "never"},
    {"training.schedule": {"kind": "step", "every": 2, "factor": 0.5}},
]


@pytest.mark.parametrize(
    ("begun", "done", "rounds", "scoring"),
    [(4, 5, 7, scoring) for scoring in SCORINGS]
    + [(7, 4, 5, SCORINGS[1]), (7, 4, 3, SCORINGS[4])]
    + [
        pytest.param(7, 4, rounds, scoring, marks=pytest.mark.long)
        for rounds, tried in ((5, 1), (3, 4))
        for scoring in SCORINGS
        if scoring is not SCORINGS[tried]
    ],
)
def test_a_run_goes_on_to_other_rounds_as_if_it_had_begun_with_them(
    scenario: Scenario, tmp_path: Path, scoring: dict[str, Any], begun: int, done: int, rounds: int
) -> None:
    """A finished one with more, an interrupted one with fewer than it was to have, but as many as it has."""
    first = scenario.override({"training.schedule": {"kind": "constant"}, "checkpoint.every": 1, **scoring})
    first = first.override({"rounds": begun})
    begin(first, tmp_path / "run", done)
    whole = simulate(first.override({"rounds": rounds}), out=tmp_path / "whole")
    run = finish(first.override({"rounds": rounds}), tmp_path / "run")
    assert_same(run, whole)
    assert run.scenario.rounds == rounds
    assert run.scenario.training == whole.scenario.training


def test_rounds_that_a_run_cannot_go_on_to(scenario: Scenario, tmp_path: Path) -> None:
    begin(scenario, tmp_path / "run", 5)
    before = (tmp_path / "run" / "manifest.json").read_text()
    for rounds, message in (
        (9, r"had the learning rate 0\.0093\d+ in round 2, and with 9 rounds the cosine schedule has 0\.0096\d+ there"),
        (3, "has 4 rounds; expected rounds to be at least that, not 3"),
    ):
        with pytest.raises(RunFolderError, match=message):
            finish(scenario.override({"rounds": rounds}), tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").read_text() == before
    assert finish(scenario, tmp_path / "run").status == "finished"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"checkpoint.every": 0, "evaluation.held_out": "never"},
            "it has no whole checkpoint of round 3 or before; expected a run whose checkpoint.ev",
        ),
        (
            {"checkpoint.keep": 1, "evaluation.every": 2},
            "it has no whole checkpoint of round 2 or before, since round 3 was scored as the last one; expected",
        ),
    ],
)
def test_without_a_checkpoint_a_finished_run_does_not_go_on(
    scenario: Scenario, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    settings = {"training.schedule": {"kind": "constant"}, "rounds": 3, **settings}
    run = simulate(scenario.override(settings), out=tmp_path)
    assert run.path is not None
    with pytest.raises(RunFolderError, match=rf"cannot go on to 5 rounds: {message}"):
        finish(scenario.override({**settings, "rounds": 5}), run.path)
    assert Run.open(run.path).status == "finished"
    assert Run.open(run.path).rounds.equals(run.rounds)


def test_a_run_that_is_younger_than_its_first_checkpoint_begins_anew(scenario: Scenario, tmp_path: Path) -> None:
    young = scenario.override({"training.schedule": {"kind": "constant"}, "rounds": 3, "checkpoint.every": 10})
    run = simulate(young.override({"evaluation.every": 2}), out=tmp_path / "run")
    assert run.path is not None
    longer = young.override({"evaluation.every": 2, "rounds": 5})
    assert_same(finish(longer, run.path), simulate(longer, out=tmp_path / "whole"))


def test_a_run_that_goes_on_elsewhere_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    records = record_run(scenario, tmp_path / "run")
    next(records)
    with pytest.raises(RunFolderError, match="going on in another process"):
        finish(scenario, tmp_path / "run")
    records.close()


def test_the_newest_unfinished_run_of_a_scenario_is_found(scenario: Scenario, tmp_path: Path) -> None:
    begin(scenario, tmp_path / "small" / "1", 2)
    begin(scenario.override({"seed": 1}), tmp_path / "small" / "2", 2)
    for _ in record_run(scenario, tmp_path / "small" / "3"):
        pass
    moved = scenario.override({"execution.clients_per_actor": 2})
    assert unfinished_run(tmp_path, moved) == tmp_path / "small" / "1"
    assert unfinished_run(tmp_path, scenario.override({"seed": 2})) is None


def test_a_run_goes_on_with_the_engines_that_it_chose(scenario: Scenario, tmp_path: Path) -> None:
    auto, folder = scenario.override({"training.engine": "auto"}), tmp_path / "small" / "run"
    begin(auto, folder, 4)
    chosen = Run.open(folder).scenario.training.engine
    # What another timing might have chosen: the run must go on with this, not choose anew.
    other = {"acc": "vectorized", "acc+gyro": "vectorized", "gyro": "vectorized"}
    assert chosen != other
    with pytest.raises(RunFolderError, match=r"training\.engine\.gyro is 'sequential' in the run"):
        finish(scenario.override({"training.engine": other}), folder)
    assert unfinished_run(tmp_path, auto) == folder
    assert unfinished_run(tmp_path, scenario) is None
    run = finish(auto, folder)
    assert run.scenario.training.engine == run.manifest["engines"] == chosen
    assert_same(run, simulate(auto.override({"training.engine": chosen}), out=tmp_path / "whole"))


def test_a_killed_process_leaves_a_run_that_can_be_resumed(
    scenario: Scenario, tmp_path: Path, warm_server: Server
) -> None:
    longer = held_in(6, scenario.override({"rounds": 9}))
    (tmp_path / "scenario.yaml").write_text(scenario_yaml(longer))
    (tmp_path / HOLD).touch()
    environment = os.environ | IMPORTING
    command = [sys.executable, "-m", "blossom_ray", "simulate", "scenario.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round 5/"):
                process.send_signal(signal.SIGKILL)
    (tmp_path / HOLD).unlink()
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert Run.open(folder).status == "running"
    resume = [str(warm_server.launcher), "-m", "blossom_ray", "resume", str(folder)]
    done = subprocess.run(resume, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(Run.open(folder), simulate(longer, out=tmp_path / "whole"))


@pytest.mark.ray
def test_resumed_on_other_actors(scenario: Scenario, tmp_path: Path, ray_session: None) -> None:
    def on(clients_per_actor: int) -> dict[str, Any]:
        return {"execution.runtime": "ray", "execution.clients_per_actor": clients_per_actor}

    begin(scenario.override(on(3)), tmp_path / "run", 4)
    run = finish(scenario.override(on(2)), tmp_path / "run")
    assert_same(run, simulate(scenario, out=tmp_path / "whole"))
    assert run.rounds["round"].to_list() == list(range(8))


def words(process: psutil.Process) -> str:
    """What a process was started with; nothing where it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.ray
def test_a_lost_driver_is_replaced(scenario: Scenario, tmp_path: Path, ray_session: None) -> None:
    placed = scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 5, "rounds": 12})
    killed = False
    for record in record_run(placed, tmp_path / "run"):
        if record.round_index == 5 and not killed:
            # The driver is two records ahead at most.
            drivers = [
                process for process in psutil.Process().children(recursive=True) if "ray::DriverActor" in words(process)
            ]
            assert drivers
            for process in drivers:
                with suppress(psutil.NoSuchProcess):  # one of a run before
                    process.kill()
            killed = True
    run = Run.open(tmp_path / "run")
    (loss,) = run.manifest["driver_losses"]
    assert loss["cause"] == "the driver actor died: its process ended unexpectedly"
    assert loss["after_round"] >= 5
    local = placed.override({"execution.runtime": "local"})
    assert_same(run, simulate(local, out=tmp_path / "whole"))
    assert run.rounds.filter(pl.col("round") == 5).height == 1
