"""The log of a run: what stands in it, whose lines they are, and what becomes of a damaged file."""

from __future__ import annotations

import json
import logging
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from blossom_ray import Run, Scenario, simulate
from blossom_ray.core.records import Failure, RoundRecord
from blossom_ray.core.scores import LearnedTask
from blossom_ray.errors import RunError, RunFolderError
from blossom_ray.runs.log import LOG_FILE, LOGGER, RunLog
from blossom_ray.runs.session import record_run, resume_run


def lines(folder: Path | None) -> list[dict[str, Any]]:
    assert folder is not None
    return [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]


def events(folder: Path | None) -> list[tuple[str, int | None]]:
    return [(line["event"], line.get("round")) for line in lines(folder)]


def test_the_log_of_a_run(small_scenario: Scenario, tmp_path: Path) -> None:
    run = simulate(small_scenario.override({"rounds": 3, "checkpoint.every": 1}), out=tmp_path)
    assert run.path is not None
    assert events(run.path) == [
        ("start", None), ("data", None), ("placement", None), ("round", 0), ("round", 1), ("checkpoint", 1),
        ("round", 2), ("checkpoint", 2), ("round", 3), ("checkpoint", 3), ("end", 3),
    ]  # fmt: skip
    found = lines(run.path)
    assert {(line["run"], line["scenario"], line["level"]) for line in found} == {(run.path.name, "small", "info")}
    assert [line["time"] for line in found] == sorted(line["time"] for line in found)
    assert found[1]["num_train"] == run.manifest["data"]["num_train"]
    assert (found[2]["runtime"], found[2]["actors"]) == ("local", 0)
    last = next(line for line in found if (line["event"], line.get("round")) == ("round", 3))
    assert last["metrics"]["accuracy"] == run.final["accuracy"]
    assert last["bytes_up"] == run.rounds["bytes_up"][-1]
    assert last["seconds"]["total"] == run.rounds["seconds"][-1]
    assert last["message"] == (
        f"round 3, train_loss {run.final['train_loss']:.4g}, loss {run.final['loss']:.4g}, "
        f"accuracy {run.final['accuracy']:.4g}"
    )
    assert (found[-1]["status"], found[-1]["message"]) == ("finished", "finished after round 3")


def test_a_resumed_run_goes_on_behind_what_is_there(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario, folder = small_scenario.override({"rounds": 3, "checkpoint.every": 1}), tmp_path / "run"
    with closing(record_run(scenario, folder)) as records:
        for _ in range(3):
            next(records)
    assert events(folder)[-1] == ("end", 2)
    assert lines(folder)[-1]["status"] == "interrupted"
    before = (folder / LOG_FILE).read_text(encoding="utf-8")
    for _ in resume_run(scenario, folder):
        pass
    assert (folder / LOG_FILE).read_text(encoding="utf-8").startswith(before)
    added = events(folder)[before.count("\n") :]
    assert (added[0], added[-1]) == (("start", 2), ("end", 3))
    assert lines(folder)[-1]["status"] == "finished"


def test_a_run_that_fails_says_why(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario = small_scenario.override({"training.optimizer.lr": 1e30, "rounds": 5})
    with pytest.raises(RunError):
        simulate(scenario, out=tmp_path)
    (folder,) = (tmp_path / "small").iterdir()
    last = lines(folder)[-1]
    assert (last["event"], last["level"], last["status"], last["error"]) == ("end", "error", "failed", "ClientError")
    assert last["cause"] == Run.open(folder).manifest["error"]["message"]
    assert last["message"] == f"failed: {last['cause'].splitlines()[0]}"


def test_runs_that_go_on_at_once_keep_to_their_own_files(small_scenario: Scenario, tmp_path: Path) -> None:
    """Same run id, two folders: as two sweeps into different places have them."""
    folders = [tmp_path / place / "same" for place in ("here", "there")]
    for _ in zip(*(record_run(small_scenario, folder) for folder in folders), strict=True):
        pass
    for folder in folders:
        assert [event for event, _ in events(folder)].count("round") == 3
        assert events(folder)[-1][0] == "end"


def test_nobody_listens_any_more_when_a_run_has_ended(small_scenario: Scenario, tmp_path: Path) -> None:
    handlers = [*logging.getLogger(LOGGER).handlers]
    simulate(small_scenario, out=tmp_path)
    with closing(record_run(small_scenario, tmp_path / "run")) as records:
        next(records)
    assert logging.getLogger(LOGGER).handlers == handlers


def test_failures_are_warnings_before_their_round(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "small", {"": LearnedTask()})
    failure = Failure("training", (3, 4), 1, "died: gone", "repeated")
    log.round(RoundRecord(5, 0.1, (3, 4), (), (), {"loss": float("inf")}, (), failures=(failure,)))
    log.driver_lost(5, "died: gone")
    log.close()
    first, second, third = lines(tmp_path)
    assert (first["event"], first["level"], first["round"]) == ("failure", "warning", 5)
    assert {key: first[key] for key in ("phase", "clients", "actor", "cause", "action")} == {
        "phase": "training", "clients": [3, 4], "actor": 1, "cause": "died: gone", "action": "repeated",
    }  # fmt: skip
    assert (second["event"], second["metrics"]) == ("round", {"loss": None})
    assert (third["event"], third["phase"], third["round"]) == ("failure", "driver", 5)


@pytest.mark.parametrize(("left", "kept"), [("", 0), ('{"event": "st', 0), ('{"event": "start"}\n{"ev', 1)])
def test_half_a_line_is_taken_out_before_the_next_one(tmp_path: Path, left: str, kept: int) -> None:
    (tmp_path / LOG_FILE).write_text(left, encoding="utf-8")
    log = RunLog(tmp_path, "small", {"": LearnedTask()})
    log.checkpoint(4)
    log.checkpoint(5)
    log.close()
    assert events(tmp_path)[kept:] == [("checkpoint", 4), ("checkpoint", 5)]
    assert len(lines(tmp_path)) == kept + 2


def test_a_log_that_cannot_be_written_is_said_as_of_any_file(small_scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "run" / LOG_FILE).mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"log\.jsonl: Is a directory; expected a folder that can be written"):
        list(record_run(small_scenario, tmp_path / "run"))


def test_a_program_that_sets_logging_up_gets_the_same_as_text(
    small_scenario: Scenario, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = simulate(small_scenario, out=tmp_path)
    assert run.path is not None
    told = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert told[0] == f"{run.path.name}: begins"
    assert len(told) == len(lines(run.path))


def test_the_page_lists_every_event() -> None:
    page = (REPOSITORY / "docs" / "watching.md").read_text(encoding="utf-8").split("## The log")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    source = (REPOSITORY / "blossom_ray" / "runs" / "log.py").read_text(encoding="utf-8")
    assert listed == set(re.findall(r"self\.event\(\s*\"(\w+)\"", source))
