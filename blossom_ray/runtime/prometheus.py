"""Hands a run's metrics to Ray, whose agents serve them to Prometheus. What they are: `runtime/telemetry.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
from ray.util.metrics import Counter, Gauge

from blossom_ray.core.records import RoundRecord
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.telemetry import METRICS, RUN_TAGS, Metric, readings


def exported(events: Iterator[Any], scenario: Scenario, run: str) -> Iterator[Any]:
    """Pass a loop's events on; what each round tells also goes to Ray.

    Ray collects it every 10 s or so, so what a run of a few seconds tells may never be seen.

    Args:
        events: What `simulation.run` yields.
        scenario: The scenario.
        run: The run's id.
    """
    tags = dict(zip(RUN_TAGS, (scenario.name, run), strict=True))
    made = {name: _made(name, metric, tags) for name, metric in METRICS.items()}
    profiles, process = tuple(scenario.profiles()), psutil.Process()
    for event in events:
        if isinstance(event, RoundRecord):
            memory_bytes = process.memory_info().rss
            for reading in readings(event, profiles, scenario.task, scenario.rounds, memory_bytes):
                metric = made[reading.metric]
                if isinstance(metric, Gauge):
                    metric.set(reading.value, dict(reading.tags))
                elif reading.value > 0:  # Ray refuses to add nothing
                    metric.inc(reading.value, dict(reading.tags))
        yield event


def _made(name: str, metric: Metric, tags: dict[str, str]) -> Counter | Gauge:
    kind = Counter if metric.kind == "counter" else Gauge
    made = kind(name, description=metric.description, tag_keys=(*RUN_TAGS, *metric.tags))
    made.set_default_tags(tags)
    return made
