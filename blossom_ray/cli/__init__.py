"""The `blossom-ray` command: puts a scenario, a runtime and a view together. One module per group of commands."""

from __future__ import annotations

from blossom_ray.cli.app import app, main

# In the order of --help.
from blossom_ray.cli import init, runs, background, plan, scenarios, sweeps, report, cluster, data, doctor  # isort: skip

__all__ = [
    "app", "background", "cluster", "data", "doctor", "init", "main", "plan", "report", "runs", "scenarios", "sweeps",
]  # fmt: skip
