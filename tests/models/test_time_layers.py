"""Layers over time come to what PyTorch's own come to: outputs and all gradients, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blossom_ray.models.encoders import TimeConvolutionsGru
from blossom_ray.models.time_layers import Gru, HalvingMaxPool1d

NAN, INF = float("nan"), float("inf")


def gradients(outputs: Tensor, wanted: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Of a weighted sum of the outputs, with respect to what is wanted."""
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=outputs.dtype)
    return list(torch.autograd.grad(outputs, wanted, weights, retain_graph=True))


def is_same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def sequences(*shape: int, is_transposed: bool = False) -> Tensor:
    """(B, T, F), as they are or as convolutions leave them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (values.transpose(1, 2).contiguous().transpose(1, 2) if is_transposed else values).requires_grad_()


@pytest.mark.parametrize("is_transposed", [False, True], ids=["", "features before time"])
@pytest.mark.parametrize(
    ("rows", "steps", "features", "width"),
    [
        (16, 16, 128, 128),
        (16, 20, 6, 64),
        (7, 33, 5, 20),
        (1, 9, 512, 16),
        (5, 1, 512, 8),
        (1, 1, 3, 4),
        (3, 8, 4, 17),
        (5, 6, 4, 9),
    ],
)
def test_a_gru_has_the_bits_of_pytorchs(rows: int, steps: int, features: int, width: int, is_transposed: bool) -> None:
    torch.manual_seed(0)
    gru, inputs = Gru(features, width), sequences(rows, steps, features, is_transposed=is_transposed)
    states, last = gru(inputs)
    expected, expected_last = nn.GRU.forward(gru, inputs)
    assert is_same([states, last], [expected, expected_last])
    wanted = [inputs, *gru.parameters()]
    assert is_same(gradients(states, wanted), gradients(expected, wanted))
    assert is_same(gradients(last, wanted), gradients(expected_last, wanted))
    # What the encoders make of the states: their mean, whose gradient is the same for all steps.
    assert is_same(gradients(states.mean(1), wanted), gradients(expected.mean(1), wanted))


def test_a_gru_starts_with_the_parameters_of_pytorchs() -> None:
    torch.manual_seed(0)
    found = Gru(3, 4).state_dict()
    torch.manual_seed(0)
    expected = nn.GRU(3, 4, batch_first=True).state_dict()
    assert list(found) == list(expected)
    assert is_same([*found.values()], [*expected.values()])


def test_gradients_of_a_gru_are_those_of_finite_differences_and_can_be_differentiated() -> None:
    gru, inputs = Gru(3, 2).double(), sequences(2, 3, 3).double().detach().requires_grad_()

    def function(inputs: Tensor, *_: Tensor) -> Tensor:
        states: Tensor = gru(inputs)[0]
        return states

    arguments = (inputs, *gru.parameters())
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_a_gru_whose_parameters_are_frozen_hands_the_gradient_on() -> None:
    gru, inputs = Gru(4, 3).requires_grad_(False), sequences(2, 5, 4)
    assert is_same(gradients(gru(inputs)[0], [inputs]), gradients(nn.GRU.forward(gru, inputs)[0], [inputs]))
    with torch.no_grad():
        assert torch.equal(gru(inputs)[0], nn.GRU.forward(gru, inputs)[0])


def test_two_passes_through_one_gru_do_not_meet() -> None:
    gru, inputs = Gru(4, 3), [sequences(2, 5, 4), sequences(2, 5, 4).detach().neg().requires_grad_()]
    states = [gru(each)[0] for each in inputs]
    for each, own in zip(inputs, states, strict=True):
        expected = gradients(nn.GRU.forward(gru, each)[0], [each, *gru.parameters()])
        for _ in range(2):  # the graph is kept
            weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
            found = torch.autograd.grad(own, [each, *gru.parameters()], weights, retain_graph=True)
            assert is_same([*found], expected)


POOLED = {
    "an even length": torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)),
    "an odd length": torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)),
    "a single pair": torch.tensor([[[1.0, 2.0]]]),
    "equal neighbours": torch.tensor([[[1.0, 1.0, 2.0, 2.0, -1.0, -1.0, 0.0, 0.0, 3.0]]]),
    "zeros and below": torch.tensor([[[0.0, -1.0, -1.0, 0.0, -2.0, -1.0, -1.0, -2.0]]]),
    "not finite": torch.tensor([[[INF, 1.0, 1.0, INF, -INF, 1.0, 1.0, -INF]]]),
    "not a number": torch.tensor([[[1.0, NAN, NAN, NAN, 1.0, 2.0]]]),
}


@pytest.mark.parametrize("name", POOLED)
def test_pooling_has_the_bits_of_pytorchs_with_relu_before_and_after_it(name: str) -> None:
    inputs = POOLED[name].clone().requires_grad_()
    alone, expected = HalvingMaxPool1d()(inputs), F.max_pool1d(inputs, 2)
    torch.testing.assert_close(alone, expected, rtol=0, atol=0, equal_nan=True)
    assert is_same(gradients(alone, [inputs]), gradients(expected, [inputs]))
    with_relu, expected = F.relu(HalvingMaxPool1d()(inputs)), F.max_pool1d(F.relu(inputs), 2)
    torch.testing.assert_close(with_relu, expected, rtol=0, atol=0, equal_nan=True)
    assert is_same(gradients(with_relu, [inputs]), gradients(expected, [inputs]))


def test_gradients_of_pooling_are_those_of_finite_differences_and_can_be_differentiated() -> None:
    for length in (6, 7):
        inputs = torch.randperm(2 * length, generator=torch.Generator().manual_seed(0)).double()
        inputs = inputs.view(1, 2, length).requires_grad_()
        assert torch.autograd.gradcheck(HalvingMaxPool1d(), inputs)
        assert torch.autograd.gradgradcheck(HalvingMaxPool1d(), inputs)


def in_evaluation(layer: nn.Module, inputs: Tensor) -> Tensor:
    return copy.deepcopy(layer).eval()(inputs)[0]


def under_autocast(layer: nn.Module, inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(inputs)[0]


def mapped(layer: nn.Module, inputs: Tensor) -> Tensor:
    return torch.vmap(lambda rows: layer(rows.unsqueeze(0))[0])(inputs)


def without_batch(layer: nn.Module, inputs: Tensor) -> Tensor:
    return layer(inputs[0])[0]


@pytest.mark.parametrize("use", [in_evaluation, under_autocast, without_batch])
@pytest.mark.parametrize("make", [lambda: Gru(6, 3), HalvingMaxPool1d], ids=["GRU", "pooling"])
def test_elsewhere_a_layer_is_that_of_pytorch(
    make: Callable[[], nn.Module], use: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    layer, inputs = make(), sequences(2, 4, 6)
    plain = nn.GRU(6, 3, batch_first=True) if isinstance(layer, Gru) else nn.MaxPool1d(2)
    plain.load_state_dict(layer.state_dict())
    found, expected = use(layer, inputs), use(plain, inputs)
    assert found.dtype is expected.dtype
    assert torch.equal(found, expected)


def test_a_gru_can_be_given_a_state_and_a_layer_be_mapped_over_clients() -> None:
    gru, inputs = Gru(6, 3), sequences(2, 4, 6)
    plain = nn.GRU(6, 3, batch_first=True)
    plain.load_state_dict(gru.state_dict())
    initial = torch.ones(1, 2, 3)
    assert torch.equal(gru(inputs, initial)[0], plain(inputs, initial)[0])
    assert torch.equal(mapped(HalvingMaxPool1d(), inputs), mapped(nn.MaxPool1d(2), inputs))


def test_the_encoder_trains_as_one_of_pytorchs_layers() -> None:
    torch.manual_seed(0)
    found = TimeConvolutionsGru(3, (4, 8), 5, dropout=0.5, dim=6)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width_in, width in pairwise((3, 4, 8)):
        layers += [nn.Conv1d(width_in, width, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Dropout(0.5)]
    plain = nn.ModuleDict({"convolutions": nn.Sequential(*layers), "gru": nn.GRU(8, 6, batch_first=True)})
    assert list(found.state_dict()) == list(plain.state_dict())
    assert is_same([*found.state_dict().values()], [*plain.state_dict().values()])

    inputs = sequences(5, 18, 3).detach()
    torch.manual_seed(1)
    embeddings = copy.deepcopy(found)(inputs)
    torch.manual_seed(1)
    expected = plain["gru"](plain["convolutions"](inputs.transpose(1, 2)).transpose(1, 2))[0].mean(dim=1)
    assert torch.equal(embeddings, expected)
    torch.manual_seed(1)
    assert is_same(gradients(found(inputs), [*found.parameters()]), gradients(expected, [*plain.parameters()]))
