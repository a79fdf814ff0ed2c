"""FedProx's proximal term for each client of a stack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.core.sums import Vector


class ProximalTerm:
    """The gradient of mu/2 |w - w_received|^2 over some blocks of a stack.

    Args:
        stack: Holds the clients.
        mu: Weight of the term; 0 for none.
        anchored: The blocks, of those that the stack trains now.
        received: Each client's blocks as it received them, (size,) float32. Not modified.
    """

    def __init__(
        self, stack: Stack, mu: float, anchored: Collection[str], received: Sequence[Mapping[str, Vector]]
    ) -> None:
        self._mu = mu
        # One anchor (K, *shape) per parameter, in the order of `stack.parameters`; None where there is none.
        self._anchors: list[Tensor | None] = []
        for name, rows in stack.new_rows(len(received)).items() if mu else ():
            if name in anchored:
                size = stack.num_parameters[name]
                rows.write(np.stack([blocks[name][:size] for blocks in received]))
            self._anchors += [tensor if name in anchored else None for tensor in rows.tensors.values()]

    @torch.no_grad()
    def added(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients with the term's own added.

        Args:
            parameters: (K, *shape) each, the clients that take part.
            gradients: Of the same shapes. Not modified.

        Source: Li et al. 2020 (arXiv:1812.06127), algorithm 2.
        """
        if not self._mu:
            return gradients
        return [
            gradient if anchor is None else gradient + self._mu * (parameter - anchor[: len(parameter)])
            for parameter, gradient, anchor in zip(parameters, gradients, self._anchors, strict=True)
        ]
