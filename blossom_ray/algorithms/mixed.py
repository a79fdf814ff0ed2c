"""A model of each client's own, mixed with the shared one; how much of which is learned for each block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Tree
from blossom_ray.core.section import Rate, Section


class Mixed(Section):
    """APFL (Deng et al. 2020) with one learned weight for each block and client: a v + (1 - a) w, a = sigmoid(`lean`).

    Which blocks want to be a client's own is read from `lean`: `run.extras(client)["lean"]`.
    """

    kind: Literal["mixed"]
    rate: Rate = 1.0
    """Learning rate of `lean`, as a factor of that of the blocks."""

    # Source: arXiv:2003.13461, algorithm 1. What differs: a weight for each block in place of one, in (0, 1) by the
    # sigmoid; w is trained first and stands still while v and `lean` are trained, where the paper alternates by step.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        own = Extra(layout.averaged, scope="private", initial="received")
        return {"v": own, "lean": Extra(layout.averaged, shape=(), scope="private")}

    def passes(self, _: Client) -> list[Pass]:
        return [Pass(), Pass(("v", "lean"), model=self.scored, rate={"lean": self.rate})]

    def scored(self, x: Mapping[str, Any]) -> Tree:
        a = x["lean"].map(lambda lean: lean.sigmoid())
        mixed: Tree = a * x["v"] + (1 - a) * x["model"].only(a)
        return mixed
