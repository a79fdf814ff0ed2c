"""Harmony's second stage: fusion and head are averaged among clients whose encoders move alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree, pick
from blossom_ray.core.section import Positive, Section


class Harmony(Section):
    """Harmony's federated fusion (Ouyang et al. 2023): clients are grouped by how far each encoder of theirs moved.

    These distances, by modality over the largest, are grouped by k-means in each round; a group has its own fusion and
    head, the averages over its clients.
    """

    kind: Literal["harmony"]
    groups: Positive = 2
    """Number of groups."""
    rows: ClassVar = ("model", "moved")

    # Source: doi.org/10.1145/3581791.3596844, second stage, and its code (github.com/xmouyang/Harmony). What differs:
    # encoders are averaged as `sharing` says, where the paper's stay with the client after a first stage of their own;
    # clients of one modality are grouped, too; k-means starts from clients evenly spaced in the order of all distances.
    @property
    def names(self) -> list[str]:
        """The groups' copies of fusion and head."""
        return [f"group {j}" for j in range(self.groups)]

    def extras(self, layout: Layout) -> dict[str, Extra]:
        own = [block for block in layout.averaged if block.kind != "encoder"]
        encoders = [block for block in layout.averaged if block.kind == "encoder"]
        grouped = {name: Extra(own, initial="initial", with_statistics=True) for name in self.names}
        moved, group = Extra(encoders, shape=(), scope="server"), Extra(shape=(), scope="client")
        return grouped | {"moved": moved, "group": group}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(start=pick(k["group"], [k[name] for name in self.names]))]

    def finish(self, k: Client) -> dict[str, Any]:
        moved = (k.new - k.received).map(lambda values: values.square().sum().sqrt())
        return {"model": Sent(k.new), "moved": Sent(moved.only(k.layout.encoders))}

    def server(self, s: ServerView) -> dict[str, Tree]:
        distances = np.zeros((len(s.clients), len(s.rows["moved"])))
        for column, (key, moved) in enumerate(s.rows["moved"].items()):
            distances[np.searchsorted(s.clients, s.members["moved"][key]), column] = moved / max(moved.max(), 1e-12)
        group = self._grouped(distances)
        found = {"group": Tree({("", str(client)): float(j) for client, j in zip(s.clients, group, strict=True)})}
        for j, name in enumerate(self.names):
            found[name] = Tree()
            for key in s.all[name]:
                of_group = np.isin(s.members["model"].get(key, []), s.clients[group == j])
                if of_group.any():
                    rows, weights = s.rows["model"][key][of_group], s.row_weights["model"][key][of_group]
                    found[name][key] = np.average(rows.astype(np.float64), axis=0, weights=weights)
        return found

    def _grouped(self, rows: np.ndarray) -> np.ndarray:
        order = rows.sum(axis=1).argsort(kind="stable")
        centres = rows[order[np.linspace(0, len(order) - 1, self.groups).round().astype(int)]]
        for _ in range(10):
            nearest: np.ndarray = np.square(rows[:, None] - centres).sum(axis=-1).argmin(axis=1)
            for j in set(nearest.tolist()):
                centres[j] = rows[nearest == j].mean(axis=0)
        return nearest

    def scored(self, x: Mapping[str, Any]) -> Tree:
        return pick(x["group"], [x[name] for name in self.names])
