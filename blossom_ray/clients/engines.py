"""How the clients of a chunk are computed: one after the other, or stacked: the same steps, within rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from blossom_ray.clients.batch import Measured
from blossom_ray.clients.compiled.engine import CompiledEngine
from blossom_ray.clients.job import ClientTask, LocalJob, LocalResult, Scored
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import EngineName
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.errors import ClientError


class Engine(Protocol):
    """Trains and scores clients that have the same blocks; nothing of them is kept or modified.

    Each method gives one result per task, in their order.

    Raises:
        ClientError: A client's own code raised, or it does not fit into memory.
    """

    @property
    def obstacles(self) -> Collection[str]:
        """Lines on what of stacked clients is computed for one after the other, and why, as far as that is known."""

    def train(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        """Train each client on its shard.

        Every sample counts, unless `min_batch_size` leaves small batches out: the last batch of an epoch may be
        smaller, and in a batch of one sample normalisation layers use their running statistics.
        """

    def evaluate(self, tasks: Sequence[ClientTask], batch_size: int, *, round_index: int) -> list[Scored]:
        """Score each client's model on its samples.

        Args:
            tasks: The clients.
            batch_size: Samples of a client per forward pass.
            round_index: The round, for messages.
        """

    def measure(
        self, tasks: Sequence[ClientTask], function: Measured, batch_size: int, *, round_index: int
    ) -> list[dict[str, Tensor]]:
        """Sums of numbers per sample over each client's samples, in float64, in evaluation mode.

        Args:
            tasks: The clients, each with the copies that the function looks at.
            function: From a batch to numbers per sample by name, (B, ...).
            batch_size: Samples of a client per forward pass.
            round_index: The round, for messages.
        """


def make_engine(kind: EngineName, workspace: Workspace) -> Engine:
    """The engine that was settled on."""
    engines: dict[EngineName, Callable[[Workspace], Engine]]
    engines = {"sequential": SequentialEngine, "vectorized": StackedEngine, "compiled": CompiledEngine}
    return engines[kind](workspace)


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
