"""Timing engines: what is chosen, what that leaves alone, and that a run with `auto` can be had again to the bit."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blossom_ray import Run, Scenario, simulate
from blossom_ray.clients.host import ClientHost
from blossom_ray.clients.options import EngineName
from blossom_ray.runtime.description import describe
from blossom_ray.runtime.measurement import ChunkProbe, _fastest, choose_engines
from blossom_ray.runtime.preparation import Preparation, prepare

SETS = ("acc", "acc+gyro", "gyro")
MIXED: dict[str, EngineName] = {"acc": "vectorized", "acc+gyro": "sequential", "gyro": "sequential"}
AUTO = {"training.engine": "auto"}


@pytest.fixture
def preparation(small_scenario: Scenario, tmp_path: Path) -> Preparation:
    return prepare(small_scenario.override(AUTO), tmp_path)


def timed(preparation: Preparation, **seconds: Mapping[EngineName, float]) -> Preparation:
    """The preparation as if `acc`, `both` and `gyro` had been timed so."""
    return replace(preparation, seconds_per_sample={name.replace("both", "acc+gyro"): t for name, t in seconds.items()})


def test_every_set_gets_an_engine_and_the_times_that_it_follows_from(preparation: Preparation) -> None:
    settled = choose_engines(preparation)
    engines = settled.plan.engines
    assert settled.scenario is preparation.scenario, "a scenario never changes"
    assert tuple(engines) == tuple(settled.seconds_per_sample) == SETS
    # One client of gyro alone: nothing to stack.
    assert engines["gyro"] == "sequential"
    assert set(settled.seconds_per_sample["gyro"]) == {"sequential"}
    for name in ("acc", "acc+gyro"):
        times = settled.seconds_per_sample[name]
        assert engines[name] == min(times, key=times.__getitem__)
        assert all(0 < seconds < 1 for seconds in times.values())
    described: Any = describe(settled)
    assert described["seconds_per_sample"] == settled.seconds_per_sample


def test_the_slower_engine_of_each_set_is_left(preparation: Preparation) -> None:
    both: dict[EngineName, float] = {"sequential": 2.0, "vectorized": 1.0}
    none: dict[EngineName, float] = {"sequential": 1.0, "vectorized": 1.1}
    engines = _fastest(timed(preparation, acc=both, both=none, gyro={"sequential": 9.0}), num_workers=1)
    assert engines == MIXED


def test_a_set_is_not_stacked_where_that_would_leave_actors_idle(small_scenario: Scenario, tmp_path: Path) -> None:
    """16 clients of one chunk: stacked they take 1.25 times less, but one of two actors computes them all."""
    changes = {
        "execution.chunk_size": 16,
        "data.samples": 320,
        "data.modalities": {"acc": {"shape": (8, 2)}},
        "model.encoders": {"acc": {"kind": "mlp"}},
        "clients": [{"count": 16, "modalities": ["acc"]}],
    }
    alone = prepare(small_scenario.override(AUTO | changes), tmp_path)
    times: dict[EngineName, float] = {"sequential": 1.25, "vectorized": 1.0}
    assert _fastest(timed(alone, acc=times), num_workers=1) == {"acc": "vectorized"}
    assert _fastest(timed(alone, acc=times), num_workers=2) == {"acc": "sequential"}
    assert _fastest(timed(alone, acc=times | {"sequential": 2.5}), num_workers=2) == {"acc": "vectorized"}


def test_an_engine_that_is_named_is_neither_timed_nor_chosen_anew(preparation: Preparation) -> None:
    before = dict.fromkeys(SETS, "sequential")
    forced = choose_engines(preparation, chosen=before)
    assert (forced.plan.engines, forced.seconds_per_sample) == (before, {})
    assert choose_engines(forced) == forced


def test_several_sets_on_ray_are_timed_for_placement(small_scenario: Scenario, tmp_path: Path) -> None:
    on_ray = prepare(small_scenario.override({"execution.runtime": "ray"}), tmp_path)
    settled = choose_engines(on_ray)
    assert settled.scenario == on_ray.scenario
    assert {name: set(times) for name, times in settled.seconds_per_sample.items()} == {s: {"sequential"} for s in SETS}
    seconds = [settled.seconds_per_sample[profile.modality_set]["sequential"] for profile in on_ray.scenario.profiles()]
    expected = [count * second for count, second in zip(on_ray.shards.num_train.tolist(), seconds, strict=True)]
    assert settled.costs() == pytest.approx(expected)


def test_without_times_a_client_costs_its_samples_times_its_modalities(preparation: Preparation) -> None:
    num_train = preparation.shards.num_train.tolist()
    assert preparation.costs() == [num_train[0], num_train[1], num_train[2], 2 * num_train[3], 2 * num_train[4]]


def test_on_gpus_what_can_be_stacked_is_stacked_untimed(small_scenario: Scenario, tmp_path: Path) -> None:
    gpu = {"execution.runtime": "ray", "execution.client_resources.num_gpus": 0.1}
    settled = choose_engines(prepare(small_scenario.override(AUTO | gpu), tmp_path))
    assert settled.plan.engines == {"acc": "vectorized", "acc+gyro": "vectorized", "gyro": "sequential"}
    assert settled.seconds_per_sample == {}


class Deadly(nn.Module):
    """Lives through being tried on two rows of zeros, when it is built."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        if len(fused) > 2:
            os._exit(1)
        return torch.zeros(len(fused), self.num_outputs)


def own_head(factory: Callable[[int, int], nn.Module]) -> dict[str, Any]:
    return {"model.head": {"kind": "custom", "factory": factory}, "sharing": "full-model"}


def test_own_code_may_fail_or_hang_so_it_is_not_run_for_placement(small_scenario: Scenario, tmp_path: Path) -> None:
    own = own_head(lambda _, num_outputs: Deadly(num_outputs))
    settled = choose_engines(prepare(small_scenario.override({"execution.runtime": "ray"} | own), tmp_path))
    engines = [settled.plan.engines[name] for name in SETS]
    assert engines == ["sequential"] * len(SETS)
    assert settled.seconds_per_sample == {}
    assert settled.notes == ()
    assert settled.costs()[3] == 2 * settled.shards.num_train[3]


class Branching(nn.Linear):
    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        return super().forward(fused) * (2 if fused.sum() > 0 else 1)


@pytest.mark.parametrize("engine", ["auto", "vectorized", {**MIXED, "gyro": "vectorized"}])
def test_own_code_that_cannot_be_stacked_is_computed_in_turn_and_said(
    engine: Any, small_scenario: Scenario, tmp_path: Path
) -> None:
    scenario = small_scenario.override({"training.engine": engine} | own_head(Branching))
    settled = choose_engines(prepare(scenario, tmp_path))
    assert settled.plan.engines == dict.fromkeys(SETS, "sequential")
    assert settled.seconds_per_sample == {}
    asked = [name for name in SETS if not isinstance(engine, dict) or engine[name] == "vectorized"]
    assert settled.notes == tuple(
        f"engine of {name}: sequential, since head (Branching) branches on values" for name in asked
    )


def test_the_manifest_says_which_engine_and_why(small_scenario: Scenario) -> None:
    run = simulate(small_scenario.override({"training.engine": "vectorized"} | own_head(Branching)))
    assert run.manifest["engines"] == dict.fromkeys(SETS, "sequential")
    assert "engine of acc+gyro: sequential, since head (Branching) branches on values" in run.manifest["notes"]


def test_own_code_that_can_be_stacked_is(small_scenario: Scenario, tmp_path: Path) -> None:
    class Own(nn.Linear):
        pass

    forced = prepare(small_scenario.override({"training.engine": "vectorized"} | own_head(Own)), tmp_path / "one")
    assert choose_engines(forced) == forced
    settled = choose_engines(prepare(small_scenario.override(AUTO | own_head(Own)), tmp_path / "two"))
    assert settled.notes == ()
    assert set(settled.seconds_per_sample["acc"]) == {"sequential", "vectorized"}
    assert settled.plan.engines["acc"] == min(settled.seconds_per_sample["acc"].items(), key=lambda pair: pair[1])[0]


def test_evaluation_is_timed_by_the_same_probe(preparation: Preparation) -> None:
    probe = ChunkProbe(preparation, "acc")
    assert probe.engines == ("sequential", "vectorized", "compiled")[: 3 if shutil.which("cc") else 2]
    assert all(0 < probe.evaluation_seconds(engine) < 1 for engine in probe.engines)


def test_timing_changes_nothing_that_a_client_or_a_round_sees(small_scenario: Scenario, tmp_path: Path) -> None:
    forced = small_scenario.override({"training.engine": MIXED})
    untouched = prepare(forced, tmp_path / "one")
    torch_state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    probed = prepare(forced, tmp_path / "two")
    for name in SETS:
        ChunkProbe(probed, name).training_seconds(MIXED[name])
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads
    digests = []
    for preparation in (untouched, probed):
        host = ClientHost(preparation.plan, preparation.population.profiles, preparation.open_shards())
        digests.append(host.private_digest())
        host.close()
    assert digests[0] == digests[1]


def test_the_run_folder_of_auto_gives_the_same_bits_again(small_scenario: Scenario, tmp_path: Path) -> None:
    run = simulate(small_scenario.override(AUTO), out=tmp_path)
    assert run.scenario.training.engine == run.manifest["engines"]
    assert set(run.manifest["seconds_per_sample"]) == set(SETS)
    again = simulate(run.scenario)
    assert again.manifest["digest"] == run.manifest["digest"]
    assert again.manifest["seconds_per_sample"] == {}
    forced = simulate(small_scenario.override({"training.engine": run.manifest["engines"]}))
    assert forced.manifest["digest"] == run.manifest["digest"]


def test_a_run_in_memory_knows_what_it_has_chosen(small_scenario: Scenario) -> None:
    run: Run = simulate(small_scenario.override(AUTO))
    assert run.scenario.training.engine == run.manifest["engines"]
