"""Oort: who has much to teach trains, and some who have never trained."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.core.section import Fraction, Section


class Oort(Section):
    """Oort's selection by statistical utility (Lai et al. 2021): n_k sqrt(mean of squared losses) and staleness.

    Most of a cohort are the clients with the highest utility plus sqrt(0.1 log t / last round); the others are drawn
    among those who have never trained.
    """

    kind: Literal["oort"]
    exploration: Fraction = 0.1
    """The share of a cohort that is drawn among clients that have never trained."""
    rows: ClassVar = ("utility",)

    # Source: arXiv:2010.06081, algorithm 1 and equation 1. What differs: losses are those after training; no system
    # utility, pacer, blacklist or decay of exploration, and the best are taken without a draw among the nearly best.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        known = Extra(shape=(2, layout.num_clients), scope="server")
        return {"utility": Extra(shape=(), scope="server"), "known": known}

    def after(self, batch: Any) -> dict[str, Any]:
        return {"squares": batch.total_loss.square()}

    def finish(self, k: Client) -> dict[str, Any]:
        return {"utility": Sent((k.num_samples * k.after["squares"]).sqrt(), 1)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        known, members = s.current["known"]["", ""].copy(), s.members["utility"]["", ""]
        known[0, members], known[1, members] = s.rows["utility"]["", ""], s.round
        return {"known": Tree({("", ""): known})}

    def select(self, s: ServerView, candidates: np.ndarray, size: int, draw: np.random.Generator) -> list[int]:
        utility, last = s.all["known"]["", ""]
        fresh, seen = candidates[last[candidates] == 0], candidates[last[candidates] > 0]
        num_fresh = min(len(fresh), max(round(self.exploration * size), size - len(seen)))
        score = utility[seen] + np.sqrt(0.1 * np.log(s.round) / last[seen])
        best = seen[np.argsort(-score, kind="stable")[: size - num_fresh]]
        return [*best, *draw.choice(fresh, num_fresh, replace=False)]
