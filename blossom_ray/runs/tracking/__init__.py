"""Experiment trackers: they take the rounds of a run as they come and write them for TensorBoard or MLflow.

A tracker consumes round records, as a view does; a run knows nothing of it.
"""

from blossom_ray.runs.tracking.following import Target, Tracking, parse_target

__all__ = ["Target", "Tracking", "parse_target"]
