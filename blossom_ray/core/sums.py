"""The weighted average of a block over the clients that trained it, as sums that add up.

Sums are float64. Within a chunk they run in client order, across chunks in chunk order; addition is not associative,
so this order, which follows from the scenario alone, is what makes results independent of placement.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Total = npt.NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class PartialSum:
    """A weighted sum of one block over some clients.

    Attributes:
        total: sum of w_k x_k, float64, shape of the block.
        weight: sum of the clients' weights w_k.
        contributors: Number of these clients.
    """

    total: Total
    weight: float
    contributors: int = 1

    @property
    def average(self) -> Total:
        """A_b = sum w_k x_k / sum w_k, float64.

        Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1, per block as in BLOSSOM (arXiv:2603.27552).
        """
        average: Total = self.total / self.weight
        return average


@dataclass(frozen=True)
class Contributions:
    """Clients' own values of one block, before anybody has added them up; there may be none.

    Attributes:
        clients: Whose they are, ascending.
        weights: Their weights w_k, none of them 0.
        values: (n, *shape) float32.
    """

    clients: tuple[int, ...]
    weights: tuple[float, ...]
    values: npt.NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Iterable[Contributions]) -> Contributions:
        """Those of several hosts together, in client order."""
        held = [part for part in parts if part.clients]
        clients = [client for part in held for client in part.clients]
        if not clients:
            return cls((), (), np.zeros((0,), np.float32))
        weights = [weight for part in held for weight in part.weights]
        order = sorted(range(len(clients)), key=clients.__getitem__)
        values = held[0].values if len(held) == 1 else np.concatenate([part.values for part in held])[order]
        return cls(tuple(clients[at] for at in order), tuple(weights[at] for at in order), values)

    def only(self, clients: Collection[int]) -> Contributions:
        """Those of some clients."""
        kept = [at for at, client in enumerate(self.clients) if client in clients]
        return Contributions(
            tuple(self.clients[at] for at in kept), tuple(self.weights[at] for at in kept), self.values[kept]
        )

    def scaled(self, factors: Mapping[int, float]) -> Contributions:
        """The same with other weights: those of each client times its factor; without clients whose factor is 0."""
        kept = self.only([client for client in self.clients if factors[client]])
        weights = tuple(w * factors[client] for client, w in zip(kept.clients, kept.weights, strict=True))
        return Contributions(kept.clients, weights, kept.values)

    def summed(self) -> PartialSum | None:
        """Their sum, in client order; None where there are none."""
        return weighted_sum(zip(self.weights, self.values, strict=True)) if self.clients else None


def weighted_sum(updates: Iterable[tuple[float, Vector]]) -> PartialSum:
    """Sum one block over the clients of a chunk.

    Args:
        updates: (w_k, x_k) in client order, w_k > 0, x_k (size,) float32. At least one. Not modified.

    Returns:
        ((w_1 x_1 + w_2 x_2) + w_3 x_3) + ..., each product and sum in float64.
    """
    total: Total | None = None
    weight, contributors = 0.0, 0
    for client_weight, vector in updates:
        if total is None:
            total = vector.astype(np.float64)
            total *= client_weight
            # One buffer for all other products: fresh memory of this size costs more than the arithmetic.
            product = np.empty_like(total)
        else:
            np.copyto(product, vector)
            product *= client_weight
            total += product
        weight += client_weight
        contributors += 1
    if total is None:
        raise ValueError("a partial sum needs at least one update")
    return PartialSum(total, weight, contributors)


def summed(parts: Sequence[Mapping[Name, PartialSum | Contributions]]) -> dict[Name, PartialSum]:
    """What the clients of a chunk have, added up in client order, be it one host's sum or single ones of several."""
    found: dict[Name, PartialSum] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        one_by_one = [part for part in own if isinstance(part, Contributions)]
        whole = Contributions.joined(one_by_one).summed() if one_by_one else own[0]
        if isinstance(whole, PartialSum):
            found[name] = whole
    return found


class Accumulator:
    """Adds up the chunks' partial sums of one block, in the order in which they are given."""

    def __init__(self) -> None:
        self._total: Total | None = None
        self._weight, self._contributors = 0.0, 0

    def add(self, part: PartialSum) -> None:
        """Add one chunk's sum. `part.total` is not modified and may be read-only."""
        if self._total is None:
            self._total = part.total.copy()
        else:
            self._total += part.total
        self._weight += part.weight
        self._contributors += part.contributors

    def result(self) -> PartialSum:
        """The sum over all chunks.

        Raises:
            ValueError: Nothing was added.
        """
        if self._total is None:
            raise ValueError("no client contributed to this block")
        return PartialSum(self._total, self._weight, self._contributors)
