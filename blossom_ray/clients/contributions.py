"""What clients add to their trained blocks: a weight in the averages, and prototypes of their modalities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blossom_ray.algorithms.options import Weighting
from blossom_ray.clients.batch import Batch
from blossom_ray.clients.engines import Engine
from blossom_ray.clients.job import ClientTask, LocalResult
from blossom_ray.clients.samples import evaluation_outputs
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.sums import Vector
from blossom_ray.data.stored import Rows, taken
from blossom_ray.errors import ClientError

LOWEST_ENTROPY = 1e-6
"""Nats. A client that is surer than this of all its predictions weighs no more for it: 1/H would have no bound."""


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

    Returns:
        `samples` and `observed`: n_k, the training samples that the client saw. `uniform`: 1. `entropy`: 1 / H_k, with
        H_k the mean entropy of its predictions on its training split, in nats.

    Raises:
        ClientError: A client's own code raised, or has outputs without an entropy.

    Source: McMahan et al. 2017 (arXiv:1602.05629) for `samples`; FLISM (arXiv:2405.11828), its quality-aware
    aggregation, for `entropy`.
    """
    if rule != "entropy":
        return [1.0 if rule == "uniform" else float(result.num_examples) for result in results]
    trained = [task.after(result) for task, result in zip(tasks, results, strict=True)]
    sums = engine.measure(trained, _entropies, batch_size, round_index=round_index)
    means = [float(own["entropy"]) / len(task.labels) for own, task in zip(sums, tasks, strict=True)]
    for task, mean in zip(tasks, means, strict=True):
        if not math.isfinite(mean):
            cause = "outputs on its training samples are not finite, so server.weighting has no entropy"
            hint = "a smaller training.optimizer.lr, or inputs of smaller scale"
            raise ClientError(task.client, round_index, cause, hint)
    return [1 / max(mean, LOWEST_ENTROPY) for mean in means]


def _entropies(batch: Batch) -> dict[str, Tensor]:
    return {"entropy": entropies(batch.outputs)}


def entropies(logits: Tensor) -> Tensor:
    """The entropy of each row's softmax, in nats.

    Args:
        logits: (B, C) float32.

    Returns:
        (B,) float32, 0 to log C.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


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
    trained = task.after(result)
    workspace.load(trained.blocks, trained.local_state or workspace.initial_state)
    prototypes: dict[str, Vector] = {
        Block("prototype", modality): mean_embedding(workspace, modality, _observed(task, modality), batch_size)
        for modality in modalities
    }
    return replace(result, blocks={**result.blocks, **prototypes})


def _observed(task: ClientTask, modality: str) -> dict[str, Rows]:
    values, observed = task.inputs[modality], task.observed.get(modality)
    return {modality: values if observed is None else taken(values, observed)}


def mean_embedding(workspace: Workspace, modality: str, inputs: Mapping[str, Rows], batch_size: int) -> Vector:
    """The mean of a modality's embeddings in evaluation mode, summed in float64.

    Args:
        workspace: Holds the client's blocks. Not changed.
        modality: One that the client owns.
        inputs: Modality to (n, *shape) float32, in memory or not. May be read-only.
        batch_size: Samples per forward pass.

    Returns:
        (E,) float32.
    """
    encoder = workspace.model.blocks[Block("encoder", modality)]
    total = torch.zeros((), dtype=torch.float64, device=workspace.device)
    samples = {modality: inputs[modality]}
    for _, embeddings in evaluation_outputs(workspace, samples, {}, batch_size, lambda own, _: encoder(own[modality])):
        total = total + embeddings.sum(dim=0, dtype=torch.float64)
    mean: Vector = np.asarray((total / len(inputs[modality])).float().cpu())
    return mean
