"""A block's vector and its module are one memory: both ways, for parameters, gradients and running statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from blossom_ray.errors import InputError
from blossom_ray.models.encoder_options import Conv2dEncoder, ConvGruEncoder
from blossom_ray.models.encoders import Mlp
from blossom_ray.models.flat import Entry, FlatBlock, block_layout
from blossom_ray.models.options import NormStatistics


def mlp() -> nn.Module:
    return Mlp(3, 2, hidden=(4,), dropout=0.0, norm="batch")


def conv2d() -> nn.Module:
    section = Conv2dEncoder(kind="conv2d", channels=(4, 4), kernel_size=1, max_pool=False, global_pool=True, dim=2)
    return section.build((3, 1, 1))


def conv_gru() -> nn.Module:
    return ConvGruEncoder(kind="conv-gru", channels=(4,), kernel_size=3, dim=5, dropout=0.0).build((8, 3))


INPUT_SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {mlp: (3,), conv2d: (3, 1, 1), conv_gru: (8, 3)}


def batch(build: Callable[[], nn.Module], seed: int = 0) -> Tensor:
    return torch.randn(6, *INPUT_SHAPES[build], generator=torch.Generator().manual_seed(seed))


def test_vector_by_hand() -> None:
    module = nn.Linear(2, 1)
    flat = FlatBlock(module, "shared")
    flat.load(np.array([2.0, 3.0, 4.0], dtype=np.float32))
    assert module(torch.tensor([[10.0, 100.0]])).item() == 324.0
    module(torch.tensor([[10.0, 100.0]])).backward()
    assert flat.gradient.tolist() == [10.0, 100.0, 1.0]
    module(torch.tensor([[10.0, 100.0]])).backward()
    assert flat.gradient.tolist() == [20.0, 200.0, 2.0]
    flat.zero_gradient()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[0.0, 0.0]]


def test_layout_by_hand() -> None:
    norm = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    parameters = (
        Entry("0.weight", (3, 2), 0),
        Entry("0.bias", (3,), 6),
        Entry("1.weight", (3,), 9),
        Entry("1.bias", (3,), 12),
    )
    local, shared = block_layout(norm, "local"), block_layout(norm, "shared")
    assert (local.parameters, local.buffers, local.num_parameters, local.size) == (parameters, (), 15, 15)
    assert shared.parameters == parameters
    assert shared.buffers == (Entry("1.running_mean", (3,), 15), Entry("1.running_var", (3,), 18))
    assert (shared.num_parameters, shared.size) == (15, 21)


@pytest.mark.parametrize("build", INPUT_SHAPES)
@pytest.mark.parametrize("norm_statistics", ["local", "shared"])
def test_binding_changes_no_value_and_no_output(
    build: Callable[[], nn.Module], norm_statistics: NormStatistics
) -> None:
    module = build().eval()
    before = copy.deepcopy(module.state_dict())
    output = module(batch(build))
    FlatBlock(module, norm_statistics)
    assert all(torch.equal(values, module.state_dict()[name]) for name, values in before.items())
    assert torch.equal(module(batch(build)), output)


@pytest.mark.parametrize("build", INPUT_SHAPES)
def test_module_and_vector_are_one_memory(build: Callable[[], nn.Module]) -> None:
    module = build()
    flat = FlatBlock(module, "shared")
    module.train()
    module(batch(build)).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    shared = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    expected = torch.cat([tensor.detach().flatten() for tensor in (*module.parameters(), *shared)])
    assert torch.equal(flat.values, expected)
    assert np.array_equal(flat.read(), expected.numpy())
    flat.load(np.full(flat.size, 0.5, dtype=np.float32))
    assert all(bool((tensor == 0.5).all()) for tensor in (*module.parameters(), *shared))
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert torch.equal(flat.gradient, torch.cat([gradient.flatten() for gradient in gradients]))
    assert flat.gradient.any()


def test_running_statistics_are_in_the_vector_only_when_shared() -> None:
    cases: tuple[tuple[NormStatistics, bool], ...] = (("shared", True), ("local", False))
    for norm_statistics, tail in cases:
        module = nn.BatchNorm1d(2)
        flat = FlatBlock(module, norm_statistics)
        module(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        # Momentum 0.1: means 0.1 x 2 and 0.1 x 20; variances 0.9 + 0.1 x 2 and 0.9 + 0.1 x 200.
        statistics = flat.read()[4:]
        assert statistics == pytest.approx([0.2, 2.0, 1.1, 20.9] if tail else [])
        state = flat.local_state()
        assert set(state) == {"num_batches_tracked"} | (set() if tail else {"running_mean", "running_var"})
        assert state["num_batches_tracked"] == 1
        assert state["num_batches_tracked"].dtype == np.int64


def test_local_state_is_copied_both_ways() -> None:
    module = nn.BatchNorm1d(2)
    flat = FlatBlock(module, "local")
    state = flat.local_state()
    state["running_mean"][:] = 7.0
    assert module.running_mean is not None
    assert module.running_mean.tolist() == [0.0, 0.0]
    for values in state.values():
        values.flags.writeable = False
    flat.load_local_state(state)
    assert module.running_mean.tolist() == [7.0, 7.0]
    module(torch.zeros(3, 2))
    assert state["running_mean"].tolist() == [7.0, 7.0]
    assert state["num_batches_tracked"] == 0


@pytest.mark.parametrize("build", INPUT_SHAPES)
@given(data=st.data())
@settings(deadline=None, max_examples=10)
def test_loading_what_was_read_is_the_identity(build: Callable[[], nn.Module], data: st.DataObject) -> None:
    flat = FlatBlock(build(), "shared")
    floats = st.floats(width=32, allow_nan=False)
    numbers = data.draw(st.lists(floats, min_size=1, max_size=8))
    vector = np.resize(np.array(numbers, dtype=np.float32), flat.size)
    flat.load(vector)
    first = flat.read()
    flat.load(first)
    assert first.dtype == np.float32
    assert first.tobytes() == flat.read().tobytes() == vector.tobytes()


@pytest.mark.parametrize("build", INPUT_SHAPES)
def test_training_never_touches_the_vector_that_was_loaded(build: Callable[[], nn.Module]) -> None:
    module = build()
    flat = FlatBlock(module, "shared")
    vector = flat.read()
    vector.flags.writeable = False
    kept = vector.copy()
    flat.load(vector)
    for seed in range(3):
        flat.zero_gradient()
        module(batch(build, seed)).square().sum().backward()
        flat.values[: flat.num_parameters].sub_(flat.gradient, alpha=0.1)
    assert np.array_equal(vector, kept)
    assert not np.array_equal(flat.read(), kept)


@pytest.mark.parametrize("build", INPUT_SHAPES)
def test_sgd_on_the_vector_equals_sgd_on_the_parameters(build: Callable[[], nn.Module]) -> None:
    plain = build()
    module = copy.deepcopy(plain)
    flat = FlatBlock(module, "shared")
    leaf = nn.Parameter(flat.values[: flat.num_parameters])
    leaf.grad = flat.gradient
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
    flat_optimizer, optimizer = torch.optim.SGD([leaf], **options), torch.optim.SGD(plain.parameters(), **options)
    for seed in range(3):
        flat.zero_gradient()
        module(batch(build, seed)).square().mean().backward()
        flat_optimizer.step()
        optimizer.zero_grad()
        plain(batch(build, seed)).square().mean().backward()
        optimizer.step()
    expected = plain.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in module.state_dict().items())


def test_tied_parameters_count_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    flat = FlatBlock(module, "shared")
    assert flat.size == 4
    flat.load(np.array([0.0, 1.0, 2.0, 0.0], dtype=np.float32))
    assert module(torch.tensor([[1.0, 0.0]])).tolist() == [[2.0, 0.0]]


def test_a_module_without_parameters_is_an_empty_vector() -> None:
    flat = FlatBlock(nn.Flatten(), "shared")
    flat.load(flat.read())
    flat.load_local_state(flat.local_state())
    assert (flat.size, flat.num_parameters, flat.gradient.shape, flat.trained) == (0, 0, (0,), True)


@pytest.mark.parametrize("way", ["argument", "method", "module"])
def test_a_frozen_block_gets_no_gradient(way: str) -> None:
    module = nn.Linear(2, 1)
    if way == "module":
        module.requires_grad_(False)
    flat = FlatBlock(module, "shared", trained=way != "argument")
    if way == "method":
        flat.freeze()
    assert not flat.trained
    assert flat.gradient.shape == (0,)
    assert flat.num_parameters == 3
    assert not module(torch.ones(1, 2)).requires_grad
    assert module.weight.grad is None


def test_modules_that_cannot_be_one_vector_are_refused() -> None:
    with pytest.raises(InputError, match=r"parameter 'weight' has type torch\.float64; expected torch\.float32"):
        FlatBlock(nn.Linear(2, 1).double(), "shared")
    norm = nn.BatchNorm1d(2)
    norm.running_var = torch.ones(2, dtype=torch.float64)
    with pytest.raises(InputError, match=r"buffer 'running_var' has type torch\.float64"):
        FlatBlock(norm, "shared")
    FlatBlock(norm, "local")
    partly = nn.Linear(2, 1)
    partly.bias.requires_grad_(False)
    with pytest.raises(InputError, match="parameter 'bias' is frozen and others are not"):
        FlatBlock(partly, "shared")
    with pytest.raises(InputError, match="parameter 'weight' has no shape yet"):
        FlatBlock(nn.LazyLinear(2), "shared")


def test_a_replaced_tensor_is_noticed() -> None:
    module = nn.BatchNorm1d(2)
    flat = FlatBlock(module, "shared")
    module.running_mean = torch.ones(2)
    with pytest.raises(InputError, match="'running_mean' of BatchNorm1d is a new tensor"):
        flat.read()


def test_wrong_vectors_and_states_are_refused() -> None:
    flat = FlatBlock(nn.BatchNorm1d(2), "local")
    with pytest.raises(ValueError, match=r"vector is float32\(3,\); expected float32\(4,\)"):
        flat.load(np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"vector is float64\(4,\); expected float32\(4,\)"):
        flat.load(np.zeros(4))  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ValueError, match="local buffers are none; expected running_mean, running_var, num"):
        flat.load_local_state({})
    state = flat.local_state()
    with pytest.raises(ValueError, match=r"local buffer 'running_mean' is float32\(3,\); expected float32\(2,\)"):
        flat.load_local_state(state | {"running_mean": np.zeros(3, dtype=np.float32)})
