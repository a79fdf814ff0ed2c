"""A model of its own for each client: by block a mean over the clients, those with similar blocks weighing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree
from blossom_ray.core.section import Section


class FedMSplit(Section):
    """As FedMSplit (Chen and Zhang 2022): each block is a view of its own on who is related to whom.

    A client's next block is sum_j a_kj w_j over the contributors, a_k the softmax of <w_k, w_j> / sqrt(n).
    """

    kind: Literal["fedmsplit"]

    # Source: doi.org/10.1145/3534678.3539384. What differs: one step of attention with nothing to learn in place of
    # messages on a learned graph; who was never drawn has first values. No BLAS, whose last bit follows the threads.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"mine": Extra(layout.averaged, scope="client", initial="initial")}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(start=k["mine"])]

    def finish(self, k: Client) -> dict[str, Any]:
        return {"mine": Sent(k.new), "model": Sent(k.new, 0)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        trained, mixed = s.average("mine"), Tree()
        for block in {block for block, _ in trained}:
            keys = sorted(key for key in trained if key[0] == block)
            rows = np.stack([trained[key] for key in keys])
            for key, own in zip(keys, rows, strict=True):
                likeness = (rows * own).sum(axis=1) / np.sqrt(len(own))
                weights = np.exp(likeness - likeness.max())
                mixed[key] = (weights[:, None] * rows).sum(axis=0) / weights.sum()
        return {"mine": mixed}

    def scored(self, x: Mapping[str, Any]) -> Tree:
        mine: Tree = x["mine"]
        return mine
