"""Layers of a stacked model: linear, convolution, group normalisation, dropout, one set of parameters per client.

A layer takes and gives (K * B, ...) as `lanes.py` describes; its parameters are (K, *shape). `recurrence.py` has more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blossom_ray.clients.stacked.descent import Descent
from blossom_ray.clients.stacked.lanes import Lanes


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


class StackedLinear(nn.Module):
    """`nn.Linear` for each client: one batched matrix product."""

    def __init__(self, tensors: LayerTensors, lanes: Lanes) -> None:
        super().__init__()
        self._tensors, self._lanes = tensors, lanes

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, ..., F) to (K * B, ..., G)."""
        folded = inputs.reshape(self._lanes.num_clients, -1, inputs.shape[-1])
        weight, bias = self._tensors["weight"], self._tensors.get("bias")
        outputs = stacked_affine(folded, weight, bias, self._lanes.descent)
        return outputs.view(*inputs.shape[:-1], -1)


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
    """`nn.Dropout` for each client, with the masks that the client draws when it trains alone.

    The masks equal those of `torch.nn.functional.dropout` on a CPU: `bernoulli_` over the real rows of the client's
    batch, layer after layer, from one generator. (On a GPU that function draws otherwise.)
    """

    def __init__(self, dropout: nn.Dropout, lanes: Lanes) -> None:
        super().__init__()
        self._lanes, self._keep = lanes, 1 - dropout.p

    def forward(self, inputs: Tensor) -> Tensor:
        """From (K * B, ...) to the same shape."""
        if not self.training:
            return inputs
        masks = torch.zeros_like(inputs, memory_format=torch.contiguous_format)
        unfolded = self._lanes.unfold(masks)
        for mask, count, generator in zip(unfolded, self._lanes.counts, self._lanes.generators, strict=False):
            mask[:count].bernoulli_(self._keep, generator=generator)
        return inputs * masks.div_(self._keep)


def channels_by_client(values: Tensor) -> Tensor:
    """From (K, B, C, *S) to (B, K * C, *S): what PyTorch's kernels with a channel axis take."""
    return values.transpose(0, 1).flatten(1, 2)


def stacked_affine(inputs: Tensor, weight: Tensor, bias: Tensor | None, descent: Descent | None = None) -> Tensor:
    """X W^T + b for each client: (K, R, F), (K, G, F) and (K, G) to (K, R, G).

    Autograd's own form of it gives the weights' gradient as a transposed view, which an optimizer would have to copy.
    With `descent` the backward pass steps the weight, if it can, and gives no gradient of it.
    """
    values = _in_autocast_type(inputs, weight, bias)
    if descent is not None:
        descent.note(weight)
    # A copy in another type is not what an optimizer steps.
    own = descent if values[1] is weight else None
    outputs: Tensor = _Affine.apply(*values, own)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return outputs


def _in_autocast_type(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the type in which autocast has products computed; functions of our own it leaves alone."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, descent: Descent | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.descent = descent
        transposed = weight.transpose(1, 2)
        return torch.bmm(inputs, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), inputs, transposed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (outputs_gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias, _ = ctx.needs_input_grad
        # First of all, since it needs the weight as it was.
        inputs_gradient = torch.bmm(outputs_gradient, weight) if of_inputs else None
        weight_gradient = None
        if of_weight and ctx.descent is not None and ctx.descent.can_take(weight):
            ctx.descent.take(weight, outputs_gradient, inputs)
        elif of_weight:
            weight_gradient = torch.bmm(outputs_gradient.transpose(1, 2), inputs)
        return inputs_gradient, weight_gradient, outputs_gradient.sum(dim=1) if of_bias else None, None


class StackedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` or `nn.BatchNorm2d` per client.

    A client whose batch has one sample is normalised with its running statistics and does not update them, as
    `LateFusionModel.training_mode` has it.
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
        weights = (mask / (self._lanes.row_counts.unsqueeze(1) * values.shape[3]))[:, :, None, None]
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
