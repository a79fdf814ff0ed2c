"""pFedMe: by batch a model of the client's own near the shared one, then a step of the shared one towards it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from blossom_ray.algorithms.seam import Extra, Layout, Tree
from blossom_ray.core.section import Positive, Rate, Section


class PFedMe(Section):
    """pFedMe (Dinh et al. 2020): theta = argmin f_k(theta) + pull/2 |theta - w|^2, w = w - rate pull (w - theta).

    Trained step by step by its own code: one client after the other.
    """

    kind: Literal["pfedme"]
    pull: Rate = 15.0
    """Lambda: how strongly the client's own model is held near the shared one."""
    inner_steps: Positive = 5
    """K: gradient steps by which theta is found for a batch."""
    inner_rate: Rate = 0.01
    """Learning rate of these steps."""

    # Source: arXiv:2006.08848, algorithm 1 with beta = 1. What differs: theta goes on from the last batch's; the plain
    # learning rate of `training` alone, without momentum or weight decay. Who was never drawn has the shared model.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"personal": Extra(layout.averaged, scope="private", initial="received")}

    def local(self, c: Any) -> dict[str, Any]:
        from torch.autograd import grad

        w = theta = c.copies["model"]
        for through in c.batches():
            for _ in range(self.inner_steps):
                leaves = theta.map(lambda values: values.detach().requires_grad_())
                losses = through(leaves).total_loss
                found = grad(losses.mean(), list(leaves.values()), allow_unused=True, materialize_grads=True)
                gradient = Tree(zip(leaves, found, strict=True))
                theta = theta - self.inner_rate * (gradient + self.pull * (theta - w))
            w = w - c.learning_rate * self.pull * (w - theta)
        return {"model": w, "personal": theta.only(c.copies["personal"])}

    def scored(self, x: Mapping[str, Any]) -> Tree:
        personal: Tree = x["personal"]
        return personal
