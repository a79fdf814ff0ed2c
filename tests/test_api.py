"""The scripting interface: what `simulate` gives back, and own code from Python."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from blossom_ray import (
    Dataset,
    RoundRecord,
    Run,
    RunError,
    Scenario,
    ScenarioError,
    personalization_gain,
    simulate,
)
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.runs.session import resume_run

TABLES = ("rounds", "clients", "blocks")


def but_for_seconds(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([name for name in frame.columns if "seconds" in name])


def stream(scenario: Scenario, out: Path | None = None) -> Generator[RoundRecord, None, None]:
    """The iterator of `simulate(stream=True)`, which can be closed."""
    records = simulate(scenario, out=out, stream=True)
    assert iter(records) is records
    return cast("Generator[RoundRecord, None, None]", records)


def the_folder(out: Path) -> Path:
    (folder,) = (out / "small").iterdir()
    return folder


# --- results in memory, in a folder, as a stream -------------------------------------------------------------------


def test_in_memory_as_from_a_folder(small_scenario: Scenario, tmp_path: Path) -> None:
    kept = simulate(small_scenario, out=tmp_path)
    run = simulate(small_scenario)
    assert (run.path, run.status, run.scenario) == (None, "finished", small_scenario)
    assert (kept.path, kept.status) == (the_folder(tmp_path), "finished")
    opened = Run.open(the_folder(tmp_path))
    assert opened.scenario == small_scenario
    for name in TABLES:
        frame = but_for_seconds(getattr(run, name))
        assert frame.equals(but_for_seconds(getattr(kept, name))), name
        assert frame.equals(but_for_seconds(getattr(opened, name))), name
        assert frame.schema == but_for_seconds(getattr(opened, name)).schema
    assert run.final == opened.final
    in_folder_alone = {"started_at", "ended_at", "scenario_sha256", "tables"}
    assert opened.manifest.keys() - run.manifest.keys() == in_folder_alone
    for key in ("digest", "data", "versions", "parameters"):
        assert run.manifest[key] == opened.manifest[key]


def test_nothing_is_written_without_out(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    simulate(small_scenario)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_begins_with_the_untrained_model(small_scenario: Scenario) -> None:
    records = list(stream(small_scenario))
    assert [record.round_index for record in records] == [0, 1, 2]
    assert [len(record.training) for record in records] == [0, 5, 5]
    assert all(len(record.evaluation) == 5 for record in records)
    accuracies = simulate(small_scenario).rounds["accuracy"].to_list()
    assert [record.metrics["accuracy"] for record in records] == accuracies


def test_a_stream_into_a_folder_is_on_disk_round_by_round(small_scenario: Scenario, tmp_path: Path) -> None:
    for record in stream(small_scenario, tmp_path):
        run = Run.open(the_folder(tmp_path))
        assert run.status == ("running" if record.round_index < small_scenario.rounds else "finished")
        assert run.rounds["round"].to_list() == list(range(record.round_index + 1))
    assert Run.open(the_folder(tmp_path)).status == "finished"


def test_closing_a_stream_ends_the_run(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    num_threads = torch.get_num_threads()
    for out in (None, tmp_path / "runs"):
        with closing(stream(small_scenario.override({"rounds": 1000}), out)) as records:
            assert [next(records).round_index, next(records).round_index] == [0, 1]
            assert len(list((tmp_path / "temporary").iterdir())) == 1
        assert list((tmp_path / "temporary").iterdir()) == []
        assert torch.get_num_threads() == num_threads
    run = Run.open(the_folder(tmp_path / "runs"))
    assert run.status == "interrupted"
    assert run.rounds["round"].to_list() == [0, 1]


def test_out_that_is_a_file(small_scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match=r"taken.*; expected a folder that can be written"):
        simulate(small_scenario, out=tmp_path / "taken")


@pytest.mark.parametrize("stream_it", [False, True])
def test_data_that_cannot_be_divided_stop_it_before_anything_is_written(
    stream_it: bool, small_scenario: Scenario, tmp_path: Path
) -> None:
    scenario = small_scenario.override({"data.partition": {"kind": "dirichlet", "alpha": 1e-4}})
    with pytest.raises(ScenarioError, match=r"data.partition.alpha is 0.0001, which leaves \d of 5 clients"):
        simulate(scenario, out=tmp_path, stream=stream_it)  # type: ignore[call-overload]  # both kinds of call
    assert list(tmp_path.iterdir()) == []


def test_options_that_no_run_folder_can_hold_stop_it_before_anything_is_written(
    small_scenario: Scenario, tmp_path: Path
) -> None:
    head = {"kind": "custom", "factory": Head, "options": {"gain": np.float32(2)}}
    scenario = small_scenario.override({"model.head": head})
    assert simulate(scenario).status == "finished"
    with pytest.raises(ScenarioError, match=r"model.head.options.gain .*; expected text, a number"):
        simulate(scenario, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.optimizer.momentun": 0.1},
            r"override: training.optimizer.momentun is not a known key; .*did you mean 'momentum'\?",
        ),
        ({"clients.7.count": 1}, r"override: clients.7.count leads nowhere, since clients is a list of 3 entries"),
        ({"rounds": 0}, r"override: rounds is 0; expected an integer of at least 1"),
    ],
)
def test_a_bad_override(changes: dict[str, Any], message: str, small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=message):
        small_scenario.override(changes)


def test_runs_in_a_thread(small_scenario: Scenario) -> None:
    """As in a notebook's worker: nothing asks for the main thread."""
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(simulate(small_scenario)))
    thread.start()
    thread.join()
    assert runs[0].manifest["digest"] == simulate(small_scenario).manifest["digest"]


# --- sharing schemes on one federation -----------------------------------------------------------------------------


def test_schemes_of_one_seed_meet_the_same_federation(small_scenario: Scenario) -> None:
    runs = {
        name: simulate(small_scenario.override({"sharing": name})) for name in ("full-model", "private-head-fusion")
    }
    full, personal = runs.values()
    assert full.manifest["data"] == personal.manifest["data"]
    shard_sizes = ["client", "modalities", "num_train_examples", "num_test_examples"]
    assert full.clients.select(shard_sizes).equals(personal.clients.select(shard_sizes))
    # Equal scores of the untrained model: the same initial blocks on the same test splits.
    scores = ["client", "loss", "accuracy", "macro_f1_all"]
    untrained = pl.col("round") == 0
    assert full.clients.filter(untrained).select(scores).equals(personal.clients.filter(untrained).select(scores))
    trained = pl.col("round") == 2
    assert not full.clients.filter(trained).select(scores).equals(personal.clients.filter(trained).select(scores))
    gain = personalization_gain(personal.final["accuracy"], full.final["accuracy"])
    assert gain == pytest.approx(100 * (personal.final["accuracy"] / full.final["accuracy"] - 1))


def test_blocks_that_stay_private_are_not_on_the_server(small_scenario: Scenario) -> None:
    encoders = {"encoder/acc", "encoder/gyro"}
    personal = simulate(small_scenario)
    assert personal.manifest["parameters"].keys() == encoders
    full = simulate(small_scenario.override({"sharing": "full-model"}))
    assert full.manifest["parameters"].keys() == encoders | {"fusion", "head"}
    alone = simulate(small_scenario.override({"sharing": "local"}))
    assert alone.rounds["bytes_up"].sum() == 0


# --- own code ------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_shape[-1], width)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs.mean(dim=1))
        return outputs


class Fusion(nn.Module):
    """The sum of what is there, scaled."""

    def __init__(self, embedding_dims: dict[str, int]) -> None:
        super().__init__()
        (width,) = set(embedding_dims.values())
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, embeddings: dict[str, Tensor]) -> Tensor:
        return self.scale * torch.stack(list(embeddings.values())).sum(dim=0)


class Head(nn.Module):
    def __init__(self, input_dim: int, num_outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, num_outputs)
        self.gain = float(gain)

    def forward(self, fused: Tensor) -> Tensor:
        outputs: Tensor = self.gain * self.linear(fused)
        return outputs


def own_dataset(num_samples: int, broken: bool = False) -> Dataset:
    """Two classes whose mean differs in `acc`; `light` is noise."""
    rows = np.arange(num_samples)
    draw = np.random.default_rng(7)
    acc = draw.standard_normal((num_samples, 4, 2), dtype=np.float32) + 3 * (rows % 2).reshape(-1, 1, 1).astype("f4")
    light = draw.standard_normal((num_samples, 4, 2), dtype=np.float32)
    if broken:
        raise OSError("the disk is gone")
    return Dataset({"acc": acc, "light": light}, (rows % 2).astype(np.int64), ("even", "odd"))


OWN: dict[str, Any] = {
    "name": "small",
    "rounds": 3,
    "data": {"dataset": "custom", "factory": own_dataset, "options": {"num_samples": 160}},
    "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 2, "modalities": ["acc", "light"]}],
    "model": {
        "encoders": {
            "acc": {"kind": "custom", "factory": Encoder, "options": {"width": 6}},
            "light": {"kind": "custom", "factory": Encoder, "options": {"width": 6}},
        },
        "fusion": {"kind": "custom", "factory": Fusion},
        "head": {"kind": "custom", "factory": Head, "options": {"gain": 2.0}},
    },
    "sharing": "full-model",
    "execution": {"runtime": "local"},
}


def test_own_modules_and_own_data(tmp_path: Path) -> None:
    run = simulate(Scenario.model_validate(OWN), out=tmp_path)
    # By hand: 2 features to 6 with bias; 6 scales; 6 to 2 classes with bias.
    assert run.manifest["parameters"] == {"encoder/acc": 18, "encoder/light": 18, "fusion": 6, "head": 14}
    assert run.manifest["data"]["num_classes"] == 2
    assert run.clients.filter(pl.col("round") == 1)["num_train_examples"].to_list() == [28] * 4
    # Round 1 sends each encoder to and from its owners only: 4 clients own acc, 2 own light; 4 bytes a number.
    up = dict(run.blocks.filter(pl.col("round") == 1).select("block", "bytes_up").iter_rows())
    assert up == {"encoder/acc": 4 * 72, "encoder/light": 2 * 72, "fusion": 4 * 24, "head": 4 * 56}
    assert run.final["accuracy"] > 0.9
    written = (the_folder(tmp_path) / "scenario.yaml").read_text(encoding="utf-8")
    assert f"{Head.__module__}:Head" in written
    assert f"{own_dataset.__module__}:own_dataset" in written


def test_own_data_that_cannot_be_had(tmp_path: Path) -> None:
    scenario = Scenario.model_validate(OWN).override({"data.options.broken": True})
    message = (
        r"data cannot be used \(data.factory raised OSError: the disk is gone \(.*test_api\.py:\d+, in own_dataset\)\)"
    )
    with pytest.raises(ScenarioError, match=message):
        simulate(scenario, out=tmp_path)
    lacking = Scenario.model_validate(OWN).override({"data.factory": lambda **_: "no data set"})
    with pytest.raises(ScenarioError, match=r"data.factory returned str; expected a blossom_ray.Dataset"):
        simulate(lacking, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_own_module_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    def flat(input_dim: int, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(input_dim, num_outputs), nn.Flatten(start_dim=0))

    scenario = Scenario.model_validate(OWN).override({"model.head": {"kind": "custom", "factory": flat}})
    with pytest.raises(InputError, match=r"model.head.*expected"):
        simulate(scenario)


def test_an_error_of_own_code_is_kept_with_the_run(tmp_path: Path) -> None:
    class Broken(Head):
        def forward(self, fused: Tensor) -> Tensor:
            if self.training and len(fused) > 2:
                raise ZeroDivisionError("by own code")
            return super().forward(fused)

    scenario = Scenario.model_validate(OWN).override({"model.head": {"kind": "custom", "factory": Broken}})
    with pytest.raises(RunError, match="client 0, round 1: ZeroDivisionError: by own code"):
        simulate(scenario, out=tmp_path)
    manifest = json.loads((the_folder(tmp_path) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "failed"
    assert "in forward" in manifest["error"]["details"]
    assert Run.open(the_folder(tmp_path)).rounds["round"].to_list() == [0]


@pytest.mark.parametrize("leave", [Generator.close, lambda records: records.throw(KeyError("mine")), None])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_whoever_has_the_last_record_has_a_finished_run(
    small_scenario: Scenario, tmp_path: Path, leave: Callable[[Any], object] | None, rounds: int
) -> None:
    """Closed, left to the garbage collector, or with an error thrown in: before it, the run can go on."""
    records = stream(small_scenario, tmp_path)
    for _ in range(rounds):
        next(records)
    if leave is None:
        del records
        gc.collect()
    else:
        with suppress(KeyError):
            leave(records)
    folder = the_folder(tmp_path)
    run = Run.open(folder)
    if rounds == small_scenario.rounds + 1:
        assert run.status == "finished"
        assert "digest" in run.manifest
        return
    assert run.status in ("interrupted", "failed")
    assert run.rounds.height == rounds
    assert [record.round_index for record in resume_run(small_scenario, folder)][-1] == small_scenario.rounds
    assert Run.open(folder).manifest["digest"] == simulate(small_scenario).manifest["digest"]
