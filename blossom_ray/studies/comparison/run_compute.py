"""What a run's scores took to compute: samples seen, optimizer steps, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blossom_ray.runs.folder import Run

if TYPE_CHECKING:
    import polars as pl

COMPUTE = ("num_examples", "num_steps", "bytes_down", "bytes_up")


@dataclass(frozen=True)
class Compute:
    """The training behind a run's scores, evaluation left out of samples and steps.

    Attributes:
        num_examples: Training samples seen, over all clients and rounds.
        num_steps: Optimizer steps that a model goes through, one after the other: the mean over a round's clients,
            summed over rounds. None where the tables do not say.
        bytes_down: Bytes sent to clients, round 0 and evaluation included.
        bytes_up: Bytes that they sent back.
    """

    num_examples: float | None
    num_steps: float | None
    bytes_down: float
    bytes_up: float


def run_compute(run: Run, *, is_tuned: bool = False, up_to: int | None = None) -> Compute:
    """What a run took up to a round.

    Args:
        run: The run.
        is_tuned: Whether it is about the scores after local fine-tuning. They also took the epochs of the last one,
            whose copies of the models are those that were scored.
        up_to: The last round that counts; None: the run's last.
    """
    rounds, clients = _until(run.rounds, up_to), _until(run.clients, up_to)
    steps = _steps(clients)
    tuning = _tuning(run, clients) if is_tuned else (0.0, 0.0)
    return Compute(
        num_examples=None if tuning is None else sum(rounds["num_examples"]) + tuning[0],
        num_steps=None if tuning is None or steps is None else steps + tuning[1],
        bytes_down=sum(rounds["bytes_down"]),
        bytes_up=sum(rounds["bytes_up"]),
    )


def _until(table: pl.DataFrame, up_to: int | None) -> pl.DataFrame:
    return table if up_to is None else table.filter(table["round"] <= up_to)


def _steps(clients: pl.DataFrame) -> float | None:
    """Steps of a model; None where nobody trained, or, as in older runs of a central model, steps were not counted."""
    import polars as pl

    per_round = clients.drop_nulls("num_steps").group_by("round").agg(pl.col("num_steps").mean())
    return math.fsum(per_round["num_steps"]) or None


def _tuning(run: Run, clients: pl.DataFrame) -> tuple[float, float] | None:
    """Samples of the last fine-tuning, and its steps in the mean over clients; None where the tables do not say.

    A client that was tuned before it has ever trained has no row that says how many training samples it has.
    """
    import polars as pl

    training, section = run.scenario.training, run.scenario.evaluation.fine_tune
    if section is None or "fine_tuned/loss" not in clients.columns:
        return None
    tuned = clients.drop_nulls("fine_tuned/loss")
    if tuned.is_empty():
        return None
    last = tuned.filter(tuned["round"] == tuned["round"].max())["client"].to_list()
    alternate = training.alternate
    epochs = training.local_epochs if alternate is None else alternate.private_epochs + alternate.shared_epochs
    trained = clients.drop_nulls("num_train_examples").group_by("client").agg(pl.col("num_train_examples").first())
    seen = {client: number / epochs for client, number in trained.rows()}
    if not set(last) <= seen.keys():
        return None
    steps = [math.ceil(seen[client] / training.batch_size) for client in last]
    return section.epochs * math.fsum(seen[client] for client in last), section.epochs * sum(steps) / len(steps)
