"""The page on the paper's claim: its numbers are those of the data file, whose lines say how each run is repeated."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY
from scipy import stats
from test_paper_scenarios import FOLDER, imported

from blossom_ray import Run, Scenario, Sweep, simulate
from blossom_ray.core.section import plain_tree
from blossom_ray.reading.overrides import parse_assignment
from blossom_ray.reading.scenario import inspect_scenario

pytestmark = pytest.mark.usefixtures("warm_processes")

LINES = REPOSITORY / "docs" / "results" / "claim.csv"
PAGES = (REPOSITORY / "docs" / "results" / "claim.md", REPOSITORY / "README.md")


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("claim", monkeypatch)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with LINES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of_sweep(rows: list[dict[str, str]], sweep: str) -> list[dict[str, str]]:
    found = sorted((row for row in rows if row["sweep"] == sweep), key=lambda row: row["seed"])
    assert [row["seed"] for row in found] == list("01234")
    return found


def test_tables_are_those_of_the_data_file(claim: ModuleType) -> None:
    lines = claim.Lines(LINES)
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert "<!-- table: " in text
        assert claim.filled(text, lines) == text, "run python scenarios/paper/claim.py"


def test_figures_are_those_that_the_page_shows(claim: ModuleType) -> None:
    names = [name for name, _ in claim.figures(claim.Lines(LINES), claim.MAPPED)]
    page = PAGES[0].read_text(encoding="utf-8")
    assert sorted(f"claim/{name}.svg" for name in names) == sorted(
        word.rpartition("(")[2] for word in page.split(")") if word.endswith(".svg")
    )
    assert {path.stem for path in (LINES.parent / "claim").iterdir()} == set(names)


def test_differences_are_those_of_scipy(claim: ModuleType, rows: list[dict[str, str]]) -> None:
    of_full, of_phf = (
        of_sweep(rows, f"grid/av-mnist_dirichlet_5-5-0_{scheme}_same-modalities")
        for scheme in ("full-model", "private-head-fusion")
    )
    found = claim.Lines(LINES).primary()
    for measure in claim.MEASURES:
        for base, start in (("FM", ""), (claim.TUNED, "fine_tuned/")):
            judge = stats.ttest_rel(
                [100 * float(row[measure]) for row in of_phf], [100 * float(row[start + measure]) for row in of_full]
            )
            low, high = judge.confidence_interval()
            (each,) = (
                one for one in found if one[:4] == ("av-mnist", "dirichlet_5-5-0", measure, base)
            )  # fmt: skip
            assert sum(each.values) / 5 == pytest.approx((low + high) / 2)
            assert claim.with_interval(each.values).endswith(f" ± {(high - low) / 2:.1f}")
            assert each.p == pytest.approx(judge.pvalue)
            assert each.p <= each.adjusted <= min(1.0, each.p * len(found)) + 1e-12


def test_who_loses_is_counted_client_by_client(claim: ModuleType, rows: list[dict[str, str]]) -> None:
    of_full, of_local = (
        [json.loads(row["clients"]) for row in of_sweep(rows, f"grid/av-mnist_dirichlet_5-5-0_{name}")]
        for name in ("full-model_same-modalities", "local_shared")
    )
    lines, arm = claim.Lines(LINES), claim.Arm("grid", "av-mnist", "dirichlet_5-5-0", "FM")
    for scheme, place in (("FM", 0), (claim.TUNED, 2)):
        for measure, score in enumerate(claim.MEASURES):
            counts = [
                sum(own[client][place + measure] < alone[client][measure] for client in own)
                for own, alone in zip(of_full, of_local, strict=True)
            ]
            assert lines.losers(arm._replace(scheme=scheme), score) == [10.0 * count for count in counts]


def test_a_clients_scores_make_up_those_of_the_run(rows: list[dict[str, str]]) -> None:
    for row in rows:
        scores = [float(row[name]) for name in ("accuracy", "fine_tuned/accuracy") if row[name]]
        clients = json.loads(row["clients"]).values()
        for place, score in enumerate(scores):
            total = sum(values[2 * place] * values[-1] for values in clients)
            assert total / sum(values[-1] for values in clients) == pytest.approx(score, abs=2e-5), row["command"]


def test_each_line_has_a_command_that_repeats_it(rows: list[dict[str, str]]) -> None:
    """Of one seed of each sweep and rate: what the command sets is what the line says of itself."""
    told: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        told.setdefault((row["sweep"], row["lr"], row["fine_tune_lr"]), row)
    for row in told.values():
        words = shlex.split(row["command"])
        assert words[:2] == ["blossom-ray", "simulate"]
        overrides = dict(parse_assignment(word) for word in words if "=" in word)
        file = REPOSITORY / "scenarios" / f"{words[2]}.yaml"
        found = inspect_scenario(file, overrides | {"seed": int(words[-1])}).sections
        assert (found["seed"], found["training"].optimizer.lr) == (int(row["seed"]), float(row["lr"]))
        assert (found["model"].norm_statistics, found["model"].fusion.kind) == (row["statistics"], row["fusion"])
        assert row["sweep"].startswith("blocks/") or found["sharing"] == row["sharing"]


@pytest.mark.slow
def test_the_program_tunes_on_validation_and_reports_what_it_ran(
    tmp_path: Path, small_uci_har: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = imported("grid", monkeypatch)
    small = {
        "rounds": 2,
        "data.partition.alpha": 10.0,
        "model.encoders": {name: {"kind": "mlp"} for name in ("acc", "gyro")},
    }
    case = "uci-har_dirichlet_3-3-4"
    scenario = Scenario.load(FOLDER / f"{case}.yaml", {**small, "data.path": str(small_uci_har)})
    (tmp_path / f"{case}.yaml").write_text(json.dumps(plain_tree(scenario, defaults=False)), encoding="utf-8")
    less: dict[str, Any] = {
        "HERE": tmp_path, "DATA": {"uci-har": small_uci_har.name}, "FACTORS": {"uci-har": (1e-6, 1, 1e30)},
        "FINE_TUNE_FACTORS": (1, 1e-9), "SEEDS": (7,), "TUNING_SEEDS": {"uci-har": (100,)},
        "SCHEMES": ("full-model", "local"), "CASES": ("dirichlet_3-3-4",), "MAPPED": (), "RUNNING_STATISTICS": (),
    }  # fmt: skip
    for name, value in less.items():
        monkeypatch.setattr(grid, name, value)
    sweeps = tmp_path / "sweeps"
    ended = grid.Ended(sweeps)
    assert [name for name, _ in grid.plans(ended)] == ["tune/uci-har_full-model_shared", "tune/uci-har_local_shared"]
    grid.run_all(small_uci_har.parent, ended, ("tune/", "grid/"), 1)

    tuned = Sweep.open(sweeps / "tune/uci-har_full-model_shared")
    by_rate = {cell.setting["training.optimizer.lr"]: Run.open(tuned.path / cell.folder) for cell in tuned.cells}
    assert [run.status for run in by_rate.values()] == ["finished", "finished", "failed"]
    scores = {
        rate: run.rounds["validation/accuracy"][1:].mean() for rate, run in by_rate.items() if run.status != "failed"
    }
    assert grid.Ended(sweeps).rate(*next(grid.plans(ended))) == max(scores, key=scores.__getitem__)
    finished = [run for run in by_rate.values() if run.status == "finished"]
    assert all(run.rounds["accuracy"].drop_nulls().len() == 1 for run in finished), "nothing is chosen by test splits"

    reported = {name: plan for name, plan in grid.plans(ended) if name.startswith("grid/")}
    assert [name.rpartition("3-3-4_")[2] for name in reported] == ["full-model_shared", "local_shared"]
    (full,), (local,) = (list(ended.lines(name, plan).values()) for name, plan in reported.items())
    (run,) = Sweep.open(sweeps / min(reported)).runs.values()
    tail = run.rounds[1:]
    assert full["accuracy"] == f"{tail['accuracy'].mean():.5f}"
    assert full["fine_tuned/macro_f1_present"] == f"{tail['fine_tuned/macro_f1_present'].mean():.5f}"
    assert full["bytes"] == run.rounds["bytes_down"].sum() + run.rounds["bytes_up"].sum()
    assert local["fine_tuned/accuracy"] == ""
    assert len(json.loads(str(full["clients"]))) == 10
    words = shlex.split(str(full["command"]))
    overrides = dict(parse_assignment(word) for word in words if "=" in word) | {"data.path": str(small_uci_har)}
    again = Scenario.load(tmp_path / f"{case}.yaml", overrides | {"seed": 7, "execution.runtime": "local"})
    assert simulate(again).manifest["digest"]["shared"][:16] == full["shared_digest"]
    written = {path: path.stat().st_mtime_ns for path in sweeps.rglob("manifest.json")}
    grid.run_all(small_uci_har.parent, ended, ("tune/", "grid/"), 1)
    assert {path: path.stat().st_mtime_ns for path in sweeps.rglob("manifest.json")} == written, "nothing is run twice"

    def told(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["grid.py", *map(str, arguments)])
        capsys.readouterr()
        grid.main()
        return capsys.readouterr().out.splitlines()

    def cells(*names: str) -> list[str]:
        run = told("run", small_uci_har.parent, elsewhere, "--only", *names, "--known", known)
        return [line.split(maxsplit=1)[1].rstrip() for line in run if line[:2].isdigit()]

    known, elsewhere = tmp_path / "known.csv", tmp_path / "elsewhere"
    lines = told("lines", sweeps)
    failed = [line for line in lines if ",5e+28," in line]
    assert len(failed) == 2
    known.write_text("\n".join(lines), encoding="utf-8")
    assert not cells("tune/", "grid/"), "what has a line is not run again on another machine"
    known.write_text("\n".join(line for line in lines if line not in failed), encoding="utf-8")
    (again,) = cells("tune/uci-har_local")
    assert again.startswith("tune/uci-har_local_shared lr=5e+28,seed=100 client ")
    (repeated,) = cells("grid/uci-har_dirichlet_3-3-4_local", "--again", "--seeds", "7")
    assert repeated == "grid/uci-har_dirichlet_3-3-4_local_shared seed=7", "though it has a line"
