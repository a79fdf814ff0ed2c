"""FedDyn: dynamic regularisation, so that clients' optima agree with the server's."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, ServerView, Tree
from blossom_ray.core.section import Rate, Section


class FedDyn(Section):
    """FedDyn (Acar et al. 2021): clients minimise f_k(w) - <h_k, w> + alpha/2 |w - w_received|^2."""

    kind: Literal["feddyn"]
    alpha: Rate = 0.1
    """Strength of the regularisation."""

    # Source: arXiv:2111.04263, algorithm 1. What differs: sums weigh as models do, by block over the block's holders.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"own": Extra(layout.averaged, scope="private"), "h": Extra(layout.averaged, scope="server")}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(offset=-k["own"], anchor=k.received, mu=self.alpha)]

    def finish(self, k: Client) -> dict[str, Any]:
        return {"own": k["own"] - self.alpha * (k.new - k.received)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        moved = s.total["model"] - s.weight["model"] * s.current["model"]
        h = s.current["h"] - self.alpha * moved / s.holders["model"]
        return {"h": h, "model": s.average("model") - h / self.alpha}
