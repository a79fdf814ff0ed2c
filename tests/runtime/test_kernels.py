"""What chooses the CPU kernels: of this process, of several, over a run and its continuation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import needs_compiler

from blossom_ray import Run, Scenario, simulate
from blossom_ray.runs.folder import MANIFEST_FILE
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runtime.client_actor import ClientActor
from blossom_ray.runtime.kernels import kernels, merge_kernels


def described(processes: int, **changes: Any) -> dict[str, Any]:
    return {
        "processes": processes,
        "processor": "P",
        "cpu_capability": "AVX2",
        "libraries": {},
        "variables": {},
    } | changes


def test_of_this_process() -> None:
    found = kernels()
    assert found["processes"] == 1
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["processor"]
    # Both names stand in PyTorch's own account of its build, where it has the library.
    assert ("mkl" in found["libraries"]) == torch.backends.mkl.is_available()
    assert ("onednn" in found["libraries"]) == torch.backends.mkldnn.is_available()


def test_variables_are_those_that_are_set_and_what_comes_of_them() -> None:
    program = "import json; from blossom_ray.runtime.kernels import kernels; print(json.dumps(kernels()))"
    chosen = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=_with(chosen)
    )
    found = json.loads(done.stdout)
    assert found["variables"] == chosen
    assert found["cpu_capability"] in ("DEFAULT", "NO AVX")


def _with(chosen: dict[str, str]) -> dict[str, str]:
    import os

    free = {name: value for name, value in os.environ.items() if not name.startswith(("MKL_", "ATEN_", "ONEDNN_"))}
    return free | chosen


def test_alike_processes_are_counted_and_times_are_not_added() -> None:
    other = described(1, cpu_capability="AVX512")
    start, end = [described(1), other, described(1)], [described(1), other, other, other]
    assert merge_kernels(start) == [described(2), described(1, cpu_capability="AVX512")]
    assert merge_kernels(start, end) == [described(2), described(3, cpu_capability="AVX512")]
    assert merge_kernels(merge_kernels(start), merge_kernels(end)) == merge_kernels(start, end)
    assert start[0] == described(1), "what is given stays as it is"


def test_a_run_says_what_computed_it(small_scenario: Scenario) -> None:
    assert simulate(small_scenario).manifest["kernels"] == [kernels()]


def test_a_run_that_goes_on_elsewhere_says_both(small_scenario: Scenario, tmp_path: Path) -> None:
    scenario, folder = small_scenario.override({"rounds": 4, "checkpoint.every": 1}), tmp_path / "run"
    records = record_run(scenario, folder)
    for _ in range(3):
        next(records)
    records.close()
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["kernels"][0]["processor"] = "Another"
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    for _ in resume_run(scenario, folder):
        pass
    found = Run.open(folder).manifest["kernels"]
    assert [each["processor"] for each in found] == ["Another", kernels()["processor"]]
    assert [each["processes"] for each in found] == [1, 1]


@pytest.mark.ray
def test_actors_are_processes_of_their_own(small_scenario: Scenario, ray_session: None) -> None:
    placed = small_scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3})
    (found,) = simulate(placed).manifest["kernels"]
    # Two actors for five clients, and the one with the loop.
    assert found == {**kernels(), "processes": 3}


@needs_compiler
@pytest.mark.ray
def test_compiled_kernels_are_the_compiler_s_too(small_scenario: Scenario, ray_session: None) -> None:
    compiled = small_scenario.override({"training.engine": "compiled"})
    placed = simulate(compiled.override({"execution.runtime": "ray", "execution.clients_per_actor": 3}))
    local = simulate(compiled)
    assert local.manifest["kernels"] == [kernels(["compiled"])]
    assert local.manifest["kernels"][0]["libraries"]["cc"]
    assert placed.manifest["kernels"] == [{**kernels(["compiled"]), "processes": 3}]
    assert placed.manifest["digest"] == local.manifest["digest"]


def test_a_client_actor_on_a_gpu_rounds_to_float32_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # As it would start beside a GPU; nothing of this needs one.
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        ClientActor(0.25)
        assert shares == [0.25]
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_client_actor_without_a_gpu_leaves_them_alone() -> None:
    ClientActor(0)
    assert not torch.are_deterministic_algorithms_enabled()
