"""Which models can be stacked, and the stacked layer for each layer of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.batches import Lanes
from blossom_ray.clients.stacked.layers import (
    LayerTensors,
    StackedBatchNorm,
    StackedConvolution,
    StackedDropout,
    StackedGroupNorm,
    StackedGru,
    StackedLinear,
)
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.encoders import RowWise

_ROW_WISE: tuple[type[nn.Module], ...] = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.ELU,
    nn.Flatten,
    nn.GELU,
    nn.Identity,
    nn.LeakyReLU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.ModuleList,
    nn.ReLU,
    nn.Sequential,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
)
"""Layers without parameters of their own that treat each row alike: they need no stacked form."""

_STACKED: Mapping[type[nn.Module], Callable[[Any, LayerTensors, Lanes], nn.Module]] = {
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
    nn.Conv1d: StackedConvolution,
    nn.Conv2d: StackedConvolution,
    nn.Dropout: StackedDropout,
    nn.GRU: StackedGru,
    nn.GroupNorm: StackedGroupNorm,
    nn.Linear: StackedLinear,
}
"""The stacked form of each layer that has one."""


def stacking_obstacle(workspace: Workspace) -> str | None:
    """Why the model of a workspace cannot be stacked, as one line; None where it can.

    Own code is stacked where it is made of PyTorch's layers in `nn.Sequential` alone: what another forward pass does
    with the rows of a batch, or with random numbers, cannot be seen from outside.
    """
    if workspace.model.missing == "prototype":
        return "model.missing is 'prototype', whose embeddings are measured one client after the other"
    for name, block in workspace.model.blocks.items():
        for path, module in block.named_modules():
            reason = _obstacle(module)
            if reason:
                place = f"{name}.{path}" if path else name
                return f"{place} ({type(module).__name__}) {reason}"
    return None


def training_obstacle(section: Training) -> str | None:
    """What in a `training` section the clients of a stack cannot do together, as one line; None where they can."""
    if section.modality_dropout > 0:
        return f"training.modality_dropout is {section.modality_dropout}, which takes each client by itself"
    if section.min_batch_size > 1:
        return f"training.min_batch_size is {section.min_batch_size}, and a stack leaves no batch out"
    return None


def stacked_layer(module: nn.Module, tensors: LayerTensors, lanes: Lanes) -> nn.Module | None:
    """The stacked form of a layer; None where the module itself does for a stack too."""
    make = _STACKED.get(type(module))
    return None if make is None else make(module, tensors, lanes)


def _obstacle(module: nn.Module) -> str | None:
    # Exact types: a subclass may do anything in its forward pass.
    if type(module) not in (*_ROW_WISE, *_STACKED) and RowWise not in type(module).__bases__:
        return "has no stacked form"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks"
    if getattr(module, "inplace", False):
        return "works in place"
    match module:
        case nn.Flatten() if module.start_dim != 1:
            return "does not start at dimension 1"
        case nn.BatchNorm1d() | nn.BatchNorm2d() if not (module.affine and module.track_running_stats):
            return "has no affine map or no running statistics"
        case nn.GroupNorm() if not module.affine:
            return "has no affine map"
        case nn.Conv1d() | nn.Conv2d() if module.padding_mode != "zeros":
            return f"pads with {module.padding_mode}"
        case nn.Dropout() if not 0 < module.p < 1:
            return f"has probability {module.p}"
        case nn.GRU() if not _is_plain(module):
            return "is not of one layer and direction, with biases and the batch first"
        case _:
            return None


def _is_plain(gru: nn.GRU) -> bool:
    return gru.num_layers == 1 and not gru.bidirectional and gru.bias and gru.batch_first
