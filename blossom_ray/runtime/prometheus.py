"""What a run tells Prometheus: names, tags and values of its metrics, which Ray's agents serve.

Tags name the run, blocks, modality sets and kinds of actors, never a client, a group or a single actor: a federation
of ten thousand clients has as many time series as one of ten.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import psutil
from ray.util import metrics as ray_metrics

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.records import RoundRecord
from blossom_ray.core.scores import SCORES, LearnedTask, Task, of_task
from blossom_ray.reading.scenario import Scenario

RUN_TAGS = ("scenario", "run")
"""Tags of every metric: the scenario's name and the run id."""

ALL_CLIENTS = "all"
"""Value of the tag `modalities` for a mean over all clients."""


@dataclass(frozen=True)
class Metric:
    """One metric. Ray exports it as `ray_<name>`, a counter as `ray_<name>_total`.

    Attributes:
        kind: A counter is added to, a gauge is set.
        description: What it counts, with its unit.
        tags: Its tags besides `RUN_TAGS`.
    """

    kind: Literal["counter", "gauge"]
    description: str
    tags: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "blossom_rounds": Metric("counter", "Rounds done, round 0 included."),
    "blossom_round": Metric("gauge", "Index of the last round done."),
    "blossom_rounds_planned": Metric("gauge", "Index of the last round that the scenario asks for."),
    "blossom_phase_seconds": Metric("counter", "Wall time in seconds: train (with aggregation), evaluate.", ("phase",)),
    "blossom_round_seconds": Metric("gauge", "Wall time of the last round in seconds, by phase.", ("phase",)),
    "blossom_client_seconds": Metric(
        "counter", "Time in seconds that clients took, summed over them.", ("modalities", "phase")
    ),
    "blossom_clients_trained": Metric("counter", "Clients that trained, summed over rounds.", ("modalities",)),
    "blossom_block_bytes": Metric(
        "counter", "Bytes of a block sent down to clients and up to the server.", ("block", "scope", "direction")
    ),
    "blossom_score": Metric(
        "gauge", "Scores and loss of the last evaluated round, mean over clients.", ("score", "modalities")
    ),
    "blossom_validation_score": Metric("gauge", "The same on validation splits.", ("score", "modalities")),
    "blossom_train_loss": Metric("gauge", "Mean training loss of the last round."),
    "blossom_failures": Metric("counter", "Failures: lost actors, failed clients.", ("phase", "action")),
    "blossom_actors": Metric("gauge", "Processes of the run.", ("kind",)),
    "blossom_actors_replaced": Metric("counter", "Actors that were lost and replaced.", ("kind",)),
    "blossom_actor_memory_bytes": Metric("gauge", "Resident sets in bytes, summed over processes.", ("kind",)),
    "blossom_actor_memory_max_bytes": Metric("gauge", "Largest resident set of a process in bytes.", ("kind",)),
}
"""By name; in a run with `tasks` scores and losses have the tag `task` besides. Spilled bytes are not among them: Ray
has them as `ray_spill_manager_objects_bytes`."""


@dataclass(frozen=True)
class Reading:
    """A value for a metric: the new one of a gauge, or what a counter goes up by."""

    metric: str
    value: float
    tags: Mapping[str, str] = field(default_factory=dict)


class RunMetrics:
    """Tells Ray what each round of a run tells. Ray collects it every 10 s or so: a run of a few seconds may be missed.

    Args:
        scenario: The scenario.
        run_id: The run's id.
    """

    def __init__(self, scenario: Scenario, run_id: str) -> None:
        tags = dict(zip(RUN_TAGS, (scenario.name, run_id), strict=True))
        self._scenario, self._profiles = scenario, tuple(scenario.profiles())
        self._made = {
            name: _made(name, metric, tags, has_tasks=bool(scenario.tasks)) for name, metric in METRICS.items()
        }
        self._process = psutil.Process()

    def record(self, event: Any) -> None:
        """Take note of what a run's loop yields; only rounds are told."""
        if not isinstance(event, RoundRecord):
            return
        memory_bytes, scenario = self._process.memory_info().rss, self._scenario
        for reading in readings(event, self._profiles, scenario.learned, scenario.rounds, memory_bytes):
            metric = self._made[reading.metric]
            if isinstance(metric, ray_metrics.Gauge):
                metric.set(reading.value, dict(reading.tags))
            elif reading.value > 0:  # Ray refuses to add nothing
                metric.inc(reading.value, dict(reading.tags))


def _made(
    name: str, metric: Metric, tags: dict[str, str], *, has_tasks: bool
) -> ray_metrics.Counter | ray_metrics.Gauge:
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    more = ("task",) if has_tasks and name.endswith(("_score", "_loss")) else ()
    made = kind(name, description=metric.description, tag_keys=(*RUN_TAGS, *metric.tags, *more))
    made.set_default_tags(tags)
    return made


def readings(
    record: RoundRecord,
    profiles: Sequence[ClientProfile],
    learned: Mapping[str, LearnedTask],
    num_rounds: int,
    driver_memory_bytes: int,
) -> Iterator[Reading]:
    """What one round tells.

    Args:
        record: The round.
        profiles: All clients in the order of their ids.
        learned: What clients learn, by the name of the task.
        num_rounds: The scenario's `rounds`.
        driver_memory_bytes: Resident set of the process that runs the loop.
    """
    yield Reading("blossom_rounds", 1)
    yield Reading("blossom_round", record.round_index)
    yield Reading("blossom_rounds_planned", num_rounds)
    for phase in ("train", "evaluate"):
        seconds = record.seconds.get(phase, 0.0)
        yield Reading("blossom_phase_seconds", seconds, {"phase": phase})
        yield Reading("blossom_round_seconds", seconds, {"phase": phase})
    yield from _client_readings(record, profiles)
    yield from _block_readings(record)
    for name, task in learned.items():
        tags = {"task": name} if name else {}
        found = _score_readings(of_task(record.metrics, name), task.kind)
        yield from (replace(reading, tags={**reading.tags, **tags}) for reading in found)
    for (phase, action), count in Counter((failure.phase, failure.action) for failure in record.failures).items():
        yield Reading("blossom_failures", count, {"phase": phase, "action": action})
    yield from _actor_readings(record, driver_memory_bytes)


def _client_readings(record: RoundRecord, profiles: Sequence[ClientProfile]) -> Iterator[Reading]:
    trained: Counter[str] = Counter()
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    for training in record.training:
        owned = profiles[training.client].modality_set
        trained[owned] += 1
        seconds[owned, "train"] += training.seconds
    tuned = (record.fine_tuned, record.fine_tuned_validation, record.fine_tuned_unseen)
    for evaluation in chain(record.evaluation, record.validation, *tuned, record.plain, record.unseen):
        seconds[profiles[evaluation.client].modality_set, "evaluate"] += evaluation.seconds
    for owned, count in trained.items():
        yield Reading("blossom_clients_trained", count, {"modalities": owned})
    for (owned, phase), total in seconds.items():
        yield Reading("blossom_client_seconds", total, {"modalities": owned, "phase": phase})


def _block_readings(record: RoundRecord) -> Iterator[Reading]:
    sent: Counter[tuple[str, str, str]] = Counter()
    for block in record.blocks:
        name, scope = block.instance.label, str(block.instance.scope)
        sent[name, scope, "down"] += block.bytes_down
        sent[name, scope, "up"] += block.bytes_up
    for (name, scope, direction), num_bytes in sent.items():
        yield Reading("blossom_block_bytes", num_bytes, {"block": name, "scope": scope, "direction": direction})


def _score_readings(metrics: Mapping[str, float], task: Task) -> Iterator[Reading]:
    if "train_loss" in metrics:
        yield Reading("blossom_train_loss", metrics["train_loss"])
    names = {"loss", *(score.name for score in SCORES[task])}
    for column, value in metrics.items():
        metric = "blossom_validation_score" if column.startswith("validation/") else "blossom_score"
        score, _, owned = column.removeprefix("validation/").partition("/")
        if score in names:
            yield Reading(metric, value, {"score": score, "modalities": owned or ALL_CLIENTS})


def _actor_readings(record: RoundRecord, driver_memory_bytes: int) -> Iterator[Reading]:
    driver, clients = {"kind": "driver"}, {"kind": "client"}
    yield Reading("blossom_actors", 1, driver)
    yield Reading("blossom_actor_memory_bytes", driver_memory_bytes, driver)
    yield Reading("blossom_actor_memory_max_bytes", driver_memory_bytes, driver)
    yield Reading("blossom_actors", len(record.actors), clients)
    if replaced := sum(actor.times_replaced for actor in record.actors):
        yield Reading("blossom_actors_replaced", replaced, clients)
    if memory := [actor.memory_bytes for actor in record.actors if actor.memory_bytes is not None]:
        yield Reading("blossom_actor_memory_bytes", sum(memory), clients)
        yield Reading("blossom_actor_memory_max_bytes", max(memory), clients)
