"""What a kind of modality is: options that a scenario gives, and a decoder from a value of a column to a sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from blossom_ray.core.section import Finding, Rate, Section, plain_tree
from blossom_ray.data.modalities.features import Features
from blossom_ray.errors import DataError

ColumnNames = Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
MediaValue = bytes | str
"""What stands in a column: the content of a file, or a text."""


def each_once(columns: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """Refuse columns of which one is named twice."""
    if isinstance(columns, tuple) and len(set(columns)) < len(columns):
        raise ValueError("each column once")
    return columns


class UndecodableError(DataError):
    """A value that is no sample of its kind: `<what was found>; expected <what>`, without its place."""


def beginning_of(start: bytes) -> str:
    """Words for the first bytes of what is no file of the format that was expected."""
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in the place of its content (git lfs pull fetches it)"
    if b"/annex/objects/" in start[:100]:
        return "is a pointer of git-annex in the place of its content (git annex get fetches it)"
    return f"begins with {start[:6]!r}" if start else "is empty"


class Decoder(Protocol):
    """From one value to one sample. Called by several threads at once; takes memory in proportion to the sample.

    Attributes:
        shape: Of every sample.
        dtype: As samples are kept on disk: uint8, int32 or float32.
        factor: A kept number times this is the float32 number that a model gets.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def factor(self) -> float: ...

    def __call__(self, value: MediaValue) -> npt.NDArray[Any]:
        """The sample (*shape) of `dtype`; raises `UndecodableError` where the value is none."""


class KnownScale(Section):
    """A mean and a deviation that do not follow from the data, such as those that a frozen model was trained with."""

    mean: Annotated[
        tuple[Annotated[float, Field(ge=-1e38, le=1e38, allow_inf_nan=False)], ...], Field(strict=False, min_length=1)
    ]
    """What is taken from each channel; one number: from all of them."""
    deviation: Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)]
    """What each channel is then divided by; one number: all of them."""


class Scaling(Section):
    """How a modality is brought to one scale, by the training rows of clients; other rows go along.

    By channel: each feature of a vector, the last dimension of a sequence, the first of an image. A constant channel
    becomes 0.
    """

    scale: Literal["none", "standard", "minmax"] | KnownScale = "none"
    """`standard`: mean 0 and deviation 1. `minmax`: from 0 to 1, and beyond where other rows are. `{mean: [0.13],
    deviation: [0.31]}`: by these numbers, whatever the rows are."""
    over: Literal["client", "all"] = "client"
    """Whose training rows. `client`: each client's own, and what is found in them stays with it. `all`: those of all
    clients that train, and what is found in them is known to all."""

    @property
    def are_amounts(self) -> bool:
        """Whether its numbers are amounts of something, which can be scaled; numbers of words are not."""
        return True

    def conflicts(self) -> Iterator[Finding]:
        """As `Section`."""
        if self.scale != "none" and not self.are_amounts:
            yield Finding("scale", f"is {self._told}, while the numbers of words are no amounts", "'none'")
        if not (self.scale in ("standard", "minmax") or self.over == "client"):
            yield Finding("over", f"is {self.over!r}, while scale is {self._told}", "no over, or a scale")

    @property
    def _told(self) -> str:
        return "known" if isinstance(self.scale, KnownScale) else repr(self.scale)

    @property
    def is_apart(self) -> bool:
        """Whether each client has a scale of its own."""
        return self.scale in ("standard", "minmax") and self.over == "client"


class Modality(Scaling):
    """Where a modality stands in a table."""

    kind: str
    column: ColumnNames | None = None
    """The column, or several columns of plain numbers that make up a vector. Default: the modality's name."""

    _columns = field_validator("column")(each_once)

    def columns(self, name: str) -> tuple[str, ...]:
        """Its columns, where this is its name."""
        column = self.column or name
        return (column,) if isinstance(column, str) else column


class Media(Modality):
    """A modality whose values are decoded: contents of files, or texts."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The distributions that decode: of another version they may give other numbers."""
    is_text: ClassVar[bool] = False
    """Whether a column's text is the value itself, not the path of a file."""

    on_error: Literal["refuse", "drop"] = "refuse"
    """What a value does that cannot be decoded: `refuse` ends the run and names its row, `drop` leaves the row out and
    counts it."""
    features: Features | None = None
    """A frozen model that the samples pass once; what it gives is the modality. null: the samples are."""

    @field_validator("column")
    @classmethod
    def _one_column(cls, columns: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(columns, tuple) and len(columns) > 1:
            raise ValueError("one column")
        return columns

    @abstractmethod
    def decoder(self) -> Decoder:
        """The decoder that these options describe.

        Raises:
            DataError: A library that it needs is not installed, with the extra that brings it.
        """

    @abstractmethod
    def version(self) -> int:
        """A number that is raised when the same value with the same options decodes to other numbers."""

    def key(self) -> dict[str, object]:
        """What a sample follows from besides its value, as JSON has it: the key of what is kept of it."""
        own = {key: value for key, value in plain_tree(self, defaults=True).items() if key not in Media.model_fields}
        libraries = {name: metadata.version(name) for name in self.libraries}
        return {**own, "kind": self.kind, "version": self.version(), "libraries": libraries}
