"""The figure that grows with a run, as a notebook gets it and outside of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

from blossom_ray import Scenario, live_figure, simulate
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import RoundRecord
from blossom_ray.errors import InputError
from blossom_ray.reading.writer import scenario_yaml

pytestmark = pytest.mark.slow


def record(index: int, **metrics: float) -> RoundRecord:
    """A round that was scored where it has metrics."""
    evaluation = (ClientEvaluation(0, 1, 0.1, {}, 0, 0.0),) if metrics else ()
    return RoundRecord(index, 0.1, (), (), evaluation, metrics, ())


def scored(index: int, value: float) -> RoundRecord:
    metrics = {"loss": 1.0, "loss/acc": 1.0, "accuracy": value, "accuracy/acc": value / 2, "macro_f1_all": 0.5}
    return record(index, **metrics)


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    (axis,) = figure.axes
    return {str(line.get_label()): [tuple(point) for point in line.get_xydata()] for line in axis.get_lines()}


def test_the_figure_by_hand() -> None:
    figures: list[Figure] = []
    records = [scored(0, 0.25), record(1), scored(2, 0.5)]
    assert list(live_figure(records, every_s=0, show=figures.append)) == records
    assert [figure.axes[0].get_title(loc="left") for figure in figures] == ["round 0: 0.25", "round 2: 0.5"]
    assert lines(figures[-1]) == {"all clients": [(0, 0.25), (2, 0.5)], "acc": [(0, 0.125), (2, 0.25)]}
    assert figures[-1].axes[0].get_ylabel() == "accuracy"


def test_rounds_between_two_drawings_are_drawn_at_the_end() -> None:
    figures: list[Figure] = []
    for _ in live_figure([scored(index, 0.5) for index in range(5)], every_s=3600, show=figures.append):
        pass
    first, last = figures
    assert len(lines(first)["acc"]) == 1
    assert len(lines(last)["acc"]) == 5


def test_another_score_and_one_that_there_is_not() -> None:
    figures: list[Figure] = []
    list(live_figure([scored(0, 0.25)], score="macro_f1_all", show=figures.append))
    assert lines(figures[0]) == {"all clients": [(0, 0.5)]}
    with pytest.raises(InputError, match="score is 'f1'; expected one of loss, accuracy, macro_f1_all"):
        list(live_figure([scored(0, 0.25)], score="f1", show=figures.append))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_every_task_has_its_own_score(small_scenario: Scenario, task: str) -> None:
    figures: list[Figure] = []
    records = simulate(small_scenario.override({"task": task, "rounds": 1}), stream=True)
    seen = list(live_figure(records, show=figures.append, every_s=0))
    name = {"multilabel": "macro_auroc", "regression": "rmse"}[task]
    assert figures[-1].axes[0].get_ylabel() == name
    assert lines(figures[-1])["all clients"][-1] == (1, seen[-1].metrics[name])


def test_closing_it_ends_the_run() -> None:
    ended: list[bool] = []

    def rounds() -> Iterator[RoundRecord]:
        try:
            yield from (scored(index, 0.5) for index in range(100))
        finally:
            ended.append(True)

    figures: list[Figure] = []
    wrapped = live_figure(rounds(), every_s=3600, show=figures.append)
    next(wrapped)
    next(wrapped)
    wrapped.close()
    assert ended == [True]
    assert len(lines(figures[-1])["acc"]) == 2


def test_outside_of_a_notebook_records_just_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    records = [scored(0, 0.25), record(1)]
    assert list(live_figure(records)) == records
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    assert list(live_figure(records)) == records


def test_in_a_notebook_one_output_is_redrawn_in_its_place(small_scenario: Scenario, tmp_path: Path) -> None:
    """A real kernel: the cell has one picture, of the last round."""
    (tmp_path / "small.yaml").write_text(scenario_yaml(small_scenario), encoding="utf-8")
    code = (
        "from blossom_ray import Scenario, live_figure, simulate\n"
        "records = simulate(Scenario.load('small.yaml'), stream=True)\n"
        "print([record.round_index for record in live_figure(records, every_s=0)])"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[dict[str, Any]] = json.loads(json.dumps(notebook.cells[0].outputs))
    pictures = [output for output in outputs if output["output_type"] == "display_data"]
    assert len(pictures) == 1
    assert pictures[0]["data"]["image/png"].startswith("iVBORw0KGgo")
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    assert printed == ["[0, 1, 2]\n"]
