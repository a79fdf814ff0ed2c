"""The clients' optimizers: one fused kernel per block and step, on the block's vector.

These are PyTorch's own kernels, called as functions. `torch.optim.Optimizer` would import torch's compiler with its
first object, a second of start-up in every actor, and keep state by parameter where we need it by block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from blossom_ray.client import OptimizerState
from blossom_ray.models.flat import FlatBlock
from blossom_ray.scenario.sections import Adam, AdamW, ClientOptimizer, Sgd


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
        self._section, self._learning_rate = section, learning_rate
        self._names = tuple(blocks)
        self._parameters = [flat.values[: flat.num_parameters] for flat in blocks.values()]
        self._gradients = [flat.gradient for flat in blocks.values()]
        self._state = {key: self._zeros(key) for key in _state_names(section)}
        for position, name in enumerate(self._names if state else ()):
            for key, tensors in self._state.items():
                tensors[position].copy_(torch.tensor(state[name][key]))  # type: ignore[index]  # not None: see above

    def step(self) -> None:
        """One step of all blocks, in place, from their gradient vectors."""
        with torch.no_grad():
            match self._section:
                case Sgd() as section:
                    sgd(
                        self._parameters,
                        self._gradients,
                        list(self._state.get("momentum", [None] * len(self._names))),
                        fused=True,
                        weight_decay=section.weight_decay,
                        momentum=section.momentum,
                        lr=self._learning_rate,
                        dampening=0.0,
                        nesterov=section.nesterov,
                        maximize=False,
                    )
                case (Adam() | AdamW()) as section:
                    adam(
                        self._parameters,
                        self._gradients,
                        self._state["first_moment"],
                        self._state["second_moment"],
                        [],
                        self._state["step"],
                        fused=True,
                        decoupled_weight_decay=isinstance(section, AdamW),
                        amsgrad=False,
                        beta1=section.beta1,
                        beta2=section.beta2,
                        lr=self._learning_rate,
                        weight_decay=section.weight_decay,
                        eps=section.eps,
                        maximize=False,
                    )

    def state(self) -> OptimizerState:
        """Copies of the state, by block and name."""
        return {
            name: {key: tensors[position].cpu().numpy().copy() for key, tensors in self._state.items()}
            for position, name in enumerate(self._names)
        }

    def _zeros(self, key: str) -> list[Tensor]:
        if key == "step":
            return [values.new_zeros(()) for values in self._parameters]
        return [torch.zeros_like(values) for values in self._parameters]


def _state_names(section: ClientOptimizer) -> tuple[str, ...]:
    if isinstance(section, Sgd):
        return ("momentum",) if section.momentum else ()
    return ("first_moment", "second_moment", "step")
