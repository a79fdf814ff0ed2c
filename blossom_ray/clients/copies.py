"""The copies of one client: one at a time in a workspace, others to look through, several that are trained together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from blossom_ray.algorithms.seam import MODEL, Tree
from blossom_ray.clients.batch import RECEIVED, Batch, LiveForwards
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass
from blossom_ray.clients.losses import TrainingTally
from blossom_ray.clients.optimizers import BlockOptimizer, TrainedVector
from blossom_ray.clients.options import ClientOptimizer
from blossom_ray.clients.plan import LocalState, OptimizerState
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import NO_BLOCK
from blossom_ray.errors import RunError
from blossom_ray.models.late_fusion import EVERYWHERE, Forward, LateFusionModel, Presence


class ClientCopies:
    """Puts one of a client's copies at a time into a workspace: the model, or in its place what an algorithm adds.

    Blocks that a copy lacks stay the client's own. Running statistics go with the copy: one that has never been trained
    begins with those that the client had at the start, and keeps its own from then on, beside the client's
    normalisation state.

    Args:
        workspace: Holds the client's model.
        task: Gives its copies.
    """

    def __init__(self, workspace: Workspace, task: ClientTask) -> None:
        self._workspace, self._task = workspace, task
        self._kept = {name: state for name, state in task.local_state.items() if ":" in name}
        self._initial = {name: flat.statistics() for name, flat in workspace.flat.items()}
        self._trained: dict[str, dict[str, np.ndarray]] = {}
        self._statistics_of: dict[str, dict[str, np.ndarray]] = {}
        self._model: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
        self._current = MODEL
        self._looked_through: dict[str, LateFusionModel] = {}

    def enter(self, copy: str, *, with_parameters: bool = True) -> None:
        """Have the workspace hold a copy, or its statistics alone; what was looked through before may have changed."""
        self._looked_through = {}
        self._put_back()
        self._current = copy
        if copy == MODEL:
            return
        own = {} if not with_parameters else self.held(copy)
        for name in self._workspace.trained if not with_parameters else own:
            if name not in self._workspace.flat:  # a single array
                continue
            flat = self._workspace.flat[name]
            self._model[name] = flat.parameters.cpu().numpy().copy(), flat.statistics()
            if name in own:
                flat.load_first(own[name])
            flat.load_statistics(self._statistics_for(copy, name))
        self._with_parameters = with_parameters

    def held(self, copy: str) -> Mapping[str, np.ndarray]:
        """A copy's values by block, as they are now; by `NO_BLOCK` a single array."""
        return {**self._task.extras.get(copy, {}), **self._trained.get(copy, {})}

    def extras(self) -> dict[str, Any]:
        """All copies but the model as tensors: trees, and single arrays."""
        return {name: _as_tree(self.held(name), self._workspace.device) for name in self._task.extras}

    def keep(self, copy: str, values: Mapping[str, np.ndarray]) -> None:
        """Note what a copy is after a pass that trained it."""
        self._trained[copy] = {**self._trained.get(copy, {}), **values}

    def leave(self) -> tuple[dict[str, dict[str, np.ndarray]], LocalState]:
        """Have the workspace hold the model again.

        Returns:
            The copies that were trained, by block, and running statistics of all of the client's copies.
        """
        self.enter(MODEL)
        return self._trained, {**self._kept, **self._statistics_of}

    def model_of(self, copy: str) -> LateFusionModel:
        """The model of a copy as it is at the start of the pass, in evaluation mode, in memory of its own.

        Raises:
            RunError: There is no such copy.
        """
        if copy not in self._looked_through:
            extras: dict[str, Mapping[str, np.ndarray]] = {RECEIVED: {}, **self._task.extras}
            if copy not in extras or NO_BLOCK in extras[copy]:
                known = ", ".join(name for name, held in extras.items() if NO_BLOCK not in held)
                raise RunError(f"algorithm: through({copy!r}), which is no copy of the model; expected one of {known}")
            model, flats = self._workspace.spare(copy)
            own = {} if copy == RECEIVED else self.held(copy)
            received = self._task.received or self._task.blocks
            for name, flat in flats.items():
                flat.load(received[name])
                flat.load_local_state({key: values for key, values in self._initial[name].items() if key})
                if name in own:
                    flat.load_statistics(self._statistics_for(copy, name))
                    flat.load_first(own[name])
            self._looked_through[copy] = model
        return self._looked_through[copy]

    def _put_back(self) -> None:
        own: dict[str, np.ndarray] = {}
        for name, (parameters, statistics) in self._model.items():
            flat = self._workspace.flat[name]
            own[name] = flat.parameters.cpu().numpy().copy()
            if found := flat.statistics():
                self._statistics_of[f"{self._current}:{name}"] = found
            flat.load_first(parameters)
            flat.load_statistics(statistics)
        if own and self._with_parameters:
            self.keep(self._current, own)
        self._model = {}

    def _statistics_for(self, copy: str, name: str) -> Mapping[str, np.ndarray]:
        label = f"{copy}:{name}"
        return self._statistics_of.get(label) or self._kept.get(label) or self._initial[name]


class ComposedPass:
    """A pass in which several copies are trained, or blocks compute that are made of copies.

    Args:
        workspace: Holds the client's model, which stands still unless it is one of the copies.
        copies: The client's.
        step: The pass.
        own: What of it is this client's own; about the first copy.
        section: The optimizer.
        learning_rate: The round's.
    """

    def __init__(
        self,
        workspace: Workspace,
        copies: ClientCopies,
        step: LocalPass,
        own: Affine,
        section: ClientOptimizer,
        learning_rate: float,
    ) -> None:
        self._workspace, self._copies, self._step = workspace, copies, step
        model = {name: flat.parameters.clone() for name, flat in workspace.flat.items() if flat.num_parameters}
        self._fixed: dict[str, Any] = {MODEL: Tree(model), **copies.extras()}
        first = step.copies[0]
        self._leaves: dict[str, dict[str, Tensor]] = {}
        for copy in step.copies:
            held = self._fixed[copy] if isinstance(self._fixed[copy], Tree) else {NO_BLOCK: self._fixed[copy]}
            if copy == MODEL or (copy == first and step.blocks):
                held = {name: values for name, values in held.items() if name in step.blocks}
            chosen = {**held, **_on(own.start, workspace.device)} if copy == first else held
            self._leaves[copy] = {name: chosen[name].clone().requires_grad_() for name in held}
        self._offsets, self._anchors = _on(own.offset, workspace.device), _on(own.anchor, workspace.device)
        self._optimizers: dict[str, tuple[dict[str, TrainedVector], BlockOptimizer]] = {}
        for copy, leaves in self._leaves.items():
            vectors = {name: leaf.detach().view(-1) for name, leaf in leaves.items()}
            parts = {name: TrainedVector(vector, torch.zeros_like(vector)) for name, vector in vectors.items()}
            plain = section_of(section, {name: tuple(leaf.shape) for name, leaf in leaves.items()}, workspace)
            rate = learning_rate * step.rates.get(copy, 1.0)
            self._optimizers[copy] = parts, BlockOptimizer(plain, parts, rate)
        self.composed = tuple(self._blocks())

    def values(self) -> dict[str, Any]:
        """All copies, with those that are trained as leaves of the gradient's graph."""
        values = dict(self._fixed)
        for copy, leaves in self._leaves.items():
            values[copy] = leaves[NO_BLOCK] if NO_BLOCK in leaves else Tree({**values[copy], **leaves})
        return values

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Presence]) -> Forward:
        """The forward pass of the blocks that compute."""
        return traced_with(self._workspace, self._blocks(), inputs, present)

    def take_step(self, loss: Tensor, resting: Collection[str]) -> None:
        """One step of all copies that are trained, along the gradient of a loss; `resting` blocks take none."""
        pairs = [(copy, name, leaf) for copy, leaves in self._leaves.items() for name, leaf in leaves.items()]
        gradients = torch.autograd.grad(loss, [leaf for *_, leaf in pairs], allow_unused=True, materialize_grads=True)
        first = self._step.copies[0]
        for (copy, name, leaf), gradient in zip(pairs, gradients, strict=True):
            total = self._optimizers[copy][0][name].gradient
            total.copy_(gradient.reshape(-1))
            if copy == first and name in self._anchors and self._step.mu:
                total.add_(leaf.detach() - self._anchors[name], alpha=self._step.mu)
            if copy == first and name in self._offsets:
                total.add_(self._offsets[name])
        for _, optimizer in self._optimizers.values():
            optimizer.step(resting)

    def end(self) -> None:
        """Write the copies back."""
        for copy, leaves in self._leaves.items():
            values = {name: leaf.detach().cpu().numpy().copy() for name, leaf in leaves.items()}
            if copy != MODEL:
                self._copies.keep(copy, values)
                continue
            for name, vector in values.items():
                self._workspace.flat[name].load_first(vector)

    def _blocks(self) -> Mapping[str, Tensor]:
        return composed_blocks(self._step, self.values(), self._workspace)


class LocalClient:
    """The client of `local`, with which an author trains it step by step; one client after the other alone.

    Args:
        workspace: Holds the client's model.
        copies: The client's.
        job: The round.
        batches: From a number of epochs to the next batches.

    Attributes:
        copies: By name all copies before training: trees of blocks, "model" among them, and single arrays.
        learning_rate: The round's.
        epochs: `training.local_epochs`.
        round: The round.
    """

    def __init__(
        self,
        workspace: Workspace,
        copies: ClientCopies,
        job: LocalJob,
        batches: Callable[[int], Iterator[tuple[dict[str, Tensor], Mapping[str, Presence], Tensor]]],
    ) -> None:
        self._workspace, self._copies, self._batches = workspace, copies, batches
        model = {name: flat.parameters.clone() for name, flat in workspace.flat.items() if flat.num_parameters}
        self.copies: dict[str, Any] = {MODEL: Tree(model), **copies.extras()}
        self.learning_rate, self.epochs, self.round = job.learning_rate, job.training.local_epochs, job.round_index
        self.num_examples = self.num_batches = 0
        self.loss_sum, self.tally = 0.0, TrainingTally(workspace.learned)
        self.extras: dict[str, dict[str, np.ndarray]] = {}

    def batches(self, epochs: int | None = None) -> Iterator[Callable[[Mapping[str, Tensor]], Batch]]:
        """For each batch of the next epochs a function from blocks, (n,) each, to that batch through them.

        Blocks that are not given are the client's own. Gradients flow to those that are.
        """
        for inputs, present, targets in self._batches(self.epochs if epochs is None else epochs):
            is_first = True

            def through(
                values: Mapping[str, Tensor],
                inputs: dict[str, Tensor] = inputs,
                present: Mapping[str, Presence] = present,
                targets: Tensor = targets,
            ) -> Batch:
                nonlocal is_first
                idle = self._workspace.idle_blocks(targets)
                self._workspace.model.training_mode(batch_size=len(targets), inputs=inputs, resting=idle)
                own = partial(traced_with, self._workspace, values, inputs, present)
                batch = authors_batch(self._workspace, own, inputs, present, targets, self.copies, self._copies)
                if is_first:
                    is_first = False
                    self.loss_sum += float(batch.total_loss.detach().sum())
                    if not self._workspace.learned.is_plain:
                        self.tally.add(torch.stack(batch.task_losses, dim=1).mean(dim=0), targets)
                return batch

            self.num_examples += len(targets)
            self.num_batches += 1
            yield through

    def take(self, outcome: object) -> None:
        """Take what `local` returned.

        Raises:
            RunError: It is no dict of copies with the blocks and shapes that they have.
        """
        if not isinstance(outcome, Mapping):
            raise RunError(f"algorithm: local gave {type(outcome).__name__}; expected a dict of copies by name")
        for copy, value in outcome.items():
            before = self.copies.get(copy)
            parts = value if isinstance(value, Mapping) else {NO_BLOCK: value}
            held = before if isinstance(before, Tree) else {NO_BLOCK: before}
            for name, tensor in parts.items():
                like = held.get(name)
                if like is None or not isinstance(tensor, Tensor) or tensor.shape != like.shape:
                    known = ", ".join(self.copies)
                    raise RunError(f"algorithm: local gave {copy} {name} of another kind; expected those of {known}")
            values = {name: tensor.detach().cpu().numpy().copy() for name, tensor in parts.items()}
            if copy == MODEL:
                for name, vector in values.items():
                    if name in self._workspace.trained:
                        self._workspace.flat[name].load_first(vector)
            else:
                self.extras[copy] = values


def traced_with(
    workspace: Workspace,
    blocks: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Presence] = EVERYWHERE,
) -> Forward:
    """The forward pass of a workspace's model with other parameters, (n,) by block; gradients flow to them."""
    parameters = {}
    for at, block in enumerate(workspace.model.blocks):
        for entry in workspace.flat[block].layout.parameters if block in blocks else ():
            part = blocks[block][entry.offset : entry.end].view(entry.shape)
            parameters[f"model._registered.{at}.{entry.name}"] = part
    found: Forward = functional_call(_Traced(workspace.model), parameters, (inputs, present))
    return found


def authors_batch(
    workspace: Workspace,
    own: Callable[[], Forward],
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Presence],
    targets: Tensor,
    extras: Mapping[str, Any],
    copies: ClientCopies,
) -> Batch:
    """One client's batch as the author of an algorithm sees it.

    Args:
        workspace: Holds what is trained or measured.
        own: Its forward pass.
        inputs: Modality to (B, *shape), without those that are left out.
        present: Of modalities that some samples lack, which have it: `inputs` has those alone.
        targets: The labels of the batch, as the tasks have them.
        extras: What `batch["name"]` gives.
        copies: Give the models of other copies.
    """
    ones = torch.ones(len(targets), device=workspace.device)
    has = {name: ones * (name in inputs) for name in workspace.model.owned}
    has |= {name: each.mask.squeeze(1).float() for name, each in present.items()}
    forwards = LiveForwards(own, workspace.model, inputs, present, copies.model_of)
    return Batch(targets, has, ones, extras, forwards, workspace.learned)


class _Traced(torch.nn.Module):
    def __init__(self, model: LateFusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Presence]) -> Forward:
        return self.model.traced(inputs, present)


def composed_blocks(step: LocalPass, values: Mapping[str, Any], workspace: Workspace) -> Mapping[str, Tensor]:
    """The blocks that compute in a pass, (n,) each.

    Args:
        step: The pass.
        values: The client's copies.
        workspace: A model of its kind.

    Raises:
        RunError: The author's function gave blocks of another name or shape.
    """
    if step.model is None:
        first = values[step.copies[0]]
        return first if isinstance(first, Tree) else {}
    composed = step.model(values)
    for name, vector in composed.items():
        size = workspace.flat[name].num_parameters if name in workspace.flat else None
        if tuple(vector.shape) != (size,):
            raise RunError(f"algorithm: model gave {name} of shape {tuple(vector.shape)}; expected ({size},)")
    return composed


def section_of(
    section: ClientOptimizer, shapes: Mapping[str, tuple[int, ...]], workspace: Workspace
) -> ClientOptimizer:
    """The optimizer of a copy: weight decay is for what is shaped as blocks are, not for factors and mixing numbers."""
    sizes = {name: flat.num_parameters for name, flat in workspace.flat.items()}
    if all(shape == (sizes.get(name),) for name, shape in shapes.items()):
        return section
    return section.model_copy(update={"weight_decay": 0.0, "blocks": {}})


def optimizer_state_of(copy: str, state: OptimizerState) -> OptimizerState:
    """The part of a client's optimizer state that is of one copy, by block."""
    if copy == MODEL:
        return {name: own for name, own in state.items() if ":" not in name}
    return {name.partition(":")[2]: own for name, own in state.items() if name.startswith(f"{copy}:")}


def label_of(copy: str, block: str) -> str:
    """What the state of a copy's block is called beside that of the model's."""
    return block if copy == MODEL else f"{copy}:{block}"


def _as_tree(held: Mapping[str, np.ndarray], device: torch.device) -> Any:
    values = {name: torch.from_numpy(np.array(array)).to(device) for name, array in held.items()}
    return values[NO_BLOCK] if NO_BLOCK in values else Tree(values)


def _on(values: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in values.items()}
