"""`nn.GRU` for each client of a stack: one layer, one direction, the batch first.

All clients take a time step together. What need not wait for the step before is one batched matrix product over all
time steps: the input's share of the gates, and all gradients of the parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blossom_ray.clients.stacked.lanes import Lanes
from blossom_ray.clients.stacked.layers import LayerTensors

_PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class StackedGru(nn.Module):
    """A GRU per client. Like `nn.GRU` it gives all states and the last one."""

    def __init__(self, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """From (K * B, T, F) to the states (K * B, T, H) and the last of them (1, K * B, H)."""
        parameters = [self._tensors[name] for name in _PARAMETERS]
        # Time before rows: a time step of all clients is then one view with rows that lie together.
        timed = self._lanes.unfold(inputs).transpose(1, 2).contiguous().float()
        # float32 whatever the rest computes in: its own kernels' buffers are, and rounding adds up along the sequence.
        with torch.autocast(timed.device.type, enabled=False):
            states: Tensor = _Gru.apply(timed, *parameters)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        folded = states.transpose(1, 2).flatten(0, 1)
        return folded, folded[:, -1].unsqueeze(0)


class _Gru(torch.autograd.Function):
    """r, z = s(x W_rz + h U_rz), n = tanh(x W_n + r * (h U_n)), h' = n + z * (h - n), biases in all products.

    Shapes: inputs (K, T, B, F), weights (K, 3H, F) and (K, 3H, H), biases (K, 3H), states (K, T, B, H). The rows of
    the weights stand in the order r, z, n.

    Source: Cho et al. 2014 (arXiv:1406.1078), in the form of `torch.nn.GRU`.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, input_weight: Tensor, state_weight: Tensor, input_bias: Tensor, state_bias: Tensor
    ) -> Tensor:
        num_clients, num_steps, num_rows, _ = inputs.shape
        size = state_weight.shape[2]
        projected = torch.baddbmm(input_bias.unsqueeze(1), inputs.flatten(1, 2), input_weight.transpose(1, 2))
        projected = projected.view(num_clients, num_steps, num_rows, 3 * size)
        transposed, bias = state_weight.transpose(1, 2), state_bias.unsqueeze(1)
        # The state before each step, and after the last.
        states = inputs.new_zeros(num_steps + 1, num_clients, num_rows, size)
        gates = inputs.new_empty(num_steps, num_clients, num_rows, 2 * size)
        candidates = inputs.new_empty(num_steps, num_clients, num_rows, size)
        recurrent = inputs.new_empty(num_steps, num_clients, num_rows, size)
        for step in range(num_steps):
            products = torch.baddbmm(bias, states[step], transposed)
            given = projected[:, step]
            torch.add(given[..., : 2 * size], products[..., : 2 * size], out=gates[step]).sigmoid_()
            reset, update = gates[step].chunk(2, dim=-1)
            recurrent[step] = products[..., 2 * size :]
            torch.addcmul(given[..., 2 * size :], reset, recurrent[step], out=candidates[step]).tanh_()
            torch.lerp(candidates[step], states[step], update, out=states[step + 1])
        ctx.save_for_backward(inputs, input_weight, state_weight, states, gates, candidates, recurrent)
        return states[1:].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (states_gradient,) = gradients
        inputs, input_weight, state_weight, states, gates, candidates, recurrent = ctx.saved_tensors
        num_clients, num_steps, num_rows, _ = inputs.shape
        size = state_weight.shape[2]
        # Gradients at the sums that go into the gates: from the input's products and from the state's. They differ
        # in the candidate's third, which the reset gate scales.
        from_input = inputs.new_empty(num_clients, num_steps, num_rows, 3 * size)
        from_state = inputs.new_empty(num_clients, num_steps, num_rows, 3 * size)
        carried = torch.zeros_like(states[0])
        for step in reversed(range(num_steps)):
            reset, update = gates[step].chunk(2, dim=-1)
            candidate = candidates[step]
            total = carried + states_gradient[:, step]
            at_update = total * (states[step] - candidate) * update * (1 - update)
            at_candidate = total * (1 - update) * (1 - candidate * candidate)
            at_reset = at_candidate * recurrent[step] * reset * (1 - reset)
            from_input[:, step] = torch.cat((at_reset, at_update, at_candidate), dim=-1)
            at_state = torch.cat((at_reset, at_update, at_candidate * reset), dim=-1)
            from_state[:, step] = at_state
            carried = torch.baddbmm(total * update, at_state, state_weight)

        from_input, from_state = from_input.flatten(1, 2), from_state.flatten(1, 2)
        before = states[:-1].transpose(0, 1).flatten(1, 2)
        inputs_gradient = torch.bmm(from_input, input_weight).view(inputs.shape) if ctx.needs_input_grad[0] else None
        return (
            inputs_gradient,
            torch.bmm(from_input.transpose(1, 2), inputs.flatten(1, 2)),
            torch.bmm(from_state.transpose(1, 2), before),
            from_input.sum(dim=1),
            from_state.sum(dim=1),
        )
