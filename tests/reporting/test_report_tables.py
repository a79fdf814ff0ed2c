"""A sweep's page: its tables are those of the console, with the numbers of `compare` and of the runs' tables."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from pages import PageTable, ReportPage
from rich.console import Console

from blossom_ray import Run, Scenario, compare, report, simulate
from blossom_ray.data.division.federation import build_federation
from blossom_ray.studies.comparison import panels

pytestmark = pytest.mark.slow

SCHEMES = ("full-model", "private-head")
RULES = ("mask", "zero-embedding")
NOTES = {"full-model": "averaged <b>over</b> sets", "private-head": ""}


@pytest.fixture(scope="module")
def folder(tiny: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two schemes, two rules, two seeds: plain scores after rounds 1 to 4, after fine-tuning 2 and 4, held-out 4."""
    made = tmp_path_factory.mktemp("runs")
    base = tiny.override({"rounds": 4, "evaluation.fine_tune": {"every": 2}, "data.held_out_samples": 30})
    for rule, scheme, seed in product(RULES, SCHEMES, (0, 1)):
        run = simulate(base.override({"model.missing": rule, "sharing": scheme, "seed": seed}), out=made / f"{seed}")
        assert isinstance(run, Run)
        assert run.path is not None
        path = run.path / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["notes"] = [NOTES[scheme]] if NOTES[scheme] else []
        path.write_text(json.dumps(manifest), encoding="utf-8")
        run.path.rename(made / f"{rule}-{scheme}-{seed}")
    return made


def folders(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("*/manifest.json"))]


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return report(*folders(folder), out=folder / "page.html")[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> ReportPage:
    return ReportPage(source)


def runs_of(folder: Path, scheme: str, rule: str) -> list[Run]:
    runs = [Run.open(path) for path in folders(folder)]
    return [run for run in runs if (run.scenario.sharing, run.scenario.model.missing) == (scheme, rule)]


def unfolded(page: ReportPage, section: str) -> list[PageTable]:
    return [table for table in page.sections[section].tables if not table.is_folded]


def console_lines(folder: Path) -> Iterator[str]:
    console = Console(file=io.StringIO(), width=160, no_color=True)
    console.print(panels.terminal(compare(*folders(folder)), "last5", 160))
    yield from console.file.getvalue().splitlines()


def test_tables_and_rows_are_those_of_the_console(folder: Path, page: ReportPage) -> None:
    tables = unfolded(page, "Comparison")
    shown = [line.strip() for line in console_lines(folder)]
    assert [table.title for table in tables] == [f"missing {rule}" for rule in RULES]
    assert [line for line in shown if line.startswith("missing ")] == [table.title for table in tables]
    names = [[row[0].strip() for row in table.rows] for table in tables]
    assert names[0] == ["full-model [1]", "a", "a+b", "full-model, fine-tuned [1]", "a", "a+b",
                        "private-head", "a", "a+b", "private-head, fine-tuned", "a", "a+b"]  # fmt: skip
    of_console, is_scores = [], False
    for line in shown:
        if line.startswith("sharing "):
            is_scores = "last 5" in line  # else the table of what the runs took
        elif is_scores and line.split("  ")[0] in names[0]:
            of_console.append(line.split("  ")[0])
    assert of_console == [name for table in names for name in table]


def test_scores_come_first_and_parameters_are_no_columns(page: ReportPage) -> None:
    for section in ("Comparison", "Comparison on the held-out set"):
        for table in unfolded(page, section):
            assert table.header[:3] == ["sharing", "final", "last 5"]
            # Means over the clients of the held-out set do not exist.
            assert ("unweighted" in table.header) == (section == "Comparison")
            # The number of seeds is told once where it is the same everywhere.
            assert table.header[-6:] == ["gain %", "rounds", "samples", "steps", "down", "up"]
            # What a run took stands in the row of its setting alone.
            assert {len(row) for row in table.rows} == {len(table.header) - 4, len(table.header)}
    assert {table.header[1] for table in page.sections["Scores over rounds"].tables} == {"accuracy"}


def test_numbers_are_those_of_compare(folder: Path, page: ReportPage) -> None:
    found = compare(*folders(folder)).table.to_dicts()
    cells = [dict(zip(table.header, row, strict=False)) for table in unfolded(page, "Comparison") for row in table.rows]
    ordered = [row for rule in RULES for row in found if row["model.missing"] == rule]
    for row, cell in zip(ordered, cells, strict=True):
        for name, heading in (("final", "final"), ("last5", "last 5")):
            assert cell[heading].split()[0] == f"{100 * row[name]:.1f}"
            half = 100 * (row[f"{name}_high"] - row[name])
            assert f"± {half:.1f}" in cell[heading] or f"{100 * row[f'{name}_high']:.1f}]" in cell[heading]
        if row["points_last5"] is not None:
            assert cell["points"].split()[0] == f"{row['points_last5']:+.1f}"
        # Fine-tuned scores say which rounds they are from.
        assert cell["rounds"] == row["last5_rounds"] == ("1 to 4" if row["scoring"] == "plain" else "2, 4")


def test_single_runs_can_be_opened(folder: Path, page: ReportPage) -> None:
    folded = [table for table in page.sections["Comparison"].tables if table.is_folded]
    assert [table.title for table in folded] == [f"missing {rule}, single runs" for rule in RULES]
    for table, rule in zip(folded, RULES, strict=True):
        rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
        assert len(rows) == 8  # two schemes, two seeds, plain and fine-tuned
        for scheme, seed in product(SCHEMES, (0, 1)):
            (run,) = (run for run in runs_of(folder, scheme, rule) if run.scenario.seed == seed)
            for name, column in (("", "accuracy"), (", fine-tuned", "fine_tuned/accuracy")):
                row = rows[f"{scheme}{name}, seed {seed}"]
                assert row["final"] == f"{100 * run.final[column]:.1f}"
                assert run.path is not None
                assert row["folder"] == run.path.name


def test_every_kind_of_scoring_has_rows_of_its_own_with_their_round(folder: Path, page: ReportPage) -> None:
    tables = page.sections["Scores over rounds"].tables
    assert [(table.title, table.is_folded) for table in tables] == [
        (f"missing {rule}, last scored round", True) for rule in RULES
    ]
    for table, rule in zip(tables, RULES, strict=True):
        for scheme in SCHEMES:
            (start,) = (i for i, row in enumerate(table.rows) if row[0].split(" [")[0] == scheme)
            own, tuned, held_out = (table.rows[start + place] for place in (0, 3, 6))
            mark = " [1]" if NOTES[scheme] else ""
            assert [own[0], tuned[0]] == [f"{scheme}{mark}", f"{scheme}, after fine-tuning{mark}"]
            assert held_out == [f"{scheme}, held-out set{mark}"]
            for row, column in (
                (own, "accuracy"), (tuned, "fine_tuned/accuracy"), (table.rows[start + 8], "held_out/accuracy/a+b"),
            ):  # fmt: skip
                values = [run.final[column] for run in runs_of(folder, scheme, rule)]
                assert row[1].split()[0] == f"{100 * fmean(values):.1f}"
                assert row[-1] == "4"


def test_the_held_out_set_has_a_comparison_of_its_own(folder: Path, page: ReportPage) -> None:
    section = page.sections["Comparison on the held-out set"]
    found = compare(*folders(folder), metric="held_out/accuracy").table.to_dicts()
    shown = [row for table in unfolded(page, section.title) for row in table.rows if row[1]]
    ordered = [row for rule in RULES for row in found if row["model.missing"] == rule]
    assert [row[1].split()[0] for row in shown] == [f"{100 * row['final']:.1f}" for row in ordered]
    assert [row[0].strip() for row in shown] == [row["modalities"] for row in ordered]
    # Its notes do not say again what the first comparison says.
    assert not set(section.notes) & set(page.sections["Comparison"].notes)


def test_notes_of_runs_stand_once_and_rows_lead_to_them(page: ReportPage) -> None:
    notes = [note for section in page.sections.values() for note in section.notes if "averaged" in note]
    assert notes == [
        "[1] mask, full-model (2 of 2 runs), zero-embedding, full-model (2 of 2 runs): averaged <b>over</b> sets"
    ]
    assert "b" not in page.tags


def test_the_federation_is_told_with_its_figures(folder: Path, page: ReportPage) -> None:
    (text,) = page.sections["Federation"].text
    counts = []
    for run in runs_of(folder, "full-model", "mask"):
        scenario = run.scenario
        targets = scenario.data.open(scenario.modalities, scenario.seed, scenario.task).targets()
        federation = build_federation(scenario.data, targets, scenario.num_clients, scenario.seed)
        assert len(np.unique(np.concatenate([federation.train.flat, federation.test.flat]))) == 200
        counts.append((int(federation.train.counts.sum()), int(federation.test.counts.sum())))
    ((train, test),) = set(counts)
    assert f"Samples: {train} to train on, {test} to test on and 30 held out from all clients." in text
    assert "4 clients: 2 with a, 2 with a+b." in text
    assert text.startswith("synthetic: classification, 2 classes.")
    assert "Partition: iid; split by sample." in text
    assert "A missing modality: mask or zero-embedding." in text
    assert text.endswith("4 rounds with all clients in each.")


def test_curves_are_one_per_setting_in_the_panels_of_the_tables(source: str) -> None:
    figure = source[source.index('aria-label="accuracy after each scored round') :].partition("</svg>")[0]
    for text in (*(f"missing {rule}" for rule in RULES), *SCHEMES):
        assert figure.count(f">{text}</text>") == 1
    assert "seed" not in figure.partition("viewBox")[2]


def test_a_single_run_has_its_notes_and_no_comparison(folder: Path, tmp_path: Path) -> None:
    run = runs_of(folder, "full-model", "mask")[0]
    page = ReportPage(report(run, out=tmp_path / "page.html")[0].read_text(encoding="utf-8"))
    assert "Comparison" not in page.sections
    assert page.sections["Notes"].notes == [NOTES["full-model"]]
    (table,) = page.sections["Scores over rounds"].tables
    assert [row[0] for row in table.rows][::3] == ["all clients", "after fine-tuning", "held-out set"]
    assert table.column("accuracy")[0] == f"{100 * run.final['accuracy']:.1f} %"


def test_runs_in_progress_have_curves_and_their_notes(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s"
    shutil.copytree(folder, copy)
    path = runs_of(copy, "private-head", "mask")[0].path
    assert path is not None
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    changed = {**manifest, "status": "interrupted", "notes": ["goes on"]}
    (path / "manifest.json").write_text(json.dumps(changed), encoding="utf-8")
    page = ReportPage(report(*folders(copy), out=tmp_path / "page.html")[0].read_text(encoding="utf-8"))
    assert page.sections["Notes"].notes == ["[2] missing mask, private-head (1 of 2 runs): goes on"]
    names = [row[0] for table in page.sections["Scores over rounds"].tables for row in table.rows]
    assert "private-head [2]" in names
    folded = next(table for table in page.sections["Comparison"].tables if table.is_folded)
    assert len(folded.rows) == 6
    # Now that the settings differ in it.
    assert unfolded(page, "Comparison")[0].column("seeds")[::3] == ["2", "2", "1", "1"]


def test_recall_of_settings_stands_side_by_side_and_few_show_their_confusion(folder: Path, tmp_path: Path) -> None:
    runs = [run for scheme in SCHEMES for run in runs_of(folder, scheme, "mask")]
    page = ReportPage(report(*runs, out=tmp_path / "page.html")[0].read_text(encoding="utf-8"))
    recall, *matrices = page.sections["Classes"].tables
    assert recall.header == ["class", *SCHEMES]
    for place, scheme in enumerate(SCHEMES, 1):
        of_seeds = [confusion_of(run, "test") for run in runs_of(folder, scheme, "mask")]
        for number, row in enumerate(recall.rows):
            assert row[place].split()[0] == f"{fmean(100 * m[number, number] / m[number].sum() for m in of_seeds):.1f}"
    own = {table.title: table for table in matrices}
    assert {table.is_folded for table in matrices} == {True}
    words = {"test": "the clients' test splits", "fine_tuned": "the same after fine-tuning"}
    for scheme, scoring in product(SCHEMES, words):
        table = own[f"{scheme}, {words[scoring]}"]
        expected = sum(confusion_of(run, scoring) for run in runs_of(folder, scheme, "mask"))
        assert table.header[:6] == ["class", "recall", "precision", "F1", "samples", f"as {table.rows[0][0]}"]
        for number, row in enumerate(table.rows):
            true, predicted, correct = expected[number].sum(), expected[:, number].sum(), expected[number, number]
            scores = [percent(correct, true), percent(correct, predicted), percent(2 * correct, true + predicted)]
            assert row[1:5] == [*scores, str(true)]
            assert row[5:] == [f"{n} ({100 * n / true:.0f} %)" if n else "0" for n in expected[number]]
    assert "full-model, the held-out set, clients with a+b" in own


def confusion_of(run: Run, scoring: str) -> np.ndarray:
    counts = np.zeros((2, 2), np.int64)
    for place in run.confusion.filter(scoring=scoring, round=4).select("label", "predicted", "count").rows():
        counts[place[:2]] += place[2]
    return counts


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def test_old_manifests_leave_out_what_they_do_not_say(tiny: Scenario) -> None:
    from blossom_ray.studies.reports.federation import federation_section

    run = simulate(tiny)
    assert isinstance(run, Run)
    old = Run(None, {**run.manifest, "data": {"num_train": 5}}, lambda name: getattr(run, name), run.scenario)
    (text,) = federation_section([old]).text
    assert text.startswith("synthetic: classification. Samples: 5 to train on. 4 clients: 2 with a, 2 with a+b.")
