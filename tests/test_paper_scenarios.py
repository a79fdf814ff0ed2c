"""The paper's grid as scenario files: written by a script, current, and what the paper says."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY
from scipy import stats

from blossom_ray import Scenario, Sweep, compare, simulate, sweep
from blossom_ray.reading.overrides import parse_assignment
from blossom_ray.reading.scenario import inspect_scenario
from blossom_ray.runs.session import check_runnable

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

FOLDER = REPOSITORY / "scenarios" / "paper"
PATHS = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("write", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder as a module; like a script, it finds its neighbours."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


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


def test_the_tables_show_what_compare_finds(
    tmp_path: Path, small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = small_scenario.override({"rounds": 2, "evaluation.fine_tune": {"epochs": 1, "every": 2}})
    folder = tmp_path / "uci-har_iid_5-5-0"
    settings = {"sharing": ["full-model", "local"]}
    for _ in sweep(base, vary=settings, seeds=[0, 1], out=folder, jobs=1):
        pass
    monkeypatch.setattr("sys.argv", ["tables.py", str(tmp_path), "--seeds", "3"])
    imported("tables", monkeypatch).main()
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "5-5-0" in line]

    table = {
        (row["sharing"], row["scoring"]): row
        for row in compare(folder).table.to_dicts()
        if row["modalities"] == "all clients"
    }
    scores, gains_at_20, gains_at_60 = lines
    full, local = table["full-model", "plain"], table["local", "plain"]
    half = 50 * (full["last5_high"] - full["last5_low"])
    assert scores[:2] == ["iid 5-5-0", f"{100 * full['last5']:.1f} ± {half:.1f} (2 seeds)"]
    assert scores[2].startswith(f"{100 * table['full-model', 'fine-tuned']['final']:.1f} ± ")
    assert scores[3:5] == ["-", "-"], "not run"
    assert gains_at_20[1:2] + gains_at_60[1:2] == ["20", "60"]
    if local["gain_last5"] is None:
        assert gains_at_60[-1] == "-", "no percent of a baseline near chance"
    else:
        assert gains_at_60[-1].startswith(f"{local['gain_last5']:+.1f} ± ")
        assert gains_at_60[-1].endswith("(2 seeds)")


def test_the_tables_of_points_follow_from_the_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported("points", monkeypatch).main()
    lines = capsys.readouterr().out.splitlines()
    page = (REPOSITORY / "docs" / "results" / "paper-grid.md").read_text(encoding="utf-8")
    assert [line for line in lines if line.startswith("|") and line not in page] == [], "run scenarios/paper/points.py"
    assert lines[-1] == "82 differences: 55 of one sign, 25 with p below .05, 4 after Holm"
    # One of them by SciPy: the scores of three seeds as they stand in the file.
    judge = stats.ttest_rel([90.04, 88.50, 88.38], [55.14, 72.42, 65.60])
    low, high = judge.confidence_interval()
    (row,) = (line for line in lines if line.startswith("| av-mnist dirichlet 5-5-0 |") and "+26.3" in line)
    expected = [f"{(low + high) / 2:+.1f} ± {(high - low) / 2:.1f}", f"{judge.pvalue:.3f}".removeprefix("0")]
    assert row.split(" | ")[4:6] == expected


def test_the_list_of_cells_has_a_command_that_repeats_each(
    tmp_path: Path, small_uci_har: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Scenario.load(FOLDER / "uci-har_iid_5-5-0.yaml", {"data.path": str(small_uci_har), "rounds": 1})
    folder = tmp_path / "sweeps" / "any name"
    settings = {"sharing": ["full-model", "local"]}
    for _ in sweep(
        base.override({"model.fusion.kind": "concat", "execution.runtime": "local"}),
        vary=settings,
        seeds=[3],
        out=folder,
        jobs=1,
    ):
        pass
    monkeypatch.setattr("sys.argv", ["cells.py", str(folder.parent)])
    imported("cells", monkeypatch).main()
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))

    assert [(row["sharing"], row["seed"], row["rounds"], row["fusion"]) for row in rows] == [
        ("full-model", "3", "1", "concat"), ("local", "3", "1", "concat"),
    ]  # fmt: skip
    for row, run in zip(rows, Sweep.open(folder).runs.values(), strict=True):
        assert row["accuracy"] == f"{run.rounds['accuracy'][-1]:.4f}"
        assert row["fine_tuned"] == f"{run.rounds['fine_tuned/accuracy'][-1]:.4f}"
        words = row["command"].replace("PATH", str(small_uci_har)).split()
        assert words[:2] == ["blossom-ray", "simulate"]
        overrides = dict(parse_assignment(word) for word in words if "=" in word)
        assert words[-2] == "--seed"
        again = Scenario.load(REPOSITORY / words[2], overrides | {"seed": int(words[-1]), "execution.runtime": "local"})
        assert simulate(again).manifest["digest"]["shared"] == row["shared_digest"]


def test_a_cell_that_no_command_repeats_is_named(
    tmp_path: Path, small_uci_har: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"data.path": str(small_uci_har), "training.optimizer.lr": 0.5}
    with pytest.raises(SystemExit, match=r"differs from uci-har_iid_5-5-0\.yaml in more than rounds"):
        imported("cells", monkeypatch).command(Scenario.load(FOLDER / "uci-har_iid_5-5-0.yaml", changed))
