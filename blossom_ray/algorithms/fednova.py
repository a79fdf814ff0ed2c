"""FedNova: changes averaged per step, so that who takes more steps does not pull the average to its own optimum."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.core.section import Section


class FedNova(Section):
    """FedNova (Wang et al. 2020): w + (sum p_k tau_k) sum p_k (w_k - w) / tau_k, tau_k the steps. Needs plain SGD."""

    kind: Literal["fednova"]

    # Source: arXiv:2007.07481, equation 4 for plain SGD, where a_k is a vector of tau_k ones. What differs: steps are
    # counted for each block, and one that took none adds nothing.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"steps": Extra(layout.averaged, shape=(), scope="server")}

    def finish(self, k: Client) -> dict[str, Any]:
        per_step = k.num_steps.map(lambda steps: k.weight / steps.clamp(min=1))
        return {"model": Sent(k.new, per_step), "steps": Sent(k.num_steps)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        change = s.weight["model"] * (s.average("model") - s.current["model"]) / s.weight["steps"]
        return {"model": s.current["model"] + s.average("steps") * change}
