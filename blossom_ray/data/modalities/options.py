"""Which kinds of modality there are. A new one is a file in this folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.modalities.image import ImageModality
from blossom_ray.data.modalities.numbers import NumbersModality
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.modalities.text import TextModality
from blossom_ray.errors import InputError


def _kind_of(value: Any) -> str:
    """The kind of a section, or of what is to become one: `numbers` where it does not say."""
    kind = value.get("kind", "numbers") if isinstance(value, Mapping) else getattr(value, "kind", "numbers")
    return str(kind)


AnyModality = Annotated[
    Annotated[NumbersModality, Tag("numbers")]
    | Annotated[ImageModality, Tag("image")]
    | Annotated[AudioModality, Tag("audio")]
    | Annotated[TextModality, Tag("text")]
    | Annotated[SeriesModality, Tag("series")],
    Discriminator(_kind_of),
]


def known_shapes(modalities: Mapping[str, AnyModality]) -> dict[str, tuple[int, ...]]:
    """Shape of a sample, of those of some modalities whose options say it; a library that is missing here says none."""
    found = {}
    for name, own in modalities.items():
        if isinstance(own, Media) and own.features is None:
            with suppress(InputError):
                found[name] = own.decoder().shape
    return found
