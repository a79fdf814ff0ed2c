"""The clients' optimizers on the tensors of a stack: one call of a fused kernel per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.job import Affine, LocalPass
from blossom_ray.clients.options import ClientOptimizer, Sgd, Training
from blossom_ray.clients.plan import OptimizerState
from blossom_ray.clients.stacked.descent import Descent, Rule
from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.core.sums import Vector


class StackOptimizer:
    """SGD, Adam or AdamW for some blocks of each client of a stack: what `BlockOptimizer` does for one.

    Args:
        section: The optimizer of these blocks.
        stack: Holds the clients.
        blocks: Names of the blocks, which the stack trains now.
        learning_rate: Their learning rate.
        states: Each client's state to go on from, by block; empty for a new one.
    """

    def __init__(
        self,
        section: ClientOptimizer,
        stack: Stack,
        blocks: Sequence[str],
        learning_rate: float,
        states: Sequence[OptimizerState],
    ) -> None:
        self._section, self._blocks = section, blocks
        self._fused_step = section.fused_step(learning_rate)
        self._places = [place for place, name in enumerate(stack.parameter_blocks) if name in blocks]
        self._moments = {key: stack.new_rows(len(states), blocks) for key in section.moments}
        self._num_steps = np.zeros(len(states), dtype=np.int64)
        for client, state in enumerate(states):
            for name in self._blocks if state else ():
                for key, rows in self._moments.items():
                    rows[name].write(state[name][key][np.newaxis], first_row=client)
                self._num_steps[client] = state[name].get("step", 0)

        # Of each moment as many tensors (K, *shape) as there are parameters.
        self._moment_tensors = [
            [tensor for rows in blocks.values() for tensor in rows.tensors.values()]
            for blocks in self._moments.values()
        ]
        # Adam corrects its moments by the number of steps. Where clients differ in it, having kept their state from
        # other rounds, each client's part of a tensor is stepped as a tensor of its own.
        self._by_client = len(set(self._num_steps.tolist())) > 1
        counts = self._num_steps if self._by_client else self._num_steps[:1]
        self._counters = [[torch.tensor(float(n), device=stack.device) for n in counts] for _ in self._places]

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """One step of the first clients, in place.

        Args:
            parameters: The stack's parameters, (K, *shape) each, of the clients that take part.
            gradients: Of the same shapes; None for those that SGD without momentum, which remembers nothing, has
                stepped already.
        """
        pairs = [(parameters[p], gradient) for p in self._places if (gradient := gradients[p]) is not None]
        if not pairs:
            return
        num_clients = len(pairs[0][0])
        self._num_steps[:num_clients] += 1
        self._fused_step(
            self._parts([parameter for parameter, _ in pairs]),
            # The fused kernels take both for arrays in the same order.
            self._parts([gradient.contiguous() for _, gradient in pairs]),
            [self._parts([tensor[:num_clients] for tensor in tensors]) for tensors in self._moment_tensors],
            [counter for counters in self._counters for counter in counters[:num_clients]],
        )

    def states(self) -> list[OptimizerState]:
        """Copies of each client's state, by block and name."""
        num_clients = len(self._num_steps)
        states: list[OptimizerState] = [{name: {} for name in self._blocks} for _ in range(num_clients)]
        for key, blocks in self._moments.items():
            for name, rows in blocks.items():
                for state, vector in zip(states, rows.read(num_clients), strict=True):
                    state[name][key] = vector.copy()
        for key in self._section.counters:
            for state, steps in zip(states, self._num_steps, strict=True):
                for block in state.values():
                    block[key] = np.array(steps, dtype=np.float32)
        return states

    def _parts(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the kernels step as a tensor of its own: all clients' rows together, or each row."""
        return [row for tensor in tensors for row in tensor.unbind()] if self._by_client else list(tensors)


class AffineTerm:
    """What a pass adds to the gradients of a stack: offset + mu (w - anchor), over some blocks.

    Args:
        stack: Holds the clients.
        each: The pass.
        own: What of it is each client's own.
        received: Each client's blocks as it received them, which are the anchor where it has none of its own.

    Attributes:
        is_zero: Whether it adds nothing.
    """

    def __init__(
        self, stack: Stack, each: LocalPass, own: Sequence[Affine], received: Sequence[Mapping[str, Vector]]
    ) -> None:
        self._mu = each.mu
        self.is_zero = not each.anchored and not each.has_offset
        # One tensor (K, *shape) per parameter, in the order of `stack.parameters`; None where there is none.
        self._anchors: list[Tensor | None] = []
        self._offsets: list[Tensor | None] = []
        if self.is_zero:
            return
        for name in stack.trained_blocks:
            size, anchor = stack.num_parameters[name], []
            if name in each.anchored:
                pairs = zip(own, received, strict=True)
                anchor = [part.anchor.get(name, blocks[name][:size]) for part, blocks in pairs]
            self._anchors += stack.rows_like(name, anchor)
            self._offsets += stack.rows_like(name, [part.offset[name] for part in own if name in part.offset])

    def folded(self, at: int, rate: float) -> tuple[float, Tensor | None]:
        """What the term makes of a plain step of a parameter: mu, and rate (mu anchor - offset)."""
        if self.is_zero:
            return 0.0, None
        anchor, offset = self._anchors[at], self._offsets[at]
        constant = None if anchor is None else (rate * self._mu) * anchor
        if offset is not None:
            constant = -rate * offset if constant is None else constant - rate * offset
        return 0.0 if anchor is None else self._mu, constant

    @torch.no_grad()
    def added(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients with the term's own added.

        Args:
            parameters: (K, *shape) each, the clients that take part.
            gradients: Of the same shapes, or None, which stays. Not modified.

        Source: Li et al. 2020 (arXiv:1812.06127), algorithm 2, for the anchor; Karimireddy et al. 2020
        (arXiv:1910.06378), algorithm 1, for the offset.
        """
        if self.is_zero:
            return gradients
        found = []
        for at, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            anchor, offset, num_clients = self._anchors[at], self._offsets[at], len(parameter)
            total = gradient
            if total is not None and anchor is not None:
                total = total + self._mu * (parameter - anchor[:num_clients])
            found.append(total if total is None or offset is None else total + offset[:num_clients])
        return found


def descent_of(
    section: Training, blocks: Sequence[str], parameters: Sequence[Tensor], learning_rate: float, term: AffineTerm
) -> Descent | None:
    """For the parameters that are trained now; None where no step is a function of weight and gradient alone.

    Args:
        section: The scenario's `training` section.
        blocks: The block of each parameter.
        parameters: (K, *shape) each.
        learning_rate: The round's learning rate.
        term: What the pass adds to the gradients.
    """
    plain = {
        name: (rate, optimizer.weight_decay)
        for optimizer, rate, names in section.optimizer.alike(dict.fromkeys(blocks), learning_rate)
        if isinstance(optimizer, Sgd) and not optimizer.momentum
        for name in names
    }
    rules = {}
    for at, (name, values) in enumerate(zip(blocks, parameters, strict=True)):
        if name in plain:
            rate, decay = plain[name]
            mu, constant = term.folded(at, rate)
            rules[values.data_ptr()] = Rule(1 - rate * (decay + mu), rate, constant)
    return Descent(rules) if rules else None
