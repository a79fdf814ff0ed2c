"""Series of irregular length: numbers over time, brought to one length, or cut into windows of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from blossom_ray.core.section import Finding, Positive, Probability, Section
from blossom_ray.data.modalities.base import Modality
from blossom_ray.data.modalities.lengths import Keep, fitted

_IntArray = npt.NDArray[np.int64]


class Windows(Section):
    """How a series is cut into windows, each of which is a sample. What is left at its end is left out."""

    length: Positive
    """Values in time of a window. A series that is shorter makes one, which is filled up."""
    overlap: Probability = 0.0
    """Part of itself that a window has in common with the next one of its series."""

    @property
    def step(self) -> int:
        """Values in time from the begin of a window to that of the next one: length * (1 - overlap), rounded."""
        return max(1, round(self.length * (1 - self.overlap)))

    @property
    def common(self) -> float:
        """The part that two neighbours have in common, as rounded."""
        return 1 - self.step / self.length


class SeriesModality(Modality):
    """Numbers over time, in rows of different lengths: lists of numbers, or of lists (time, channels).

    Samples are (time, channels). Several columns with lists of numbers are the channels of one series.
    """

    kind: Literal["series"]
    length: Positive | None = None
    """Values in time of a sample: longer series are cut, shorter ones filled up. Or else `windows`."""
    keep: Keep = "start"
    """Which part of a longer series is kept, and where a shorter one stands among what fills it up."""
    pad: Annotated[float, Field(ge=-1e38, le=1e38, allow_inf_nan=False)] = 0.0
    """The value that fills up."""
    windows: Windows | None = None
    """Each row becomes as many samples as its series has windows, with the row's labels, subject, client, split and
    other modalities. `split: recording` puts the windows of a row on one side."""

    def conflicts(self) -> Iterator[Finding]:
        yield from super().conflicts()
        if (self.length is None) == (self.windows is None):
            found = "is missing, as is windows" if self.length is None else f"is {self.length}, beside windows"
            yield Finding("length", found, "one of length and windows")

    @property
    def num_steps(self) -> int:
        """Values in time of a sample."""
        if self.windows is not None:
            return self.windows.length
        assert self.length is not None, "one of the two is given"
        return self.length

    def num_samples(self, lengths: _IntArray) -> _IntArray:
        """How many samples series of these lengths (N,) make."""
        if self.windows is None:
            return np.ones_like(lengths)
        return 1 + np.maximum(0, lengths - self.windows.length) // self.windows.step

    def cut(self, values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], _IntArray]:
        """What is kept of a series, and where in it samples begin.

        Args:
            values: (time, channels).

        Returns:
            (T, channels), T >= `num_steps`; and (n,): each sample is the `num_steps` values from there.
        """
        if self.windows is None or len(values) < self.windows.length:
            return fitted(values, self.num_steps, self.keep, self.pad), np.zeros(1, np.int64)
        number = 1 + (len(values) - self.windows.length) // self.windows.step
        return values, np.arange(number) * self.windows.step
