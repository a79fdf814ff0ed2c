"""Whether a model can be stacked. What own code does with rows and random numbers cannot be seen: it is tried."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from blossom_ray.clients.local_training import one_thread, seeded_dropout
from blossom_ray.clients.plan import LocalState
from blossom_ray.clients.stacked.batches import StackedBatch
from blossom_ray.clients.stacked.masks import DrawnMasks
from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.sums import Vector
from blossom_ray.errors import OWN_CODE_RAISES, shown_error
from blossom_ray.models.late_fusion import LateFusionModel
from blossom_ray.text import brief

_STEPS = (((4, 4, 4), True), ((4, 4, 4), True), ((6, 3, 1), True), ((6, 3, 1), False))
"""Rows of each client, and whether they are trained on. Twice alike: a module may keep something in between."""

_MIXES = "mixes the rows of a batch, of which some are padding in a stack"
_DIFFERS = (
    "computes something else in a stack, as when it keeps what is no buffer, assigns to one, or drops out a transpose"
)
_SAYS = {
    "random operation": "draws random numbers beside nn.Dropout",
    ".item()": "takes numbers out of tensors, as .item() does",
    "control flow": "branches on values",
    "dynamic shape": "makes tensors whose shape depends on values",
    "setup_context": "has an autograd.Function without setup_context",
    "inplace arithmetic": "writes into what torch.zeros has made, where x.new_zeros would do",
}
"""What PyTorch says where it cannot map a module, in the words of a user."""


def stacking_obstacle(workspace: Workspace) -> str | None:
    """Why the model of a workspace cannot be stacked, as one line; None where it can.

    Own code is tried on random samples of three clients, in training and in evaluation mode, stacked and one client
    after the other: outputs, gradients and buffers have to agree within rounding, also of clients with fewer rows than
    others, whose batches are then padded. The workspace holds other blocks afterwards.
    """
    model = workspace.model
    if model.missing == "prototype":
        return "model.missing is 'prototype', whose embeddings are measured one client after the other"
    # An encoder that is given zeros computes whenever a stack is loaded, so it comes before the others.
    for name in sorted(model.own_modules, key=lambda name: name not in model.unowned_blocks):
        block = model.blocks[name]
        reason = "has hooks" if any(map(_has_hooks, block.modules())) else _found_in_trial(workspace, name)
        if reason is not None:
            return f"{name} ({type(block).__name__}) {reason}"
    return None


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")
    return any(getattr(module, f"_{kind}") for kind in kinds)


def _found_in_trial(workspace: Workspace, name: Block) -> str | None:
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Of an operation that is computed for one client after the other.
        warnings.filterwarnings("error", "There is a performance drop")
        try:
            try:
                trial = _Trial(workspace, name, torch.randn)
                alone = trial.alone()
            except OWN_CODE_RAISES:
                # Some take what is not below 0 alone, such as numbers of words.
                trial = _Trial(workspace, name, torch.rand)
                alone = trial.alone()
            stacked = trial.stacked()
        except OWN_CODE_RAISES as error:
            cause = shown_error(error).splitlines()[0]
            if operation := re.search(r"atching rule .*for (aten::\w+)", cause):
                return f"uses {operation[1]}, which PyTorch does not map"
            raises = f"raises when it is tried: {brief(cause)}"
            return next((said for part, said in _SAYS.items() if part in cause), raises)
    tolerance = 1e-4 if workspace.model.precision == "float32" else 0.05
    *steps, buffers = (_agree(*pair, tolerance) for pair in zip(stacked, alone, strict=True))
    for (counts, _), agrees in zip(_STEPS, steps, strict=True):
        if not agrees:
            return _MIXES if len(set(counts)) > 1 else _DIFFERS
    return None if buffers else "leaves other buffers in a stack"


@dataclass(frozen=True)
class _Step:
    """A batch of each client.

    Attributes:
        counts: Rows of each client.
        is_training: Whether it is trained on.
        inputs: Samples of a block (K, B, ...), or a dict of such.
        weights: (K, B, E), of the block's outputs in what gradients are taken of.
    """

    counts: tuple[int, ...]
    is_training: bool
    inputs: Any
    weights: Tensor


class _Trial:
    """Clients with blocks of their own, and samples for one block.

    Args:
        workspace: Their model.
        name: The block.
        draw: What its inputs are drawn with.
    """

    def __init__(self, workspace: Workspace, name: Block, draw: Callable[..., Tensor]) -> None:
        self._workspace, self._name, model = workspace, name, workspace.model
        random = torch.Generator().manual_seed(0)
        self._clients = [
            {
                key: values * (0.9 + 0.2 * torch.rand(values.shape, generator=random)).numpy()
                for key, values in workspace.initial_blocks.items()
            }
            for _ in _STEPS[0][0]
        ]

        def drawn(num_rows: int) -> Any:
            size = (len(self._clients), num_rows)
            if name.kind == "encoder":
                is_owned = name not in model.unowned_blocks
                return draw(*size, *model.input_shapes[name.of], generator=random) * is_owned
            embedded = model.owned if model.missing == "mask" else tuple(model.embedding_dims)
            embeddings = {
                modality: draw(*size, model.embedding_dims[modality], generator=random) for modality in embedded
            }
            if name.kind == "fusion":
                return embeddings
            fused = model.eval().blocks[model.fusion_of[name]]({key: values[0] for key, values in embeddings.items()})
            return draw(*size, *fused.shape[1:], generator=random)

        self._steps = []
        for counts, is_training in _STEPS:
            weights = torch.randn(len(counts), max(counts), model.own_modules[name].width, generator=random)
            self._steps.append(_Step(counts, is_training, drawn(max(counts)), weights))

    def alone(self) -> list[list[Tensor]]:
        """Outputs and gradients of each step, and the buffers after the last one, client after client."""
        workspace = self._workspace
        found: list[list[Tensor]] = [[] for _ in (*_STEPS, "buffers")]
        parameters = [p for flat in workspace.trained.values() for p in flat.module.parameters()]
        for client, blocks in enumerate(self._clients):
            workspace.load(blocks, workspace.initial_state)
            with seeded_dropout(client, workspace.device):
                for step, own in zip(self._steps, found, strict=False):
                    count = step.counts[client]
                    if step.is_training:
                        workspace.model.training_mode(batch_size=count)
                    else:
                        workspace.model.eval()
                    rows_of_client = itemgetter((client, slice(count)))
                    inputs, weights = tree_map(rows_of_client, (step.inputs, step.weights))
                    rows, gradients = self._computed(workspace.model, step, inputs, weights, parameters)
                    own += (*rows, *gradients)
            trained = {name: flat.read() for name, flat in workspace.trained.items()}
            found[-1] += _tensors(trained, workspace.local_state())
        return found

    def stacked(self) -> list[list[Tensor]]:
        """The same of a stack."""
        workspace, num_clients = self._workspace, len(self._clients)
        stack = Stack(workspace, num_clients)
        stack.load(self._clients, [workspace.initial_state] * num_clients)
        stack.train_with(masks=DrawnMasks(range(num_clients)), descent=None)
        found: list[list[Tensor]] = []
        for step in self._steps:
            row_counts, num_rows = torch.tensor(step.counts), max(step.counts)
            mask = (torch.arange(num_rows) < row_counts.unsqueeze(1)).float()
            padded = mask if min(step.counts) < num_rows else None
            if step.is_training:
                stack.train_only(workspace.trained)
            else:
                stack.model.eval()
            stack.enter(StackedBatch(torch.arange(mask.numel()), step.counts, row_counts.float(), padded))
            weighted = (step.inputs, step.weights * mask.unsqueeze(2))
            inputs, weights = tree_map(lambda values: values.flatten(0, 1), weighted)
            rows, gradients = self._computed(stack.model, step, inputs, weights, stack.parameters)
            own: list[Tensor] = []
            for client, count in enumerate(step.counts):
                own += [stack.lanes.unfold(values)[client, :count] for values in rows]
                own += [values[client] for values in gradients]
            found.append(own)
        pairs = zip(*stack.read(num_clients), strict=True)
        found.append([tensor for blocks, state in pairs for tensor in _tensors(blocks, state)])
        return found

    def _computed(
        self, model: LateFusionModel, step: _Step, inputs: Any, weights: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What has rows: outputs and the inputs' gradients; and the parameters' gradients."""
        # Copies that are no leaves, as inside a model: a module may work in place.
        leaves = tree_map(lambda values: values.clone().requires_grad_(self._name.kind != "encoder"), inputs)
        precision = torch.autocast(weights.device.type, torch.bfloat16, enabled=model.precision != "float32")
        with torch.set_grad_enabled(step.is_training), precision:
            outputs = model.blocks[self._name](tree_map(torch.clone, leaves)).float()
            if not outputs.requires_grad:
                return [outputs], []
            given = [leaf for leaf in tree_leaves(leaves) if leaf.requires_grad]
            gradients = torch.autograd.grad(
                (outputs * weights).sum(), [*given, *parameters], allow_unused=True, materialize_grads=True
            )
        return [outputs.detach(), *gradients[: len(given)]], list(gradients[len(given) :])


def _tensors(blocks: Mapping[str, Vector], state: LocalState) -> list[Tensor]:
    arrays = (*blocks.values(), *(values for own in state.values() for values in own.values()))
    return [torch.from_numpy(values) for values in arrays]


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    """Whether tensors are equal but for rounding, relative to the largest value of all of them."""
    largest = max((float(values.nan_to_num(0, 0, 0).abs().max()) for values in expected if values.numel()), default=0)
    return len(found) == len(expected) and all(
        one.shape == other.shape and torch.allclose(one, other, tolerance, tolerance * largest, equal_nan=True)
        for one, other in zip(found, expected, strict=True)
    )
