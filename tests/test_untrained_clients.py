"""Clients that never trained: how often each of them did, scores without them, and what a run says of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from blossom_ray import Run, Scenario, compare, simulate
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.tasks.summary import trained_summary

TEN: dict[str, Any] = {
    "clients": [{"count": 5, "modalities": ["acc"]}, {"count": 5, "modalities": ["acc", "gyro"]}],
    "data.samples": 200,
    "rounds": 6,
    "server.clients_per_round": 2,
}


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Run:
    """Two of ten clients a round, six rounds, private heads and fusions: some of them never train."""
    from conftest import SMALL

    scenario = Scenario.model_validate(SMALL).override({**TEN, "evaluation.fine_tune": {"epochs": 1}})
    return simulate(scenario.override({"sharing": "private-head-fusion"}))


def untrained_notes(run: Run) -> list[str]:
    return [note for note in run.manifest["notes"] if "never trained" in note]


def test_rounds_trained_counts_the_rounds_of_each_client(run: Run) -> None:
    times = dict.fromkeys(range(10), 0)
    for number in range(7):
        rows = run.clients.filter(round=number).to_dicts()
        for row in rows:
            times[row["client"]] += row["num_steps"] is not None
        assert {row["client"]: row["rounds_trained"] for row in rows} == times
    assert sum(times.values()) == 12
    assert 0 in times.values()


def test_scores_without_those_that_never_trained_by_hand(run: Run) -> None:
    """Recomputed from the table of clients, in NumPy."""
    rounds = run.rounds
    assert rounds["accuracy_trained"].is_null().to_list() == [True, *[False] * 6]
    for row in rounds.filter(pl.col("round") > 0).to_dicts():
        clients = run.clients.filter(pl.col("round") == row["round"], pl.col("rounds_trained") > 0)
        assert clients.height < 10
        sets: list[tuple[str, pl.DataFrame]] = [("", clients)]
        sets += [(f"/{name}", clients.filter(modalities=name)) for name in ("acc", "acc+gyro")]
        for end, members in sets:
            for score in ("loss", "accuracy", "balanced_accuracy", "macro_f1_present", "macro_f1_all"):
                found = row[f"{score}_trained{end}"]
                if members.is_empty():
                    assert found is None
                    continue
                weights = members["num_test_examples"].to_numpy()
                assert found == pytest.approx(np.average(members[score].to_numpy(), weights=weights), abs=1e-12)
    last = run.clients.filter(pl.col("round") == 6, pl.col("rounds_trained") > 0)
    tuned = np.average(last["fine_tuned/accuracy"].to_numpy(), weights=last["num_test_examples"].to_numpy())
    assert run.final["fine_tuned/accuracy_trained"] == pytest.approx(tuned, abs=1e-12)
    assert run.final["accuracy_trained"] != run.final["accuracy"]
    assert "held_out/accuracy_trained/acc" in run.final
    assert "held_out/accuracy_trained" not in run.final


def test_the_run_says_how_many_there_are_beside_its_scores(run: Run) -> None:
    untrained = run.clients.filter(pl.col("round") == 6, pl.col("rounds_trained") == 0).height
    (note,) = untrained_notes(run)
    assert note == (
        f"{untrained} of 10 scored clients never trained: their own fusion, head have initial values; "
        "accuracy_trained is the score without them"
    )
    assert [str(each) for each in compare(run).run_notes] == [f"1 of 1 run: {note}"]


def test_comparisons_take_the_score_without_them(run: Run) -> None:
    """With one seed, the interval is over the clients that trained."""
    found = compare(run, metric="accuracy_trained").table.to_dicts()[0]
    assert found["final"] == run.final["accuracy_trained"]
    assert found["final_low"] < found["final"] < found["final_high"]
    trained = run.clients.filter(pl.col("round") == 6, pl.col("rounds_trained") > 0)
    assert found["unweighted_final"] == pytest.approx(trained["accuracy"].mean())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sharing": "local"}, "encoder/acc, encoder/gyro, fusion, head"),
        ({"sharing": {"encoder/*": "shared", "fusion": "shared", "head": "private"}}, "head"),
        (
            {"sharing": "full-model", "model.norm_statistics": "local",
             "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"}},
            "normalisation statistics",
        ),
    ],
)  # fmt: skip
def test_whatever_is_a_clients_own(small_scenario: Scenario, changes: dict[str, Any], parts: str) -> None:
    run = simulate(small_scenario.override({**TEN, "rounds": 2, **changes}))
    (note,) = untrained_notes(run)
    assert f"their own {parts} have initial values" in note


@pytest.mark.parametrize(
    "changes",
    [
        {**TEN, "sharing": "full-model"},
        {"sharing": "private-head"},
        {**TEN, "sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "frozen"}},
    ],
    ids=["nothing private", "all clients train", "frozen"],
)
def test_runs_of_which_nothing_is_to_be_said(small_scenario: Scenario, changes: dict[str, Any]) -> None:
    run = simulate(small_scenario.override({**changes, "rounds": 2}))
    assert untrained_notes(run) == []
    assert [column for column in run.rounds.columns if "_trained" in column] == []


def test_once_all_have_trained_the_scores_are_the_same_and_nothing_is_said(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"rounds": 8, "server.clients_per_round": 3, "sharing": "private-head"})
    run = simulate(scenario)
    untrained = run.clients.group_by("round", maintain_order=True).agg((pl.col("rounds_trained") == 0).sum())
    counts = untrained["rounds_trained"].to_list()
    assert all(here >= after for here, after in pairwise(counts))
    assert (counts[1] > 0, counts[-1]) == (True, 0)
    assert run.final["accuracy_trained"] == run.final["accuracy"]
    assert untrained_notes(run) == []


def test_where_it_is_not_known_there_is_no_summary() -> None:
    def scored(client: int, rounds_trained: int | None) -> ClientEvaluation:
        return ClientEvaluation(client, 10, 0.5, {"accuracy": client / 2}, 0, 0.0, rounds_trained)

    sets = ["acc", "acc", "gyro"]
    known = trained_summary([scored(0, 1), scored(1, 3), scored(2, 0)], sets, ["accuracy"])
    assert known == {
        "loss_trained": 0.5, "loss_trained/acc": 0.5, "accuracy_trained": 0.25, "accuracy_trained/acc": 0.25,
    }  # fmt: skip
    assert trained_summary([scored(0, 1), scored(1, None), scored(2, 0)], sets, ["accuracy"]) == {}


def test_the_summary_on_the_console_has_them_apart(small_scenario: Scenario, tmp_path: Path, command: Any) -> None:
    from blossom_ray.reading.writer import scenario_yaml

    scenario = small_scenario.override({**TEN, "rounds": 2, "sharing": "private-head"})
    (tmp_path / "scenario.yaml").write_text(scenario_yaml(scenario))
    outcome = command("simulate", "scenario.yaml")
    assert outcome.exit_code == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    share = 100 * Run.open(run).final["accuracy_trained"]
    (line,) = (line for line in outcome.out.splitlines() if line.split()[:2] == ["that", "trained"])
    assert f"{share:.1f} %" in line
