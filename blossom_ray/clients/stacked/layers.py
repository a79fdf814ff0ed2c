"""Layers of a stacked model: one set of parameters per client.

A layer takes and gives (K * B, ...) as `batches.py` describes; its parameters are (K, *shape).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from blossom_ray.clients.stacked.batches import Lanes
from blossom_ray.clients.stacked.descent import Descent


class LayerTensors:
    """One layer's parameters and buffers, a row for each client of a stack.

    Args:
        names: What the layer calls them, and the name inside the block.
        rows: The block's tensors of the clients that take part now, (K, *shape); the stack puts others in their place.
    """

    def __init__(self, names: Mapping[str, str], rows: Mapping[str, Tensor]) -> None:
        self._names, self._rows = names, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._rows[self._names[name]]

    def get(self, name: str) -> Tensor | None:
        """The same, or None where the layer has nothing of this name."""
        return self[name] if name in self._names else None

    def by_name(self) -> dict[str, Tensor]:
        """All of them, by what the layer calls them."""
        return {name: self[name] for name in self._names}


class MappedModule(nn.Module):
    """A module with a forward pass of its own for each client: `torch.vmap` over the clients' parameters and buffers.

    Args:
        module: Its dropout and batch normalisation are `OutOfMap`. Other random numbers are refused by the map.
        tensors: Parameters and buffers of the module with all that is in it.
        lanes: The batch.
    """

    def __init__(self, module: nn.Module, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._module, self._tensors, self._lanes = module, tensors, lanes
        for part in module.modules():
            if isinstance(part, nn.RNNBase | nn.RNNCellBase):
                part.forward = partial(_plain_recurrence, part.forward)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """From (K * B, ...), or a dict of such, to (K * B, E)."""

        def of_one(tensors: dict[str, Tensor], one_inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(self._module, tensors, (one_inputs,))
            return output

        with _plain_attention():
            outputs = torch.vmap(of_one)(self._tensors.by_name(), tree_map(self._lanes.unfold, inputs))
        return outputs.flatten(0, 1)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as single operations, which can be mapped, and not in kernels of its own."""
    is_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)


def _plain_recurrence(forward: Callable[..., Any], *inputs: Any) -> Any:
    """A recurrent layer as single operations: what `vjp` is to differentiate comes apart before it is mapped."""
    libraries: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
    were_enabled = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        return vjp(lambda _: forward(*inputs), torch.zeros(()))[0]
    finally:
        for library, was_enabled in zip(libraries, were_enabled, strict=True):
            library.enabled = was_enabled


class OutOfMap(nn.Module):
    """A stacked layer inside a `MappedModule`: it sees the rows of all clients, with what `lanes` knows of each."""

    def __init__(self, layer: nn.Module, lanes: Lanes) -> None:
        super().__init__()
        self._layer, self._lanes = layer, lanes

    def forward(self, inputs: Tensor) -> Tensor:
        """From (B, ...), mapped over the clients, to the same shape."""
        if self.training and len(inputs) != self._lanes.num_rows:
            raise ValueError(f"{len(inputs)} rows in a layer that needs the {self._lanes.num_rows} of the batch")
        outputs: Tensor = _Leave.apply(inputs, self._layer)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return outputs


class _Leave(torch.autograd.Function):
    """What `torch.vmap` hands over to the layer as it is, and autograd looks through."""

    @staticmethod
    def forward(*_: object) -> Tensor:
        raise ValueError("dropout or batch normalisation of values that are the same for all clients")

    @staticmethod
    def setup_context(*_: object) -> None:
        """Never reached; torch maps no function without it."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], inputs: Tensor, layer: nn.Module) -> tuple[Tensor, int]:
        outputs: Tensor = layer(inputs.movedim(in_dims[0], 0).flatten(0, 1))
        return torch.unflatten(outputs, 0, (info.batch_size, -1)), 0


class StackedLinear(nn.Module):
    """`nn.Linear` for each client: one batched matrix product."""

    def __init__(self, _: nn.Linear, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, ..., F) to (K * B, ..., G)."""
        return stacked_affine(inputs, self._tensors["weight"], self._tensors.get("bias"), self._lanes.descent)


class StackedConvolution(nn.Module):
    """`nn.Conv1d` or `nn.Conv2d` for each client: one convolution with the clients as groups."""

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes
        self._convolve = F.conv1d if isinstance(convolution, nn.Conv1d) else F.conv2d
        self._stride, self._padding = convolution.stride, convolution.padding
        self._dilation, self._groups = convolution.dilation, convolution.groups

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, C, *S) to (K * B, D, *S')."""
        num_clients = self._lanes.num_clients
        bias = self._tensors.get("bias")
        outputs = self._convolve(
            channels_by_client(self._lanes.unfold(inputs)),
            self._tensors["weight"].flatten(0, 1),
            None if bias is None else bias.flatten(),
            self._stride,
            self._padding,
            self._dilation,
            self._groups * num_clients,
        )
        return torch.unflatten(outputs, 1, (num_clients, -1)).transpose(0, 1).flatten(0, 1)


class StackedEmbedding(nn.Module):
    """`nn.Embedding` or `nn.EmbeddingBag` for each client: one lookup in their tables, one below the other."""

    def __init__(self, embedding: nn.Embedding | nn.EmbeddingBag, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes, self._padding = tensors, lanes, embedding.padding_idx
        self._look_up: Callable[..., Tensor] = F.embedding
        if isinstance(embedding, nn.EmbeddingBag):
            self._look_up = partial(F.embedding_bag, mode=embedding.mode, padding_idx=self._padding)

    def forward(self, numbers: Tensor) -> Tensor:
        """From int64 (K * B, T) to (K * B, T, E), of bags to (K * B, E)."""
        tables = self._tensors["weight"]
        first = torch.arange(len(tables), device=numbers.device).mul_(tables.shape[1])
        places = self._lanes.unfold(numbers) + first.view(-1, *[1] * numbers.ndim)
        places = places.view(numbers.shape)
        if self._padding is not None:  # that of the first client stands for all: it takes no part
            places = places.masked_fill(numbers == self._padding, self._padding)
        return self._look_up(places, tables.flatten(0, 1))


class StackedGroupNorm(nn.Module):
    """`nn.GroupNorm` for each client; its statistics are those of one sample, so only the affine map is stacked."""

    def __init__(self, norm: nn.GroupNorm, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes
        self._num_groups, self._eps = norm.num_groups, norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, C, *S) to the same shape."""
        normal = F.group_norm(inputs, self._num_groups, eps=self._eps)
        values = self._lanes.unfold(normal).flatten(3) if normal.ndim > 2 else self._lanes.unfold(normal).unsqueeze(3)
        weight, bias = self._tensors["weight"], self._tensors["bias"]
        scaled = values * weight[:, None, :, None] + bias[:, None, :, None]
        return scaled.view(inputs.shape)


class StackedDropout(nn.Module):
    """`nn.Dropout` for each client, layer after layer with masks from one source."""

    def __init__(self, dropout: nn.Dropout, _: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._lanes, self._keep = lanes, 1 - dropout.p

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, ...) to the same shape."""
        if not self.training:
            return inputs
        assert self._lanes.dropout_masks is not None, "a stack that trains has masks"
        masks = self._lanes.dropout_masks.draw(self._lanes.unfold(inputs), self._lanes.counts, self._keep)
        return inputs * masks.div_(self._keep).flatten(0, 1)


def channels_by_client(values: Tensor) -> Tensor:
    """From (K, B, C, *S) to (B, K * C, *S): what PyTorch's kernels with a channel axis take."""
    return values.transpose(0, 1).flatten(1, 2)


def stacked_affine(inputs: Tensor, weight: Tensor, bias: Tensor | None, descent: Descent | None = None) -> Tensor:
    """X W^T + b for each client: (K * B, ..., F), (K, G, F) and (K, G) to (K * B, ..., G).

    Autograd's own form of it gives the weights' gradient as a transposed view, which an optimizer would have to copy.
    With `descent` the backward pass steps the weight, if it can, and gives no gradient of it.
    """
    values = _in_autocast_type(inputs, weight, bias)
    if descent is not None and torch.is_grad_enabled():
        descent.note(weight)
    # A copy in another type is not what an optimizer steps.
    own = descent if values[1] is weight else None
    outputs: Tensor = _Affine.apply(*values, own)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return outputs


def _in_autocast_type(inputs: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the type in which autocast has products computed; functions of our own it leaves alone."""
    device = inputs.device.type
    if not torch.is_autocast_enabled(device):
        return inputs, *parameters
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (inputs, *parameters))


class _Affine(torch.autograd.Function):
    # One node for a layer: what PyTorch spends on each takes as long as a small stack's products.
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, descent: Descent | None) -> Tensor:
        num_clients, num_outputs, num_inputs = weight.shape
        folded = inputs.reshape(num_clients, -1, num_inputs)
        ctx.save_for_backward(folded, weight)
        ctx.descent, ctx.shape = descent, inputs.shape
        outputs = torch.bmm(folded, weight.transpose(1, 2))
        if bias is not None:
            outputs += bias.unsqueeze(1)
        return outputs.view(*inputs.shape[:-1], num_outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        outputs_gradient = gradients[0].reshape(*inputs.shape[:2], -1)
        of_inputs, of_weight, of_bias, _ = ctx.needs_input_grad
        # First of all, since it needs the weight as it was.
        inputs_gradient = torch.bmm(outputs_gradient, weight).view(ctx.shape) if of_inputs else None
        weight_gradient = None
        if of_weight and ctx.descent is not None and ctx.descent.can_take(weight):
            ctx.descent.take(weight, outputs_gradient, inputs)
        elif of_weight:
            weight_gradient = torch.bmm(outputs_gradient.transpose(1, 2), inputs)
        return inputs_gradient, weight_gradient, outputs_gradient.sum(dim=1) if of_bias else None, None


class StackedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` or `nn.BatchNorm2d` per client.

    A client whose batch has one sample is normalised with its running statistics and does not update them, as
    `LateFusionModel.training_mode` has it; nor does one that has none.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes
        self._eps, self._momentum = norm.eps, norm.momentum

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, C, *S) to the same shape."""
        # (K, B, C, S), S = 1 where there is no place in space or time. Statistics are float32 under autocast, too.
        values = inputs.float().reshape(self._lanes.num_clients, -1, inputs.shape[1], inputs[0, 0].numel())
        mean, variance = _broadcast(self._tensors["running_mean"]), _broadcast(self._tensors["running_var"])
        if self.training:
            batch_mean, batch_variance = self._statistics(values)
            several = self._lanes.row_counts > 1
            chosen = several[:, None, None, None]
            self._update(batch_mean, batch_variance, several, values.shape[3])
            mean, variance = torch.where(chosen, batch_mean, mean), torch.where(chosen, batch_variance, variance)
        scale = _broadcast(self._tensors["weight"]) * torch.rsqrt(variance + self._eps)
        outputs = (values - mean) * scale + _broadcast(self._tensors["bias"])
        return outputs.view(inputs.shape)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over the real rows, (K, 1, C, 1) each."""
        mask = self._lanes.mask
        if mask is None:
            variance, mean = torch.var_mean(values, dim=(1, 3), correction=0, keepdim=True)
            return mean, variance
        weights = (mask / (self._lanes.row_counts.clamp(min=1).unsqueeze(1) * values.shape[3]))[:, :, None, None]
        mean = (values * weights).sum(dim=(1, 3), keepdim=True)
        variance = ((values - mean).square() * weights).sum(dim=(1, 3), keepdim=True)
        return mean, variance

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, several: Tensor, num_places: int) -> None:
        """Move the running statistics of clients with several rows towards mean and unbiased variance."""
        num_batches = self._tensors["num_batches_tracked"].add_(several)
        counts = (self._lanes.row_counts * num_places).unsqueeze(1)
        unbiased = variance.flatten(1) * (counts / (counts - 1).clamp(min=1))
        factor = 1 / num_batches.clamp(min=1) if self._momentum is None else self._momentum
        factor = (factor * several).unsqueeze(1)
        self._tensors["running_mean"].lerp_(mean.flatten(1), factor.expand_as(unbiased))
        self._tensors["running_var"].lerp_(unbiased, factor.expand_as(unbiased))


def _broadcast(values: Tensor) -> Tensor:
    """From (K, C) to (K, 1, C, 1)."""
    return values[:, None, :, None]


class StackedGru(nn.Module):
    """`nn.GRU` for each client: one layer, one direction, the batch first. It gives all states and the last one.

    All clients take a time step together. What need not wait for the step before is one batched matrix product over
    all time steps: the input's share of the gates, and all gradients of the parameters.
    """

    def __init__(self, _: nn.GRU, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """From (K * B, T, F) to the states (K * B, T, H) and the last of them (1, K * B, H)."""
        parameters = [self._tensors[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
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
