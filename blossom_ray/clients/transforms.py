"""The `training.transform` section: augmentation, what becomes of a batch before a client trains on it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from blossom_ray.core.factories import call_factory, shown_factory
from blossom_ray.core.phrases import shown
from blossom_ray.core.section import Custom, Finding, Fraction, Probability, Rate, Section
from blossom_ray.errors import OWN_CODE_RAISES, InputError, shown_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_WHERE = "training.transform"
Shape = tuple[int, ...]
"""Of one sample, without the batch."""
Transformation: TypeAlias = "Callable[[Tensor, torch.Generator], Tensor]"
"""From (B, *shape) float32, not modified, to the same shape; what is random is drawn from the generator."""


class _Transform(Section):
    num_axes: ClassVar[int | None] = None
    """Axes of the samples that it takes: 2 for sequences, 3 for images; None: any."""
    if TYPE_CHECKING:
        kind: str

    def misfits(self, shape: Shape, modality: str) -> Iterator[Finding]:
        """Why it does not take samples of this shape."""
        if self.num_axes not in (None, len(shape)):
            expected = {2: "a sequence (time, features)", 3: "an image (channels, height, width)"}[self.num_axes or 2]
            found = f"{shown(self.kind)}, while the samples of {modality} have shape {list(shape)}"
            yield Finding("kind", found, f"{self.kind!r} for {expected}, or another kind")

    def build(self, shape: Shape, modality: str) -> Transformation:
        """The function of a batch.

        Raises:
            InputError: It does not take such samples.
        """
        for path, found, expected in self.misfits(shape, modality):
            raise InputError(f"{_WHERE}.{modality}.{path} {found}; expected {expected}")
        return self._transformed

    @abstractmethod
    def _transformed(self, batch: Tensor, draw: torch.Generator) -> Tensor: ...


class Noise(_Transform):
    """Gaussian noise is added to each value ("jittering" in Um et al. 2017)."""

    kind: Literal["noise"]
    std: Rate = 0.05
    """Its standard deviation, in the unit of the data."""

    def _transformed(self, batch: Tensor, draw: torch.Generator) -> Tensor:
        import torch

        return batch + self.std * torch.randn(batch.shape, generator=draw, device=batch.device)


class Scale(_Transform):
    """Each sample is multiplied by a factor of its own, normal around 1 ("scaling" in Um et al. 2017)."""

    kind: Literal["scale"]
    std: Rate = 0.1
    """The factor's standard deviation."""

    def _transformed(self, batch: Tensor, draw: torch.Generator) -> Tensor:
        import torch

        return batch * (1 + self.std * torch.randn(_one_each(batch), generator=draw, device=batch.device))


class Flip(_Transform):
    """Some samples are mirrored, left to right. Images."""

    num_axes: ClassVar[int | None] = 3

    kind: Literal["flip"]
    probability: Fraction = 0.5
    """Probability of each sample."""

    def _transformed(self, batch: Tensor, draw: torch.Generator) -> Tensor:
        import torch

        is_flipped = torch.rand(_one_each(batch), generator=draw, device=batch.device) < self.probability
        return torch.where(is_flipped, batch.flip(-1), batch)


class TimeMask(_Transform):
    """A stretch of each sample is set to 0, all features of it (Park et al. 2019). Sequences."""

    num_axes: ClassVar[int | None] = 2

    kind: Literal["time-mask"]
    fraction: Probability = 0.2
    """Its largest length, as a part of the sample's. Each length from 0 on is as likely, and so is each place."""

    def _transformed(self, batch: Tensor, draw: torch.Generator) -> Tensor:
        import torch

        num_steps = batch.shape[1]
        numbers = torch.rand(2, *_one_each(batch), generator=draw, device=batch.device)
        length = (numbers[0] * (int(self.fraction * num_steps) + 1)).floor()
        start = (numbers[1] * (num_steps - length + 1)).floor()
        steps = torch.arange(num_steps, device=batch.device).view(1, -1, 1)
        return batch.masked_fill((steps >= start) & (steps < start + length), 0)


class CustomTransform(Custom):
    """Own transform: `factory(**options)` gives a function of a batch (B, *shape) and a `torch.Generator`."""

    def misfits(self, *_: object) -> Iterator[Finding]:
        """None that could be seen from outside; `build` tries it."""
        return iter(())

    def build(self, shape: Shape, modality: str) -> Transformation:
        """The factory's function, whose results are checked, tried on two samples.

        Raises:
            InputError: The factory cannot be found or raises; the function raises, gives something else than a batch,
                or what it draws comes from elsewhere than its generator.
        """
        import torch

        from blossom_ray.models.own_code import torch_seeded

        where = f"{_WHERE}.{modality}"
        with torch_seeded(0):  # what the factory draws is the same in every process
            own, name = call_factory(self, where), f"{where} ({shown_factory(self)})"
        if not callable(own):
            raise InputError(f"{where}.factory returned {type(own).__name__}; expected a function of batch, generator")

        @torch.no_grad()
        def checked(batch: Tensor, draw: torch.Generator) -> Tensor:
            given = batch.clone()  # own code may work in place, or give a view of it
            found = own(given, draw)
            expected = f"; expected a {batch.dtype} tensor of shape {tuple(batch.shape)} on {batch.device}"
            if not isinstance(found, torch.Tensor):
                raise InputError(f"{name}: the batch becomes {type(found).__name__}{expected}")
            if (found.shape, found.dtype, found.device) != (batch.shape, batch.dtype, batch.device):
                became = f"{found.dtype} of shape {tuple(found.shape)} on {found.device}"
                raise InputError(f"{name}: the batch becomes {became}{expected}")
            return found

        batch = torch.linspace(-1, 1, 2).view(2, *[1] * len(shape)).repeat(1, *shape)
        try:
            first, second = (checked(batch, torch.Generator().manual_seed(0)) for _ in range(2))
        except InputError:
            raise
        except OWN_CODE_RAISES as error:
            cause = shown_error(error)
            raise InputError(f"{name}: raised on a batch of shape {tuple(batch.shape)}: {cause}") from error
        if not torch.equal(first, second):
            raise InputError(f"{name}: draws other numbers with the same seed; expected the generator that it is given")
        return checked


Transform = Annotated[Noise | Scale | Flip | TimeMask | CustomTransform, Field(discriminator="kind")]


def build_transforms(
    sections: Mapping[str, Transform], shapes: Mapping[str, Shape], owned: Sequence[str]
) -> dict[str, Transformation]:
    """The transforms of the modalities that a client owns, in the order in which they draw.

    Args:
        sections: The scenario's `training.transform` section.
        shapes: Shape of one sample by modality.
        owned: The client's modalities.

    Raises:
        InputError: One does not take such samples, or own code does not do what it should.
    """
    return {name: sections[name].build(shapes[name], name) for name in sorted(sections) if name in owned}


def transformed(
    transforms: Mapping[str, Transformation], inputs: Mapping[str, Tensor], draw: torch.Generator
) -> dict[str, Tensor]:
    """One client's batch by modality after its transforms; a modality that the batch lacks draws nothing."""
    return {**inputs, **{name: change(inputs[name], draw) for name, change in transforms.items() if name in inputs}}


def _one_each(batch: Tensor) -> tuple[int, ...]:
    return (len(batch), *[1] * (batch.ndim - 1))
