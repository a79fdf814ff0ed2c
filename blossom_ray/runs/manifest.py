"""What `manifest.json` says of a run, as far as anything relies on it, and the notes in it.

Older versions say less, others more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.blocks import CENTRAL_SCHEMES
from blossom_ray.core.evaluations import EvaluationColumns, clients_of
from blossom_ray.core.phrases import listed
from blossom_ray.core.records import RoundRecord, Scoring
from blossom_ray.core.scores import LearnedTask, default_score, task_prefix
from blossom_ray.reading.read_back import ReadBack
from blossom_ray.rounds import may_leave_untrained
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server, mixed_statistics, normalised_together

Status = Literal["running", "finished", "failed", "interrupted"]


_OTHER_SHARE = 0.1
"""Shares of samples with a modality that differ by more are told where statistics follow from the one."""


class ManifestObserved(ReadBack):
    """In how many rows of a split a modality is observed; fields as in `summary.ObservedRows`."""

    rows: Annotated[int, Field(ge=0)]
    """Rows of the clients that own it."""
    observed: Annotated[int, Field(ge=0)]
    """Those of them in which it is."""
    by_client: Annotated[tuple[int, ...], Field(strict=False)]
    """The same for each client."""


class ManifestClients(ReadBack):
    """Some clients of a federation."""

    num_train: int
    """Samples to train on of all of them; the same for the other splits below."""
    num_validation: int
    num_test: int
    clients: dict[str, int]
    """Their number by modality set."""


class ManifestData(ReadBack):
    """Which federation it was."""

    fingerprint: str = ""
    """Of the data set."""
    partition: str = ""
    """Of its rows over clients."""
    num_classes: int | None = None
    """Classes, labels or targets."""
    num_train: int | None = None
    """Training samples of all clients; the same for the other splits below."""
    num_validation: int | None = None
    num_test: int | None = None
    num_held_out: int | None = None
    """Samples of the held-out set that is scored."""
    clients: dict[str, int] = Field(default_factory=dict)
    """Number of clients by modality set."""
    client_names: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What the user's data call each client, or its subjects; empty where samples were dealt."""
    observation: str = ""
    """Digest of what is observed in which rows; "" where all is."""
    observed: dict[str, dict[str, ManifestObserved]] = Field(default_factory=dict)
    """By modality and split, of the modalities that some row lacks."""
    unseen: ManifestClients | None = None
    """The clients that never train, which the numbers above leave out."""


class ManifestKernels(ReadBack):
    """What chose the CPU kernels of some of the processes that computed a run."""

    processes: int
    """How many of them."""
    processor: str
    """Its model."""
    cpu_capability: str
    """The vector instructions that PyTorch's own kernels use."""
    libraries: dict[str, str]
    """Version by name of those that PyTorch was built with."""
    variables: dict[str, str]
    """Value by name of the environment variables that choose kernels."""


class ManifestError(ReadBack):
    """Why a run failed."""

    type: str = ""
    """The error's class."""
    message: str = ""
    """One cause and one hint."""
    details: str = ""
    """The traceback of own code."""


class ManifestStopped(ReadBack):
    """Where a run with `stop` ended; fields as in `records.Stopped`."""

    round: Annotated[int, Field(ge=0)]
    """The last round."""
    best_round: Annotated[int, Field(ge=0)] | None
    """The round with the best validation score; null where no round had one."""
    metric: str
    """The score by which it is the best."""
    value: float | None
    """Its score."""
    reason: Literal["patience", "rounds"]
    """Whether scores had not got better for so long, or there are no more rounds."""


class ManifestLateScores(ReadBack):
    """Scores that were made at the end of a run with `stop`."""

    round: Annotated[int, Field(ge=0)]
    """The round in whose rows they stand."""
    prefixes: Annotated[tuple[str, ...], Field(strict=False)]
    """What the names of their columns begin with; "" for those on test splits."""
    classes: Annotated[tuple[str, ...], Field(strict=False)]
    """The scorings of their rows in the tables `classes` and `confusion`."""


class Manifest(ReadBack):
    """A run's manifest."""

    status: Status
    """How far the run is; `running` also where its process was killed."""
    started_at: str | None = None
    """UTC, ISO 8601."""
    ended_at: str | None = None
    """UTC, ISO 8601."""
    data: ManifestData | None = None
    """Which federation it was; null before the data are prepared."""
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What a reader of the numbers should know."""
    kernels: Annotated[tuple[ManifestKernels, ...], Field(strict=False)] = ()
    """By which CPU kernels it was computed; empty in older runs."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Version by package."""
    error: ManifestError | None = None
    """Why the run failed."""
    stopped: ManifestStopped | None = None
    """Where a run with `stop` ended."""
    late_scores: ManifestLateScores | None = None
    """Scores that were made at its end."""


def statistics_notes(preparation: Preparation, server: Server) -> Iterator[str]:
    """What to say of blocks whose running statistics are nobody's own."""
    if preparation.scenario.sharing in CENTRAL_SCHEMES:
        return
    of_several = "modality sets" if len(preparation.plan.tasks) == 1 else "modality sets or tasks"
    for instance in mixed_statistics(server, preparation.plan, preparation.population.representatives()):
        kinds = "data sets" if instance.name.kind == "encoder" else of_several
        yield (
            f"{instance}: running statistics of normalisation are averaged over clients of different {kinds}, "
            "which can spoil their scores; model.norm_statistics: same-modalities averages them within each modality "
            "set, local not at all"
        )
    for modality, rows in preparation.observed.items():
        trained, tested = (rows[split].observed / rows[split].rows for split in ("train", "test"))
        if abs(trained - tested) > _OTHER_SHARE:
            for instance in normalised_together(server):
                yield (
                    f"{instance}: running statistics of normalisation are of training samples, of which "
                    f"{100 * trained:.0f} % have {modality}; of test samples {100 * tested:.0f} % have it, which can "
                    "spoil their scores"
                )


def undefined_note(record: RoundRecord, learned: Mapping[str, LearnedTask]) -> str:
    """What to say of a round in which models gave outputs that are not finite; "" where all are."""
    scores = {task: default_score(each.kind).name for task, each in learned.items()}
    starts = tuple(f"{task_prefix(task)}{score}" for task, score in scores.items())
    kinds = {
        Scoring.OWN_TEST: "their own test samples",
        Scoring.VALIDATION: "their own validation samples",
        Scoring.FINE_TUNED: "their own test samples after fine-tuning",
        Scoring.FINE_TUNED_VALIDATION: "their own validation samples after fine-tuning",
        Scoring.HELD_OUT: "the held-out set",
        Scoring.PLAIN: "their own test samples by the averaged model",
        Scoring.UNSEEN: "test samples of unseen clients",
        Scoring.UNSEEN_FINE_TUNED: "test samples of unseen clients after fine-tuning",
    }
    found = [
        where
        for scoring, where in kinds.items()
        if any(
            math.isnan(value)
            for name, value in record.metrics.items()
            if name.startswith(tuple(scoring.prefix + start for start in starts))
        )
    ]
    if not found:
        return ""
    tuned = (*record.fine_tuned, *record.fine_tuned_validation)
    scored = (*record.evaluation, *record.validation, *tuned, *record.plain, *record.unseen, *record.fine_tuned_unseen)
    judges = set(scores.values())
    clients = sorted({each.client for each in scored if any(math.isnan(each.scores.get(one) or 0) for one in judges)})
    whose = f" of client {clients[0]}" + (f" and {len(clients) - 1} others" if clients[1:] else "") if clients else ""
    return (
        f"round {record.round_index}: outputs{whose} on {' and '.join(found)} are not finite, so these scores are "
        "undefined (NaN); a smaller training.optimizer.lr, or inputs of smaller scale"
    )


def untrained_note(preparation: Preparation, record: RoundRecord) -> str:
    """What to say of clients that were scored with parts of their own that were never trained; "" where there are none.

    Args:
        preparation: The prepared federation.
        record: A round that was scored.
    """
    if not may_leave_untrained(preparation):
        return ""
    profiles, plan = preparation.population.profiles, preparation.plan
    entries = record.evaluation or record.validation
    scored = set(clients_of(entries))
    if isinstance(entries, EvaluationColumns):
        entries = entries.at(entries.rounds_trained == 0)
    untrained = [profiles[client] for client in {each.client for each in entries if each.rounds_trained == 0}]
    parts = sorted({part for profile in untrained for part in plan.own_parts(profile)})
    if not parts:
        return ""
    prefix = "" if record.evaluation else Scoring.VALIDATION.prefix
    judges = {name: default_score(task.kind).name for name, task in plan.tasks.items()}
    metrics = [f"{prefix}{task_prefix(name)}{score}_trained" for name, score in judges.items()]
    found = [metric for metric in metrics if metric in record.metrics]
    is_score = "is the score" if len(found) == 1 else "are the scores"
    without = f"; {listed(found)} {is_score} without them" if found else ""
    return (
        f"{len(untrained)} of {len(scored)} scored clients never trained: their own {listed(parts)} have "
        f"initial values{without}"
    )
