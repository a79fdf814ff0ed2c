"""The `clients` section: who owns which modalities."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from blossom_ray.core.section import ModalityName, Positive, Section


class ClientGroup(Section):
    """Clients that own the same modalities. Ids are given in the order of the groups."""

    count: Positive
    """Number of clients."""
    modalities: Annotated[tuple[ModalityName, ...], Field(strict=False, min_length=1)]
    """Modalities that each of them owns."""
    group: str = ""
    """Label for blocks of scope `group`: a cluster, a site, a task."""

    @field_validator("modalities")
    @classmethod
    def _once(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modalities)) != len(modalities):
            raise ValueError("each modality once")
        return modalities

    @property
    def modality_set(self) -> str:
        """The modality set as one word, sorted, such as `acc+gyro`."""
        return "+".join(sorted(self.modalities))


Clients = Annotated[tuple[ClientGroup, ...], Field(strict=False, min_length=1)] | Literal["from-data"]
