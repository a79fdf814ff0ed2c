"""Every encoder, fusion, head, server optimizer, client optimizer and schedule, found through the unions of options.

A new kind is tested here without a line: it stands in its union, builds at its defaults, and does what it says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blossom_ray.algorithms.server_optimizers import ServerOptimizer, ServerRule
from blossom_ray.clients.options import ClientOptimizer, Schedule
from blossom_ray.clients.stacked.support import is_known
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.section import Section
from blossom_ray.core.structure import Hint, section_fields
from blossom_ray.errors import InputError
from blossom_ray.models.build import build_block
from blossom_ray.models.encoder_options import Encoder
from blossom_ray.models.fusion_options import Fusion, Head
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

SHAPES = [(11,), (40, 3), (2, 24, 24), (2, 3, 2, 2), (2, 1), (1, 2, 2)]
DIMS = {"acc": 5, "mag.x": 3}
VOCABULARY = 7


class OwnRule:
    """A user's server optimizer."""

    def init(self, num_parameters: int) -> dict[str, np.ndarray]:
        return {"last": np.zeros(num_parameters)}

    def step(
        self, state: Mapping[str, np.ndarray], current: np.ndarray, average: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return (average + state["last"]) / 2, {"last": average + 0 * current}


class OwnFusion(nn.Module):
    """A user's fusion: the mean of all values, three times."""

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(list(embeddings.values()), dim=1).mean(dim=1, keepdim=True).expand(-1, 3)


def own_encoder(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4))


def kinds(union: Any, factory: Any = None) -> list[Any]:
    """The kinds of a union with the least that they have to know: their kind, what has no default or is the data's."""
    least = {"every": 2, "factory": factory, "vocabulary": VOCABULARY}
    return [
        section.model_validate(
            {"kind": kind} | {key: least[key] for key in section_fields(section) if _is_required(section, key)}
        )
        for kind, section in Hint.of(union).kinds.items()
    ]


def _is_required(section: type[Section], key: str) -> bool:
    return key == "vocabulary" or (key != "kind" and section.model_fields[key].is_required())


def name(value: Any) -> str | None:
    return value.kind if isinstance(value, Section) else None  # type: ignore[attr-defined]  # all of them have one


def each(union: Any, factory: Any = None) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("section", kinds(union, factory), ids=name)


def samples(encoder: Any, number: int, shape: tuple[int, ...]) -> Tensor:
    """What an encoder takes: numbers of tokens, or any."""
    if encoder.kind == "embedding":
        return torch.randint(VOCABULARY, (number, *shape)).float()
    return torch.randn(number, *shape)


def values(module: nn.Module) -> list[float]:
    return [value for tensor in module.state_dict().values() for value in tensor.flatten().tolist()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each(Encoder, own_encoder)
def test_an_encoder_takes_what_it_says_and_refuses_the_rest_in_one_line(section: Any, shape: tuple[int, ...]) -> None:
    misfits = list(section.misfits(shape, "acc"))
    if misfits:
        path, found, expected = misfits[0]
        message = f"model.encoders.acc.{path} {found}; expected {expected}"
        assert "\n" not in message
        with pytest.raises(InputError, match="^" + re.escape(message) + "$"):
            section.build(shape, "acc")
        if path == "kind":  # what it names instead does take such samples
            named = [other.kind for other in kinds(Encoder, own_encoder) if other.num_axes in (None, len(shape))]
            assert sorted(named) == sorted(re.sub("^one of ", "", expected).split(", "))
    else:
        module = section.build(shape, "acc").eval()
        output = module(samples(section, 3, shape))
        assert (output.shape, output.dtype) == ((3, section.embedding_dim(shape, "acc")), torch.float32)
        rows = samples(section, 2, shape)
        torch.testing.assert_close(module(rows)[:1], module(rows[:1]))


@each(Encoder, own_encoder)
def test_every_encoder_takes_some_samples(section: Any) -> None:
    assert any(not list(section.misfits(shape, "acc")) for shape in SHAPES)
    assert not list(section.conflicts())


@each(Fusion, lambda dims: OwnFusion())
def test_a_fusion_gives_the_width_it_says(section: Any) -> None:
    assert not list(section.conflicts())
    fusion = section.build(DIMS).eval()
    for present in (DIMS, {"mag.x": 3}):
        embeddings = {modality: torch.randn(4, DIMS[modality]) for modality in present}
        assert fusion(embeddings).shape == (4, section.fused_dim(DIMS))


@each(Head, nn.Linear)
def test_a_head_gives_the_outputs_that_are_asked_for(section: Any) -> None:
    assert not list(section.conflicts())
    assert section.build(6, 3).eval()(torch.randn(4, 6)).shape == (4, 3)


@pytest.mark.parametrize(
    ("part", "section"),
    [("encoders", section) for section in kinds(Encoder, own_encoder)]
    + [("fusion", section) for section in kinds(Fusion, lambda dims: OwnFusion())]
    + [("head", section) for section in kinds(Head, nn.Linear)],
    ids=name,
)
def test_initial_values_are_a_function_of_seed_and_name(part: str, section: Any) -> None:
    shape = next(shape for shape in SHAPES if part != "encoders" or not list(section.misfits(shape, "acc")))
    encoder = section if part == "encoders" else {"kind": "mlp", "dim": 6}
    model = Model.model_validate({"encoders": {"acc": encoder}} | ({part: section} if part != "encoders" else {}))
    block = Block.named("encoder/acc" if part == "encoders" else part)
    before = torch.random.get_rng_state()
    first = values(build_block(block, model, {"acc": shape}, 3, seed=7))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert values(build_block(block, model, {"acc": shape}, 3, seed=7)) == first
    assert not first or values(build_block(block, model, {"acc": shape}, 3, seed=8)) != first
    if section.kind != "custom":  # ours stack; of own code what is made of PyTorch's layers does
        workspace = Workspace(model, {"acc": shape}, one_task("classification", 3), owned=("acc",), seed=7)
        assert all(is_known(module) for own in workspace.model.blocks.values() for module in own.modules())


@each(ServerOptimizer, OwnRule)
def test_a_server_step_is_pure_and_keeps_the_form_of_its_state(section: Any) -> None:
    rule: ServerRule = section
    current, average = np.array([1.0, -2.0, 0.5], dtype=np.float32), np.array([0.5, 4.0, 0.25])
    state = rule.init(3)
    for array in (current, average, *state.values()):
        array.flags.writeable = False
    once, twice = (rule.step(state, current, average) for _ in range(2))
    assert (once[0].dtype, once[0].shape) == (np.float32, (3,))
    assert once[0].tobytes() == twice[0].tobytes()
    assert not np.array_equal(once[0], current)
    assert not np.shares_memory(once[0], average)
    for name, array in once[1].items():
        assert (array.dtype, array.shape) == (np.float64, state[name].shape)
        assert array.tobytes() == twice[1][name].tobytes()
    assert once[1].keys() == state.keys()


@each(ClientOptimizer)
def test_a_client_optimizer_steps_from_what_it_is_handed_alone(section: Any) -> None:
    assert not list(section.conflicts())

    def stepped() -> list[Tensor]:
        parameters = [torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])]
        gradients = [torch.tensor([0.5, -1.0]), torch.tensor([[2.0]])]
        moments = [[torch.zeros_like(tensor) for tensor in parameters] for _ in section.moments]
        counters = [torch.zeros(()) for _ in section.counters for _ in parameters]
        before = [tensor.clone() for tensor in (*parameters, *gradients)]
        section.fused_step(0.1)(parameters, gradients, moments, counters)
        assert all(torch.equal(a, b) for a, b in zip(gradients, before[2:], strict=True))
        assert all((a < b).all() for a, b in zip([parameters[0][:1]], [before[0][:1]], strict=True))
        assert (parameters[0][1] > before[0][1]).all()  # against the gradient's sign
        assert all(counter == 1 for counter in counters)
        return [*parameters, *(tensor for tensors in moments for tensor in tensors)]

    assert all(torch.equal(a, b) for a, b in zip(stepped(), stepped(), strict=True))


@each(Schedule)
def test_a_schedule_starts_at_the_base_and_never_rises(section: Any) -> None:
    assert not list(section.conflicts())
    rates = [section.learning_rate(0.5, number, 6) for number in range(1, 7)]
    assert rates[0] == 0.5
    assert rates == sorted(rates, reverse=True)
    assert rates == [section.learning_rate(0.5, number, 6) for number in range(1, 7)]
    assert section.learning_rate(0.5, 1, 1) == 0.5
