"""Batch normalisation for each client of a stack, with its own statistics; padding does not enter them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blossom_ray.clients.stacked.lanes import Lanes
from blossom_ray.clients.stacked.layers import LayerTensors


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
