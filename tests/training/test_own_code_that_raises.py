"""Whatever own code raises, the run ends with one error of ours, and not as if it had been interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from blossom_ray import Run, Scenario, simulate
from blossom_ray.errors import ClientError, InputError


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


RAISED = [SystemExit(0), StopIteration(), GeneratorExit(), UnprintableError()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_exception_of_a_module_fails_the_run(small_scenario: Scenario, error: BaseException, tmp_path: Path) -> None:
    class Head(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            if self.training:
                raise error
            return super().forward(features)

    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": Head}})
    with pytest.raises(ClientError, match=f"client 0, round 1: {type(error).__name__}"):
        simulate(scenario, out=tmp_path)
    (folder,) = (tmp_path / "small").iterdir()
    assert Run.open(folder).status == "failed"


@pytest.mark.parametrize("error", [SystemExit(0), UnprintableError()], ids=lambda error: type(error).__name__)
def test_an_exception_of_a_factory_names_it(small_scenario: Scenario, error: BaseException) -> None:
    def factory(*_: object) -> nn.Module:
        raise error

    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": factory}})
    with pytest.raises(InputError, match=rf"model\.head\.factory raised {type(error).__name__}"):
        simulate(scenario)
