"""What an own module gives is checked while it is trained and scored; the error names the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blossom_ray import Scenario, simulate
from blossom_ray.errors import InputError

WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "array": (lambda out: out.detach().numpy(), r"numpy\.ndarray; expected a float32 tensor of shape \(\d+, \d\)"),
    "dict": (lambda out: {"out": out}, r"dict; expected a float32"),
    "tuple": (lambda out: (out, out), r"tuple; expected a float32"),
    "none": (lambda _: None, r"NoneType; expected a float32"),
    "width": (lambda out: out[:, 1:], r"shape \(\d+, \d\); expected a float32"),
    "rows": (lambda out: out[1:], r"torch\.float32 of shape \(\d+, \d\); expected a float32"),
    "one dimension": (lambda out: out.flatten(), r"torch\.float32 of shape \(\d+,\); expected"),
    "integers": (lambda out: out.long(), r"torch\.int64 of shape .*; expected a float32"),
    "double": (lambda out: out.double(), r"torch\.float64 of shape .*; expected a float32"),
    "half": (lambda out: out.half(), r"torch\.float16 of shape .*; expected a float32"),
    "device": (lambda out: out.to("meta"), r"a tensor on meta; expected one on cpu"),
}
DETACHED = (lambda out: out.detach(), r"an output without a gradient while it is trained; expected")


def own(section: str, wrong: Callable[[Tensor], Any], mode: Callable[[nn.Module], bool]) -> Any:
    """A factory of a block that is right when it is tried, and in the other mode."""

    class Own(nn.Module):
        def __init__(self, given: Any, width: int = 6) -> None:
            super().__init__()
            in_features = sum(given.values()) if isinstance(given, Mapping) else given
            self.linear = nn.Linear(in_features if isinstance(in_features, int) else 16, width)
            self.num_calls = 0

        def forward(self, given: Any) -> Any:
            rows = torch.cat(list(given.values()), 1) if isinstance(given, Mapping) else given.flatten(1)
            output = self.linear(rows)
            is_wrong = mode(self) and len(rows) > 2
            return wrong(output) if is_wrong else output

    return {"kind": "custom", "factory": Own}


@pytest.mark.parametrize("section", ["model.encoders.acc", "model.fusion", "model.head"])
@pytest.mark.parametrize("kind", [*WRONG, "detached"])
def test_wrong_outputs_in_training_name_the_module(small_scenario: Scenario, section: str, kind: str) -> None:
    wrong, message = (WRONG | {"detached": DETACHED})[kind]
    changes = {section: own(section, wrong, lambda module: module.training), "model.missing": "zero-embedding"}
    place = section.replace(".", r"\.")
    with pytest.raises(InputError, match=rf"^{place} \(own\..*Own\): the module gives {message}"):
        simulate(small_scenario.override(changes))


@pytest.mark.parametrize("section", ["model.encoders.acc", "model.fusion", "model.head"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_outputs_in_evaluation_name_the_module(small_scenario: Scenario, section: str, kind: str) -> None:
    wrong, message = WRONG[kind]
    changes = {section: own(section, wrong, lambda module: not module.training), "model.missing": "zero-embedding"}
    with pytest.raises(InputError, match=rf"^{section}.*: the module gives {message}"):
        simulate(small_scenario.override(changes))


def test_a_squeezed_batch_of_one_names_the_module(small_scenario: Scenario) -> None:
    class Squeezing(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            return super().forward(rows).squeeze()

    changes = {"model.head": {"kind": "custom", "factory": Squeezing}, "training.batch_size": 1}
    with pytest.raises(InputError, match=r"^model\.head.* gives torch\.float32 of shape \(3,\); expected .*\(1, 3\)"):
        simulate(small_scenario.override(changes))


def test_right_modules_train_in_every_way(small_scenario: Scenario) -> None:
    """Frozen, without parameters, in phases, in bfloat16, stacked: no output is refused that should not be."""

    def encoder(input_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6))

    def flat(input_shape: tuple[int, ...]) -> nn.Module:
        return nn.Flatten()

    def frozen(input_dim: int, num_outputs: int) -> nn.Module:
        return nn.Linear(input_dim, num_outputs).requires_grad_(False)

    def head(input_dim: int, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(input_dim, num_outputs))

    alternate = {"training.alternate": {"private_epochs": 1, "shared_epochs": 1}, "sharing": "private-head"}
    for own_encoder, own_head, more in (
        (encoder, head, {"training.engine": "vectorized"}),
        (encoder, head, alternate),
        (encoder, head, {"training.engine": "vectorized"} | alternate),
        (encoder, head, {"training.precision": "bfloat16"}),
        (flat, frozen, {}),
        (encoder, frozen, {"model.missing": "zero-input"}),
    ):
        changes: dict[str, Any] = {
            "model.encoders.acc": {"kind": "custom", "factory": own_encoder},
            "model.head": {"kind": "custom", "factory": own_head},
            "training.proximal_mu": 0.0,
        }
        assert simulate(small_scenario.override(changes | more)).status == "finished"
