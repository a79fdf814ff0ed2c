"""The clients' optimizers: one fused kernel per block and step, on the block's vector.

The sections of `clients/options.py` call PyTorch's own kernels as functions. `torch.optim.Optimizer` would import
torch's compiler with its first object, a second of start-up in every actor, and keep state by parameter where we need
it by block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blossom_ray.clients.options import ClientOptimizer
from blossom_ray.clients.plan import OptimizerState


class Trained(Protocol):
    """What is stepped: a block, or another array."""

    @property
    def parameters(self) -> Tensor:
        """(n,), changed in place."""

    @property
    def gradient(self) -> Tensor:
        """(n,)."""


@dataclass(frozen=True)
class TrainedVector:
    """An array that is no block, as a vector, and its gradient; both are changed in place."""

    parameters: Tensor
    gradient: Tensor


class BlockOptimizer:
    """SGD, Adam or AdamW over the vectors of some blocks.

    Args:
        section: The scenario's `training.optimizer` section.
        blocks: The blocks that it steps, by name; only their parameters, not their averaged buffers.
        learning_rate: The round's learning rate.
        state: State of an earlier round to go on from, by block; None for a new one.
    """

    def __init__(
        self,
        section: ClientOptimizer,
        blocks: Mapping[str, Trained],
        learning_rate: float,
        state: OptimizerState | None = None,
    ) -> None:
        self._steps = [(own, own.fused_step(rate), names) for own, rate, names in section.alike(blocks, learning_rate)]
        self._parameters = {name: flat.parameters for name, flat in blocks.items()}
        self._gradients = {name: flat.gradient for name, flat in blocks.items()}
        self._state: dict[str, dict[str, Tensor]] = {name: {} for name in blocks}
        for own, _, names in self._steps:
            for name in names:
                values = self._parameters[name]
                self._state[name] |= {key: torch.zeros_like(values) for key in own.moments}
                self._state[name] |= {key: values.new_zeros(()) for key in own.counters}
        for name in self._state if state else ():
            for key, tensor in self._state[name].items():
                tensor.copy_(torch.tensor(state[name][key]))  # type: ignore[index]  # not None: see above

    @torch.no_grad()
    def step(self, resting: Collection[str] = ()) -> None:
        """One step in place, from the blocks' gradient vectors.

        Args:
            resting: Blocks that take no step this time: neither their parameters nor their state change.
        """
        for section, fused_step, names in self._steps:
            stepped = [name for name in names if name not in resting]
            if stepped:
                fused_step(
                    [self._parameters[name] for name in stepped],
                    [self._gradients[name] for name in stepped],
                    [[self._state[name][key] for name in stepped] for key in section.moments],
                    [self._state[name][key] for key in section.counters for name in stepped],
                )

    def state(self) -> OptimizerState:
        """Copies of the state, by block and name."""
        return {
            name: {key: tensor.cpu().numpy().copy() for key, tensor in tensors.items()}
            for name, tensors in self._state.items()
        }
