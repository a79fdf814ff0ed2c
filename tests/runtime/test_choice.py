"""What `execution.runtime: auto` becomes, and that the numbers do not depend on it."""

from __future__ import annotations

from typing import Any

import pytest

from blossom_ray import Scenario, simulate
from blossom_ray.runtime.choice import SMALL_S, settle_runtime, training_seconds
from blossom_ray.runtime.placement import Room
from blossom_ray.studies.sweeps.cell_placement import choose_runtimes


@pytest.fixture
def auto(small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return small_scenario.override({"execution.runtime": "auto"})


def chosen(scenario: Scenario, *, has_cluster: bool = False) -> str:
    return settle_runtime(scenario, has_cluster=has_cluster)[0].execution.runtime


def test_a_small_run_takes_this_process_and_says_so(auto: Scenario) -> None:
    settled, note = settle_runtime(auto, has_cluster=False)
    assert settled == auto.override({"execution.runtime": "local"})
    assert (
        note == "small, about 1 s of training on one core: it ran in one process, without Ray (execution.runtime: auto)"
    )
    assert chosen(Scenario.load("quickstart", {"execution.runtime": "auto"})) == "local"


@pytest.mark.parametrize("runtime", ["ray", "local"])
def test_what_a_scenario_says_stays(small_scenario: Scenario, runtime: str) -> None:
    said = small_scenario.override({"execution.runtime": runtime})
    assert settle_runtime(said, has_cluster=runtime == "local") == (said, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 100_000},
        {"execution.clients_per_actor": 2},
        {"execution.client_resources.num_gpus": 0.5},
        {"model.head": {"kind": "custom", "factory": lambda *_: None}},
        {"algorithm": {"kind": "fedprox"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_actors_where_they_are_asked_for_or_the_run_is_not_known_to_be_small(
    auto: Scenario, changes: dict[str, Any]
) -> None:
    assert settle_runtime(auto.override(changes), has_cluster=False)[1] == ""
    assert chosen(auto.override(changes)) == "ray"
    assert chosen(auto, has_cluster=True) == "ray"


def test_the_estimate_grows_with_the_work() -> None:
    quickstart = Scenario.load("quickstart")
    seconds = training_seconds(quickstart)
    assert 5 < seconds < SMALL_S
    assert training_seconds(quickstart.override({"rounds": 40})) == pytest.approx(2 * seconds)
    wider = quickstart.override({"model.encoders.acc.channels": [128, 256]})
    assert training_seconds(wider) > 1.5 * seconds


def test_the_folder_keeps_auto_and_the_bits_are_those_of_local(auto: Scenario, tmp_path: Any) -> None:
    run = simulate(auto, out=tmp_path)
    local = simulate(auto.override({"execution.runtime": "local"}))
    assert run.scenario.execution.runtime == "auto"
    assert run.manifest["runtime"] == "local"
    assert run.manifest["digest"] == local.manifest["digest"]
    assert [*run.manifest["notes"]] == [settle_runtime(auto, has_cluster=False)[1], *local.manifest["notes"]]


def test_cells_of_a_sweep_have_what_a_run_of_their_own_would_have(auto: Scenario) -> None:
    cells = [auto, auto.override({"rounds": 100_000})]

    def runtimes(num_cpus: int, *, has_cluster: bool = False) -> list[str]:
        settled = choose_runtimes(cells, 2, Room(num_cpus, 0, 2**34), has_cluster=has_cluster)
        return [cell.execution.runtime for cell in settled]

    assert runtimes(4) == ["local", "ray"]
    assert runtimes(2) == ["local", "local"]
    assert runtimes(2, has_cluster=True) == ["ray", "ray"]
