"""MFedMC: a client sends its most useful encoders, and the server takes those of the clients that fit best."""

from __future__ import annotations

from itertools import combinations
from math import ceil, comb
from typing import Any, ClassVar, Literal

import numpy as np

from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.core.section import Fraction, NonNegative, Positive, Section


class MFedMC(Section):
    """MFedMC (Yuan et al. 2024): joint selection of modalities and clients.

    A client ranks its encoders by a weighted sum of Shapley value, size and waiting time, each over its largest, and
    offers the first `modalities`. Of those who offer an encoder the server takes the `clients` with the lowest loss
    of this modality alone. Other blocks are sent as ever; the paper's fusion is private.
    """

    kind: Literal["mfedmc"]
    modalities: Positive = 1
    """Encoders that a client offers."""
    clients: Fraction = 0.5
    """Of those who offer an encoder, the share whose encoder is taken; rounded up."""
    impact: NonNegative = 1.0
    """Weight of the Shapley value."""
    size: NonNegative = 0.3
    """Weight of being small."""
    recency: NonNegative = 0.3
    """Weight of the rounds since it was last offered."""
    rows: ClassVar = ("loss",)

    # Source: arXiv:2401.16685, algorithm 1. What differs: the game's value is the probability of the right class from a
    # subset of modalities, over the whole training split; that of none is 0, also where a sample has none of them.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        encoders = [block for block in layout.averaged if block.kind == "encoder"]
        last = Extra(encoders, shape=(), scope="private")
        return {"loss": Extra(encoders, shape=(), scope="server"), "last": last}

    def after(self, batch: Any) -> dict[str, Any]:
        owned = tuple(batch.present)
        hits: dict[tuple[str, ...], Any] = {(): 0.0}
        for subset in (some for count in range(len(owned)) for some in combinations(owned, count + 1)):
            outputs = batch.through(modalities=subset).outputs
            has_some = sum(batch.present[name] for name in subset).clamp(max=1)
            hits[subset] = has_some * outputs.softmax(dim=-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        found = {f"samples of encoder/{name}": has for name, has in batch.present.items()}
        for name in owned:
            found[f"loss of encoder/{name}"] = batch.present[name] * batch.through(modalities=[name]).losses
            pairs = [(some, tuple(other for other in some if other != name)) for some in hits if name in some]
            gains = [(hits[some] - hits[rest]) / comb(len(owned) - 1, len(rest)) for some, rest in pairs]
            found[f"encoder/{name}"] = sum(gains) / len(owned)
        return found

    def finish(self, k: Client) -> dict[str, Any]:
        import torch

        if not k["last"]:  # encoders that are private or frozen
            return {}
        impact = torch.stack([k.after[block].abs() for block in k["last"]])
        sizes = torch.tensor([float(k.layout.sizes[block]) for block in k["last"]])
        waited = k.round - torch.stack(list(k["last"].values()))
        priority = self.impact * impact / impact.max().clamp(min=1e-12) + self.size * (1 - sizes / sizes.max())
        order = (priority + self.recency * waited / k.round).argsort(descending=True, stable=True)
        offered = Tree({b: (order[: self.modalities] == i).any().float() for i, b in enumerate(k["last"])})
        loss = Tree({b: k.after[f"loss of {b}"] / k.after[f"samples of {b}"] for b in offered})
        return {
            "model": Sent(k.new, Tree({block: k.weight * offered.get(block, 1.0) for block in k.new})),
            "loss": Sent(loss, offered),
            "last": k["last"].map(lambda last, yes: last.where(yes == 0, float(k.round)), offered),
        }

    def admit(self, s: ServerView) -> dict[str, dict[Any, Any]]:
        def lowest(losses: np.ndarray, members: np.ndarray) -> set[int]:
            return {*members[np.argsort(losses, kind="stable")[: ceil(self.clients * len(losses))]].tolist()}

        return {"model": s.rows["loss"].map(lowest, s.members["loss"])}
