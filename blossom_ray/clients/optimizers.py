"""The clients' optimizers: one fused kernel per block and step, on the block's vector.

These are PyTorch's own kernels, called as functions. `torch.optim.Optimizer` would import torch's compiler with its
first object, a second of start-up in every actor, and keep state by parameter where we need it by block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from blossom_ray.clients.options import Adam, AdamW, ClientOptimizer, Sgd
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
        self._section, self._learning_rate = section, learning_rate
        self._names = tuple(blocks)
        self._parameters = [flat.values[: flat.num_parameters] for flat in blocks.values()]
        self._gradients = [flat.gradient for flat in blocks.values()]
        self._state = {key: self._zeros(key) for key in (*moment_names(section), *counter_names(section))}
        for position, name in enumerate(self._names if state else ()):
            for key, tensors in self._state.items():
                tensors[position].copy_(torch.tensor(state[name][key]))  # type: ignore[index]  # not None: see above

    def step(self, resting: Collection[str] = ()) -> None:
        """One step in place, from the blocks' gradient vectors.

        Args:
            resting: Blocks that take no step this time: neither their parameters nor their state change.
        """

        def stepped(tensors: list[Tensor]) -> list[Tensor]:
            if not resting:
                return tensors
            return [tensor for name, tensor in zip(self._names, tensors, strict=True) if name not in resting]

        fused_step(
            self._section,
            self._learning_rate,
            stepped(self._parameters),
            stepped(self._gradients),
            moments=[stepped(self._state[key]) for key in moment_names(self._section)],
            counters=stepped(self._state["step"]) if "step" in self._state else [],
        )

    def state(self) -> OptimizerState:
        """Copies of the state, by block and name."""
        return {
            name: {key: tensors[position].cpu().numpy().copy() for key, tensors in self._state.items()}
            for position, name in enumerate(self._names)
        }

    def _zeros(self, key: str) -> list[Tensor]:
        if key in counter_names(self._section):
            return [values.new_zeros(()) for values in self._parameters]
        return [torch.zeros_like(values) for values in self._parameters]


def moment_names(section: ClientOptimizer) -> tuple[str, ...]:
    """What an optimizer remembers in the shape of the parameters, in the order in which `fused_step` takes it."""
    if isinstance(section, Sgd):
        return ("momentum",) if section.momentum else ()
    return ("first_moment", "second_moment")


@torch.no_grad()
def fused_step(
    section: ClientOptimizer,
    learning_rate: float,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    moments: Sequence[Sequence[Tensor]],
    counters: Sequence[Tensor],
) -> None:
    """One step of all tensors, in place, with one call of PyTorch's fused kernel.

    Args:
        section: The scenario's `training.optimizer` section.
        learning_rate: The learning rate.
        parameters: float32, any shapes.
        gradients: Of the same shapes, with the values in the same order in memory. Not modified.
        moments: Per name in `moment_names` a tensor for each parameter, zeros at first; updated.
        counters: For Adam and AdamW the steps so far of each parameter, () float32; updated. SGD needs none.
    """
    if not parameters:
        return
    match section:
        case Sgd():
            buffers: list[Tensor | None] = [*moments[0]] if moments else [None] * len(parameters)
            sgd(
                list(parameters),
                list(gradients),
                buffers,
                fused=True,
                weight_decay=section.weight_decay,
                momentum=section.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=section.nesterov,
                maximize=False,
            )
        case Adam() | AdamW():
            first_moments, second_moments = moments
            adam(
                list(parameters),
                list(gradients),
                list(first_moments),
                list(second_moments),
                [],
                list(counters),
                fused=True,
                decoupled_weight_decay=isinstance(section, AdamW),
                amsgrad=False,
                beta1=section.beta1,
                beta2=section.beta2,
                lr=learning_rate,
                weight_decay=section.weight_decay,
                eps=section.eps,
                maximize=False,
            )


def counter_names(section: ClientOptimizer) -> tuple[str, ...]:
    """What an optimizer remembers as one number per block."""
    return () if isinstance(section, Sgd) else ("step",)
