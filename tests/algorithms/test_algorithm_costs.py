"""What an algorithm costs: bytes as a run counts them, state, and rows that are refused above a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plain_loops import TREE

from blossom_ray import Scenario, simulate
from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.authoring import MOST_ROW_BYTES
from blossom_ray.errors import InputError
from blossom_ray.runtime.placement import Room
from blossom_ray.studies.plan import Plan, make_plan

FEDAVG = {"kind": "fedavg"}
TWO_CORES = Room(num_cpus=2, num_gpus=0, memory_bytes=16 * 2**30)


class Reporting:
    """Each client reports two numbers, and has one of its own on the server."""

    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"report": Extra(shape=(2,), scope="server"), "own": Extra(shape=(3,), scope="client")}

    def finish(self, k: Client) -> dict[str, Any]:
        return {"report": Sent(k["own"][:2] + 1, 1), "own": Sent(k["own"] + 1, 1)}


class Median:
    """Wants the model's contributions one by one."""

    rows = ("model",)

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"model": s.rows["model"].map(lambda rows: rows.mean(0))}


def scenario_of(algorithm: Any, **changes: Any) -> Scenario:
    tree = {name.replace("__", "."): value for name, value in changes.items()}
    plain = Scenario.model_validate({**TREE, "rounds": 2})
    return plain.override({"server.clients_per_round": 1.0, "algorithm": algorithm} | tree)


def planned(scenario: Scenario, folder: Path) -> Plan:
    return make_plan(scenario, TWO_CORES, folder, probe=False)


@pytest.mark.parametrize(
    "algorithm",
    [{"kind": "scaffold"}, {"kind": "feddyn"}, {"kind": "ditto"}, Reporting()],
    ids=["scaffold", "feddyn", "ditto", "own"],
)
@pytest.mark.parametrize(
    "sharing", ["private-head", {"encoder/*": "shared", "fusion": "same-modalities", "head": "shared"}]
)
def test_planned_bytes_are_those_of_a_round(algorithm: Any, sharing: Any, tmp_path: Path) -> None:
    scenario = scenario_of(algorithm, sharing=sharing)
    plan = planned(scenario, tmp_path)
    last = simulate(scenario).blocks.filter(round=2)
    names = zip(last["block"], last["key"], strict=True)
    found = dict(zip(names, zip(last["bytes_down"], last["bytes_up"], strict=True), strict=True))
    mine = {(i.label, i.key): (b.bytes_down, b.bytes_up) for i, b in plan.blocks.items()}
    assert found == {place: mine[place] for place in found}
    assert all(mine[place] == (0.0, 0.0) for place in mine.keys() - found.keys())


def test_what_clients_keep_is_said(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    own, plain = (
        planned(scenario_of({"kind": kind}), f) for kind, f in zip(("scaffold", "fedavg"), folders, strict=True)
    )
    # acc: encoder 5*6+6 + 6*5+5 = 71, fusion 5*6+6 + 6*1 ... : all of its averaged blocks once more.
    (parameters,) = {own.sets["acc"].parameters, plain.sets["acc"].parameters}
    assert f"acc: a client that has trained keeps {parameters} values of the algorithm, 1 times its model" in own.notes
    assert not plain.notes
    # Each of nine clients keeps its controls twice, while a round is under way; c is on the server.
    assert own.memory.total > plain.memory.total + 2 * 4 * 9 * parameters


@pytest.mark.parametrize(("kind", "is_said"), [("fedavg", False), ("ditto", True)])
def test_what_seconds_leave_out_is_said(kind: str, is_said: bool, tmp_path: Path) -> None:
    plan = make_plan(scenario_of({"kind": kind}), TWO_CORES, tmp_path, probe=True)
    assert plan.seconds is not None
    assert any("seconds are of plain training: what algorithm ditto adds" in note for note in plan.notes) == is_said


def test_rows_are_refused_above_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = scenario_of(Median(), sharing="full-model")
    plain = planned(scenario_of(FEDAVG, sharing="full-model"), tmp_path)
    held = sum(4 * block.values * block.holders for block in plain.blocks.values())
    monkeypatch.setattr("blossom_ray.authoring.MOST_ROW_BYTES", held)
    assert simulate(scenario).status == "finished"
    monkeypatch.setattr("blossom_ray.authoring.MOST_ROW_BYTES", held - 1)
    with pytest.raises(InputError, match=r"keeps contributions of model one by one, of 9 clients, 0\.0 GiB a round"):
        simulate(scenario)
    assert MOST_ROW_BYTES == 2**31


def test_rows_of_what_there_is_not() -> None:
    class Odd(Median):
        rows = ("models",)

    with pytest.raises(InputError, match=r"algorithm: rows is \('models',\); expected a tuple of some of model"):
        simulate(scenario_of(Odd()))
