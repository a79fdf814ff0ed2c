"""Local fine-tuning before scoring: each client trains a copy of its model a little further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from blossom_ray.clients.engines import Engine, check_finite
from blossom_ray.clients.options import FineTune, Training
from blossom_ray.clients.phases import tuning_phase
from blossom_ray.clients.stacked import ClientTask
from blossom_ray.core.blocks import Block, BlockInstance
from blossom_ray.core.seeding import Purpose

TrainRows = tuple[Mapping[str, np.ndarray], np.ndarray]


def fine_tuned(
    engine: Engine,
    tasks: Sequence[ClientTask],
    train_rows: Sequence[TrainRows],
    section: FineTune,
    training: Training,
    *,
    trained: Mapping[Block, BlockInstance],
    seed: int,
    round_index: int,
) -> tuple[list[ClientTask], list[float]]:
    """Scoring tasks with the blocks that the clients have after fine-tuning.

    Args:
        engine: Trains the clients.
        tasks: What is to be scored: each client's blocks and test samples.
        train_rows: Each client's training split, inputs and labels.
        section: The scenario's `evaluation.fine_tune` section.
        training: Its `training` section: batch size and optimizer. The optimizer starts anew, without a proximal term
            and modality dropout.
        trained: The block instances that these clients train, by block name.
        seed: The scenario's seed.
        round_index: The round.

    Returns:
        The tasks, and the seconds that each client's fine-tuning took.

    Raises:
        ClientError: A client's own code raised, or its blocks are not finite afterwards.
    """
    results = engine.train(
        [
            replace(task, inputs=inputs, labels=labels, optimizer_state={})
            for task, (inputs, labels) in zip(tasks, train_rows, strict=True)
        ],
        training.model_copy(update={"keep_optimizer_state": False, "modality_dropout": 0.0}),
        learning_rate=section.lr or training.optimizer.lr,
        phases=(tuning_phase(section, trained),),
        purpose=Purpose.FINE_TUNING,
        seed=seed,
        round_index=round_index,
    )
    tuned = []
    for task, (result, _) in zip(tasks, results, strict=True):
        check_finite(task.client, round_index, result, "evaluation.fine_tune.lr")
        tuned.append(replace(task, blocks={**task.blocks, **result.blocks}, local_state=result.local_state))
    return tuned, [seconds for _, seconds in results]
