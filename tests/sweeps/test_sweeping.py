"""Sweeps: cells side by side, what is done is skipped, what failed is noted, what was killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from held import HOLD, IMPORTING, held_in

from blossom_ray import Run, Scenario, Sweep, compare, simulate, sweep
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.writer import RunWriter
from blossom_ray.runtime.placement import Room
from blossom_ray.studies.sweeps.cell_placement import choose_runtimes, fitting_jobs, place_clients, without_ray
from blossom_ray.studies.sweeps.folder import sweep_lock
from blossom_ray.studies.sweeps.grid import Axis, Cell, expand
from blossom_ray.studies.sweeps.sweeping import CellEvent, default_folder, run_cells

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

COLD = sys.executable  # what a test kills is the process itself, not a launcher of it

SCHEMES = Axis("sharing", ("full-model", "local"))
# Raises in the second round, where it is told to.
OWN_HEAD = """\
from torch import nn


class Head(nn.Module):
    def __init__(self, input_dim, num_outputs, breaks=False):
        super().__init__()
        self.linear = nn.Linear(input_dim, num_outputs)
        nn.init.zeros_(self.linear.bias)
        self.breaks = breaks

    def forward(self, fused):
        if self.breaks and self.training and self.linear.bias.any():
            raise ValueError("this head works once")
        return self.linear(fused)
"""
ENDLESS = 1_000_000
ROOM = Room(num_cpus=4.0, num_gpus=0.0, memory_bytes=16 * 2.0**30)


def kinds(events: list[CellEvent]) -> list[tuple[str, str]]:
    """What happened to which cell, rounds left out, in order of cells."""
    found = [(event.cell.name, event.kind) for event in events if event.kind not in ("started", "round")]
    return sorted(found)


def assert_bits(run: Run, scenario: Scenario) -> None:
    """A run is what an undisturbed one of its scenario is."""
    expected = simulate(scenario)
    assert run.status == "finished"
    assert run.manifest["digest"] == expected.manifest["digest"]
    timed = [column for column in expected.rounds.columns if "seconds" in column]
    assert run.rounds.drop(timed).equals(expected.rounds.drop(timed))


# --- cells ----------------------------------------------------------------------------------------------------------


def test_cells_are_run_folders_with_the_bits_of_single_runs(small_scenario: Scenario, tmp_path: Path) -> None:
    results = list(
        sweep(small_scenario, vary={"sharing": ["full-model", "local"]}, seeds=2, out=tmp_path / "s", jobs=2)
    )
    assert {result.cell.name for result in results} == {
        f"sharing={name},seed={seed}" for name in ("full-model", "local") for seed in (0, 1)
    }
    for result in results:
        assert result.error is None
        assert result.run is not None
        assert result.run.path == tmp_path / "s" / result.cell.name
        assert_bits(Run.open(tmp_path / "s" / result.cell.name), result.cell.scenario)
    opened = Sweep.open(tmp_path / "s")
    assert [(cell.setting, cell.seed, cell.rounds) for cell in opened.cells][:2] == [
        ({"sharing": "full-model"}, 0, 2), ({"sharing": "full-model"}, 1, 2),
    ]  # fmt: skip
    assert len(opened.runs) == 4
    rows = [row for row in compare(opened).table.to_dicts() if row["modalities"] == "all clients"]
    assert [(row["sharing"], row["num_seeds"], row["num_pairs"]) for row in rows] == [
        ("full-model", 2, 0), ("local", 2, 2),
    ]  # fmt: skip


def test_what_is_done_is_skipped_and_a_sweep_can_grow(small_scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    events = list(run_cells(folder, expand([small_scenario], [SCHEMES])))
    assert kinds(events) == [("sharing=full-model", "finished"), ("sharing=local", "finished")]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    # Recognised by what is computed, not by names: `local` stands under another name and runs elsewhere.
    schemes = Axis("sharing", ("local", "private-head"))
    grown = expand([small_scenario.override({"name": "renamed"})], [schemes, Axis("seed", (0,))])
    assert kinds(list(run_cells(folder, grown))) == [
        ("sharing=local,seed=0", "skipped"), ("sharing=private-head,seed=0", "finished"),
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [cell.folder for cell in Sweep.open(folder).cells] == [
        "sharing=full-model", "sharing=local", "sharing=private-head,seed=0",
    ]  # fmt: skip


def test_a_lost_sweep_file_loses_no_run(small_scenario: Scenario, tmp_path: Path) -> None:
    cells = expand([small_scenario], [SCHEMES])
    list(run_cells(tmp_path / "s", cells))
    (tmp_path / "s" / "sweep.json").unlink()
    assert {event.kind for event in run_cells(tmp_path / "s", cells)} == {"skipped"}
    # The folder of another simulation is not taken.
    (tmp_path / "s" / "sweep.json").unlink()
    (other,) = expand([small_scenario.override({"rounds": 1})], [Axis("sharing", ("local",))])
    list(run_cells(tmp_path / "s", [other]))
    assert [cell.folder for cell in Sweep.open(tmp_path / "s").cells] == [f"sharing=local-{other.identity[:6]}"]


def test_a_failing_cell_is_noted_and_the_others_go_on(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sweep_head.py").write_text(OWN_HEAD)
    own = small_scenario.override(
        {"model.head": {"kind": "custom", "factory": "sweep_head:Head"}, "rounds": 3, "training.batch_size": 1000}
    )
    results = list(sweep(own, vary={"model.head.options.breaks": [True, False]}, out="s", jobs=1))
    failed, finished = results
    assert "this head works once" in str(failed.error)
    assert failed.run is not None
    assert failed.run.status == "failed"
    assert failed.run.rounds["round"].to_list() == [0, 1]
    assert finished.error is None
    # The same call tries it again and skips the other.
    again = list(sweep(own, vary={"model.head.options.breaks": [True, False]}, out="s", jobs=1))
    assert [result.error is None for result in again] == [True, False]
    unused = compare("s").unused
    assert [place for place, _ in unused] == ["s/breaks=true"]
    assert "this head works once" in unused[0][1]


def test_own_code_that_no_other_process_can_get(small_scenario: Scenario, tmp_path: Path) -> None:
    def build() -> Any:
        raise AssertionError("never called")

    (cell,) = expand([small_scenario])
    head = {"kind": "custom", "factory": lambda *_: build()}
    hidden = Cell(small_scenario.override({"model.head": head}), {}, "hidden", "0" * 64)
    (event,) = (e for e in run_cells(tmp_path / "s", [hidden, cell], jobs=1) if e.kind == "failed")
    assert str(event.error).startswith("own code cannot be sent to another process: ")
    assert str(event.error).endswith("\nhint: put it into a module, or use execution.runtime ray")
    assert Run.open(tmp_path / "s" / "hidden").manifest["error"]["message"] == event.error
    assert Run.open(tmp_path / "s" / "small").status == "finished"


def test_stopping_ends_after_the_rounds_in_progress_and_the_rest_is_done_later(
    small_scenario: Scenario, tmp_path: Path
) -> None:
    cells = expand([small_scenario.override({"rounds": ENDLESS})], [SCHEMES])
    stop = threading.Event()
    events = []
    for event in run_cells(tmp_path / "s", cells, jobs=1, stopping=stop.is_set):
        events.append(event)
        if event.progress is not None and event.progress.round_index == 2:
            stop.set()
    assert kinds(events) == [("sharing=full-model", "interrupted")]
    plan = Sweep.open(tmp_path / "s")
    assert [plan.status(cell.identity) for cell in cells] == ["interrupted", "not begun"]
    assert list((tmp_path / "s" / "sharing=full-model" / "checkpoints").iterdir())


def test_closing_leaves_cells_that_can_go_on_and_no_process(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = expand([small_scenario.override({"rounds": ENDLESS})], [SCHEMES])
    with closing(run_cells(tmp_path / "s", cells, jobs=2)) as events:
        seen = set[str]()
        while len(seen) < 2:
            event = next(events)
            if event.progress is not None and event.progress.round_index >= 1:
                seen.add(event.cell.name)
        children = cell_processes(tmp_path)
        assert len(children) == 2
    assert not any(is_left(child) for child in children)
    assert {run.status for run in Sweep.open(tmp_path / "s").runs.values()} == {"interrupted"}


# --- processes that are killed --------------------------------------------------------------------------------------


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `blossom-ray sweep` over two schemes of a scenario, two at a time, in a process group of its own."""
    line = ["-m", "blossom_ray", "sweep", "small.yaml", "--vary", "sharing=full-model,local",
            "--seeds", "1", "--out", "s", "--jobs", "2", "--json"]  # fmt: skip
    started = []

    def start(scenario: Scenario, python: str | None = None) -> subprocess.Popen[str]:
        (tmp_path / "small.yaml").write_text(scenario_yaml(scenario))
        process = subprocess.Popen(
            [python or sys.executable, *line],
            cwd=tmp_path,
            env=os.environ | IMPORTING,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def held(small_scenario: Scenario, tmp_path: Path) -> Scenario:
    """Twelve rounds, in the eighth of which a sweep waits."""
    (tmp_path / HOLD).touch()
    return held_in(8, small_scenario.override({"rounds": 12}))


def cell_processes(folder: Path) -> list[psutil.Process]:
    """The processes of cells whose sweep was started in a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "cell_process" in " ".join(process.cmdline()) and Path(process.cwd()) == folder:
                found.append(process)
    return found


def is_left(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for_rounds(process: subprocess.Popen[str], round_index: int) -> None:
    """Wait until both cells are past a round."""
    assert process.stdout is not None
    reached = set[str]()
    for line in process.stdout:
        event = json.loads(line)
        if event.get("round", -1) >= round_index:
            reached.add(event["cell"])
        if len(reached) == 2:
            return
    raise AssertionError(f"ended before round {round_index}: {process.communicate()[1]}")


def cells(folder: Path) -> list[tuple[str, Run]]:
    """The sharing of each cell of a sweep in a folder, and its run."""
    return [(name, Run.open(folder / "s" / f"sharing={name},seed=0")) for name in ("full-model", "local")]


def assert_finishes_with_the_bits(start: Start, tmp_path: Path, scenario: Scenario) -> None:
    process = start(scenario)
    out, message = process.communicate(timeout=300)
    assert process.returncode == 0, message
    assert json.loads(out.splitlines()[-1])["cells"] == 2
    for name, run in cells(tmp_path):
        assert_bits(run, scenario.override({"sharing": name}))


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_same_command(start: Start, tmp_path: Path, held: Scenario) -> None:
    process = start(held, COLD)
    wait_for_rounds(process, 6)
    children = cell_processes(tmp_path)
    assert len(children) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert {run.status for _, run in cells(tmp_path)} <= {"running", "interrupted"}
    (tmp_path / HOLD).unlink()
    # Nobody waits: the cells' processes notice, and the new command waits until they have gone.
    assert_finishes_with_the_bits(start, tmp_path, held)
    give_up = time.monotonic() + 60
    while any(is_left(child) for child in children):
        assert time.monotonic() < give_up, "processes of the killed sweep are left"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_cell_fails_alone(start: Start, tmp_path: Path, held: Scenario) -> None:
    process = start(held, COLD)
    wait_for_rounds(process, 3)
    cell_processes(tmp_path)[0].kill()
    (tmp_path / HOLD).unlink()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    last = json.loads(out.splitlines()[-1])
    assert (last["finished"], last["failed"]) == (1, 1)
    (failed,) = (run for _, run in cells(tmp_path) if run.status == "failed")
    assert failed.manifest["error"]["message"] == "its process was ended by SIGKILL"
    assert_finishes_with_the_bits(start, tmp_path, held)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_complete_rounds(
    number: signal.Signals, exit_code: int, start: Start, tmp_path: Path, small_scenario: Scenario
) -> None:
    """A sweep that has no end by itself: from its rounds so far the same command goes on."""
    last = 3
    for _ in range(2):
        process = start(small_scenario.override({"rounds": ENDLESS}))
        wait_for_rounds(process, last)
        os.killpg(process.pid, number)
        _, message = process.communicate(timeout=300)
        assert process.returncode == exit_code
        assert message.splitlines()[-2:] == [
            "interrupted; what is done is kept in s",
            "go on with the same command, and look at it with: blossom-ray compare s",
        ]
        assert {run.status for _, run in cells(tmp_path)} == {"interrupted"}
        last = max(run.rounds["round"].max() for _, run in cells(tmp_path)) + 1
    for name, run in cells(tmp_path):
        rounds = run.rounds.select(column for column in run.rounds.columns if "seconds" not in column)
        # What is scored in the last round alone is in no round of an endless run.
        longer = small_scenario.override({"rounds": rounds.height, "sharing": name})
        assert rounds.equals(simulate(longer).rounds.head(rounds.height).select(rounds.columns))


# --- folders and places ---------------------------------------------------------------------------------------------


def test_one_sweep_at_a_time_works_in_a_folder(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blossom_ray.studies.sweeps.folder._LOCK_PATIENCE_S", 0.3)
    cells = expand([small_scenario])
    with sweep_lock(tmp_path / "s"), pytest.raises(RunFolderError, match="its sweep is going on in another process"):
        next(run_cells(tmp_path / "s", cells))
    assert list(run_cells(tmp_path / "s", cells))


def test_folders_that_are_no_sweeps(small_scenario: Scenario, tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", scenario_yaml(small_scenario), {}).close("finished")
    with pytest.raises(RunFolderError, match="run: is a run folder; expected a new folder, or that of a sweep"):
        next(run_cells(tmp_path / "run", expand([small_scenario])))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file: File exists; expected a folder that can be made"):
        next(run_cells(tmp_path / "file", expand([small_scenario])))
    with pytest.raises(RunFolderError, match="nowhere: does not exist; expected the folder of a sweep"):
        Sweep.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"sweep\.json: cannot be read \(JSONDecodeError"),
        ("[]", r"sweep\.json: is an empty list; expected a mapping"),
        ("{}", r"sweep\.json: format is missing; expected an integer"),
        ('{"format": 2, "cells": []}', r"has format 2; expected 1"),
        ('{"format": 1, "cells": {}}', r"sweep\.json: cells is an empty mapping; expected a list"),
        ('{"format": 1, "cells": [3]}', r"sweep\.json: cells\.0 is 3; expected a mapping with the keys folder, ident"),
        ('{"format": 1, "cells": [{"folder": "a"}]}', r"sweep\.json: cells\.0\.identity is missing; expected text"),
        ('{"format": 1, "cells": ' + "[" * 500 + "]" * 500 + "}", r"sweep\.json: is nested too deeply"),
    ],
)
def test_a_damaged_sweep_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RunFolderError, match=message):
        Sweep.open(tmp_path)


CELL = {"folder": "a", "identity": "b", "setting": {"sharing": "local"}, "seed": 0, "rounds": 1}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (
            "folder",
            ["..", ".", "", "/etc", "../a", "a/b", "a/", "a\0b", "x" * 256, "\u00fc" * 128, "\ud800", 1, None, ["a"]],
        ),
        ("identity", ["", 1, None, [], {}]),
        ("setting", [1, None, [], "a"]),
        ("seed", [-1, 2**63, 10**400, 1.0, 1e999, True, "0", None, [0]]),
        ("rounds", [0, -1, 1.5, True, "1", None, {}]),
    ],
)
def test_a_cell_that_no_sweep_has_written_is_refused(key: str, values: list[object], tmp_path: Path) -> None:
    for value in values:
        tree = {"format": 1, "cells": [{**CELL, "folder": "z", "identity": "z"}, {**CELL, key: value}]}
        (tmp_path / "sweep.json").write_text(json.dumps(tree))
        with pytest.raises(RunFolderError, match=rf"sweep\.json: (cells\.1\.{key} (is|of)|has text with half)"):
            Sweep.open(tmp_path)


def test_two_cells_in_one_folder_are_refused(tmp_path: Path) -> None:
    for second in ({**CELL, "identity": "c"}, {**CELL, "folder": "c"}):
        (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "cells": [CELL, second]}))
        with pytest.raises(
            RunFolderError, match="expected cells of which each has a folder and an identity of its own"
        ):
            Sweep.open(tmp_path)


def test_a_sweep_file_of_another_version_is_read(tmp_path: Path) -> None:
    tree = {"format": 1, "cells": [{**CELL, "colour": "red", "setting": {"": [{}], "a..b.9": None}}], "more": []}
    (tmp_path / "sweep.json").write_text(json.dumps(tree))
    (cell,) = Sweep.open(tmp_path).cells
    assert (cell.folder, cell.identity, cell.seed, cell.rounds) == ("a", "b", 0, 1)
    assert compare(tmp_path).unused == ((str(tmp_path / "a"), "not begun"),)


def test_default_folders(small_scenario: Scenario) -> None:
    other = small_scenario.override({"name": "other"}).override({"rounds": 3})
    assert default_folder(expand([small_scenario])) == Path("sweeps/small")
    assert default_folder(expand([small_scenario, other])) == Path("sweeps/small+1")


def test_as_many_cells_at_a_time_as_fit(small_scenario: Scenario) -> None:
    ray = small_scenario.override({"execution.runtime": "ray"})
    assert fitting_jobs([small_scenario, ray], ROOM) == 4
    assert fitting_jobs([ray], Room(4.0, 0.0, 700 * 2.0**20)) == 2
    assert fitting_jobs([ray], Room(0.5, 0.0, 2.0**40)) == 1
    # Three actors of 0.5 cores each; two of 1 core and half a GPU each; all the GPUs there are.
    halves = ray.override({"execution.clients_per_actor": 2, "execution.client_resources.num_cpus": 0.5})
    assert fitting_jobs([halves], ROOM) == 2
    resources = {"num_cpus": 1.0, "num_gpus": 0.5}
    on_gpus = ray.override({"execution.client_resources": resources, "execution.clients_per_actor": 3})
    assert fitting_jobs([on_gpus], Room(8.0, 2.0, 2.0**40)) == 2
    assert fitting_jobs([ray.override({"execution.client_resources": resources})], Room(8.0, 2.0, 2.0**40)) == 1


def test_more_than_fits_is_refused(small_scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs is 0; expected at least 1"):
        list(run_cells(tmp_path / "s", expand([small_scenario]), jobs=0))


def test_clients_are_packed_into_the_share_of_a_cell(small_scenario: Scenario) -> None:
    ray = small_scenario.override({"execution.runtime": "ray"})
    one = place_clients(ray, 1.0).execution
    assert (one.clients_per_actor, one.client_resources.num_cpus) == (5, 1.0)
    assert place_clients(ray, 2.5).execution.clients_per_actor == 3
    assert place_clients(ray, 0.5).execution.client_resources.num_cpus == 0.5
    for own in (small_scenario, ray.override({"execution.clients_per_actor": 2})):
        assert place_clients(own, 1.0) == own


def test_who_leaves_the_runtime_open_gets_processes_without_ray(small_scenario: Scenario) -> None:
    tree = small_scenario.model_dump(exclude_unset=True) | {"execution": {"chunk_size": 2}}
    is_open = Scenario.model_validate(tree)
    assert is_open.execution.runtime == "ray"
    assert without_ray(is_open).execution.runtime == "local"
    said = small_scenario.override({"execution.runtime": "ray"})
    placed_by_hand = is_open.override({"execution.clients_per_actor": 2})
    own_code = is_open.override({"model.head": {"kind": "custom", "factory": lambda *_: None}})
    for kept in (said, placed_by_hand, own_code):
        assert without_ray(kept) is kept


def test_actors_where_a_cell_has_several_cores_or_ray_runs_already(small_scenario: Scenario) -> None:
    tree = small_scenario.model_dump(exclude_unset=True) | {"execution": {}}
    cells = [Scenario.model_validate(tree)] * 3

    def runtimes(jobs: int | None, num_cells: int, *, has_cluster: bool = False) -> set[str]:
        found = choose_runtimes(cells[:num_cells], jobs, ROOM, has_cluster=has_cluster)
        return {scenario.execution.runtime for scenario in found}

    assert runtimes(None, 3) == {"local"}
    assert runtimes(2, 3) == runtimes(None, 1) == {"ray"}
    assert runtimes(None, 3, has_cluster=True) == {"ray"}


@pytest.mark.ray
def test_cells_on_one_ray_session(small_scenario: Scenario, tmp_path: Path, ray_session: None) -> None:
    on_ray = small_scenario.override({"execution.runtime": "ray"})
    for result in sweep(on_ray, vary={"sharing": ["full-model", "local"]}, out=tmp_path / "s"):
        assert result.error is None
        assert result.run is not None
        assert_bits(result.run, result.cell.scenario.override({"execution.runtime": "local"}))
        assert result.run.manifest["actors"] == 1
    with pytest.raises(
        InputError, match=r"jobs is 99; expected at most 2, since no more cells at a time fit into 2 CPU"
    ):
        list(sweep(on_ray, seeds=3, out=tmp_path / "s", jobs=99))
