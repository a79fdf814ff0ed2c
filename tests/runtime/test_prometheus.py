"""A run's metrics as Ray's agent serves them to Prometheus."""

from __future__ import annotations

import re
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blossom_ray import Scenario
from blossom_ray.runs.session import record_run
from blossom_ray.runs.writer import new_run_folder
from blossom_ray.runtime.prometheus import METRICS

pytestmark = pytest.mark.ray
_PATIENCE_S = 120.0


def scraped() -> str:
    """What the metrics endpoint of this session's node serves now; "" while it cannot be reached."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def samples(text: str, run: str) -> dict[str, dict[str, float]]:
    """Value by metric and by its own tags, as `tag=value` joined by commas, of one run."""
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags.get("run") == run:
            metric = METRICS[name.removeprefix("ray_").removesuffix("_total")]
            key = ",".join(f"{tag}={tags[tag]}" for tag in metric.tags)
            found.setdefault(name, {})[key] = float(value)
    return found


def test_a_scrape_of_the_node_finds_what_the_records_say(
    small_scenario: Scenario, ray_session: None, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"rounds": 50, "execution.runtime": "ray", "execution.clients_per_actor": 5}
    scenario = small_scenario.override(changes)
    folder = new_run_folder(tmp_path, scenario.name)
    with closing(record_run(scenario, folder)) as records:
        seen = [next(records) for _ in range(3)]
        # The loop waits while nobody takes its records, so what it tells stands still, too.
        give_up, before, text = time.monotonic() + _PATIENCE_S, "", ""
        while time.monotonic() < give_up and (not before or samples(before, folder.name) != samples(text, folder.name)):
            before = text if "ray_blossom_rounds_total" in text else ""
            time.sleep(2.0)
            text = scraped()
        told = samples(text, folder.name)
        last = int(told["ray_blossom_round"][""])
        seen += [next(records) for _ in range(last - 2)]
    assert told["ray_blossom_rounds_total"][""] == last + 1
    assert told["ray_blossom_rounds_planned"][""] == 50
    assert told["ray_blossom_score"]["score=accuracy,modalities=acc"] == pytest.approx(
        seen[last].metrics["accuracy/acc"]
    )
    sent = sum(b.bytes_up for record in seen for b in record.blocks if b.instance.name == "encoder/acc")
    assert sent > 0
    assert told["ray_blossom_block_bytes_total"]["block=encoder/acc,scope=shared,direction=up"] == sent
    assert told["ray_blossom_actors"] == {"kind=driver": 1, "kind=client": 1}
    (actor,) = seen[last].actors
    assert actor.num_clients == 5
    assert told["ray_blossom_actor_memory_bytes"]["kind=client"] == actor.memory_bytes
    assert told["ray_blossom_actor_memory_max_bytes"]["kind=driver"] > 50e6
    seconds = sum(record.seconds["train"] for record in seen)
    assert told["ray_blossom_phase_seconds_total"]["phase=train"] == pytest.approx(seconds)
    # Ray's own, which the dashboard shows besides.
    assert re.search(r'^ray_object_store_memory\{.*Location="SPILLED".*NodeAddress=', text, re.MULTILINE)
    assert re.search(r'^ray_spill_manager_objects_bytes\{.*NodeAddress=.*State="Spilled"', text, re.MULTILINE)
