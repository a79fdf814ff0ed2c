"""The paper's grid as scenario files: written by a script, current, and what the paper says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, simulate
from blossom_ray.api import check_runnable
from blossom_ray.scenario.reader import inspect_scenario

FOLDER = REPOSITORY / "scenarios" / "paper"
PATHS = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_write", FOLDER / "write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_that_the_script_writes(script: ModuleType) -> None:
    written = dict(script.files())
    assert set(written) == set(PATHS)
    assert {path: path.read_text(encoding="utf-8") for path in PATHS} == written, "run python scenarios/paper/write.py"
    assert len(PATHS) == 6 * len(script.BASES)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_settings_are_those_of_the_paper(path: Path) -> None:
    # The sections alone: the data are not at hand everywhere.
    found = inspect_scenario(path).sections
    dataset, partition, case = path.stem.split("_")
    first, second, both = map(int, case.split("-"))
    assert (found["name"], found["data"].dataset, found["rounds"]) == (path.stem, dataset, 60)
    assert (found["data"].partition.kind, found["data"].test_fraction) == (partition, 0.3)
    assert (found["training"].local_epochs, found["training"].batch_size) == (1, 16)
    alone, other = sorted(found["model"].encoders)
    groups = ((first, (alone,)), (second, (other,)), (both, (alone, other)))
    assert [(group.count, group.modalities) for group in found["clients"]] == [group for group in groups if group[0]]
    assert found["execution"].model_fields_set == set(), "a sweep places the cells"


@pytest.mark.data
@pytest.mark.parametrize(
    "path", [path for path in PATHS if path.stem.startswith("uci-har")], ids=lambda path: path.stem
)
def test_uci_har_can_be_divided_under_five_seeds_and_runs(path: Path, uci_har_zip: Path, small_uci_har: Path) -> None:
    for seed in range(5):
        check_runnable(Scenario.load(path, {"data.path": str(uci_har_zip), "seed": seed}))
    tiny = {"data.path": str(small_uci_har), "rounds": 1, "execution.runtime": "local", "evaluation.fine_tune.every": 1}
    if "dirichlet" in path.stem:
        tiny["data.partition.alpha"] = 10.0
    run = simulate(Scenario.load(path, tiny))
    assert run.status == "finished"
    assert "fine_tuned/accuracy" in run.rounds.columns
