"""PmcmFL's contrast: embeddings of a modality are drawn to the prototype of their class, away from all others."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.class_means import class_means, class_sums
from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.core.section import NonNegative, Rate, Section


class PmcmFL(Section):
    """PmcmFL (Bao et al. 2023): prototypes by modality and class, and InfoNCE between embeddings and them.

    A sample's term is the mean over its client's modalities of -log softmax_c(cos(z, p_c) / T) at its class, 0 for one
    that the sample lacks.
    """

    kind: Literal["pmcmfl"]
    weight: NonNegative = 0.5
    """Weight of the contrastive term."""
    temperature: Rate = 0.5
    """T."""

    # Source: arXiv:2312.13508, prototype library and contrast. What differs: prototypes do not stand in for modalities
    # that are missing; `model.missing: prototype` does that, with one for each modality.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        shapes = {name: (layout.num_classes, layout.embedding_dims[name] + 1) for name in layout.modalities}
        return {f"prototypes of {name}": Extra(shape=shape, scope="same-task") for name, shape in shapes.items()}

    def loss(self, batch: Any) -> Any:
        from torch.nn.functional import log_softmax, normalize

        total = 0
        for name, embeddings in batch.embeddings.items():
            means, seen = batch[f"prototypes of {name}"][:, :-1], batch[f"prototypes of {name}"][:, -1]
            logits = normalize(embeddings, dim=-1) @ normalize(means, dim=-1).T / self.temperature
            log_p = log_softmax(logits.where(seen > 0, -1e9), dim=-1)  # never infinite: 0 times that is not a number
            hit = log_p.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
            total = total - hit * seen[batch.targets] * batch.present[name]
        return self.weight * total / len(batch.embeddings)

    def after(self, batch: Any) -> dict[str, Any]:
        prototypes = {name: f"prototypes of {name}" for name in batch.embeddings}
        return {
            prototypes[name]: batch.present[name][:, None, None]
            * class_sums(embeddings, batch.targets, len(batch[prototypes[name]]))
            for name, embeddings in batch.embeddings.items()
        }

    def finish(self, k: Client) -> dict[str, Any]:
        return {name: Sent(sums, 1) for name, sums in k.after.items()}

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {name: s.current[name].map(class_means, total) for name, total in s.total.items() if name != "model"}
