"""Layers over time that train in less time on a CPU than PyTorch's, and come to the same bits.

Each is PyTorch's module with another training step: the same operations in the same order on the same layouts, without
a graph for each of them. Wherever else it is called, in evaluation, on a GPU, under autocast or `torch.func`, it is
that module and nothing more. Shape suffixes: B batch, T time, F features, H width, C channels, L length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gru(nn.GRU):
    """`nn.GRU` of one layer and one direction, the batch first."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__(num_features, width, batch_first=True)

    def forward(  # type: ignore[override]  # no packed sequences
        self, inputs: Tensor, initial: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From (B, T, F) to the states (B, T, H) and the last of them (1, B, H)."""
        is_plain = inputs.ndim == 3 and initial is None and self.weight_ih_l0.requires_grad
        if not is_plain or not _is_plain_training(self, inputs):
            found: tuple[Tensor, Tensor] = super().forward(inputs, initial)
            return found
        states: Tensor = _Gru.apply(inputs, *self._flat_weights)  # type: ignore[no-untyped-call]  # untyped in torch
        return states, states[:, -1].unsqueeze(0)


class HalvingMaxPool1d(nn.MaxPool1d):
    """`nn.MaxPool1d(2)`."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """From (B, C, L) to (B, C, L // 2)."""
        if not _is_plain_training(self, inputs) or inputs.shape[-1] < 2:
            pooled: Tensor = super().forward(inputs)
            return pooled
        outputs: Tensor = _PairMaximum.apply(inputs)  # type: ignore[no-untyped-call]  # untyped in torch
        return outputs


def _is_plain_training(module: nn.Module, inputs: Tensor) -> bool:
    is_plain = inputs.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return module.training and is_plain and not torch._C._are_functorch_transforms_active()


class _Gru(torch.autograd.Function):
    """r, z = s(x W_rz + h U_rz), n = tanh(x W_n + r * (h U_n)), h' = (h - n) * z + n, biases in all products.

    The rows of the weights (3H, F) and (3H, H) stand in the order r, z, n.

    Source: Cho et al. 2014 (arXiv:1406.1078), in the form and the order of operations of `torch.nn.GRU`.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, input_weight: Tensor, state_weight: Tensor, input_bias: Tensor, state_bias: Tensor
    ) -> Tensor:
        num_rows, num_steps, num_features = inputs.shape
        width = state_weight.shape[1]
        timed = inputs.transpose(0, 1)
        flat = timed.reshape(-1, num_features)
        # The two ways of `F.linear`, which round differently.
        if timed.is_contiguous():
            given = torch.addmm(input_bias, flat, input_weight.t())
        else:
            given = torch.mm(flat, input_weight.t()).add_(input_bias)
        given = given.view(num_steps, num_rows, 3 * width)
        # The input's share of the gates becomes the gates.
        gates = given[..., : 2 * width]
        recurrent, candidates, differences = given.new_empty(3, num_steps, num_rows, width).unbind()
        # The state before each step, and after the last.
        states = _steps(given, num_steps + 1, num_rows, width).zero_()
        product = torch.empty_like(given[0])
        product_both, product_candidate = torch.split(product, [2 * width, width], dim=1)
        transposed = state_weight.t()
        halves = gates[..., :width], gates[..., width:]
        steps = [
            *zip(*(values.unbind() for values in (states[:-1], recurrent, gates, *halves, differences)), strict=True)
        ]
        others = zip(given[..., 2 * width :].unbind(), candidates.unbind(), states[1:].unbind(), strict=True)
        for step, (given_candidate, candidate, after) in zip(steps, others, strict=True):
            before, of_candidate, both, reset, update, difference = step
            torch.addmm(state_bias, before, transposed, out=product)
            both.add_(product_both)
            # One by one: where a row ends, PyTorch's sigmoid rounds differently.
            reset.sigmoid_()
            update.sigmoid_()
            of_candidate.copy_(product_candidate)
            torch.mul(of_candidate, reset, out=candidate).add_(given_candidate).tanh_()
            torch.sub(before, candidate, out=difference)
            torch.mul(difference, update, out=after).add_(candidate)
        ctx.save_for_backward(inputs, input_weight, state_weight, input_bias, state_bias)
        ctx.kept = flat, gates, candidates, steps
        return states[1:].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (states_gradient,) = gradients
        arguments = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradients is asked for, which PyTorch's own function has
            inputs, *parameters = arguments
            initial = inputs.new_zeros(1, len(inputs), parameters[1].shape[1])
            states = torch.gru(inputs, initial, parameters, True, 1, 0.0, True, False, True)[0]
            wanted = [each for each in arguments if each.requires_grad]
            found = iter(torch.autograd.grad(states, wanted, states_gradient, create_graph=True))
            return tuple(next(found) if each.requires_grad else None for each in arguments)
        _, input_weight, state_weight, *_ = arguments
        flat, gates, candidates, steps = ctx.kept
        num_steps, num_rows, width = candidates.shape
        # Gradients at the sums that go into the gates, from the state's products. Those from the input's differ in
        # the candidate's third, which the reset gate scales.
        at_state = _steps(candidates, num_steps, num_rows, 3 * width)
        # First the slopes of tanh, as its own gradient rounds them.
        at_candidates = torch.ops.aten.tanh_backward(torch.ones_like(candidates), candidates)
        state_weight_gradient, product = torch.zeros_like(state_weight), torch.empty_like(state_weight)
        total, kept, carried = (torch.zeros_like(candidates[0]) for _ in range(3))
        pair = torch.empty_like(at_state[0, :, : 2 * width])
        at_reset, at_update = torch.split(pair, width, dim=1)
        thirds = torch.split(at_state, [2 * width, width], dim=2)
        columns = (
            values.unbind() for values in (states_gradient.transpose(0, 1), 1 - gates, at_candidates, at_state, *thirds)
        )
        for step, others in zip(reversed(steps), reversed([*zip(*columns, strict=True)]), strict=True):
            before, of_candidate, both, reset, update, difference = step
            gradient, rest, at_candidate, at_all, at_both, at_recurrent = others
            torch.add(gradient, kept, out=total).add_(carried)
            torch.mul(total, update, out=kept)
            torch.mul(total, difference, out=at_update)
            at_candidate.mul_(total.sub_(kept))
            torch.mul(at_candidate, of_candidate, out=at_reset)
            torch.mul(pair, rest, out=at_both).mul_(both)
            torch.mul(at_candidate, reset, out=at_recurrent)
            torch.mm(at_all, state_weight, out=carried)
            state_weight_gradient.add_(torch.mm(at_all.t(), before, out=product))
        sums = at_state.sum(1)
        state_bias_gradient = sums[-1].clone()
        for each in reversed(sums[:-1].unbind()):
            state_bias_gradient.add_(each)
        thirds[1].copy_(at_candidates)
        at_given = at_state.reshape(-1, 3 * width)
        inputs_gradient = None
        if ctx.needs_input_grad[0]:
            if flat.stride() == (1, len(flat)):  # a single row: PyTorch swaps the factors
                timed = torch.mm(input_weight.t(), at_given.t()).t()
            else:
                timed = torch.mm(at_given, input_weight)
            # Features before time, as convolutions leave the inputs.
            swapped = timed.reshape(num_steps, -1).t().contiguous()
            inputs_gradient = swapped.view(num_rows, -1, num_steps).transpose(1, 2)
        return (
            inputs_gradient,
            torch.mm(at_given.t(), flat),
            state_weight_gradient,
            at_given.sum(0),
            state_bias_gradient,
        )


def _steps(like: Tensor, num_steps: int, num_rows: int, width: int) -> Tensor:
    """Memory (T, B, H) whose steps begin where tensors of their own would: matrix products round by the address."""
    size = num_rows * width
    memory = like.new_empty(num_steps, size + -size % 16)  # 64 bytes in float32
    return memory[:, :size].view(num_steps, num_rows, width)


class _PairMaximum(torch.autograd.Function):
    """The larger of two neighbours, which gets the gradient; of two that are equal the first, of NaN the second.

    A tensor with every second value is copied first: PyTorch computes with such a view one value at a time.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        paired = inputs.shape[-1] - inputs.shape[-1] % 2
        first, second = inputs[..., 0:paired:2].contiguous(), inputs[..., 1:paired:2].contiguous()
        ctx.save_for_backward(second - first)
        ctx.num_alone = inputs.shape[-1] % 2
        return torch.maximum(first, second)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (differences,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        # Zeros where the second is not the larger one.
        to_second = torch.ops.aten.threshold_backward(gradient, differences, 0)
        # As one complex number each they lie side by side, which is what takes longest otherwise.
        pairs = torch.view_as_real(torch.complex(gradient - to_second, to_second)).flatten(-2)
        return F.pad(pairs, (0, 1)) if ctx.num_alone else pairs
