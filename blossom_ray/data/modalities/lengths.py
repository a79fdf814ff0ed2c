"""What is kept of a sample that is too long, and where one that is too short stands among its padding."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

Keep = Literal["start", "middle", "end"]
Number = TypeVar("Number", bound=np.generic)


def first_kept(found: int, length: int, keep: Keep) -> int:
    """Where the part that is kept begins; below 0 where it begins with padding.

    Args:
        found: Length that there is.
        length: Length asked for.
        keep: Which part. `middle` leaves out, or adds, as much on both sides; an odd one more behind or in front.
    """
    return {"start": 0, "middle": (found - length) // 2, "end": found - length}[keep]


def fitted(values: npt.NDArray[Number], length: int, keep: Keep, fill: float = 0) -> npt.NDArray[Number]:
    """Values (n, ...) cut or padded along their first axis to (length, ...), in memory of their own."""
    begin = first_kept(len(values), length, keep)
    part = values[max(0, begin) :][:length]
    result = np.full((length, *values.shape[1:]), fill, values.dtype)
    result[max(0, -begin) :][: len(part)] = part
    return result
