"""IFCA: several models, each client trains the one that fits it best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, Tree, pick
from blossom_ray.core.section import Positive, Section


class Ifca(Section):
    """IFCA (Ghosh et al. 2020), averaging models: a client trains and sends the one with the lowest loss on its shard.

    The first of them is the model itself.
    """

    kind: Literal["ifca"]
    clusters: Positive = 2
    """Number of models."""

    # Source: arXiv:2006.04088, algorithm 1, option II. What differs: means weigh as models do. Who has never trained is
    # scored with the first model. Choices are of measured floats, and can fall otherwise on the other engine.
    @property
    def names(self) -> list[str]:
        """The copies, "model" first."""
        return ["model", *(f"cluster {j}" for j in range(1, self.clusters))]

    def extras(self, layout: Layout) -> dict[str, Extra]:
        more = {name: Extra(layout.averaged, initial="seeded", with_statistics=True) for name in self.names[1:]}
        return more | {"choice": Extra(shape=(), scope="private")}

    def before(self, batch: Any) -> dict[str, Any]:
        return {"model": batch.total_loss} | {name: batch.through(name).total_loss for name in self.names[1:]}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(start=pick(self._choice(k), [k[name] for name in self.names]))]

    def finish(self, k: Client) -> dict[str, Any]:
        choice = self._choice(k)
        sent = {name: Sent(k.new, k.weight * (choice == j)) for j, name in enumerate(self.names)}
        return sent | {"choice": choice}

    def _choice(self, k: Client) -> Any:
        choice, lowest = k.before["model"].new_zeros(()), k.before["model"]
        for j, name in enumerate(self.names[1:], start=1):
            choice = choice.where(k.before[name] >= lowest, j)
            lowest = lowest.minimum(k.before[name])
        return choice

    def scored(self, x: Mapping[str, Any]) -> Tree:
        return pick(x["choice"], [x[name].only(x[self.names[-1]]) for name in self.names])
