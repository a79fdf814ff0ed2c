"""The commands `sweep` and `compare`: what they print and write, and how they say that something is wrong."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from conftest import Command, Outcome
from rich.console import Console

from blossom_ray import Run, Scenario, Sweep
from blossom_ray.cli.console.sweeps import sweep_view
from blossom_ray.core.records import Progress
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.studies.sweeps.grid import Axis, expand
from blossom_ray.studies.sweeps.sweeping import CellEvent

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

GRID = ("--vary", "sharing=full-model,local", "--seeds", "2")


@pytest.fixture
def small(small_scenario: Scenario, tmp_path: Path) -> str:
    """The file of the small scenario in the working directory of `command`."""
    (tmp_path / "small.yaml").write_text(scenario_yaml(small_scenario), encoding="utf-8")
    return "small.yaml"


@pytest.fixture
def swept(command: Command, small: str) -> Outcome:
    """A sweep of two schemes and two seeds in `sweeps/small`, one cell after the other."""
    return command("sweep", small, *GRID, "--jobs", "1")


def test_a_sweep_off_a_terminal(swept: Outcome, command: Command, tmp_path: Path) -> None:
    assert (swept.exit_code, swept.err) == (0, "")
    assert "\x1b" not in swept.out
    lines = swept.out.splitlines()
    assert lines[0] == "4 cells in sweeps/small"
    assert lines[1] == "[0/4] started   sharing=full-model,seed=0"
    assert re.fullmatch(
        r"\[1/4\] finished  sharing=full-model,seed=0  round 2/2  accuracy \d+\.\d %  \S+ s a round  left .*", lines[2]
    )
    assert lines[-2:] == ["4 cells: 4 finished", "compare them with: blossom-ray compare sweeps/small"]
    again = command("sweep", "small.yaml", *GRID)
    assert again.exit_code == 0
    assert again.out.splitlines()[-2] == "4 cells: 4 skipped"


def test_compare_in_every_format(swept: Outcome, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = command("compare", "sweeps/small", "--target", "0.2")
    assert (table.exit_code, table.err) == (0, "")
    assert all(len(line) <= 80 for line in table.out.splitlines() if not line.startswith("note: "))
    assert table.out.startswith("accuracy in %; points and gain in % of last 5 over sharing full-model; 2 seeds")
    assert "rounds to 20.0" in table.out
    rows = list(csv.DictReader(io.StringIO(command("compare", "sweeps/small", "--format", "csv").out)))
    assert {row["sharing"] for row in rows} == {"full-model", "local"}
    as_json = command("compare", "sweeps/small", "--json").out
    assert as_json == command("compare", "sweeps/small", "--format", "json").out
    assert [row["final"] for row in json.loads(as_json)["table"]] == [float(row["final"]) for row in rows]
    assert command("compare", "sweeps/small", "--format", "markdown").out.splitlines()[2].startswith("| sharing |")
    assert r"\begin{tabular}" in command("compare", "sweeps/small", "--format", "latex").out
    cells = [str(Path("sweeps/small") / cell.folder) for cell in Sweep.open("sweeps/small").cells]
    loss = command("compare", *cells, "--metric", "loss", "--baseline", "sharing=local", "--by", "sharing")
    assert "loss; difference and gain in % of last 5 over sharing local; 2 seeds" in loss.out
    assert "lower scores are better here" in loss.out


def test_a_cell_can_be_resumed_and_simulated_alone(swept: Outcome, command: Command) -> None:
    folder = "sweeps/small/sharing=local,seed=1"
    assert command("resume", folder).out == f"{folder}: finished already; nothing to do\n"
    assert command("validate", f"{folder}/scenario.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense=1", "--set nonsense: nonsense is not a known key"),
        ("rounds=0", "--set rounds: rounds is 0; expected an integer of at least 1"),
        ("rounds=1", "has 2 rounds; expected rounds to be at least that, not 1"),
        ("training.batch_size=8", "is of another scenario:\n  training.batch_size is 16 in the run and 8 now"),
        ("seed=5", "is of another scenario:\n  seed is 0 in the run and 5 now"),
        ("name=other", "is of another scenario:\n  name is 'small' in the run and 'other' now"),
    ],
)
def test_a_finished_run_takes_no_setting_that_changes_it(
    command: Command, small: str, setting: str, message: str
) -> None:
    folder = command("simulate", small, "--json").out.splitlines()[-1]
    folder = json.loads(folder)["run"]
    refused = command("resume", folder, "--set", setting)
    assert (refused.exit_code, refused.out) == (2, "")
    assert message in refused.err
    assert Run.open(folder).status == "finished"
    same = command("resume", folder, "--set", "execution.timeout_s=60", "--set", "rounds=2")
    assert (same.exit_code, same.out) == (0, f"{folder}: finished already; nothing to do\n")


def test_a_finished_run_goes_on_to_more_rounds_and_a_cell_does_not(command: Command, small: str) -> None:
    settings = ("--set", "checkpoint.every=1")
    folder = json.loads(command("simulate", small, *settings, "--json").out.splitlines()[-1])["run"]
    going_on = command("resume", folder, "--set", "rounds=3", "--json")
    assert (going_on.exit_code, going_on.err) == (0, "")
    whole = json.loads(command("simulate", small, *settings, "--set", "rounds=3", "--json").out.splitlines()[-1])["run"]
    assert Run.open(folder).manifest["digest"] == Run.open(whole).manifest["digest"]
    assert command("sweep", small, "--vary", "sharing=local").exit_code == 0
    cell = command("resume", "sweeps/small/sharing=local", "--set", "rounds=3")
    assert (cell.exit_code, cell.out) == (2, "")
    assert "is a cell of a sweep, whose cells have the same rounds; expected the sweep's own command with" in cell.err


def test_every_problem_of_a_sweep_comes_before_the_first_cell(
    command: Command,
    small: str,
    tmp_path: Path,
) -> None:
    options = command("sweep", small, "--vary", "sharing", "--seeds", "x", "--set", "rounds")
    assert (options.exit_code, options.out) == (2, "")
    assert [line.split(":")[0] for line in options.err.splitlines()] == ["--set rounds", "--vary sharing", "--seeds"]
    cells = command("sweep", "small.yaml", "nowhere.yaml", "--vary", "sharing=local,privat", "--seeds", "2")
    assert cells.exit_code == 2
    assert cells.err.splitlines() == [
        "--vary sharing: sharing is 'privat'; expected one of full-model, private-head, private-head-fusion, local, "
        "central, central-per-task, or a mapping from block to scope (in 2 of 4 cells, the first is "
        "sharing=privat,seed=0)",
        "nowhere.yaml: does not exist; expected a scenario file (YAML 1.2), or a name that `blossom-ray scenarios` "
        "lists",
    ]
    both = command("sweep", "small.yaml", "--vary", "rounds=1,2", "--set", "rounds=3")
    assert both.err == "--set rounds: rounds is varied too; expected each key in one option\n"
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_cell_that_fails_ends_the_sweep_with_1(command: Command, small: str) -> None:
    failing = command("sweep", small, "--vary", "training.optimizer.lr=0.01,1e30", "--jobs", "1")
    assert failing.exit_code == 1
    assert "2 cells: 1 finished, 1 failed" in failing.out
    (line,) = (line for line in failing.out.splitlines() if line.startswith("failed: "))
    assert line.startswith("failed: sweeps/small/lr=1e+30: client 0, round 1: block ")
    shown = command("compare", "sweeps/small")
    assert shown.exit_code == 0
    assert "not used: sweeps/small/lr=1e+30: failed: client 0" in " ".join(shown.out.split())


def test_a_sweep_as_json(command: Command, small: str) -> None:
    outcome = command("sweep", small, "--json")
    *events, last = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["event"] for event in events] == ["started", "round", "round", "round", "finished"]
    assert {event["run"] for event in events} == {"sweeps/small/small"}
    assert "accuracy" in events[1]
    assert last == {"sweep": "sweeps/small", "cells": 1, "finished": 1}


TUNED = ("--vary", "training.optimizer.lr=0.001,0.05", "--choose", "accuracy", "--tune", "training.optimizer.lr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TUNED, "error: cell lr=0.001: data.validation_fraction is 0; expected runs with data.validation_fraction "),
        ((*TUNED[:-1], "sharing"), "error: tune is 'sharing'; expected keys in which the runs differ: training"),
        (TUNED[:-2], "error: tune names no key to choose values of; expected some in which the runs differ: tra"),
        ((*TUNED[:2], *TUNED[4:]), "error: tune is given without choose; expected the score on validation data to ch"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_made_is_refused_before_anything_runs(
    options: tuple[str, ...], message: str, command: Command, small: str, tmp_path: Path
) -> None:
    refused = command("sweep", small, *options)
    assert (refused.exit_code, refused.out) == (2, "")
    assert refused.err.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_sweep_that_chooses_shows_test_scores_of_what_was_chosen_alone(command: Command, small: str) -> None:
    grid = (small, "--vary", "sharing=full-model,local", *TUNED, "--seeds", "2", "--jobs", "1")
    swept = command("sweep", *grid, "--set", "data.validation_fraction=0.25")
    assert (swept.exit_code, swept.err) == (0, "")
    told = [line for line in swept.out.splitlines() if "finished  " in line]
    assert len(told) == 8
    assert all(re.search(r"round 2/2  validation/accuracy \d+\.\d %  ", line) for line in told)
    runs = {(run.scenario.sharing, run.scenario.training.optimizer.lr, run.scenario.seed): run
            for run in Sweep.open("sweeps/small").runs.values()}  # fmt: skip
    options = ("--choose", "accuracy", "--tune", "lr", "--json")
    found = json.loads(command("compare", "sweeps/small", *options).out)
    for row in found["choice"]["table"]:
        means = {}
        for lr in (0.001, 0.05):
            validated = [runs[row["sharing"], lr, seed].rounds["validation/accuracy"][1:].mean() for seed in (0, 1)]
            means[lr] = sum(validated) / 2
        best = max(means, key=means.__getitem__)
        assert (row["training.optimizer.lr"], row["num_runs"], row["num_rounds"]) == (str(best), 4, 8)
        assert row["validation"] == pytest.approx(means[best])
        tested = [runs[row["sharing"], best, seed].rounds["accuracy"][-1] for seed in (0, 1)]
        (shown,) = (
            each for each in found["table"] if (each["sharing"], each["modalities"]) == (row["sharing"], "all clients")
        )
        assert shown["final"] == pytest.approx(sum(tested) / 2)
        words = f"{row['sharing']} {best} {100 * means[best]:.1f} "
        assert any(" ".join(line.split()).startswith(words) for line in swept.out.splitlines())
    # The cells of this command alone are chosen from, whatever else is in the folder.
    again = command("sweep", small, *TUNED, "--seeds", "1", "--set", "data.validation_fraction=0.25", "--json")
    assert again.exit_code == 0
    *events, _, tree = [json.loads(line) for line in again.out.splitlines()]
    assert [row["num_runs"] for row in tree["choice"]["table"]] == [2]
    assert not any("accuracy" in event for event in events)


def test_a_sweep_that_chooses_by_one_of_several_tasks_shows_each(
    command: Command, small: str, small_scenario: Scenario, tmp_path: Path
) -> None:
    tasks = {"shape": {"labels": "class"}, "size": {"kind": "regression", "labels": "amplitude"}}
    groups = [{"count": 2, "modalities": ["acc", "gyro"], "task": task} for task in tasks]
    several = small_scenario.override(
        {"tasks": tasks, "clients": groups, "data.validation_fraction": 0.25, "rounds": 1}
    )
    (tmp_path / small).write_text(scenario_yaml(several), encoding="utf-8")
    rates = ("--vary", "training.optimizer.lr=0.01,0.05", "--choose", "size/rmse", "--tune", "lr")
    chosen = command("sweep", small, *rates, "--jobs", "1", "--json")
    assert (chosen.exit_code, chosen.err) == (0, "")
    told = [json.loads(line) for line in chosen.out.splitlines()[-2:]]
    assert [(each["metric"], each["choice"]["metric"]) for each in told] == [
        ("shape/accuracy", "validation/size/rmse"), ("size/rmse", "validation/size/rmse"),
    ]  # fmt: skip
    wrong = command("compare", "sweeps/small", "--choose", "rmse", "--tune", "lr")
    assert "choose is 'rmse'; expected a score on validation: shape/" in wrong.err


def test_a_sweep_in_which_nothing_can_be_chosen_ends_as_failed(command: Command, small: str) -> None:
    rates = ("--vary", "training.optimizer.lr=1e30,1e31", "--choose", "accuracy", "--tune", "lr", "--jobs", "1")
    failing = command("sweep", small, "--set", "data.validation_fraction=0.25", *rates)
    assert failing.exit_code == 1
    assert "nothing is chosen, since no values have a score for every seed" in failing.err


def test_notes_of_cells_are_told_by_every_command(command: Command, small: str, tmp_path: Path) -> None:
    grid = ("--vary", "sharing=full-model,private-head", "--seeds", "2", "--set", "model.head.norm=batch")
    about = "full-model (2 of 2 runs): head: running statistics of normalisation are averaged"
    swept = command("sweep", small, *grid, "--jobs", "1")
    (line,) = (line for line in swept.out.splitlines() if "running statistics" in line)
    assert line.startswith(f"note: {about}")
    for form in ("table", "markdown", "latex", "json", "csv"):
        shown = " ".join(command("compare", "sweeps/small", "--format", form).out.split())
        assert "running statistics" in shown
        assert form in ("json", "csv") or (shown.count("running statistics") == 1 and f"[1] {about}" in shown)
    for folder in ("sweeps/small", "sweeps/small/sharing=full-model,seed=0"):
        assert command("report", folder).exit_code == 0
        assert (tmp_path / folder / "report.html").read_text(encoding="utf-8").count("running statistics") == 1
    events = [json.loads(line) for line in command("sweep", small, *grid, "--json").out.splitlines()[:-1]]
    assert [len(event["notes"]) for event in events] == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["sweep", "compare"])
def test_help_has_an_example(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert outcome.exit_code == 0
    assert f"Example: blossom-ray {name}" in outcome.out


# --- views ----------------------------------------------------------------------------------------------------------


def test_the_live_view_shows_progress_cells_and_failures(small_scenario: Scenario) -> None:
    cells = expand(
        [small_scenario.override({"rounds": 10})], [Axis("sharing", ("full-model", "local", "private-head"))]
    )
    console = Console(file=io.StringIO(), width=80, force_terminal=True, no_color=True)
    folder = Path("s")
    with sweep_view(cells, console) as show:
        for cell in cells[:2]:
            show(CellEvent("started", cell, folder))
            show(CellEvent("round", cell, folder, Progress(4, {"accuracy": 0.625}, 2.0)))
        show(CellEvent("failed", cells[1], folder, error="its process was ended by SIGKILL"))
        shown = console.file.getvalue()
    last = shown[shown.rindex("1 of 3 cells") :]
    assert "left " in last
    assert re.search(r"sharing=full-model +4/10 +62\.5 % +2 s", last)
    assert "failed: sharing=local: its process was ended by SIGKILL" in last


def test_lines_tell_rounds_now_and_then(small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blossom_ray.cli.console.sweeps._TELL_EVERY_S", 0.0)
    (cell,) = expand([small_scenario])
    console = Console(file=io.StringIO(), width=30)
    with sweep_view([cell], console) as show:
        show(CellEvent("round", cell, Path("s"), Progress(1, {"accuracy": 0.5, "loss": 1.0}, 0.25)))
    assert console.file.getvalue() == ("[0/1] round     small  round 1/2  accuracy 50.0 %  0.25 s a round\n")
