"""A report on runs whose values were chosen on validation."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from pages import ReportPage

from blossom_ray import Run, Scenario, report
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import RoundRecord

FEDERATION = {"data": {"fingerprint": "f", "partition": "p"}}
# Validation and test score by scheme and rate: the best test score is not that of the best validation score.
SCORES = {
    ("full-model", 0.1): (0.6, 0.5), ("full-model", 0.01): (0.4, 0.9),
    ("local", 0.1): (0.3, 0.8), ("local", 0.01): (0.5, 0.7),
}  # fmt: skip


def test_the_page_is_about_what_was_chosen(tiny: Scenario, tmp_path: Path) -> None:
    runs = []
    for ((scheme, rate), (validation, test)), seed in product(SCORES.items(), (0, 1)):
        changes = {"sharing": scheme, "training.optimizer.lr": rate, "seed": seed, "rounds": 2}
        evaluation = (ClientEvaluation(0, 1, 0.0, {"accuracy": test}, 0, 0.0),)
        metrics = {"accuracy": test, "loss": 1.0, "validation/accuracy": validation, "validation/loss": 1.0}
        records = [RoundRecord(index, 0.1, (), (), evaluation, metrics, ()) for index in range(3)]
        scenario = tiny.override(changes)
        run = Run.from_records(records, scenario, tuple(scenario.profiles()), FEDERATION)
        run.path = tmp_path / f"{scheme}-{rate}-{seed}"  # by which runs are told apart
        runs.append(run)
    for run in runs:
        run.check = lambda: None  # type: ignore[method-assign] # there are no files
    page = ReportPage(
        report(runs, out=tmp_path / "page.html", choose="accuracy", tune=["lr"])[0].read_text(encoding="utf-8")
    )
    (chosen,) = page.sections["Chosen on validation"].tables
    assert chosen.header == ["sharing", "lr", "validation", "values", "runs", "rounds"]
    assert [row[:2] for row in chosen.rows] == [["full-model", "0.1"], ["local", "0.01"]]
    assert [row[2].split()[0] for row in chosen.rows] == ["60.0", "50.0"]
    assert page.sections["Chosen on validation"].notes[0].startswith("chosen by validation/accuracy in %")
    compared = page.sections["Comparison"].tables[0]
    assert [(row[0], row[1].split()[0]) for row in compared.rows] == [("full-model", "50.0"), ("local", "70.0")]
    scores = page.sections["Scores over rounds"].tables[0]
    assert [(row[0], row[1].split()[0]) for row in scores.rows] == [
        ("full-model", "50.0"), ("full-model, validation split", "60.0"),
        ("local", "70.0"), ("local, validation split", "50.0"),
    ]  # fmt: skip
