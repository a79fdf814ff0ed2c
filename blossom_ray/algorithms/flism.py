"""FLISM's local losses: views with and without a modality agree, and the received model teaches."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.core.section import NonNegative, Rate, Section


class Flism(Section):
    """FLISM (Orzikulova et al. 2024): a supervised contrastive term and distillation from the received model.

    The contrastive term (Khosla et al. 2020) has the representation of each sample and, as its second view, that
    without one of its modalities; those of samples of the same class are positives. Distillation is the divergence
    KL(p_received | p). With `server.weighting: entropy` it is all of FLISM.
    """

    kind: Literal["flism"]
    contrast: NonNegative = 1.0
    """Weight of the contrastive term."""
    temperature: Rate = 0.1
    """Temperature of the contrastive term."""
    distillation: NonNegative = 1.0
    """Weight of the distillation."""

    # Source: arXiv:2405.11828, and its code (github.com/AdibaOrz/FLISM). What differs: the mean over which modality is
    # left out, where the paper draws some in each round; no noise on inputs; a model with late fusion.
    def loss(self, batch: Any) -> Any:
        from torch.nn.functional import log_softmax

        teacher = log_softmax(batch.through("received").outputs, dim=-1)
        student = log_softmax(batch.outputs, dim=-1)
        total = self.distillation * (teacher.exp() * (teacher - student)).sum(dim=-1)
        for name, present in batch.present.items():
            others = [other for other in batch.present if other != name]
            if others:
                has_both = present * sum(batch.present[other] for other in others).clamp(max=1)
                view = batch.through(modalities=others).representation
                contrast = self._contrast(batch, view, has_both)
                total = total + self.contrast * has_both * contrast / len(batch.present)
        return total

    def _contrast(self, batch: Any, view: Any, has_view: Any) -> Any:
        import torch
        from torch.nn.functional import log_softmax, normalize

        z = normalize(torch.cat([batch.representation, view]), dim=-1)
        targets, others = batch.targets.repeat(2), 1 - torch.eye(len(z), device=z.device)
        # Padding, and the second view of a sample that has none, are nobody's positive or negative.
        others = others * torch.cat([batch.real, batch.real * has_view])
        log_p = log_softmax((z @ z.T / self.temperature).where(others > 0, -1e9), dim=-1)
        positive = others * (targets.unsqueeze(-1) == targets)
        by_view = -(log_p * positive).sum(dim=-1) / positive.sum(dim=-1).clamp(min=1)
        return by_view.view(2, -1).mean(dim=0)
