"""Whatever own code raises, the run ends with one error of ours, and not as if it had been interrupted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from torch import Tensor, nn

from blossom_ray import Run, Scenario, simulate
from blossom_ray.errors import BlossomError, ClientError, InputError


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


SCENARIO = """
rounds: 1
clients: [{count: 2, modalities: [acc]}]
model: {encoders: {acc: {kind: gru}}}
execution: {runtime: local}
"""
RAISED = [SystemExit(0), StopIteration(), GeneratorExit(), UnprintableError()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_exception_of_a_module_fails_the_run(small_scenario: Scenario, error: BaseException, tmp_path: Path) -> None:
    class Head(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            if self.training:
                raise error.with_traceback(None)
            return super().forward(features)

    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": Head}})
    with pytest.raises(ClientError, match=f"client 0, round 1: {type(error).__name__}"):
        simulate(scenario, out=tmp_path)
    (folder,) = (tmp_path / "small").iterdir()
    assert Run.open(folder).status == "failed"


@pytest.mark.parametrize("error", [SystemExit(0), UnprintableError()], ids=lambda error: type(error).__name__)
def test_an_exception_of_a_factory_names_it(small_scenario: Scenario, error: BaseException) -> None:
    def factory(*_: object) -> nn.Module:
        raise error.with_traceback(None)

    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": factory}})
    with pytest.raises(InputError, match=rf"model\.head\.factory raised {type(error).__name__}"):
        simulate(scenario)


@pytest.mark.parametrize("where", ["data.factory", "evaluation.metrics.mine", "server.optimizer", "model.head"])
@pytest.mark.parametrize("error", [*RAISED, ValueError("a\nb")], ids=lambda error: type(error).__name__)
def test_an_error_says_which_line_of_code_it_was(small_scenario: Scenario, where: str, error: BaseException) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error.with_traceback(None)

    class Rule:
        init = step = failing

    sections: dict[str, dict[str, Any]] = {
        "data.factory": {"data": {"dataset": "custom", "factory": failing}},
        "evaluation.metrics.mine": {"evaluation.metrics": {"mine": {"function": failing}}},
        "server.optimizer": {"server.optimizer": {"kind": "custom", "factory": Rule}},
        "model.head": {"model.head": {"kind": "custom", "factory": failing}},
    }
    with pytest.raises(BlossomError) as raised:
        simulate(small_scenario.override(sections[where]))
    line = failing.__code__.co_firstlineno + 1
    assert re.search(
        rf"{re.escape(where)}.* raised {type(error).__name__}.* \(.*{Path(__file__).name}:{line}, in failing\)",
        str(raised.value),
    )


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_client_error_says_which_line_it_was(small_scenario: Scenario, error: BaseException) -> None:
    class Head(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            if self.training:
                # Through PyTorch, whose lines are not the user's.
                features.requires_grad_().register_hook(self.fail)
            return super().forward(features)

        def fail(self, _: Tensor) -> None:
            raise error.with_traceback(None)

    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": Head}})
    line = Head.fail.__code__.co_firstlineno + 1
    with pytest.raises(ClientError, match=rf"{Path(__file__).name}:{line}, in fail\)"):
        simulate(scenario)


@pytest.mark.parametrize("statement", ["raise SystemExit(0)", "raise GeneratorExit", "1 / 0"])
def test_code_that_leaves_while_it_is_imported_is_an_error(command: Command, tmp_path: Path, statement: str) -> None:
    (tmp_path / "leaves.py").write_text(f"\n{statement}\n")
    (tmp_path / "s.yaml").write_text("data: {dataset: custom, factory: 'leaves:data'}\n" + SCENARIO)
    outcome = command("simulate", "s.yaml")
    assert outcome.exit_code == 2
    assert "(leaves.py:2, in <module>)" in outcome.err
