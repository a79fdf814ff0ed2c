"""The seed of the federation and the seed of training, varied apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from blossom_ray import Run, Scenario, compare, simulate, sweep
from blossom_ray.runtime.preparation import prepare
from blossom_ray.scenario.identity import identity, numbers_tree
from blossom_ray.scenario.tree import Seeds
from blossom_ray.server import initial_server
from blossom_ray.studies.sweeps.folder import Sweep

pytestmark = pytest.mark.usefixtures("warm_processes")


@pytest.fixture
def base(small_scenario: Scenario) -> Scenario:
    return small_scenario.override({"execution.runtime": "local", "rounds": 1, "server.clients_per_round": 2})


def initial_digest(scenario: Scenario, folder: Path) -> str:
    preparation = prepare(scenario, folder)
    profiles = preparation.population.representatives()
    return initial_server(preparation.plan, profiles, scenario.server.optimizer).digest()


def test_one_seed_is_both(base: Scenario) -> None:
    assert base.override({"seed": 3}).seeds == Seeds(3, 3)
    same = base.override({"seed": 3, "training_seed": 3})
    assert identity(same) == identity(base.override({"seed": 3}))
    assert "training_seed" not in numbers_tree(same)
    other = base.override({"seed": 3, "training_seed": 4})
    assert numbers_tree(other)["training_seed"] == 4
    assert [str(scenario.seeds) for scenario in (same, other)] == ["3", "3 (training 4)"]


def test_the_training_seed_leaves_the_federation(base: Scenario) -> None:
    first, other = (simulate(base.override({"seed": 0, "training_seed": seed})) for seed in (0, 1))
    for key in ("fingerprint", "partition"):
        assert first.manifest["data"][key] == other.manifest["data"][key]
    assert first.manifest["digest"] != other.manifest["digest"]
    assert cohort(first) != cohort(other)
    plain = simulate(base.override({"seed": 0}))
    assert plain.manifest["digest"] == first.manifest["digest"]


def cohort(run: Run) -> list[int]:
    return run.clients.filter((run.clients["round"] == 1) & run.clients["num_steps"].is_not_null())["client"].to_list()


def test_the_seed_leaves_initial_blocks_and_cohorts(base: Scenario, tmp_path: Path) -> None:
    scenarios = [base.override({"seed": seed, "training_seed": 7}) for seed in (0, 1)]
    digests = [initial_digest(scenario, tmp_path / str(scenario.seed)) for scenario in scenarios]
    assert digests[0] == digests[1]
    assert digests[0] == initial_digest(base.override({"seed": 7}), tmp_path / "7")
    runs = [simulate(scenario) for scenario in scenarios]
    assert runs[0].manifest["data"]["partition"] != runs[1].manifest["data"]["partition"]
    assert runs[0].manifest["data"]["fingerprint"] != runs[1].manifest["data"]["fingerprint"]
    assert cohort(runs[0]) == cohort(runs[1])


def test_a_sweep_over_training_seeds_is_compared_over_them(base: Scenario, tmp_path: Path) -> None:
    axes = {"sharing": ["full-model", "local"], "training_seed": [0, 1, 2]}
    for _ in sweep(base, vary=axes, out=tmp_path / "sweep", jobs=1):
        pass
    cells = Sweep.open(tmp_path / "sweep").cells
    assert [cell.seeds for cell in cells] == [Seeds(0, training) for training in (0, 1, 2)] * 2
    assert all(cell.setting.keys() == {"sharing"} for cell in cells)
    found = compare(tmp_path / "sweep", baseline={"sharing": "full-model"})
    assert found.keys == ("sharing",)
    table = found.table.filter(found.table["modalities"] == "all clients")
    assert table["num_seeds"].to_list() == [3, 3]
    assert table["num_pairs"].to_list() == [0, 3]
    assert "3 pairs of seeds in 1 federation: intervals over them do not cover how federations differ" in found.notes
    runs = found.runs.filter((found.runs["modalities"] == "all clients") & (found.runs["sharing"] == "local"))
    assert (runs["seed"].to_list(), runs["training_seed"].to_list()) == ([0, 0, 0], [0, 1, 2])
