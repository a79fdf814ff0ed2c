"""Bytes of blocks that go to clients and come back, counted where they are handed over."""

from __future__ import annotations

from collections import Counter

from blossom_ray.core.blocks import BlockInstance


class Traffic:
    """Bytes that one chunk's clients were sent, or sent back.

    Attributes:
        by_client: Bytes by client.
        by_instance: Bytes by block instance.
    """

    def __init__(self) -> None:
        self.by_client: Counter[int] = Counter()
        self.by_instance: Counter[BlockInstance] = Counter()

    def count(self, client: int, instance: BlockInstance, num_bytes: int) -> None:
        """Note that a block instance went to a client, or came from it."""
        self.by_client[client] += num_bytes
        self.by_instance[instance] += num_bytes
