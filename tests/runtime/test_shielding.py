"""What a caller has set for torch and NumPy changes no score of a run, and holds again afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blossom_ray import Scenario, simulate
from blossom_ray.reading.writer import scenario_yaml


@contextmanager
def _set(setter: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "meta device": lambda: torch.device("meta"),
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "matmul precision": lambda: _set(torch.set_float32_matmul_precision, "medium", "highest"),
    "flush denormal": lambda: _set(torch.set_flush_denormal, True, False),
    "threads": lambda: _set(torch.set_num_threads, 3, torch.get_num_threads()),
    "errstate": lambda: np.errstate(all="raise"),
}


def settings() -> tuple[Any, ...]:
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.empty(1).device,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        np.float32(2**-140) * np.float32(1) == 0,
        torch.get_num_threads(),
        tuple(np.geterr().items()),
    )


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_scores_are_those_of_a_plain_process(small_scenario: Scenario, surroundings: str) -> None:
    expected = simulate(small_scenario)
    plain = settings()
    with SURROUNDINGS[surroundings]():
        before = settings()
        assert before != plain
        run = simulate(small_scenario)
        assert settings() == before
    assert settings() == plain
    assert run.manifest["digest"] == expected.manifest["digest"]
    assert run.rounds["accuracy"].to_list() == expected.rounds["accuracy"].to_list()


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_between_records_and_after_a_stream_was_closed_the_caller_has_its_settings(
    small_scenario: Scenario, surroundings: str
) -> None:
    plain = settings()
    records = simulate(small_scenario, stream=True)
    next(records)
    assert settings() == plain
    with SURROUNDINGS[surroundings]():
        before = settings()
        next(records)
        assert settings() == before
    assert settings() == plain
    records.close()  # type: ignore[attr-defined]  # an iterator that is a generator
    assert settings() == plain


def test_what_own_code_sets_does_not_reach_the_caller(small_scenario: Scenario) -> None:
    def head(input_dim: int, num_outputs: int) -> torch.nn.Module:
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(3)
        return torch.nn.Linear(input_dim, num_outputs)

    plain = settings()
    simulate(small_scenario.override({"model.head": {"kind": "custom", "factory": head}}))
    assert settings() == plain


def test_a_run_does_without_the_compiler(small_scenario: Scenario, tmp_path: Path, warm_processes: None) -> None:
    """PyTorch's own, which takes a second to import."""
    (tmp_path / "small.yaml").write_text(scenario_yaml(small_scenario), encoding="utf-8")
    code = "from blossom_ray import Scenario, simulate; simulate(Scenario.load('small.yaml'))"
    code += "; import sys; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
