"""Which layers have a stacked form, and which it is."""

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
    StackedEmbedding,
    StackedGroupNorm,
    StackedGru,
    StackedLinear,
)
from blossom_ray.models.encoders import RowWise
from blossom_ray.models.time_layers import Gru, HalvingMaxPool1d

_ROW_WISE: tuple[type[nn.Module], ...] = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.ELU,
    nn.Flatten,
    nn.GELU,
    HalvingMaxPool1d,
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
    nn.Embedding: StackedEmbedding,
    nn.EmbeddingBag: StackedEmbedding,
    nn.GRU: StackedGru,
    Gru: StackedGru,
    nn.GroupNorm: StackedGroupNorm,
    nn.Linear: StackedLinear,
}
"""The stacked form of each layer that has one."""


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


def is_known(module: nn.Module) -> bool:
    """Whether a module does for a stack as it is, or has a stacked form."""
    # Exact types: a subclass may do anything in its forward pass.
    if type(module) not in (*_ROW_WISE, *_STACKED) and RowWise not in type(module).__bases__:
        return False
    if getattr(module, "inplace", False):
        return False
    match module:
        case nn.Flatten():
            return module.start_dim == 1
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return module.affine and module.track_running_stats
        case nn.GroupNorm():
            return module.affine
        case nn.Conv1d() | nn.Conv2d():
            return module.padding_mode == "zeros"
        case nn.Dropout():
            return 0 < module.p < 1
        case nn.Embedding():
            return module.padding_idx is None and _is_plain(module)
        case nn.EmbeddingBag():
            return not module.include_last_offset and _is_plain(module)
        case nn.GRU():
            is_plain = module.num_layers == 1 and not module.bidirectional
            return is_plain and module.bias and module.batch_first
        case _:
            return True


def _is_plain(embedding: nn.Embedding | nn.EmbeddingBag) -> bool:
    """Whether it looks up rows and does nothing else with them or with their gradients."""
    return embedding.max_norm is None and not embedding.scale_grad_by_freq and not embedding.sparse
