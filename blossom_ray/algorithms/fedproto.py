"""FedProto: clients agree on the mean representation of each class; with `sharing: local` nothing else travels."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.class_means import class_means, class_sums
from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.core.section import NonNegative, Section


class FedProto(Section):
    """FedProto (Tan et al. 2022): the mean square distance of a representation from its class's prototype is a loss."""

    kind: Literal["fedproto"]
    weight: NonNegative = 1.0
    """Lambda: weight of the distance."""

    # Source: arXiv:2105.00243, algorithm 1. What differs: a prototype is the mean over all samples of a round's cohort;
    # models are averaged as `sharing` says, the paper's are `local`; the head predicts, and not the nearest prototype.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"prototypes": Extra(shape=(layout.num_classes, layout.width + 1), scope="same-task")}

    def loss(self, batch: Any) -> Any:
        own = batch["prototypes"][batch.targets]
        return self.weight * own[:, -1] * (batch.representation - own[:, :-1]).square().mean(dim=-1)

    def after(self, batch: Any) -> dict[str, Any]:
        return {"prototypes": class_sums(batch.representation, batch.targets, len(batch["prototypes"]))}

    def finish(self, k: Client) -> dict[str, Any]:
        return {"prototypes": Sent(k.after["prototypes"], 1)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"prototypes": s.current["prototypes"].map(class_means, s.total["prototypes"])}
