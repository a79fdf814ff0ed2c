"""How the clients of a chunk are computed: one after the other, or stacked: the same steps, within rounding."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

from blossom_ray.clients.local_training import LocalResult, train_locally
from blossom_ray.clients.options import EngineName, Training
from blossom_ray.clients.phases import Phase
from blossom_ray.clients.scoring import Scored, evaluate_locally
from blossom_ray.clients.stacked import ClientTask, VectorizedEngine, can_vectorize
from blossom_ray.clients.weighting import mean_entropy
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.seeding import Purpose
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, ClientError, InputError, shown_error


class Engine(Protocol):
    """Trains and scores clients that have the same blocks."""

    def train(
        self,
        tasks: Sequence[ClientTask],
        section: Training,
        *,
        learning_rate: float,
        phases: Sequence[Phase] | None = None,
        purpose: Purpose = Purpose.TRAINING,
        seed: int,
        round_index: int,
    ) -> list[tuple[LocalResult, float]]:
        """Each client's result, in order, with the seconds that it took; arguments as in `train_locally`.

        Raises:
            ClientError: A client's own code raised.
        """

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[tuple[Scored, float]]:
        """Each client's scores, in order, with the seconds that they took.

        Raises:
            ClientError: A client's own code raised.
        """

    def mean_entropies(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[float]:
        """The mean entropy of each client's predictions on its samples, in order, in nats.

        Raises:
            ClientError: A client's own code raised.
        """


class SequentialEngine:
    """One client after the other, in one model.

    Args:
        workspace: The model's memory.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def train(
        self,
        tasks: Sequence[ClientTask],
        section: Training,
        *,
        learning_rate: float,
        phases: Sequence[Phase] | None = None,
        purpose: Purpose = Purpose.TRAINING,
        seed: int,
        round_index: int,
    ) -> list[tuple[LocalResult, float]]:
        """Each client's result, in order, with the seconds that it took."""
        results = []
        for task in tasks:
            started = time.perf_counter()
            with _client_errors(task.client, round_index):
                self._load(task)
                result = train_locally(
                    self._workspace,
                    task.inputs,
                    task.labels,
                    section,
                    learning_rate=learning_rate,
                    optimizer_state=task.optimizer_state or None,
                    phases=phases,
                    purpose=purpose,
                    seed=seed,
                    round_index=round_index,
                    client=task.client,
                )
            results.append((result, time.perf_counter() - started))
        return results

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[tuple[Scored, float]]:
        """Each client's scores, in order, with the seconds that they took."""
        scores = []
        for task in tasks:
            started = time.perf_counter()
            with _client_errors(task.client, round_index):
                self._load(task)
                scored = evaluate_locally(self._workspace, task.inputs, task.labels, batch_size)
            scores.append((scored, time.perf_counter() - started))
        return scores

    def mean_entropies(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[float]:
        """The mean entropy of each client's predictions on its samples, in order, in nats."""
        found = []
        for task in tasks:
            with _client_errors(task.client, round_index):
                self._load(task)
                found.append(mean_entropy(self._workspace, task.inputs, batch_size))
        return found

    def _load(self, task: ClientTask) -> None:
        self._workspace.load(task.blocks, task.local_state or self._workspace.initial_state)


class StackedEngine:
    """All clients of a chunk at once, on stacked block vectors; the time is divided evenly among them.

    Args:
        workspace: What the clients' model looks like.

    Raises:
        InputError: The model has parts that cannot be stacked.
    """

    def __init__(self, workspace: Workspace) -> None:
        obstacle = can_vectorize(workspace)
        if obstacle is not None:
            raise InputError(f"training.engine is 'vectorized', but {obstacle}; expected 'sequential' for this model")
        self._engine = VectorizedEngine(workspace)

    def train(
        self,
        tasks: Sequence[ClientTask],
        section: Training,
        *,
        learning_rate: float,
        phases: Sequence[Phase] | None = None,
        purpose: Purpose = Purpose.TRAINING,
        seed: int,
        round_index: int,
    ) -> list[tuple[LocalResult, float]]:
        """Each client's result, in order, with its part of the time."""
        started = time.perf_counter()
        with _client_errors(tasks[0].client, round_index):
            results = self._engine.train(
                tasks,
                section,
                learning_rate=learning_rate,
                phases=phases,
                purpose=purpose,
                seed=seed,
                round_index=round_index,
            )
        seconds = (time.perf_counter() - started) / len(tasks)
        return [(result, seconds) for result in results]

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[tuple[Scored, float]]:
        """Each client's scores, in order, with their part of the time."""
        started = time.perf_counter()
        with _client_errors(tasks[0].client, round_index):
            scores = self._engine.evaluate(tasks, batch_size)
        seconds = (time.perf_counter() - started) / len(tasks)
        return [(scored, seconds) for scored in scores]

    def mean_entropies(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[float]:
        """The mean entropy of each client's predictions on its samples, in order, in nats."""
        with _client_errors(tasks[0].client, round_index):
            return self._engine.mean_entropies(tasks, batch_size)


def make_engine(kind: EngineName, workspace: Workspace) -> Engine:
    """The engine that a scenario names.

    Raises:
        InputError: The model has parts that cannot be stacked.
    """
    return StackedEngine(workspace) if kind == "vectorized" else SequentialEngine(workspace)


@np.errstate(over="ignore", invalid="ignore")
def check_finite(client: int, round_index: int, result: LocalResult, rate_key: str) -> None:
    """Refuse blocks with NaN or infinite values, before they reach an average or a score.

    Args:
        client: The client.
        round_index: The round.
        result: What its training left.
        rate_key: The key of the scenario that sets its learning rate, for the message.

    Raises:
        ClientError: A block is not finite.
    """
    for name, values in result.blocks.items():
        # One fast pass in the common case; a sum of squares that overflows says nothing yet.
        if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
            raise ClientError(
                client,
                round_index,
                f"block {name} is not finite after local training (mean loss {result.loss:.4g})",
                hint=f"a smaller {rate_key}, or inputs of smaller scale",
            )


@contextmanager
def _client_errors(client: int, round_index: int) -> Iterator[None]:
    """Turn what a client's own code raises into a `ClientError` that says whose it was."""
    try:
        yield
    except BlossomError:
        raise
    except OWN_CODE_RAISES as error:
        cause = shown_error(error).splitlines()[0]
        no_room = isinstance(error, torch.OutOfMemoryError)
        hint = "a smaller training.batch_size, or a larger execution.client_resources.num_gpus" if no_room else ""
        raise ClientError(client, round_index, cause, hint, details=traceback.format_exc()) from error
