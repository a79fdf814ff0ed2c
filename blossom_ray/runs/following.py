"""The rounds of a run that another process writes: records from its tables, as they come."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import BlockRound, ClientTraining, Failure, RoundRecord, Scoring, TaskTraining
from blossom_ray.core.scores import task_prefix
from blossom_ray.errors import RunError, RunFolderError
from blossom_ray.runs.folder import Run, lock_folder
from blossom_ray.runs.tables import (
    CLIENT_COLUMNS,
    NUM_EXAMPLES,
    ROUND_COLUMNS,
    SOME_COLUMNS,
    TRAINED,
    WEIGHT_SHARE,
)

if TYPE_CHECKING:
    import polars as pl

_POLL_S = 0.5
_NO_SCORES = {*CLIENT_COLUMNS, *SOME_COLUMNS, "name", "num_examples"}


def follow(folder: Path, poll_s: float = _POLL_S) -> Generator[RoundRecord, None, None]:
    """A run's rounds from the first one on, until it ends. Nothing of the run changes if the iterator is closed.

    Args:
        folder: The run's folder.
        poll_s: Seconds between two looks.

    Yields:
        What the tables hold of each round: no drift by client, no rows for actors, no scores after fine-tuning, none
        of single classes.

    Raises:
        RunFolderError: There is no run, or it is damaged.
        RunError: Its process is gone, and it has not ended.
    """
    seen = -1
    while True:
        run = Run.open(folder)
        # Asked before the rows are read: what is written until the end is then among them.
        is_going_on = run.status == "running"
        has_writer = is_going_on and _is_held(folder)
        if not has_writer:
            run.check()
        for record in _records(run, seen):
            seen = record.round_index
            yield record
        if not is_going_on:
            return
        if not has_writer and Run.open(folder).status == "running":
            raise RunError(
                f"{folder}: the process of this run is gone, after round {seen}",
                f"go on with: blossom-ray resume {shlex.quote(str(folder))}",
            )
        time.sleep(poll_s)


def _is_held(folder: Path) -> bool:
    """Whether a process writes the folder."""
    try:
        os.close(lock_folder(folder))
    except RunFolderError:
        return True
    return False


def _records(run: Run, after: int) -> list[RoundRecord]:
    import polars as pl

    rounds = run.rounds.filter(pl.col("round") > after)
    if rounds.is_empty():
        return []
    parts = {
        name: frame.filter(pl.col("round") > after).partition_by("round", as_dict=True)
        for name, frame in (("clients", run.clients), ("blocks", run.blocks), ("failures", run.failures))
    }
    return [
        _record(row, *(_rows(parts[name].get((row["round"],))) for name in ("clients", "blocks", "failures")))
        for row in rounds.to_dicts()
    ]


def _rows(frame: pl.DataFrame | None) -> list[dict[str, Any]]:
    return [] if frame is None else frame.to_dicts()


def _record(
    row: dict[str, Any], clients: list[dict[str, Any]], blocks: list[dict[str, Any]], failures: list[dict[str, Any]]
) -> RoundRecord:
    trained = [client for client in clients if client["num_train_examples"] is not None]
    tested = [client for client in clients if client["num_test_examples"] is not None]
    validated = [client for client in clients if client.get("num_validation_examples") is not None]
    unseen = [client for client in clients if client.get("unseen/loss") is not None]
    seconds = {"total": row["seconds"], "train": row["seconds_train"], "evaluate": row["seconds_evaluate"]}
    return RoundRecord(
        round_index=row["round"],
        learning_rate=row["learning_rate"],
        cohort=tuple(client["client"] for client in trained),
        training=tuple(_training(client) for client in trained),
        evaluation=tuple(each for client in tested for each in _evaluations(client, Scoring.OWN_TEST)),
        metrics={name: value for name, value in row.items() if name not in ROUND_COLUMNS and value is not None},
        blocks=tuple(_block(block) for block in blocks),
        seconds={name: value for name, value in seconds.items() if value is not None},
        failures=_failures(failures),
        validation=tuple(each for client in validated for each in _evaluations(client, Scoring.VALIDATION)),
        unseen=tuple(each for client in unseen for each in _evaluations(client, Scoring.UNSEEN)),
    )


def _training(client: dict[str, Any]) -> ClientTraining:
    values = {attribute: client[column] for column, attribute in TRAINED.items()}
    by_task = {}
    for task in _tasks(client):
        if (loss := client.get(f"{task_prefix(task)}train_loss")) is not None and task:
            by_task[task] = TaskTraining(values["num_examples"], loss)
    if values["loss"] is None:
        values["loss"] = math.nan  # of several tasks together there is none
    return ClientTraining(
        client=client["client"], drift={}, rounds_trained=client["rounds_trained"], by_task=by_task, **values
    )


def _evaluations(client: dict[str, Any], scoring: Scoring) -> Iterator[ClientEvaluation]:
    """What a client's row says of its scores in each of its tasks.

    Bytes and seconds of a client that was scored on several splits are told with the test split, and there with the
    first task.
    """
    prefix, count = scoring.prefix, NUM_EXAMPLES[scoring]
    found = {name.removeprefix(prefix): value for name, value in client.items() if name.startswith(prefix)}
    is_first = not prefix or client["num_test_examples"] is None
    for task in _tasks(client):
        start = task_prefix(task)
        own = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
        loss = own.get("loss") if start and own.get("loss") is not None else found.get("loss")
        if loss is None:
            continue
        num_examples = own.get("num_examples")
        yield ClientEvaluation(
            client=client["client"],
            num_examples=client[count] if num_examples is None else int(num_examples),
            loss=loss,
            scores={name: value for name, value in own.items() if "/" not in name and name not in _NO_SCORES},
            bytes_down=(client["evaluate_bytes_down"] or 0) if is_first else 0,
            seconds=(client["evaluate_seconds"] or 0.0) if is_first else 0.0,
            rounds_trained=client["rounds_trained"],
            task=task,
        )
        is_first = False


def _tasks(client: dict[str, Any]) -> list[str]:
    return (client.get("task") or "").split("+")


def _block(block: dict[str, Any]) -> BlockRound:
    ends = {name: name.rpartition("/")[::2] for name in block}
    shares = {
        task: block[name] for name, (task, end) in ends.items() if end == WEIGHT_SHARE and block[name] is not None
    }
    kept = {name for name, (task, _) in ends.items() if not task} - {"round", "block", "scope", "key"}
    values = {name: value for name, value in block.items() if name in kept}
    instance = BlockInstance.of_column(block["block"], block["scope"], block["key"])
    return BlockRound(instance, **values, weight_shares=shares)


def _failures(rows: list[dict[str, Any]]) -> tuple[Failure, ...]:
    """One per event: the table has a row for each client concerned."""
    clients: dict[int, list[int]] = {}
    for row in rows:
        clients.setdefault(row["event"], []).append(row["client"])
    first = {row["event"]: row for row in reversed(rows)}
    return tuple(
        Failure(row["phase"], tuple(clients[event]), row["actor"], row["cause"], row["action"])
        for event, row in sorted(first.items())
    )
