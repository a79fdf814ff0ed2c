"""MOON: the representation is drawn to that of the received model, and away from that of the client's last one."""

from __future__ import annotations

from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout
from blossom_ray.core.section import NonNegative, Rate, Section


class Moon(Section):
    """MOON (Li et al. 2021): mu times -log(e^(near/T) / (e^(near/T) + e^(far/T))) is added to the loss.

    near is the cosine between what the fusion gives and what that of the received model does, far that with the one of
    the client's previous model.
    """

    kind: Literal["moon"]
    mu: NonNegative = 1.0
    """Weight of the contrastive term."""
    temperature: Rate = 0.5
    """T."""

    # Source: arXiv:2103.16257, equation 3. What differs: no projection head, z is what the fusion gives; who trains for
    # the first time has the received model as its previous one.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"previous": Extra(layout.averaged, scope="private", initial="received")}

    def loss(self, batch: Any) -> Any:
        from torch.nn.functional import cosine_similarity, softplus

        near, far = (
            cosine_similarity(batch.representation, batch.through(copy).representation, dim=-1)
            for copy in ("received", "previous")
        )
        return self.mu * softplus((far - near) / self.temperature)

    def finish(self, k: Client) -> dict[str, Any]:
        return {"previous": k.new}
