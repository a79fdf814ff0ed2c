"""What clients add to their trained blocks: a weight in the averages, and prototypes of their modalities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from blossom_ray.algorithms.options import Weighting
from blossom_ray.clients.engines import Engine
from blossom_ray.clients.local_training import LocalResult, read_only_tensor
from blossom_ray.clients.stacked import ClientTask
from blossom_ray.clients.weighting import client_weight
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.sums import Vector
from blossom_ray.errors import ClientError


def client_weights(
    rule: Weighting,
    engine: Engine,
    tasks: Sequence[ClientTask],
    results: Sequence[LocalResult],
    *,
    batch_size: int,
    round_index: int,
) -> list[float]:
    """The clients' weights in averages.

    Args:
        rule: The scenario's `server.weighting`.
        engine: Measures what the clients make of their training samples now, where the rule needs it.
        tasks: What the clients were trained on.
        results: What their training left.
        batch_size: Samples per forward pass.
        round_index: The round.

    Raises:
        ClientError: A client's own code raised.
    """
    entropies: Sequence[float | None] = [None] * len(tasks)
    if rule == "entropy":
        trained = [_after(task, result) for task, result in zip(tasks, results, strict=True)]
        entropies = engine.mean_entropies(trained, batch_size, round_index=round_index)
        for task, entropy in zip(tasks, entropies, strict=True):
            if entropy is not None and not math.isfinite(entropy):
                cause = "outputs on its training samples are not finite, so server.weighting has no entropy"
                hint = "a smaller training.optimizer.lr, or inputs of smaller scale"
                raise ClientError(task.client, round_index, cause, hint)
    return [
        client_weight(rule, result.num_examples, entropy) for result, entropy in zip(results, entropies, strict=True)
    ]


def with_prototypes(
    workspace: Workspace, task: ClientTask, result: LocalResult, modalities: Iterable[str], *, batch_size: int
) -> LocalResult:
    """A client's result with a block `prototype/<modality>` for each of these modalities.

    Args:
        workspace: Scratch memory of the client's modality set.
        task: What the client was trained on.
        result: What its training left.
        modalities: Of those that it owns.
        batch_size: Samples per forward pass.

    Source: PmcmFL (arXiv:2312.13508), with one prototype per modality instead of one per class.
    """
    trained = _after(task, result)
    workspace.load(trained.blocks, trained.local_state or workspace.initial_state)
    prototypes: dict[str, Vector] = {
        Block("prototype", modality): mean_embedding(workspace, modality, task.inputs, batch_size)
        for modality in modalities
    }
    return replace(result, blocks={**result.blocks, **prototypes})


def mean_embedding(workspace: Workspace, modality: str, inputs: Mapping[str, np.ndarray], batch_size: int) -> Vector:
    """The mean of a modality's embeddings in evaluation mode, summed in float64.

    Args:
        workspace: Holds the client's blocks. Not changed.
        modality: One that the client owns.
        inputs: Modality to (n, *shape) float32. May be read-only.
        batch_size: Samples per forward pass.

    Returns:
        (E,) float32.
    """
    encoder = workspace.model.eval().blocks[Block("encoder", modality)]
    samples = read_only_tensor(inputs[modality])
    total = torch.zeros((), dtype=torch.float64, device=workspace.device)
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            # A copy: a module that works in place must not reach the memory that clients share.
            batch = samples[start : start + batch_size].to(workspace.device, copy=True)
            total = total + encoder(batch).sum(dim=0, dtype=torch.float64)
    mean: Vector = np.asarray((total / len(samples)).float().cpu())
    return mean


def _after(task: ClientTask, result: LocalResult) -> ClientTask:
    """The task with the blocks and the state that training left."""
    return replace(task, blocks={**task.blocks, **result.blocks}, local_state=result.local_state)
