"""What the sections of all blocks have: values to start from, and the module that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from blossom_ray.core.section import Finding, Positive, Section

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
"""Of one sample, without the batch."""
FeatureNorm = Literal["batch", "group", "layer", "none"]
Widths = Annotated[tuple[Positive, ...], Field(strict=False)]


class Weights(Section):
    """Values from a file, in the place of drawn ones, that a block starts from."""

    path: Annotated[str, Field(min_length=1)]
    """A safetensors file, or a folder that `blossom-ray export` has written. Relative to the working directory."""
    block: str | None = None
    """Which tensors of it: those whose names begin with this and a slash, such as `encoder/acc`. null: those of the
    block of the same name where there are any, else all."""
    frozen: bool = False
    """Whether the block stays so: nobody trains, averages or sends it back, whatever `sharing` says of it."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Checksum of the file, without which it is refused. null: any; the scenario of a run says which it was."""


class Pretrained(Section):
    """Base of the sections of blocks: what each of them can start from."""

    weights: Weights | None = None
    """Pretrained values that the block starts from; null: it starts from drawn ones."""


class BuiltIn(Pretrained):
    """Base of the sections of blocks whose modules come with this package."""

    if TYPE_CHECKING:
        _module: Any  # each kind has its own

    def module(self, *arguments: Any) -> partial[nn.Module]:
        """The module's class with its arguments, all JSON values, before it is built; called with what `build` is."""
        made: partial[nn.Module] = self._module(*arguments)
        return made


def normed_alone(path: str, width: int, norm: FeatureNorm) -> Iterator[Finding]:
    """One feature normalised by itself is zero, whatever it was."""
    if width == 1 and norm in ("layer", "group"):
        yield Finding(path, f"is 1, while norm is {norm!r}", "at least 2 features, or another norm")
