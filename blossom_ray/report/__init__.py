"""Reports: one HTML page for a run or for several side by side, and its figures as files for a paper."""

from __future__ import annotations

from blossom_ray.report.contents import Variant
from blossom_ray.report.writing import write_report

__all__ = ["Variant", "write_report"]
