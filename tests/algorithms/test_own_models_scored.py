"""What an algorithm has clients scored with, beside the averaged model, with its own running statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plain_loops import TREE

from blossom_ray import Run, Scenario, compare, report, simulate
from blossom_ray.cli.output import round_json
from blossom_ray.core.records import Scoring
from blossom_ray.core.scores import find_score

DITTO = {"kind": "ditto", "weight": 0.1}


def scenario_of(**changes: Any) -> Scenario:
    tree = {name.replace("__", "."): value for name, value in changes.items()}
    return Scenario.model_validate({**TREE, "rounds": 3, "algorithm": DITTO}).override(tree)


def test_the_averaged_model_is_scored_beside_it_and_costs_nothing() -> None:
    own, plain = simulate(scenario_of()).rounds, simulate(scenario_of(algorithm={"kind": "fedavg"})).rounds
    names = [name for name in plain.columns if find_score(name) and not name.startswith(("train_", "held_out/"))]
    assert {"loss", "accuracy", "accuracy/acc", "macro_f1_all_pooled"} <= {*names}
    for name in names:
        assert own[f"plain/{name}"].to_list() == plain[name].to_list(), name
    assert own["loss"].to_list() != plain["loss"].to_list()
    assert own["bytes_down"].to_list() == plain["bytes_down"].to_list()
    assert "plain/loss" not in plain.columns


def test_only_on_test_splits_and_where_these_are_scored() -> None:
    changes = {"data__validation_fraction": 0.2, "evaluation__split": "validation", "evaluation__held_out": "final"}
    rounds = simulate(scenario_of(**changes)).rounds
    assert rounds["plain/loss"].is_null().to_list() == rounds["loss"].is_null().to_list() == [True, True, True, False]
    assert not [name for name in rounds.columns if "plain/validation" in name or "plain/held_out" in name]
    tuned = simulate(scenario_of(evaluation__fine_tune={"epochs": 1})).rounds.columns
    assert "fine_tuned/loss" in tuned
    assert "plain/fine_tuned/loss" not in tuned


def test_all_clients_of_a_kind_are_scored_on_the_held_out_set() -> None:
    records = list(simulate(scenario_of(evaluation__held_out="every"), stream=True))
    shared = list(simulate(scenario_of(algorithm={"kind": "scaffold"}, evaluation__held_out="every"), stream=True))
    assert records[0].metrics["held_out/loss/acc"] == shared[0].metrics["held_out/loss/acc"]
    # The mean over the personal models of a kind's clients, of which there are several.
    assert records[-1].metrics["held_out/loss/acc"] != shared[-1].metrics["held_out/loss/acc"]


def test_clients_that_never_trained_are_told_apart() -> None:
    run = simulate(scenario_of(server__clients_per_round=2))
    assert "accuracy_trained" in run.rounds.columns
    last = run.clients.filter(round=3, rounds_trained=0)
    # They have what they received.
    assert last.height > 0
    assert last["loss"].to_list() == last["plain/loss"].to_list()
    trained = run.clients.filter(round=3).filter(run.clients.filter(round=3)["rounds_trained"] > 0)
    assert trained["loss"].to_list() != trained["plain/loss"].to_list()


@pytest.mark.parametrize("statistics", ["shared", "local", "same-modalities"])
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_trained_copy_is_scored_with_its_own_running_statistics(statistics: str, engine: str) -> None:
    """Of one client's whole shard in one batch, unpulled, the personal model is trained as the averaged one is."""
    scenario = scenario_of(
        clients=[{"count": 1, "modalities": ["acc"]}, {"count": 1, "modalities": ["gyro"]}],
        sharing={"encoder/*": "shared", "fusion": "same-modalities", "head": "same-modalities"},
        server__clients_per_round=1.0,
        training__batch_size=500,
        training__local_epochs=3,
        training__engine=engine,
        model__head={"kind": "mlp", "hidden": [6], "norm": "batch", "dropout": 0.0},
        model__norm_statistics=statistics,
        algorithm={"kind": "ditto", "weight": 0.0, "epochs": 3},
    )
    rounds = simulate(scenario).rounds
    for name in ("loss/acc", "loss/gyro"):
        # Not exactly: the rows of a batch come in another order.
        assert rounds[name].to_list() == pytest.approx(rounds[f"plain/{name}"].to_list(), abs=1e-4)
        assert rounds[name][-1] < rounds[name][0]


def test_tables_files_console_comparison_and_report_have_them(tmp_path: Path) -> None:
    scenario = scenario_of(evaluation__per_class="final")
    for seed in (0, 1):
        simulate(scenario.override({"seed": seed}), out=tmp_path)
    folder, other = sorted(path.parent for path in tmp_path.rglob("manifest.json"))
    read = Run.open(folder)
    assert {"plain/loss", "plain/accuracy"} <= {*read.clients.columns} & {*read.rounds.columns}
    assert set(read.classes["scoring"]) == {"test", "held_out", "plain"}
    assert Scoring.of_column("plain/accuracy") is Scoring.PLAIN
    assert find_score("plain/accuracy_p10").name == "accuracy"
    record = list(simulate(scenario, stream=True))[-1]
    assert len(round_json(record)["plain"]) == len(record.plain) == 9
    found = compare([folder, other], metric="plain/accuracy")
    assert "plain/accuracy" in str(found.metric)
    report([folder, other], out=tmp_path / "report.html")
    assert "averaged model" in (tmp_path / "report.html").read_text(encoding="utf-8")
