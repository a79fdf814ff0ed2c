"""Hands a run's metrics to Ray, whose agents serve them to Prometheus. What they are: `runtime/telemetry.py`."""

from __future__ import annotations

from typing import Any

import psutil
from ray.util.metrics import Counter, Gauge

from blossom_ray.core.records import RoundRecord
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.telemetry import METRICS, RUN_TAGS, Metric, readings


class RunMetrics:
    """Tells Ray what each round of a run tells. Ray collects it every 10 s or so: a run of a few seconds may be missed.

    Args:
        scenario: The scenario.
        run_id: The run's id.
    """

    def __init__(self, scenario: Scenario, run_id: str) -> None:
        tags = dict(zip(RUN_TAGS, (scenario.name, run_id), strict=True))
        self._scenario, self._profiles = scenario, tuple(scenario.profiles())
        self._made = {name: _made(name, metric, tags) for name, metric in METRICS.items()}
        self._process = psutil.Process()

    def record(self, event: Any) -> None:
        """Take note of what a run's loop yields; only rounds are told."""
        if not isinstance(event, RoundRecord):
            return
        memory_bytes, scenario = self._process.memory_info().rss, self._scenario
        for reading in readings(event, self._profiles, scenario.task, scenario.rounds, memory_bytes):
            metric = self._made[reading.metric]
            if isinstance(metric, Gauge):
                metric.set(reading.value, dict(reading.tags))
            elif reading.value > 0:  # Ray refuses to add nothing
                metric.inc(reading.value, dict(reading.tags))


def _made(name: str, metric: Metric, tags: dict[str, str]) -> Counter | Gauge:
    kind = Counter if metric.kind == "counter" else Gauge
    made = kind(name, description=metric.description, tag_keys=(*RUN_TAGS, *metric.tags))
    made.set_default_tags(tags)
    return made
