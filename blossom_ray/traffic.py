"""Bytes of blocks that go to clients and come back, counted where they are handed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from blossom_ray.blocks import BlockInstance

Counts = dict[tuple[int, BlockInstance], int]


class Traffic:
    """What one chunk's clients were sent and sent back.

    Attributes:
        down: Bytes sent, by client and block instance.
        up: Bytes sent back, by client and block instance.
    """

    def __init__(self) -> None:
        self.down: Counts = {}
        self.up: Counts = {}

    def bytes_down(self, client: int) -> int:
        """Bytes sent to a client."""
        return sum(count for (receiver, _), count in self.down.items() if receiver == client)

    def bytes_up(self, client: int) -> int:
        """Bytes that a client sent back."""
        return sum(count for (sender, _), count in self.up.items() if sender == client)

    @staticmethod
    def by_instance(counts: Mapping[tuple[int, BlockInstance], int]) -> dict[BlockInstance, int]:
        """The sums over clients."""
        totals: Counter[BlockInstance] = Counter()
        for (_, instance), count in counts.items():
            totals[instance] += count
        return dict(totals)
