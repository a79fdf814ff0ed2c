"""Blocks that start from a file: trained or frozen, refused with the tensors, another file is another run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import Command
from safetensors.torch import save_file

from blossom_ray import Scenario, ScenarioError, simulate
from blossom_ray.core.blocks import Block
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.models.build import build_block
from blossom_ray.reading.inspection import Inspector
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.exporting import write_export
from blossom_ray.runs.session import resume_run
from blossom_ray.scenario.identity import identity

SHAPES = {"acc": (8, 2), "gyro": (8, 2)}
BLOCKS = {"encoder/acc": "model.encoders.acc", "fusion": "model.fusion", "head": "model.head"}


def saved(scenario: Scenario, path: Path, *blocks: str, seed: int = 99) -> dict[str, torch.Tensor]:
    """A file with the tensors of blocks that were drawn from another seed, by the names of an export."""
    tensors = {
        f"{name}/{key}": values
        for name in blocks
        for key, values in build_block(Block.named(name), scenario.model, SHAPES, 3, seed).state_dict().items()
    }
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("sharing", ["full-model", "local"])
def test_blocks_start_from_the_file_and_train_on(
    small_scenario: Scenario, tmp_path: Path, sharing: str, engine: str
) -> None:
    tensors = saved(small_scenario, tmp_path / "w.safetensors", *BLOCKS)
    changes: dict[str, Any] = {
        f"{place}.weights": {"path": str(tmp_path / "w.safetensors")} for place in BLOCKS.values()
    }
    changes |= {"sharing": sharing, "training.engine": engine, "rounds": 1}
    # Steps that are too small to change any value; then steps that are not.
    still, moved = (
        simulate(small_scenario.override({**changes, "training.optimizer.lr": rate}), out=tmp_path / "runs").model(4)
        for rate in (1e-30, 0.05)
    )
    for name, values in tensors.items():
        assert torch.equal(still.weights()[name], values), name
        assert not torch.equal(moved.weights()[name], values), name


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("sharing", ["full-model", "local", "central"])
def test_frozen_blocks_stand_still(small_scenario: Scenario, tmp_path: Path, sharing: str, engine: str) -> None:
    tensors = saved(small_scenario, tmp_path / "w.safetensors", *BLOCKS)
    weights = {"path": str(tmp_path / "w.safetensors"), "frozen": True}
    changes = {f"{BLOCKS[name]}.weights": weights for name in ("encoder/acc", "head")}
    changes |= {"sharing": sharing} | ({} if sharing == "central" else {"training.engine": engine})
    run = simulate(small_scenario.override(changes), out=tmp_path / "runs")
    model = run.model(4)
    for name in tensors:
        if not name.startswith("fusion"):
            assert torch.equal(model.weights()[name], tensors[name]), name
    frozen = run.blocks.filter(pl.col("block").is_in(["encoder/acc", "head"]))
    assert set(frozen["scope"]) == {"frozen"}
    assert frozen["bytes_up"].sum() == frozen["contributors"].sum() == 0


def test_a_model_taken_away_is_where_another_run_begins(small_scenario: Scenario, tmp_path: Path) -> None:
    run = simulate(small_scenario.override({"sharing": "full-model"}), out=tmp_path / "runs")
    write_export(run.model(), tmp_path / "given")
    weights = {"path": str(tmp_path / "given"), "frozen": True}
    changes = {f"{place}.weights": weights for place in (*BLOCKS.values(), "model.encoders.gyro")}
    again = simulate(small_scenario.override({**changes, "sharing": "full-model", "rounds": 1}), out=tmp_path / "runs")
    for name, values in run.model().weights().items():
        assert torch.equal(again.model().weights()[name], values), name
    # Nothing is trained: both rounds score what the first run ended with.
    ended = run.rounds["loss"][-1]
    assert again.rounds["loss"].to_list() == [ended, ended]


def test_tensors_of_another_block_or_of_a_module_alone(small_scenario: Scenario, tmp_path: Path) -> None:
    tensors = saved(small_scenario, tmp_path / "w.safetensors", "encoder/gyro")
    save_file({name.rpartition("/")[2]: values for name, values in tensors.items()}, tmp_path / "module.safetensors")
    for weights in (
        {"path": str(tmp_path / "w.safetensors"), "block": "encoder/gyro"},
        {"path": str(tmp_path / "module.safetensors")},
    ):
        scenario = small_scenario.override({"model.encoders.acc.weights": weights})
        found = build_block(Block("encoder", "acc"), scenario.model, SHAPES, 3, 0).state_dict()
        for name, values in found.items():
            assert torch.equal(values, tensors[f"encoder/gyro/{name}"])


def test_a_file_that_does_not_fit_is_refused_with_its_tensors(small_scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"encoder/acc/layers.0.weight": torch.zeros(8, 4), "encoder/acc/gru.bias": torch.zeros(3)}, path)
    scenario = small_scenario.override({"model.encoders.acc.weights": {"path": str(path)}})
    with pytest.raises(InputError) as refused:
        simulate(scenario)
    assert str(refused.value).splitlines() == [
        f"model.encoders.acc.weights: the tensors of '{path}' are not those of encoder/acc:",
        "  gru.bias: [3] in the file, missing in the block",
        "  layers.0.bias: missing in the file, [8] in the block",
        "  layers.0.weight: [8, 4] in the file, [8, 16] in the block",
        "  layers.3.bias: missing in the file, [6] in the block",
        "  layers.3.weight: missing in the file, [6, 8] in the block",
    ]


@pytest.mark.parametrize(
    ("change", "block", "told"),
    [
        (1.0, "encoder/gyr", "weights.block is 'encoder/gyr', not in '{path}'; expected one of encoder/gyro, head"),
        (1.0, "head", "acc.weights: the tensors of head in '{path}' are not those of encoder/acc:"),
        (math.nan, "encoder/gyro", "weights: layers.0.bias of '{path}' has a value that is not finite; expected"),
        (torch.int32, "encoder/gyro", "  layers.0.bias: [8] torch.int32 in the file, [8] in the block"),
    ],
)
def test_tensors_that_would_do_harm_are_refused(
    small_scenario: Scenario, tmp_path: Path, change: Any, block: str, told: str
) -> None:
    path = tmp_path / "w.safetensors"
    tensors = saved(small_scenario, path, "encoder/gyro", "head")
    own = {n: v.to(change) if isinstance(change, torch.dtype) else v * change for n, v in tensors.items()}
    save_file(own, path)
    with pytest.raises(InputError) as refused:
        simulate(small_scenario.override({"model.encoders.acc.weights": {"path": str(path), "block": block}}))
    assert told.format(path=path) in str(refused.value)


def test_what_is_no_file_of_weights_is_refused(small_scenario: Scenario, tmp_path: Path, command: Command) -> None:
    for name in ("empty", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "small.yaml").write_text(scenario_yaml(small_scenario))
    expected = "; expected a safetensors file, or a folder that `blossom-ray export` has written"
    for path, found in (
        ("nowhere", "does not exist"),
        ("run", "is a run: blossom-ray export takes a model out of it"),
        ("empty", "has no model.safetensors"),
        ("s3://bucket/w", "the path is 's3://bucket/w', which is a URI"),
    ):
        refused = command("validate", "small.yaml", "--set", f"model.head.weights={{path: {path}}}")
        assert refused.exit_code == 2
        assert f"model.head.weights.path is {path!r}, which {found}" in refused.err
        with pytest.raises(ScenarioError, match=r"override: model.head.weights.path is "):
            small_scenario.override({"model.head.weights": {"path": path}})
    with pytest.raises(InputError, match=r"model.head.weights.path is '.*', which cannot be read \(.*" + expected[:20]):
        simulate(small_scenario.override({"model.head.weights": {"path": str(tmp_path / "text.safetensors")}}))


def test_another_file_is_another_run(small_scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    saved(small_scenario, path, "head")
    scenario = small_scenario.override({"model.head.weights": {"path": str(path)}, "checkpoint.every": 1})
    known = Inspector().check(scenario)
    sum_before = known.model.pretrained[Block("head")].sha256
    run = simulate(scenario, out=tmp_path / "runs")
    assert run.path is not None
    assert run.scenario.model.pretrained[Block("head")].sha256 == run.manifest["weights"]["head"] == sum_before
    assert identity(run.scenario) == identity(known)
    assert identity(small_scenario) == identity(small_scenario.override({"model.head.weights": None}))

    saved(small_scenario, path, "head", seed=7)
    assert identity(Inspector().check(scenario)) != identity(known)
    with pytest.raises(ScenarioError, match=f"has the checksum .*; expected {sum_before}, as weights.sha256 says"):
        Inspector().check(run.scenario)
    with pytest.raises(RunFolderError, match=r"is of another scenario:\n.*model.head.weights.sha256 is"):
        list(resume_run(Inspector().check(scenario).override({"rounds": 3}), run.path))


def test_further_models_of_an_algorithm_are_drawn(small_scenario: Scenario, tmp_path: Path) -> None:
    """Clusters that all started from the file would be one."""
    saved(small_scenario, tmp_path / "w.safetensors", *BLOCKS)
    changes = {f"{place}.weights": {"path": str(tmp_path / "w.safetensors")} for place in BLOCKS.values()}
    clusters = {"algorithm": {"kind": "ifca"}, "sharing": "full-model", "rounds": 1}
    run = simulate(small_scenario.override({**changes, **clusters}))
    plain = simulate(small_scenario.override(clusters))
    assert run.rounds["loss"][0] != plain.rounds["loss"][0]
    assert not math.isnan(run.rounds["loss"][1])
