"""The clients' optimizers: one fused kernel per block and step, on the block's vector.

The sections of `clients/options.py` call PyTorch's own kernels as functions. `torch.optim.Optimizer` would import
torch's compiler with its first object, a second of start-up in every actor, and keep state by parameter where we need
it by block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from blossom_ray.clients.options import ClientOptimizer
from blossom_ray.clients.plan import OptimizerState
from blossom_ray.models.flat import FlatBlock


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
        blocks: Mapping[str, FlatBlock],
        learning_rate: float,
        state: OptimizerState | None = None,
    ) -> None:
        self._section, self._fused_step = section, section.fused_step(learning_rate)
        self._names = tuple(blocks)
        self._parameters = [flat.values[: flat.num_parameters] for flat in blocks.values()]
        self._gradients = [flat.gradient for flat in blocks.values()]
        self._state = {key: self._zeros(key) for key in (*section.moments, *section.counters)}
        for position, name in enumerate(self._names if state else ()):
            for key, tensors in self._state.items():
                tensors[position].copy_(torch.tensor(state[name][key]))  # type: ignore[index]  # not None: see above

    @torch.no_grad()
    def step(self, resting: Collection[str] = ()) -> None:
        """One step in place, from the blocks' gradient vectors.

        Args:
            resting: Blocks that take no step this time: neither their parameters nor their state change.
        """

        def stepped(tensors: list[Tensor]) -> list[Tensor]:
            if not resting:
                return tensors
            return [tensor for name, tensor in zip(self._names, tensors, strict=True) if name not in resting]

        parameters = stepped(self._parameters)
        if parameters:
            self._fused_step(
                parameters,
                stepped(self._gradients),
                [stepped(self._state[key]) for key in self._section.moments],
                [counter for key in self._section.counters for counter in stepped(self._state[key])],
            )

    def state(self) -> OptimizerState:
        """Copies of the state, by block and name."""
        return {
            name: {key: tensors[position].cpu().numpy().copy() for key, tensors in self._state.items()}
            for position, name in enumerate(self._names)
        }

    def _zeros(self, key: str) -> list[Tensor]:
        if key in self._section.counters:
            return [values.new_zeros(()) for values in self._parameters]
        return [torch.zeros_like(values) for values in self._parameters]
