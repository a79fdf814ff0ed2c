"""The `blossom-ray` command: puts a scenario, a runtime and a view together. One module per group of commands."""

from __future__ import annotations

from blossom_ray.cli import data, runs, scenarios, sweeps  # the order of the commands in --help
from blossom_ray.cli.app import app, main

__all__ = ["app", "data", "main", "runs", "scenarios", "sweeps"]
