"""Run folders of before are read, compared, reported and gone on with.

`data_of_old` was written by commit 2198f8d, from its `old.yaml`: `simulate old.yaml`, and
`sweep old.yaml --vary sharing=full-model,private-head --seeds 1 --set checkpoint.every=0`. `expected.json` beside them
has what that commit read, compared, and computed for four rounds.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command

from blossom_ray import Run, compare, report

FOLDER = Path(__file__).parent / "data_of_old"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def test_a_run_of_before_is_read() -> None:
    run = Run.open(FOLDER / "run")
    assert run.status == "finished"
    assert run.manifest["digest"] == EXPECTED["run"]["digest"]
    for name in ("train_loss", "loss"):
        assert run.rounds[name].to_list() == EXPECTED["run"][name]
    assert (run.clients.height, run.failures.height) == (6, 0)


def test_a_model_of_a_run_of_before_is_taken_away() -> None:
    model = Run.open(FOLDER / "run").model(0)
    assert model({"acc": torch.zeros(2, *model.description["input_shapes"]["acc"])}).shape == (2, 3)


def test_a_sweep_of_before_is_compared() -> None:
    rows = compare(FOLDER / "sweep").table.to_dicts()
    assert [{key: row[key] for key in EXPECTED["compare"][0]} for row in rows] == EXPECTED["compare"]


def test_a_report_shows_a_run_and_a_sweep_of_before(tmp_path: Path) -> None:
    for name in ("run", "sweep"):
        (page,) = report(FOLDER / name, out=tmp_path / f"{name}.html")
        assert "private-head" in page.read_text(encoding="utf-8")


def test_a_run_of_before_goes_on(command: Command, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "run", tmp_path / "copy")
    ended = command("resume", "copy", "--set", "rounds=4")
    assert ended.exit_code == 0, ended.err
    run, expected = Run.open(tmp_path / "copy"), EXPECTED["four rounds"]
    assert run.rounds["round"].to_list() == [0, 1, 2, 3, 4]
    # It goes on after round 1; kernels of other processors round otherwise.
    for name in ("train_loss", "loss"):
        assert run.rounds[name].to_list()[:2] == EXPECTED["run"][name][:2]
        assert run.rounds[name].to_list()[2:] == pytest.approx(expected[name][2:], rel=1e-4)
