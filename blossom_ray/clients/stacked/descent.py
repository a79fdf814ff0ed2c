"""Plain SGD steps that linear layers take inside the backward pass, with no gradient in memory.

The weights of linear layers are most of a small model, and a stack of clients is larger than the processor's caches:
to write a gradient and to have an optimizer read it again costs more than the products that make it. Without momentum
a step is one product that is added where the weights are,

    W <- (1 - lr wd) W - lr G^T X

with G the gradient of the layer's outputs and X its inputs; a pass's affine term is a factor and a constant more.

Source: Lv et al. 2023 (LOMO, arXiv:2306.09782), who fuse gradient and update to save memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How a parameter is stepped: W <- keep W - rate G + factor constant.

    Attributes:
        keep: 1 - lr (wd + mu).
        rate: The learning rate lr.
        constant: (K, *shape), of a pass that holds it near an anchor or adds to its gradient: with its factor
            lr (mu anchor - offset).
        factor: What the constant is multiplied by.
        block: The block whose parameter it is.
    """

    keep: float
    rate: float
    constant: Tensor | None = None
    factor: float = 1.0
    block: str = ""


class Descent:
    """The step of the current batch, as far as the layers take it themselves.

    Args:
        rules: Of each parameter whose step is a function of it and its gradient alone, by the address of its memory,
            which stays where it is, while autograd may give it to us as another object.
    """

    def __init__(self, rules: Mapping[int, Rule]) -> None:
        self._rules = rules
        self._num_uses: Counter[int] = Counter()
        self._taken: set[int] = set()
        self._resting: Mapping[str, tuple[int, ...]] = {}

    def begin(self, resting: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> None:
        """A new batch, in which some clients take no step with some blocks."""
        self._num_uses.clear()
        self._taken.clear()
        self._resting = resting

    def note(self, weight: Tensor) -> None:
        """A layer computes with a weight. One that is used twice in a batch needs the sum of two gradients."""
        self._num_uses[weight.data_ptr()] += 1

    def can_take(self, weight: Tensor) -> bool:
        """Whether a weight may change now: it is of no further use to this batch's backward pass."""
        return self._num_uses[weight.data_ptr()] == 1 and weight.data_ptr() in self._rules

    def take(self, weight: Tensor, outputs_gradient: Tensor, inputs: Tensor) -> None:
        """Step a weight, from inside a backward pass, which records no gradients.

        Args:
            weight: (K, G, F), changed in place.
            outputs_gradient: (K, R, G).
            inputs: (K, R, F).
        """
        rule = self._rules[weight.data_ptr()]
        resting = list(self._resting.get(rule.block, ()))
        before = weight[resting] if resting else None
        weight.baddbmm_(outputs_gradient.transpose(1, 2), inputs, beta=rule.keep, alpha=-rule.rate)
        if rule.constant is not None:
            weight.add_(rule.constant[: len(weight)], alpha=rule.factor)
        if before is not None:
            weight[resting] = before
        self._taken.add(weight.data_ptr())

    def left(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients from which an optimizer steps; None for a parameter that a layer has stepped.

        Args:
            parameters: All that are trained.
            gradients: None for those that were stepped, and for those that the batch did not use: theirs are zeros.
        """
        return [
            torch.zeros_like(parameter) if gradient is None and parameter.data_ptr() not in self._taken else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
