"""Dropout masks of the clients of a stack: those that each would draw alone, or all of them at once on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Masks(Protocol):
    """Where the masks of a stack's clients come from."""

    def draw(self, like: Tensor, counts: Sequence[int], keep: float) -> Tensor:
        """The next masks: 1 with probability `keep` and 0 else, in the shape (K, B, ...) of `like`.

        Args:
            like: The first K clients' values.
            counts: Real rows of each; masks of the rest mean nothing.
            keep: Part of the values that is kept.
        """
        ...


def masks_of(seeds: Sequence[int], device: torch.device) -> Masks:
    """Masks for clients with these seeds."""
    return DrawnMasks(seeds) if device.type == "cpu" else HashedMasks(seeds, device)


class DrawnMasks:
    """Those of `torch.nn.functional.dropout` on a CPU: `bernoulli_` over a client's real rows, from its own generator.

    Args:
        seeds: Each client's.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, like: Tensor, counts: Sequence[int], keep: float) -> Tensor:
        """See `Masks.draw`."""
        masks = torch.zeros_like(like, memory_format=torch.contiguous_format)
        for mask, count, generator in zip(masks, counts, self._generators, strict=False):
            mask[:count].bernoulli_(keep, generator=generator)
        return masks


class HashedMasks:
    """A hash of seed, number of the draw and place: a dozen kernels for all clients, where a generator takes one each.

    A client's masks do not depend on who else is in the stack. They are not those of `nn.Dropout`, which on a GPU draws
    otherwise than on a CPU, too.

    Args:
        seeds: Each client's.
        device: Where masks are needed.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195
    (SplitMix64).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._states = _mixed(torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device))

    def draw(self, like: Tensor, counts: Sequence[int], keep: float) -> Tensor:
        """See `Masks.draw`."""
        states = self._states[: len(like)]
        places = torch.arange(1, like[0].numel() + 1, device=like.device)
        numbers = _mixed(states.unsqueeze(1) + places * _GOLDEN)
        masks: Tensor = (_shifted(numbers, 64 - _BITS) < round(keep * 2**_BITS)).to(like.dtype).reshape(like.shape)
        has_drawn = torch.tensor(counts, device=like.device) > 0
        self._states[: len(like)] = torch.where(has_drawn, _mixed(states + _NEXT), states)
        return masks


# Precision of a probability, as a float64 has it.
_BITS = 53


def _signed(number: int) -> int:
    """The int64 with the bits of a number of 64 bits: PyTorch has no arithmetic of unsigned ones."""
    return (number + 2**63) % 2**64 - 2**63


_GOLDEN, _NEXT = _signed(0x9E3779B97F4A7C15), _signed(0xD1342543DE82EF95)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mixed(numbers: Tensor) -> Tensor:
    """SplitMix64's output function, value by value."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left, as of an unsigned number."""
    shifted: Tensor = (numbers >> by) & (2 ** (64 - by) - 1)
    return shifted
