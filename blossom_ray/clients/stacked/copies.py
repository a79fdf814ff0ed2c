"""What `clients/copies.py` does for one client, for the clients of a stack: their copies, and an author's functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.seam import MODEL, Tree
from blossom_ray.clients.batch import RECEIVED, Asked, Batch, FixedForwards, LiveForwards
from blossom_ray.clients.copies import composed_blocks, section_of
from blossom_ray.clients.job import Affine, ClientTask, LocalPass
from blossom_ray.clients.mapping import as_trees, plain
from blossom_ray.clients.options import ClientOptimizer
from blossom_ray.clients.plan import LocalState
from blossom_ray.clients.stacked.batches import Resting, StackedBatch
from blossom_ray.clients.stacked.optimizer import RowSteps
from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import NO_BLOCK
from blossom_ray.core.sums import Vector
from blossom_ray.data.targets import FloatArray
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, RunError, shown_error
from blossom_ray.models.late_fusion import Forward, LateFusionModel

Statistics = list[dict[str, np.ndarray]]


class StackedCopies:
    """Puts one of the clients' copies at a time into a stack: what `ClientCopies` does for one client.

    Args:
        stack: Holds the clients' models.
        tasks: Give their copies.
        spare: Gives a further stack for so many clients under a name of its own.
    """

    def __init__(self, stack: Stack, tasks: Sequence[ClientTask], spare: Callable[[str], Stack]) -> None:
        self._stack, self._tasks, self._spare = stack, tasks, spare
        self._initial: dict[str, Statistics] = {name: stack.statistics(name, len(tasks)) for name in tasks[0].blocks}
        self._model: dict[str, tuple[FloatArray, Statistics]] = {}
        self._trained: dict[str, dict[str, FloatArray]] = {}
        self._statistics_of: dict[str, Statistics] = {}
        self._current, self._with_parameters = MODEL, True
        self._looked_through: dict[str, Stack] = {}
        self.batch: StackedBatch | None = None

    def enter(self, copy: str, *, with_parameters: bool = True) -> None:
        """Have the stack hold a copy, or its statistics alone."""
        self._looked_through = {}
        self._put_back()
        self._current, self._with_parameters, count = copy, with_parameters, len(self._tasks)
        if copy == MODEL:
            return
        held = self.held(copy) if with_parameters else {}
        for name in self._initial if not with_parameters else held:
            if name not in self._initial:  # a single array
                continue
            before = self._stack.parameters_of(name, count), self._stack.statistics(name, count)
            self._model[name] = before
            self._stack.load_block(name, held.get(name, before[0]), self._statistics_for(copy, name))

    def held(self, copy: str) -> dict[str, FloatArray]:
        """A copy's values by block, as they are now, a row for each client; by `NO_BLOCK` a single array."""
        names = self._tasks[0].extras.get(copy, {})
        rows = {name: np.stack([task.extras[copy][name] for task in self._tasks]) for name in names}
        return {**rows, **self._trained.get(copy, {})}

    def extras(self) -> dict[str, Any]:
        """All copies but the model as tensors with a row for each client: trees, and single arrays."""
        found: dict[str, Any] = {}
        for name in self._tasks[0].extras:
            rows = {block: torch.from_numpy(values).to(self._stack.device) for block, values in self.held(name).items()}
            found[name] = rows[NO_BLOCK] if NO_BLOCK in rows else Tree(rows)
        return found

    def keep(self, copy: str, values: Mapping[str, FloatArray]) -> None:
        """Note what a copy is after a pass that trained it."""
        self._trained[copy] = {**self._trained.get(copy, {}), **values}

    def leave(self) -> tuple[list[dict[str, dict[str, Vector]]], list[LocalState]]:
        """Have the stack hold the models again.

        Returns:
            By client the copies that were trained, by block, and running statistics of all of its copies.
        """
        self.enter(MODEL)
        extras = [
            {copy: {name: np.array(rows[k]) for name, rows in own.items()} for copy, own in self._trained.items()}
            for k in range(len(self._tasks))
        ]
        states: list[LocalState] = [
            {name: state for name, state in task.local_state.items() if ":" in name}
            | {label: own[k] for label, own in self._statistics_of.items() if own[k]}
            for k, task in enumerate(self._tasks)
        ]
        return extras, states

    def model_of(self, copy: str) -> LateFusionModel:
        """The model of a copy as it is at the start of the pass, in evaluation mode, on the batch that is computed.

        Raises:
            RunError: There is no such copy.
        """
        if copy not in self._looked_through:
            own = {} if copy == RECEIVED else self.held(copy)
            if (copy != RECEIVED and copy not in self._tasks[0].extras) or NO_BLOCK in own:
                known = ", ".join(
                    (RECEIVED, *(name for name in self._tasks[0].extras if NO_BLOCK not in self.held(name)))
                )
                raise RunError(f"algorithm: through({copy!r}), which is no copy of the model; expected one of {known}")
            spare = self._spare(copy)
            received = [task.received or task.blocks for task in self._tasks]
            spare.load(received, [task.local_state for task in self._tasks])
            for name in self._initial:
                parameters = own.get(
                    name, np.stack([blocks[name] for blocks in received])[:, : spare.num_parameters[name]]
                )
                statistics = self._statistics_for(copy, name) if name in own else self._initial[name]
                spare.load_block(name, parameters, statistics)
            spare.model.eval()
            self._looked_through[copy] = spare
        spare = self._looked_through[copy]
        assert self.batch is not None, "a batch is being computed"
        spare.enter(self.batch)
        return spare.model

    def _put_back(self) -> None:
        count = len(self._tasks)
        own = {name: self._stack.parameters_of(name, count) for name in self._model}
        for name, (parameters, statistics) in self._model.items():
            self._statistics_of[f"{self._current}:{name}"] = self._stack.statistics(name, count)
            self._stack.load_block(name, parameters, statistics)
        if own and self._with_parameters:
            self.keep(self._current, own)
        self._model = {}

    def _statistics_for(self, copy: str, name: str) -> Statistics:
        label = f"{copy}:{name}"
        if label in self._statistics_of:
            return self._statistics_of[label]
        pairs = zip(self._tasks, self._initial[name], strict=True)
        return [task.local_state.get(label, initial) for task, initial in pairs]


class ComposedPass:
    """A pass in which several copies are trained, or blocks compute that are made of copies; rows are clients.

    Args:
        stack: Holds the clients' models, which stand still unless they are one of the copies.
        workspace: A model of their kind.
        copies: The clients'.
        step: The pass.
        own: What of it is each client's own; about the first copy.
        section: The optimizer.
        learning_rate: The round's.
    """

    def __init__(
        self,
        stack: Stack,
        workspace: Workspace,
        copies: StackedCopies,
        step: LocalPass,
        own: Sequence[Affine],
        section: ClientOptimizer,
        learning_rate: float,
    ) -> None:
        self._stack, self._workspace, self._copies, self._step = stack, workspace, copies, step
        count, device = len(own), stack.device
        model = {name: torch.from_numpy(stack.parameters_of(name, count)).to(device) for name in stack.num_parameters}
        self._fixed: dict[str, Any] = {MODEL: Tree(model), **copies.extras()}
        first = step.copies[0]

        def rows(parts: Sequence[Mapping[str, Vector]]) -> dict[str, Tensor]:
            return {name: torch.from_numpy(np.stack([part[name] for part in parts])).to(device) for name in parts[0]}

        started = rows([part.start for part in own])
        self._offsets, self._anchors = rows([part.offset for part in own]), rows([part.anchor for part in own])
        self._trained: dict[str, dict[str, Tensor]] = {}
        self._optimizers: dict[str, list[_RowsOptimizer]] = {}
        for copy in step.copies:
            value = self._fixed[copy]
            held = value if isinstance(value, Tree) else {NO_BLOCK: value}
            if copy == MODEL or (copy == first and step.blocks):
                held = {name: tensor for name, tensor in held.items() if name in step.blocks}
            chosen = {**held, **started} if copy == first else held
            self._trained[copy] = own_rows = {name: chosen[name].clone() for name in held}
            plain = section_of(section, {name: tuple(t.shape[1:]) for name, t in own_rows.items()}, workspace)
            rate = learning_rate * step.rates.get(copy, 1.0)
            self._optimizers[copy] = [
                _RowsOptimizer(each, each_rate, {name: own_rows[name] for name in alike})
                for each, each_rate, alike in plain.alike(own_rows, rate)
            ]
        self.composed = tuple(self._blocks(self.values(count)[0]))

    def values(self, num_clients: int) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """All copies of the first clients, and in them as leaves of the gradient's graph those that are trained."""
        values = {name: _first(value, num_clients) for name, value in self._fixed.items()}
        leaves = {
            copy: {name: rows[:num_clients].detach().requires_grad_() for name, rows in own.items()}
            for copy, own in self._trained.items()
        }
        for copy, own in leaves.items():
            values[copy] = own[NO_BLOCK] if NO_BLOCK in own else Tree({**values[copy], **own})
        return values, leaves

    def compose(self, values: Mapping[str, Any]) -> None:
        """Have the stack compute with the blocks that follow from the copies."""
        self._stack.compose(self._blocks(values))

    def take_step(self, loss: Tensor, leaves: Mapping[str, Mapping[str, Tensor]], resting: Resting) -> None:
        """One step of all copies that are trained, along the gradient of a loss, but for clients that rest."""
        pairs = [(copy, name, leaf) for copy, own in leaves.items() for name, leaf in own.items()]
        found = torch.autograd.grad(loss, [leaf for *_, leaf in pairs], allow_unused=True, materialize_grads=True)
        gradients: dict[str, dict[str, Tensor]] = {copy: {} for copy in leaves}
        for (copy, name, leaf), gradient in zip(pairs, found, strict=True):
            total = gradient
            if copy == self._step.copies[0] and name in self._anchors and self._step.mu:
                total = total + self._step.mu * (leaf.detach() - self._anchors[name][: len(leaf)])
            if copy == self._step.copies[0] and name in self._offsets:
                total = total + self._offsets[name][: len(leaf)]
            gradients[copy][name] = total
        for copy, optimizers in self._optimizers.items():
            for optimizer in optimizers:
                optimizer.step(gradients[copy], resting)

    def end(self) -> None:
        """Write the copies back."""
        self._stack.decompose()
        for copy, own in self._trained.items():
            values = {name: rows.cpu().numpy() for name, rows in own.items()}
            if copy != MODEL:
                self._copies.keep(copy, values)
                continue
            self._stack.start(
                [{name: rows[k] for name, rows in values.items()} for k in range(len(next(iter(values.values()))))]
            )

    def _blocks(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        def one(copies: Mapping[str, Any]) -> dict[str, Tensor]:
            return dict(composed_blocks(self._step, as_trees(copies, values), self._workspace))

        found: dict[str, Tensor] = torch.vmap(one, randomness="error")(plain(values))
        return found


class _RowsOptimizer:
    """The optimizer on rows of clients, all of which begin anew."""

    def __init__(self, section: Any, learning_rate: float, rows: Mapping[str, Tensor]) -> None:
        self._rows, values = rows, [*rows.values()]
        moments = [[torch.zeros_like(each) for each in values] for _ in section.moments]
        num_steps = {name: np.zeros(len(each), np.int64) for name, each in rows.items()}
        self._steps = RowSteps(section, learning_rate, [*rows], moments, num_steps, values[0].device)

    def step(self, gradients: Mapping[str, Tensor], resting: Resting) -> None:
        own = [gradients[name] for name in self._rows]
        self._steps.step([values[: len(own[0])] for values in self._rows.values()], own, resting)


@dataclass
class AuthorsFunction:
    """An author's function of a batch, mapped over the clients of a stack.

    What forward passes it asks for is seen on the first client; they are computed for all clients at once, by the
    stacked layers, and the function alone is mapped.

    Args:
        function: From a client's batch to a tensor, or to a dict of tensors.
        method: Its name, for messages.
        workspace: Gives the tasks.
    """

    function: Callable[[Batch], Any]
    method: str
    workspace: Workspace
    asked: tuple[Asked, ...] = ()

    def __call__(
        self,
        live: LiveForwards,
        modalities: Iterable[str],
        targets: Tensor,
        batch: StackedBatch,
        extras: Mapping[str, Any],
    ) -> Any:
        """What it gives for each client, as rows.

        Args:
            live: The forward passes, of rows (K * B, ...).
            modalities: Those of the clients.
            targets: (K * B,) or (K * B, outputs).
            batch: The stack's batch.
            extras: The first K clients' copies.
        """
        count = len(batch.counts)
        labels = batch.unfold(targets)
        real = torch.ones(labels.shape[:2], device=labels.device) if batch.mask is None else batch.mask
        present = {name: batch.present(name, real) for name in modalities}
        learned = self.workspace.learned
        if not self.asked:
            seen = _Seen(live, batch)
            self.function(
                Batch(labels[0], {n: p[0] for n, p in present.items()}, real[0], _first_row(extras), seen, learned)
            )
            self.asked = tuple(seen.asked)
        passes = [live.forward(asked) for asked in self.asked]
        tensors = {
            "passes": [_unfolded(found, batch) for found in passes],
            "targets": labels,
            "real": real,
            "present": present,
            "extras": plain({name: _first(value, count) for name, value in extras.items()}),
        }

        def one(own: Mapping[str, Any]) -> Any:
            found = {asked: Forward(*each) for asked, each in zip(self.asked, own["passes"], strict=True)}
            trees = as_trees(own["extras"], extras)
            forwards = FixedForwards(found, self.method)
            return self.function(Batch(own["targets"], own["present"], own["real"], trees, forwards, learned))

        try:
            return torch.vmap(one, randomness="error")(tensors)
        except (BlossomError, torch.OutOfMemoryError):
            raise
        except OWN_CODE_RAISES as error:  # which of an algorithm's functions it is stands in the notes of the run
            raise RuntimeError(f"algorithm: {self.method} cannot be mapped: {shown_error(error)}") from error


class _Seen:
    """Notes the forward passes that are asked for; gives those of the first client."""

    def __init__(self, live: LiveForwards, batch: StackedBatch) -> None:
        self._live, self._batch = live, batch
        self.asked: dict[Asked, None] = {}

    def forward(self, asked: Asked) -> Forward:
        self.asked[asked] = None
        outputs, representation, embeddings = _unfolded(self._live.forward(asked), self._batch)
        return Forward(outputs[0], representation[0], {name: values[0] for name, values in embeddings.items()})


def _unfolded(found: Forward, batch: StackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    embeddings = {name: batch.unfold(values) for name, values in found.embeddings.items()}
    return batch.unfold(found.outputs), batch.unfold(found.representation), embeddings


def _first(value: Any, count: int) -> Any:
    return value.map(lambda rows: rows[:count]) if isinstance(value, Tree) else value[:count]


def _first_row(extras: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.map(lambda rows: rows[0]) if isinstance(value, Tree) else value[0] for name, value in extras.items()
    }
