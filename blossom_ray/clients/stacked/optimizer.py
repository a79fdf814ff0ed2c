"""The clients' optimizers on the tensors of a stack: one call of a fused kernel per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.job import Affine, LocalPass
from blossom_ray.clients.options import ClientOptimizer, Training
from blossom_ray.clients.plan import OptimizerState
from blossom_ray.clients.stacked.batches import Resting
from blossom_ray.clients.stacked.descent import Descent, Rule
from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.core.sums import Vector
from blossom_ray.data.targets import IntArray


class RowSteps:
    """Fused steps of tensors with a row for each client: all rows of a block as one tensor, or each by itself.

    Each by itself where some clients rest, or where clients differ in the number of their steps, having kept state from
    other rounds or having rested: Adam corrects its moments by that number.

    Args:
        section: The optimizer.
        learning_rate: Its learning rate.
        blocks: The block of each tensor.
        moments: Of each moment as many tensors (K, *shape) as there are of them, changed in place.
        num_steps: (K,) int64 by block, the steps taken so far; counted on in place.
        device: Where the tensors lie.
    """

    def __init__(
        self,
        section: ClientOptimizer,
        learning_rate: float,
        blocks: Sequence[str],
        moments: Sequence[Sequence[Tensor]],
        num_steps: Mapping[str, IntArray],
        device: torch.device,
    ) -> None:
        self._fused_step = section.fused_step(learning_rate)
        self._blocks, self._moments, self._num_steps = blocks, moments, num_steps
        self._num_counters = len(section.counters)
        steps = [num_steps[name].tolist() for name in blocks]
        counted = [own if len(set(own)) > 1 else own[:1] for own in steps]
        # One copy to the device, whatever the number of clients.
        counters = iter(torch.tensor([*chain.from_iterable(counted)], dtype=torch.float32).to(device).unbind())
        self._counters = [[*islice(counters, len(own))] for own in counted]

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], resting: Resting = MappingProxyType({})
    ) -> None:
        """One step of the first clients, in place.

        Args:
            parameters: (K, *shape) each, in the order of the blocks.
            gradients: Of the same shapes; None for those that take no step here.
            resting: Clients that take none, by block: neither parameters nor moments nor counters of theirs change.
        """
        stepped: list[Tensor] = []
        along: list[Tensor] = []
        moments: list[list[Tensor]] = [[] for _ in self._moments]
        counters: list[Tensor] = []
        for place, (name, gradient) in enumerate(zip(self._blocks, gradients, strict=True)):
            if gradient is None:
                continue
            values, own = parameters[place], self._counters[place]
            resters = resting.get(name, ())
            if resters and self._num_counters and len(own) == 1:
                own = self._counters[place] = [own[0].clone() for _ in self._num_steps[name]]
            if resters or len(own) > 1:
                rows = [client for client in range(len(values)) if client not in resters]
                stepped += [values[client] for client in rows]
                along += [gradient[client].contiguous() for client in rows]
                for kept, tensors in zip(moments, self._moments, strict=True):
                    kept += [tensors[place][client] for client in rows]
                counters += [own[client] for client in rows] if self._num_counters else []
                continue
            stepped.append(values)
            # The fused kernels take both for arrays in the same order.
            along.append(gradient.contiguous())
            for kept, tensors in zip(moments, self._moments, strict=True):
                kept.append(tensors[place][: len(values)])
            counters += own
        for name in dict.fromkeys(self._blocks):
            is_stepped = np.ones(len(self._num_steps[name]), bool)
            is_stepped[list(resting.get(name, ()))] = False
            is_stepped[len(parameters[0]) :] = False
            self._num_steps[name][is_stepped] += 1
        if stepped:
            self._fused_step(stepped, along, moments, counters)


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
        self._places = [place for place, name in enumerate(stack.parameter_blocks) if name in blocks]
        self._moments = {key: stack.new_rows(len(states), blocks) for key in section.moments}
        self._num_steps = {name: np.zeros(len(states), dtype=np.int64) for name in blocks}
        kept = [client for client, state in enumerate(states) if state]
        for name in blocks if kept else ():
            for key, rows in self._moments.items():
                size = len(states[kept[0]][name][key])
                vectors = np.zeros((len(states), size), np.float32)
                vectors[kept] = [states[client][name][key] for client in kept]
                rows[name].write(vectors)
            self._num_steps[name][kept] = [states[client][name].get("step", 0) for client in kept]
        moments = [
            [tensor for rows in own.values() for tensor in rows.tensors.values()] for own in self._moments.values()
        ]
        names = [stack.parameter_blocks[place] for place in self._places]
        self._steps = RowSteps(section, learning_rate, names, moments, self._num_steps, stack.device)

    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], resting: Resting = MappingProxyType({})
    ) -> None:
        """One step of the first clients, in place.

        Args:
            parameters: The stack's parameters, (K, *shape) each, of the clients that take part.
            gradients: Of the same shapes; None for those that SGD without momentum, which remembers nothing, has
                stepped already.
            resting: As in `RowSteps.step`.
        """
        if self._places:
            self._steps.step([parameters[p] for p in self._places], [gradients[p] for p in self._places], resting)

    def states(self) -> list[OptimizerState]:
        """Copies of each client's state, by block and name."""
        num_clients = len(next(iter(self._num_steps.values())))
        states: list[OptimizerState] = [{name: {} for name in self._blocks} for _ in range(num_clients)]
        for key, blocks in self._moments.items():
            for name, rows in blocks.items():
                for state, vector in zip(states, rows.read(num_clients), strict=True):
                    state[name][key] = vector.copy()
        for key in self._section.counters:
            for client, state in enumerate(states):
                for name, block in state.items():
                    block[key] = np.array(self._num_steps[name][client], dtype=np.float32)
        return states


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
                starts = [blocks[name] if len(blocks[name]) == size else blocks[name][:size] for blocks in received]
                anchor = [part.anchor.get(name, start) for part, start in zip(own, starts, strict=True)]
            self._anchors += stack.rows_like(name, anchor, "anchor")
            offset = [part.offset[name] for part in own if name in part.offset]
            self._offsets += stack.rows_like(name, offset, "offset")

    def rule(self, block: str, at: int, rate: float, decay: float) -> Rule:
        """How a plain step of a block's parameter goes, at a learning rate and with weight decay."""
        anchor, offset = (None, None) if self.is_zero else (self._anchors[at], self._offsets[at])
        if anchor is None:
            return Rule(1 - rate * decay, rate, offset, -rate, block)
        constant = (rate * self._mu) * anchor
        if offset is not None:
            constant = constant - rate * offset
        return Rule(1 - rate * (decay + self._mu), rate, constant, block=block)

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
        if optimizer.is_plain
        for name in names
    }
    rules = {}
    for at, (name, values) in enumerate(zip(blocks, parameters, strict=True)):
        if name in plain:
            rules[values.data_ptr()] = term.rule(name, at, *plain[name])
    return Descent(rules) if rules else None
