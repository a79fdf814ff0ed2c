"""`compat` sets what the paper's code does where the scenario says nothing, and refuses what contradicts it."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from blossom_ray import Scenario, simulate
from blossom_ray.errors import ScenarioError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.scenario.tree import apply_compat


def test_what_it_sets(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"compat": "blossom-reference"})
    assert scenario.model.missing == "zero-input"
    assert scenario.data.draws == "reference"
    assert scenario.training.schedule.kind == "constant"
    assert scenario.training.min_batch_size == 2
    assert scenario.training.optimizer == small_scenario.training.optimizer


def test_without_it_nothing_is_set(small_scenario: Scenario) -> None:
    tree = {"rounds": 3, "model": {}}
    assert apply_compat(tree) == tree
    assert small_scenario.compat is None


def test_a_scenario_without_a_training_section_gets_one() -> None:
    tree = apply_compat({"compat": "blossom-reference", "data": {"draws": "seed"}, "model": "no mapping"})
    assert tree["training"] == {"schedule": {"kind": "constant"}, "min_batch_size": 2}
    assert tree["data"] == {"draws": "seed"}
    assert tree["model"] == "no mapping"


def test_the_written_scenario_spells_it_out_and_reads_back(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario = small_scenario.override({"compat": "blossom-reference"})
    path = tmp_path / "resolved.yaml"
    path.write_text(scenario_yaml(scenario), encoding="utf-8")
    assert "missing: zero-input" in path.read_text(encoding="utf-8")
    assert Scenario.load(path) == scenario


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.missing": "mask"}, "model.missing is 'mask', while compat is 'blossom-reference'; "),
        ({"data.draws": "seed"}, "data.draws is 'seed', while compat is 'blossom-reference'; expected 'reference'"),
        ({"training.schedule": {"kind": "cosine"}}, "training.schedule is 'cosine', while compat is"),
        ({"training.min_batch_size": 1}, "training.min_batch_size is 1, while compat is 'blossom-reference'"),
        ({"data.partition": {"kind": "quantity"}}, "data.partition.kind is 'quantity', while data.draws is"),
        (
            {"data.partition": {"kind": "dirichlet", "equal_sizes": True}},
            "data.partition.equal_sizes is true, while data.draws is 'reference'; expected false",
        ),
        ({"data.split": "subject", "data.subjects": 20}, "data.split is 'subject', while data.draws is 'reference'"),
        ({"training.engine": "vectorized"}, "training.engine asks for 'vectorized', while training.min_batch_size"),
        ({"training.batch_size": 1}, "training.min_batch_size is 2; expected at most 1, the batch size"),
    ],
)
def test_what_contradicts_it(small_scenario: Scenario, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        small_scenario.override({"compat": "blossom-reference", **changes})
    assert [str(problem) for problem in caught.value.problems if message in str(problem)]
    assert len(caught.value.problems) == 1


def test_it_runs_and_every_client_holds_every_encoder(small_scenario: Scenario) -> None:
    partition = {"kind": "dirichlet", "alpha": 5.0}
    run = simulate(small_scenario.override({"compat": "blossom-reference", "data.partition": partition}))
    parameters = run.manifest["parameters"]
    first = run.blocks.filter(pl.col("round") == 0)
    for name in ("encoder/acc", "encoder/gyro"):
        assert first.filter(pl.col("block") == name)["bytes_down"].to_list() == [4 * 5 * parameters[name]]
    # The last batch of an epoch is left out where it has one sample.
    rows = run.clients.filter(pl.col("round") == 1).select("num_train_examples", "num_steps").rows()
    assert all(examples % 16 != 1 and steps == -(-examples // 16) for examples, steps in rows)
