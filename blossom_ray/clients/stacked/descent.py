"""Plain SGD steps that linear layers take inside the backward pass, with no gradient in memory.

The weights of linear layers are most of a small model, and a stack of clients is larger than the processor's caches:
to write a gradient and to have an optimizer read it again costs more than the products that make it. Without momentum
a step is one product that is added where the weights are,

    W <- (1 - lr wd) W - lr G^T X

with G the gradient of the layer's outputs and X its inputs.

Source: Lv et al. 2023 (LOMO, arXiv:2306.09782), who fuse gradient and update to save memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from blossom_ray.clients.options import Sgd, Training


class Descent:
    """The step of the current batch, as far as the layers take it themselves.

    Args:
        learning_rate: The round's learning rate.
        weight_decay: That of the optimizer.
    """

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        self._learning_rate, self._keep = learning_rate, 1 - learning_rate * weight_decay
        # By address: a parameter's memory stays where it is, while autograd may give it to us as another object.
        self._num_uses: Counter[int] = Counter()
        self._taken: set[int] = set()

    def begin(self) -> None:
        """A new batch."""
        self._num_uses.clear()
        self._taken.clear()

    def note(self, weight: Tensor) -> None:
        """A layer computes with a weight. One that is used twice in a batch needs the sum of two gradients."""
        self._num_uses[weight.data_ptr()] += 1

    def can_take(self, weight: Tensor) -> bool:
        """Whether a weight may change now: it is of no further use to this batch's backward pass."""
        return self._num_uses[weight.data_ptr()] == 1

    @torch.no_grad()
    def take(self, weight: Tensor, outputs_gradient: Tensor, inputs: Tensor) -> None:
        """Step a weight.

        Args:
            weight: (K, G, F), changed in place.
            outputs_gradient: (K, R, G).
            inputs: (K, R, F).
        """
        weight.baddbmm_(outputs_gradient.transpose(1, 2), inputs, beta=self._keep, alpha=-self._learning_rate)
        self._taken.add(weight.data_ptr())

    def left(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that no layer has stepped, for the optimizer, with their gradients.

        Args:
            parameters: All that are trained.
            gradients: None for those that were stepped, and for those that the batch did not use: theirs are zeros.
        """
        pairs = [
            (parameter, torch.zeros_like(parameter) if gradient is None else gradient)
            for parameter, gradient in zip(parameters, gradients, strict=True)
            if parameter.data_ptr() not in self._taken
        ]
        return [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]


def descent_of(section: Training, learning_rate: float) -> Descent | None:
    """For a `training` section whose steps are a function of weight and gradient alone; None for others."""
    optimizer = section.optimizer
    if not isinstance(optimizer, Sgd) or optimizer.momentum or section.proximal_mu:
        return None
    return Descent(learning_rate, optimizer.weight_decay)
