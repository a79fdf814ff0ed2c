"""Ditto: a personal model beside the shared one, held near it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Tree
from blossom_ray.core.section import NonNegative, Positive, Section


class Ditto(Section):
    """Ditto (Li et al. 2021): after the shared model a client trains its personal one, pulled to what it received."""

    kind: Literal["ditto"]
    weight: NonNegative = 0.1
    """Lambda: how strongly the personal model is pulled."""
    epochs: Positive = 1
    """Passes over the training split for the personal model."""

    # Source: arXiv:2012.04221, algorithm 1. What differs: who was never drawn is scored with the shared model.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"personal": Extra(layout.averaged, scope="private", initial="received")}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(), Pass(("personal",), epochs=self.epochs, anchor=k.received, mu=self.weight)]

    def scored(self, x: Mapping[str, Any]) -> Tree:
        personal: Tree = x["personal"]
        return personal
