"""Scenarios: the typed sections, the YAML reader and its error messages."""

from blossom_ray.scenario.model import Scenario

__all__ = ["Scenario"]
