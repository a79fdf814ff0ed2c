"""Reports: one HTML page for a run, a sweep or several side by side, and its figures as files for a paper."""

from __future__ import annotations

from blossom_ray.studies.reports.writing import report

__all__ = ["report"]
