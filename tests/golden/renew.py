"""Curves of a few short runs. `make golden` renews them; a commit that does says why the numbers changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blossom_ray import Scenario, simulate

HERE = Path(__file__).parent
METRICS = ("train_loss", "loss", "accuracy", "macro_f1_present", "macro_f1_all")
RUNS: dict[str, dict[str, Any]] = {
    "full-model": {"sharing": "full-model"},
    "private-head-fusion": {"sharing": "private-head-fusion"},
    "zero-input-fedadam": {
        "sharing": "private-head",
        "model.missing": "zero-input",
        "server.optimizer.kind": "fedadam",
        "server.clients_per_round": 0.5,
        "training.optimizer": {"kind": "adamw", "lr": 0.002},
        "training.schedule": {"kind": "cosine"},
    },
}


def curves(name: str) -> dict[str, list[float]]:
    """Metrics by round of one of `RUNS`, four rounds of the quickstart's federation in one process."""
    common = {"rounds": 4, "data.samples": 900, "execution.runtime": "local"}
    scenario = Scenario.load(HERE.parent.parent / "scenarios" / "quickstart.yaml", {**common, **RUNS[name]})
    rounds = simulate(scenario).rounds
    return {metric: rounds[metric].drop_nulls().to_list() for metric in METRICS}


if __name__ == "__main__":
    for run in RUNS:
        (HERE / f"{run}.json").write_text(json.dumps(curves(run), indent=1) + "\n", encoding="utf-8")
