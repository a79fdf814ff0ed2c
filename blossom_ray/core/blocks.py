"""Blocks and who holds them: block names, scopes, block instances, sharing schemes.

Nothing here knows about tensors. `models/flat.py` binds a block to its vector; everything that averages, counts or
reports works on `BlockInstance` and never asks which scheme it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

FUSION = "fusion"
HEAD = "head"
ANY_ENCODER = "encoder/*"
CENTRAL = "central"
"""The scheme without clients that train: one model for all, trained where all samples are."""
_ENCODER = "encoder/"
_PROTOTYPE = "prototype/"
_STATISTICS = "statistics/"


class Scope(StrEnum):
    """The set of clients that hold one common copy of a block."""

    SHARED = "shared"
    SAME_MODALITIES = "same-modalities"
    GROUP = "group"
    PRIVATE = "private"
    FROZEN = "frozen"

    # An enumeration's own hash is a Python function; block instances are keys of every client's bookkeeping.
    __hash__ = str.__hash__


def encoder_block(modality: str) -> str:
    """The name of a modality's encoder block: `encoder/<modality>`."""
    return _ENCODER + modality


def is_encoder(block: str) -> bool:
    """Whether a block name is that of an encoder."""
    return block.startswith(_ENCODER)


def prototype_block(modality: str) -> str:
    """The name of the block that stands for a missing modality's embedding: `prototype/<modality>`."""
    return _PROTOTYPE + modality


def is_prototype(block: str) -> bool:
    """Whether a block name is that of a prototype, which is measured and not trained."""
    return block.startswith(_PROTOTYPE)


def statistics_block(block: str) -> str:
    """The name of a block's running statistics where each modality set has its own: `statistics/<block>`."""
    return _STATISTICS + block


def block_names(modalities: Iterable[str]) -> tuple[str, ...]:
    """All blocks of a model over these modalities: the encoders in sorted order, then `fusion`, then `head`."""
    return (*(encoder_block(modality) for modality in sorted(modalities)), FUSION, HEAD)


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """What decides which block instances a client holds.

    Attributes:
        index: The client's id, 0..N-1 in the order of the scenario's `clients` section.
        modalities: The modalities that it owns, sorted.
        group: The label of its client group, "" when it has none.
    """

    index: int
    modalities: tuple[str, ...]
    group: str = ""

    @property
    def modality_set(self) -> str:
        """The modality set as one word, such as `acc+gyro`."""
        return "+".join(self.modalities)


class BlockInstance(NamedTuple):
    """One copy of a block: a name and the key of its scope.

    The key is "" for a `shared` or `frozen` block, the modality set (`acc+gyro`) for `same-modalities`, the group's
    label for `group` (with the modality set behind a slash where it is about statistics), and the client's id for
    `private`.
    """

    name: str
    scope: Scope
    key: str = ""

    @property
    def is_private(self) -> bool:
        """Whether one client alone holds this copy: it is never sent and never averaged."""
        return self.scope is Scope.PRIVATE

    @property
    def is_trained(self) -> bool:
        """Whether clients train this copy."""
        return self.scope is not Scope.FROZEN

    def statistics(self, client: ClientProfile) -> BlockInstance:
        """The running statistics of this copy that `client` shares with those of its own modality set."""
        if self.scope is Scope.GROUP:
            return BlockInstance(statistics_block(self.name), Scope.GROUP, f"{self.key}/{client.modality_set}")
        return BlockInstance(statistics_block(self.name), Scope.SAME_MODALITIES, client.modality_set)

    def __str__(self) -> str:
        if not self.key:
            return self.name
        return f"{self.name}[client {self.key}]" if self.is_private else f"{self.name}[{self.key}]"


_NAMED: dict[str, dict[str, Scope]] = {
    "full-model": {ANY_ENCODER: Scope.SHARED, FUSION: Scope.SHARED, HEAD: Scope.SHARED},
    "private-head": {ANY_ENCODER: Scope.SHARED, FUSION: Scope.SHARED, HEAD: Scope.PRIVATE},
    "private-head-fusion": {ANY_ENCODER: Scope.SHARED, FUSION: Scope.PRIVATE, HEAD: Scope.PRIVATE},
    "local": {ANY_ENCODER: Scope.PRIVATE, FUSION: Scope.PRIVATE, HEAD: Scope.PRIVATE},
    CENTRAL: {ANY_ENCODER: Scope.SHARED, FUSION: Scope.SHARED, HEAD: Scope.SHARED},
}
SCHEME_NAMES = tuple(_NAMED)


@dataclass(frozen=True)
class SharingScheme:
    """The scope of every block.

    Attributes:
        scopes: Scope by block name. `encoder/*` stands for every encoder that has no entry of its own.
            Names match exactly, never by prefix.
    """

    scopes: Mapping[str, Scope]

    @classmethod
    def of(cls, spec: str | Mapping[str, str]) -> SharingScheme:
        """A scheme from its name (`full-model`, `private-head`, ...) or from a map of block name to scope.

        Raises:
            KeyError: No scheme has this name.
            ValueError: A scope is unknown.
        """
        scopes = _NAMED[spec] if isinstance(spec, str) else spec
        return cls(MappingProxyType({name: Scope(scope) for name, scope in scopes.items()}))

    def __reduce__(self) -> tuple[object, ...]:
        return _scheme_from_items, (tuple((name, str(scope)) for name, scope in self.scopes.items()),)

    def scope(self, block: str) -> Scope:
        """The scope of a block. A prototype is shared under every scheme: it is there for those who lack the modality.

        Raises:
            KeyError: The scheme says nothing about this block.
        """
        if block in self.scopes:
            return self.scopes[block]
        if is_encoder(block):
            return self.scopes[ANY_ENCODER]
        if is_prototype(block):
            return Scope.SHARED
        raise KeyError(block)

    def instance(self, block: str, client: ClientProfile) -> BlockInstance:
        """The copy of `block` that `client` holds."""
        scope = self.scope(block)
        key = {
            Scope.SAME_MODALITIES: client.modality_set,
            Scope.GROUP: client.group,
            Scope.PRIVATE: str(client.index),
        }.get(scope, "")
        return BlockInstance(block, scope, key)


def _scheme_from_items(items: tuple[tuple[str, str], ...]) -> SharingScheme:
    return SharingScheme.of(dict(items))
