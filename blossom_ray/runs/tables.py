"""The tables of a run: their columns, and how a round record becomes rows. Files are `runs/table_files.py`'s."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import Any

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.evaluations import ClientEvaluation, EvaluationColumns, clients_of
from blossom_ray.core.records import RoundRecord, Scoring
from blossom_ray.core.scores import task_prefix

Value = int | float | str | None
Columns = dict[str, Sequence[Value]]

ROUND_COLUMNS = {
    "round": "int32",
    "learning_rate": "double",
    "num_clients": "int32",
    "num_evaluated": "int32",
    "num_examples": "int64",
    "seconds": "double",
    "seconds_train": "double",
    "seconds_evaluate": "double",
    "bytes_down": "int64",
    "bytes_up": "int64",
}
"""Column to Arrow type. Behind them stands one `double` column per summary metric, in order of appearance."""

CLIENT_COLUMNS = {
    "round": "int32",
    "client": "int32",
    "modalities": "string",
    "group": "string",
    "num_train_examples": "int64",
    "weight": "double",
    "num_steps": "int64",
    "train_loss": "double",
    "bytes_down": "int64",
    "bytes_up": "int64",
    "train_seconds": "double",
    "num_test_examples": "int64",
    "loss": "double",
    "evaluate_bytes_down": "int64",
    "evaluate_seconds": "double",
    "rounds_trained": "int32",
}
"""With `tasks`, `task` stands behind them, such as `activity` or `activity+who`; losses are those of the client's own
task. Where some client has several tasks, `loss` and `train_loss` are null, `<task>/loss`, `<task>/train_loss` and
`<task>/num_examples`, the samples with a label of it, stand in their place, and samples scored are the most that have a
label of one task. Then comes a `double` column per score of the task, `<task>/<score>` with `tasks`, and, from the
first round with them on, for the loss and scores after local fine-tuning, `fine_tuned/<score>`, and on the validation
split, `validation/<score>` and `validation/fine_tuned/<score>`; by the averaged model, where an algorithm has another
one scored, `plain/<score>`; of clients that never train `unseen/<score>` and `unseen/fine_tuned/<score>`."""
SOME_COLUMNS = {
    "task": "string", "num_validation_examples": "int64", "role": "string", "num_unseen_examples": "int64",
}  # fmt: skip
"""Column to Arrow type, where that is not `double`, of those that stand behind a table's own in some runs only."""
OBSERVED = "num_observed/"
"""What columns of `clients` begin with, int64, that some runs have for modalities that training samples lack."""

BLOCK_COLUMNS = {
    "round": "int32",
    "block": "string",
    "scope": "string",
    "key": "string",
    "contributors": "int32",
    "weight": "double",
    "bytes_down": "int64",
    "bytes_up": "int64",
    "update_norm": "double",
    "client_drift": "double",
}
FAILURE_COLUMNS = {
    "round": "int32",
    "event": "int32",
    "phase": "string",
    "client": "int32",
    "actor": "int32",
    "cause": "string",
    "action": "string",
}
CLASS_COLUMNS = {
    "round": "int32",
    "scoring": "string",
    "modalities": "string",
    "class": "int32",
    "name": "string",
    "num_true": "int64",
    "num_predicted": "int64",
    "num_correct": "int64",
    "recall": "double",
    "precision": "double",
    "f1": "double",
    "auroc": "double",
}
CONFUSION_COLUMNS = {
    "round": "int32",
    "scoring": "string",
    "modalities": "string",
    "label": "int32",
    "predicted": "int32",
    "count": "int64",
}
TRAINED = {
    "num_train_examples": "num_examples",
    "weight": "weight",
    "num_steps": "num_steps",
    "train_loss": "loss",
    "bytes_down": "bytes_down",
    "bytes_up": "bytes_up",
    "train_seconds": "seconds",
}
"""The attribute of `ClientTraining` that each column of `clients` about training holds."""
OPTIONAL_COLUMNS = {
    "rounds": (("learning_rate",), ("seconds",), ("seconds_train",), ("seconds_evaluate",)),
    "clients": (
        tuple(TRAINED),
        ("num_test_examples", "loss"),
        ("num_validation_examples", "validation/loss"),
        ("num_unseen_examples",),
        ("evaluate_bytes_down", "evaluate_seconds"),
        ("rounds_trained",),
    ),
    "blocks": (("client_drift",),),
    "failures": (("actor",),),
    "classes": (("recall",), ("precision",), ("f1",), ("auroc",)),
    "confusion": (),
}
"""Columns that may be null, those of one group together, in tables that have them. Metrics may be, too; no others."""
OF_ONE_TASK = ("train_loss", "loss", "validation/loss")
"""Columns that are null, or not there, where some client has several tasks."""
NUM_EXAMPLES = {
    Scoring.OWN_TEST: "num_test_examples",
    Scoring.VALIDATION: "num_validation_examples",
    Scoring.UNSEEN: "num_unseen_examples",
}
"""The column of `clients` that counts the samples of a scoring."""
TABLES = {
    "rounds": ROUND_COLUMNS,
    "clients": CLIENT_COLUMNS,
    "blocks": BLOCK_COLUMNS,
    "failures": FAILURE_COLUMNS,
    "classes": CLASS_COLUMNS,
    "confusion": CONFUSION_COLUMNS,
}
LATER_TABLES = ("classes", "confusion")
"""Tables that runs of earlier versions lack; there they are empty."""
LATER_COLUMNS = {"clients": ("rounds_trained",)}
"""Columns, by table, that runs of earlier versions lack; there they are null."""


def table_rows(record: RoundRecord, profiles: Sequence[ClientProfile]) -> dict[str, Columns]:
    """The rows that one round adds to each table, by table name and column.

    Args:
        record: The round.
        profiles: All clients in the order of their ids.
    """
    return {
        "rounds": _round_row(record),
        "clients": _client_rows(record, profiles),
        "blocks": _block_rows(record),
        "failures": _failure_rows(record),
        "classes": _class_rows(record),
        "confusion": _confusion_rows(record),
    }


def _round_row(record: RoundRecord) -> Columns:
    seconds = record.seconds
    row = {
        "round": record.round_index,
        "learning_rate": record.learning_rate,
        "num_clients": len(record.cohort),
        "num_evaluated": record.num_evaluated,
        "num_examples": sum(training.num_examples for training in record.training),
        "seconds": seconds.get("total"),
        "seconds_train": seconds.get("train"),
        "seconds_evaluate": seconds.get("evaluate"),
        "bytes_down": sum(block.bytes_down for block in record.blocks),
        "bytes_up": sum(block.bytes_up for block in record.blocks),
    }
    return {name: [value] for name, value in (row | dict(record.metrics)).items()}


def _client_rows(record: RoundRecord, profiles: Sequence[ClientProfile]) -> Columns:
    trained = {training.client: training for training in record.training}
    tested, validated = _Entries(record.evaluation), _Entries(record.validation)
    unseen = _Entries(record.fine_tuned_unseen, record.unseen)
    scored = [each for each in (tested, validated, unseen) if len(each)]
    clients = sorted(trained.keys() | set(chain.from_iterable(each.clients for each in scored)))
    trainings = [trained.get(client) for client in clients]
    rows: Columns = {
        "round": [record.round_index] * len(clients),
        "client": clients,
        "modalities": [profiles[client].modality_set for client in clients],
        "group": [profiles[client].group for client in clients],
        **_columns(trainings, **TRAINED),
        "num_test_examples": tested.column("num_examples", clients),
        "loss": tested.column("loss", clients),
        **{
            f"evaluate_{name}": _sums([each.column(name, clients) for each in scored], len(clients))
            for name in ("bytes_down", "seconds")
        },
        "rounds_trained": _first_known(
            [
                *(each.column("rounds_trained", clients) for each in (tested, validated)),
                *_columns(trainings, rounds_trained="rounds_trained").values(),
                unseen.column("rounds_trained", clients),
            ]
        ),
    }
    if any(profiles[client].task_set for client in clients):
        rows["task"] = [profiles[client].task_set for client in clients]
    for name in sorted({name for training in record.training for name in training.num_observed}):
        rows |= {OBSERVED + name: [None if each is None else each.num_observed.get(name) for each in trainings]}
    if record.validation:
        rows["num_validation_examples"] = validated.column("num_examples", clients)
    if profiles and profiles[-1].is_unseen:  # those that never train are the last ones
        rows["role"] = ["unseen" if profiles[client].is_unseen else "train" for client in clients]
        rows["num_unseen_examples"] = unseen.column("num_examples", clients)
    has_several = max(map(len, map(attrgetter("tasks"), profiles)), default=0) > 1
    if has_several:
        rows |= {name: [None] * len(clients) for name in OF_ONE_TASK if name in rows}
        by_task = [{} if each is None else each.of_tasks(profiles[each.client].tasks) for each in trainings]
        for task in sorted({task for own in by_task for task in own}):
            rows[f"{task_prefix(task)}train_loss"] = [own[task].loss if task in own else None for own in by_task]
    return rows | _score_columns(record, clients, has_several=has_several)


class _Entries:
    """Evaluations by client; of those of several tasks the first stands for all, with the most samples of any.

    Args:
        evaluations: Later ones replace earlier ones of the same client.
    """

    def __init__(self, *evaluations: Sequence[ClientEvaluation]) -> None:
        given = [each for each in evaluations if len(each)]
        self._columns = given[0] if len(given) == 1 and isinstance(given[0], EvaluationColumns) else None
        self._entries: dict[int, ClientEvaluation] = {}
        for each in given if self._columns is None else ():
            self._entries |= _of_clients(each)

    def __len__(self) -> int:
        return len(self._entries) if self._columns is None else len(self._columns)

    @property
    def clients(self) -> list[int]:
        """Their ids."""
        return [*self._entries] if self._columns is None else clients_of(self._columns)

    def column(self, name: str, clients: Sequence[int]) -> Sequence[Value]:
        """An attribute of these clients, None where there is no evaluation of one."""
        if self._columns is None:
            return _columns([self._entries.get(client) for client in clients], **{name: name})[name]
        values: list[Value] = getattr(self._columns, name).tolist()
        if name == "rounds_trained":
            values = [None if number == -1 else number for number in values]
        return _at(clients_of(self._columns), values, clients)


def _at(scored: Sequence[int], values: Sequence[Value], clients: Sequence[int]) -> Sequence[Value]:
    """The values, those of `scored`, of these clients; None of others."""
    return values if scored == clients else [*map(dict(zip(scored, values, strict=True)).get, clients)]


def _of_clients(evaluations: Iterable[ClientEvaluation]) -> dict[int, ClientEvaluation]:
    found: dict[int, ClientEvaluation] = {}
    for each in evaluations:
        first = found.setdefault(each.client, each)
        if each.num_examples > first.num_examples:
            found[each.client] = replace(first, num_examples=each.num_examples)
    return found


def _sums(columns: Sequence[Sequence[Any]], num_rows: int) -> Sequence[Value]:
    """Row by row the sum of what is there; None where nothing is."""
    if len(columns) < 2:
        return columns[0] if columns else [None] * num_rows
    there = ([value for value in values if value is not None] for values in zip(*columns, strict=True))
    return [sum(values) if values else None for values in there]


def _first_known(columns: Sequence[Sequence[Value]]) -> Sequence[Value]:
    return [next((value for value in values if value is not None), None) for values in zip(*columns, strict=True)]


def _score_columns(record: RoundRecord, clients: Sequence[int], *, has_several: bool) -> Columns:
    """Scores on each split, before and after local fine-tuning; no columns for what the round has not."""
    columns: Columns = {}
    for scoring, evaluations in (
        (Scoring.OWN_TEST, record.evaluation),
        (Scoring.VALIDATION, record.validation),
        (Scoring.FINE_TUNED, record.fine_tuned),
        (Scoring.FINE_TUNED_VALIDATION, record.fine_tuned_validation),
        (Scoring.PLAIN, record.plain),
        (Scoring.UNSEEN, record.unseen),
        (Scoring.UNSEEN_FINE_TUNED, record.fine_tuned_unseen),
    ):
        prefix = scoring.prefix
        if isinstance(evaluations, EvaluationColumns) and not has_several:
            ids, task = clients_of(evaluations), task_prefix(evaluations.task)
            found = {"loss": evaluations.loss} if prefix else {}
            found |= {f"{task}{name}": values for name, values in evaluations.scores.items()}
            columns |= {prefix + name: _at(ids, values.tolist(), clients) for name, values in found.items()}
            continue
        own: dict[int, dict[str, float | None]] = {}
        for each in evaluations:
            task, scores = task_prefix(each.task), own.setdefault(each.client, {})
            if has_several:
                scores[f"{task}loss"] = each.loss
                scores |= {f"{task}num_examples": each.num_examples} if scoring in NUM_EXAMPLES else {}
            elif prefix:  # the loss on the test split is a column of its own
                scores["loss"] = each.loss
            scores |= {f"{task}{name}": value for name, value in each.scores.items()}
        for name in dict.fromkeys(name for scores in own.values() for name in scores):
            columns[prefix + name] = [own.get(client, {}).get(name) for client in clients]
    return columns


def _block_rows(record: RoundRecord) -> Columns:
    instances = [block.instance for block in record.blocks]
    return {
        "round": [record.round_index] * len(instances),
        "block": [instance.label for instance in instances],
        "scope": [str(instance.scope) for instance in instances],
        "key": [instance.key for instance in instances],
        **_columns(record.blocks, **{name: name for name in [*BLOCK_COLUMNS][4:]}),
        **(_columns(record.blocks, task_cosine="task_cosine") if _has_cosines(record) else {}),
        **{
            f"{task_prefix(task)}{WEIGHT_SHARE}": [block.weight_shares.get(task) for block in record.blocks]
            for task in sorted({task for block in record.blocks for task in block.weight_shares})
        },
    }


WEIGHT_SHARE = "weight_share"
"""What columns of `blocks` end with that some runs have, behind a task's name."""


def _has_cosines(record: RoundRecord) -> bool:
    return any(block.task_cosine is not None for block in record.blocks)


def _failure_rows(record: RoundRecord) -> Columns:
    """A row per event and client concerned."""
    rows = [(event, failure, client) for event, failure in enumerate(record.failures) for client in failure.clients]
    failures = [failure for _, failure, _ in rows]
    return {
        "round": [record.round_index] * len(rows),
        "event": [event for event, _, _ in rows],
        **_columns(failures, phase="phase"),
        "client": [client for _, _, client in rows],
        **_columns(failures, actor="actor", cause="cause", action="action"),
    }


def _class_rows(record: RoundRecord) -> Columns:
    names = {name: "index" if name == "class" else name for name in [*CLASS_COLUMNS][1:]}
    return {"round": [record.round_index] * len(record.classes), **_columns(record.classes, **names)}


def _confusion_rows(record: RoundRecord) -> Columns:
    """A row per pair of classes that some sample has."""
    rows = [(entry, predicted, count) for entry in record.classes for predicted, count in entry.predicted_as.items()]
    return {
        "round": [record.round_index] * len(rows),
        **_columns([entry for entry, _, _ in rows], scoring="scoring", modalities="modalities", label="index"),
        "predicted": [predicted for _, predicted, _ in rows],
        "count": [count for _, _, count in rows],
    }


def _columns(entries: Sequence[object | None], **attributes: str) -> Columns:
    """Columns of what some entries have as attributes; null where there is no entry."""
    return {
        column: [None if entry is None else getattr(entry, attribute) for entry in entries]
        for column, attribute in attributes.items()
    }
