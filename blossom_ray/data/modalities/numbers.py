"""A modality that is numbers already: tensors, lists, plain numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.section import Positive
from blossom_ray.data.modalities.base import Modality


class NumbersModality(Modality):
    """Numbers as they are: a column of tensors, of lists, or of plain numbers."""

    kind: Literal["numbers"] = "numbers"
    shape: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] | None = None
    """Shape of a sample, where the column has flat lists of a tensor's values. Default: as the column says."""
    nan: Literal["refuse", "unobserved"] = "refuse"
    """What NaN means, and null within a list. `unobserved`: the row has no value of the modality. Null in the place of
    a whole value always says so; infinity is always refused."""
