"""A random part of each change leaves the client; what does not is added to its next one."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent
from blossom_ray.core.section import Fraction, Section


class RandomSparsification(Section):
    """Random sparsification with error feedback (Stich et al. 2018)."""

    kind: Literal["random-sparsification"]
    fraction: Fraction = 0.1
    """Of the parameters that leave a client in a round, each drawn by itself."""

    # Source: arXiv:1809.07599, algorithm 1 (MemSGD), with the change of a whole round for a gradient. Bytes are counted
    # as if all of it had been sent.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        drawn = Extra(layout.averaged, scope="drawn", initial="uniform")
        return {"left": Extra(layout.averaged, scope="private"), "number": drawn}

    def finish(self, k: Client) -> dict[str, Any]:
        change = k.new - k.received + k["left"]
        sent = change.map(lambda values, number: values * (number < self.fraction), k["number"])
        return {"model": Sent(k.received + sent), "left": change - sent}
