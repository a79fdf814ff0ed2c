"""A block that stands still plus a product of two small factors, which travel in its place."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isqrt
from typing import Any, Literal

from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, Tree
from blossom_ray.core.blocks import Block, model_blocks
from blossom_ray.core.section import Positive, Section
from blossom_ray.errors import InputError


class LowRank(Section):
    """LoRA (Hu et al. 2022) of one block, federated: its value is the first one plus A B, and clients send A and B."""

    kind: Literal["low-rank"]
    block: str = "head"
    """The block."""
    rank: Positive = 4
    """Columns of A and rows of B."""

    # Source: arXiv:2106.09685. What differs: A B stands for the block's parameters as one vector, cut into as many rows
    # as columns, and not for each matrix in it; A is normal over the square root of the rank, B zero.
    def extras(self, layout: Layout) -> dict[str, Extra]:
        if self.block not in (known := model_blocks(layout.embedding_dims)):
            raise InputError(f"algorithm.block is {self.block!r}; expected one of {', '.join(known)}")
        found = {}
        for block in layout.averaged:
            if self._is_own(block) and (size := layout.sizes[block]):
                a, b = self._factors(block)
                width = isqrt(size)
                found[a] = Extra([block], shape=(ceil(size / width), self.rank), initial="normal")
                found[b] = Extra([block], shape=(self.rank, width))
        return found

    def passes(self, k: Client) -> list[Pass]:
        if not k.extras:
            return [Pass()]
        others = [block for block in k.layout.trained if not self._is_own(block)]
        return [Pass(("model", *k.extras), blocks=others, model=self.scored)]

    def finish(self, k: Client) -> dict[str, Any]:
        return {"model": Sent(k.new.only([block for block in k.new if not self._is_own(block)]))}

    def scored(self, x: Mapping[str, Any]) -> Tree:
        found = Tree(x["model"])
        for block in filter(self._is_own, found):
            a, b = self._factors(block)
            if a in x:
                product = (x[a][block] @ x[b][block]).flatten() / self.rank**0.5
                found[block] = found[block] + product[: len(found[block])]
        return found

    def _is_own(self, block: Block) -> bool:
        """Whether it is the block, or the head of a task."""
        return self.block in (block, block.kind)

    def _factors(self, block: Block) -> tuple[str, str]:
        """The names of A and B of a block; those of the heads of several tasks differ in size."""
        end = "" if block == self.block else f"_{block.of}"
        return f"a{end}", f"b{end}"
