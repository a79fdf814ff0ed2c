"""SCAFFOLD: control variates against the drift of clients."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree
from blossom_ray.core.section import Section


class Scaffold(Section):
    """SCAFFOLD (Karimireddy et al. 2020), option II: clients descend along g - c_k + c.

    c_k is the mean step of a client in its last round, c the mean of all c_k. Needs plain SGD.
    """

    kind: Literal["scaffold"]

    # Source: arXiv:1910.06378, algorithm 1. What differs: controls weigh as models do, so that the optimum is that of
    # sum n_k f_k; each block has its own holders and its own steps.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"c": Extra(layout.averaged), "own": Extra(layout.averaged, scope="private")}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(offset=k["c"] - k["own"])]

    def finish(self, k: Client) -> dict[str, Any]:
        change = (k.mean_step - k["c"]) * k.stepped
        return {"own": k["own"] + change, "c": Sent(change)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"c": s.current["c"] + s.total["c"] / s.holders["c"]}
