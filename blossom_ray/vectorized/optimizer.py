"""The clients' optimizers on the tensors of a stack: PyTorch's fused kernels, one call per step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from blossom_ray.client import OptimizerState
from blossom_ray.scenario.sections import Adam, AdamW, ClientOptimizer, Sgd
from blossom_ray.vectorized.stack import Stack


class StackOptimizer:
    """SGD, Adam or AdamW for each client of a stack: what `BlockOptimizer` does for one.

    Args:
        section: The scenario's `training.optimizer` section.
        stack: Holds the clients; their parameters are stepped in place.
        learning_rate: The round's learning rate.
        states: Each client's state to go on from, by block; empty for a new one.
    """

    def __init__(
        self, section: ClientOptimizer, stack: Stack, learning_rate: float, states: Sequence[OptimizerState]
    ) -> None:
        self._section, self._learning_rate, self._block_names = section, learning_rate, tuple(stack.gradients)
        self._moments = {key: stack.new_rows(len(states)) for key in _moment_names(section)}
        self._num_steps = np.zeros(len(states), dtype=np.int64)
        for client, state in enumerate(states):
            for name, values in state.items():
                for key, blocks in self._moments.items():
                    blocks[name].write(values[key][np.newaxis], first_row=client)
                self._num_steps[client] = values.get("step", 0)

        # Parameters, gradients, and each moment: as many tensors (K, *shape) in each.
        self._tensors = [
            [rows.tensors[key] for rows, gradient in stack.trained() for key in gradient.tensors],
            [tensor for _, gradient in stack.trained() for tensor in gradient.tensors.values()],
            *([t for rows in blocks.values() for t in rows.tensors.values()] for blocks in self._moments.values()),
        ]
        # Adam corrects its moments by the number of steps. Where clients differ in it, having kept their state from
        # other rounds, each client's part of a tensor is stepped as a tensor of its own.
        self._by_client = len(set(self._num_steps.tolist())) > 1
        counts = self._num_steps if self._by_client else self._num_steps[:1]
        self._counters = [[torch.tensor(float(n), device=stack.device) for n in counts] for _ in self._tensors[0]]
        self._activate(len(states))

    def step(self, num_clients: int) -> None:
        """One step of the first `num_clients` clients, in place."""
        if num_clients != self._num_active:
            self._activate(num_clients)
        self._num_steps[:num_clients] += 1
        parameters, gradients, *moments = self._active
        with torch.no_grad():
            match self._section:
                case Sgd() as section:
                    buffers: list[Tensor | None] = [*moments[0]] if moments else [None] * len(parameters)
                    sgd(
                        parameters,
                        gradients,
                        buffers,
                        fused=True,
                        weight_decay=section.weight_decay,
                        momentum=section.momentum,
                        lr=self._learning_rate,
                        dampening=0.0,
                        nesterov=section.nesterov,
                        maximize=False,
                    )
                case (Adam() | AdamW()) as section:
                    first_moments, second_moments = moments
                    adam(
                        parameters,
                        gradients,
                        first_moments,
                        second_moments,
                        [],
                        self._active_counters,
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

    def states(self) -> list[OptimizerState]:
        """Copies of each client's state, by block and name."""
        num_clients = len(self._num_steps)
        states: list[OptimizerState] = [{name: {} for name in self._block_names} for _ in range(num_clients)]
        for key, blocks in self._moments.items():
            for name, rows in blocks.items():
                for state, vector in zip(states, rows.read(num_clients), strict=True):
                    state[name][key] = vector.copy()
        if not isinstance(self._section, Sgd):
            for state, steps in zip(states, self._num_steps, strict=True):
                for block in state.values():
                    block["step"] = np.array(steps, dtype=np.float32)
        return states

    def _activate(self, num_clients: int) -> None:
        self._num_active = num_clients
        self._active = [[part for t in tensors for part in self._parts(t[:num_clients])] for tensors in self._tensors]
        self._active_counters = [counter for counters in self._counters for counter in counters[:num_clients]]

    def _parts(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.unbind() if self._by_client else (tensor,)


def _moment_names(section: ClientOptimizer) -> tuple[str, ...]:
    if isinstance(section, Sgd):
        return ("momentum",) if section.momentum else ()
    return ("first_moment", "second_moment")
