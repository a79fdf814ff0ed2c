"""Blocks and who holds them: blocks, scopes, block instances, sharing schemes.

Nothing here knows about tensors. `models/flat.py` binds a block to its vector; everything that averages, counts or
reports works on `BlockInstance` and never asks which scheme it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Literal, NamedTuple, Self, get_args

BlockKind = Literal["encoder", "fusion", "head", "prototype", "statistics", "average", ""]
ScopeName = Literal["shared", "same-modalities", "same-task", "same-modalities+same-task", "group", "private", "frozen"]
SchemeName = Literal["full-model", "private-head", "private-head-fusion", "local", "central", "central-per-task"]
SCHEME_NAMES: tuple[SchemeName, ...] = get_args(SchemeName)
CENTRAL: SchemeName = "central"
CENTRAL_PER_TASK: SchemeName = "central-per-task"
CENTRAL_SCHEMES = (CENTRAL, CENTRAL_PER_TASK)
"""The schemes without clients that train: one model for all, or for each task, trained where all samples are."""


class Block(str):
    """A unit of sharing, which is its own name: `encoder/<modality>`, `fusion`, `head`, `prototype/<modality>`.

    In a scenario with `tasks` there is a head for each of them, `head/<task>`, and where clients of the same task alone
    share a fusion a `fusion/<task>`.

    It is equal to that text, sorts, hashes and is written as it; what it is stands beside the text, which nobody takes
    apart but `named`.

    Args:
        kind: What it is. A `prototype`, measured and not trained, stands for a missing modality's embedding;
            `statistics` are a block's running statistics where each modality set has its own, `average` the mean of a
            private block for clients that never train. "" is no block, but the place of a single array of an algorithm.
        of: The modality, of a head and such a fusion the task, of `statistics` and `average` the block; "" where there
            is one block of its kind.
    """

    __slots__ = ("kind", "of")
    kind: BlockKind
    of: str

    def __new__(cls, kind: BlockKind, of: str = "") -> Self:  # noqa: D102  # see above
        block = super().__new__(cls, f"{kind}/{of}" if of else kind)
        block.kind, block.of = kind, of
        return block

    @classmethod
    def named(cls, name: str) -> Self:
        """The block of a name from a scenario or a file, or a block itself; its kind may be none of ours."""
        if isinstance(name, cls):
            return name
        kind, _, of = name.partition("/")
        return cls(kind, of)  # type: ignore[arg-type]  # see above

    def __reduce__(self) -> tuple[object, ...]:
        return Block, (self.kind, self.of)


FUSION, HEAD = Block("fusion"), Block("head")
NO_BLOCK = Block("")
ANY_ENCODER = Block("encoder", "*")
ANY_FUSION = Block("fusion", "*")


class Scope(StrEnum):
    """The set of clients that hold one common copy of a block."""

    SHARED = "shared"
    SAME_MODALITIES = "same-modalities"
    SAME_TASK = "same-task"
    SAME_MODALITIES_AND_TASK = "same-modalities+same-task"
    GROUP = "group"
    PRIVATE = "private"
    FROZEN = "frozen"
    # Of what an algorithm adds alone: nobody holds it but the server; one on the server for each client; fresh numbers.
    SERVER = "server"
    CLIENT = "client"
    DRAWN = "drawn"

    # An enumeration's own hash is a Python function; block instances are keys of every client's bookkeeping.
    __hash__ = str.__hash__


def sorted_scope(name: object) -> object:
    """A scope as a scenario writes it, with the parts of a composed one in sorted order; anything else as it is."""
    return "+".join(sorted(name.split("+"))) if isinstance(name, str) else name


def model_blocks(
    modalities: Iterable[str], tasks: Iterable[str] = ("",), fusions: Iterable[str] = ("",)
) -> tuple[Block, ...]:
    """The blocks of a model over these modalities: encoders in sorted order, fusions, and a head for each task.

    Args:
        modalities: The modalities.
        tasks: The tasks.
        fusions: Those of them that have a fusion each; "" is one for all.
    """
    encoders = (Block("encoder", modality) for modality in sorted(modalities))
    return (*encoders, *(Block("fusion", task) for task in fusions), *(Block("head", task) for task in tasks))


def held_blocks(
    owned: Iterable[str],
    modalities: Iterable[str],
    missing: str,
    sparse: Iterable[str] = (),
    tasks: Iterable[str] = ("",),
    fusions: Iterable[str] = ("",),
) -> tuple[Block, ...]:
    """The names of the blocks that a client's model has.

    Encoders of all modalities under `zero-input`, else of those that it owns, in sorted order; fusions and heads; under
    `prototype` the prototypes of the others, and of those that samples of owners may lack, `sparse`.

    Raises:
        ValueError: `owned` is empty, or holds a modality that is not one of `modalities`.
    """
    owned, modalities = set(owned), set(modalities)
    if not owned or not owned <= modalities:
        found, known = ", ".join(sorted(owned)) or "none", ", ".join(sorted(modalities))
        raise ValueError(f"owned modalities are {found}; expected one or more of {known}")
    names = model_blocks(modalities if missing == "zero-input" else owned, tasks, fusions)
    if missing == "prototype":
        lacked = modalities - (owned - set(sparse))
        names += tuple(Block("prototype", modality) for modality in sorted(lacked))
    return names


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """What decides which block instances a client holds.

    Attributes:
        index: The client's id, 0..N-1 in the order of the scenario's `clients` section.
        modalities: The modalities that it owns, sorted.
        group: The label of its client group, "" when it has none.
        is_unseen: Whether it never trains, and is only scored.
        tasks: The names of its tasks, sorted; "" is the only one in a scenario without `tasks`.
    """

    index: int
    modalities: tuple[str, ...]
    group: str = ""
    is_unseen: bool = False
    tasks: tuple[str, ...] = ("",)

    @property
    def modality_set(self) -> str:
        """The modality set as one word, such as `acc+gyro`."""
        return "+".join(self.modalities)

    @property
    def task_set(self) -> str:
        """Its tasks as one word, such as `activity+who`; "" in a scenario without `tasks`."""
        return "+".join(self.tasks)

    @property
    def signature(self) -> Signature:
        """What it has in common with the clients that hold the same block instances, but for their own ones."""
        return Signature(self.modalities, self.group, self.tasks)


class Signature(NamedTuple):
    """A kind of clients: modality set, group and tasks."""

    modalities: tuple[str, ...]
    group: str = ""
    tasks: tuple[str, ...] = ("",)


class BlockInstance(NamedTuple):
    """One instance of a block: its name, the key of its scope, and of which copy of the model it is.

    The key is "" for a `shared` or `frozen` block, the modality set (`acc+gyro`) for `same-modalities`, the task's name
    for `same-task`, both with a slash between for `same-modalities+same-task`, the group's label for `group` (with the
    modality set behind a slash where it is about statistics), and the client's id for `private` and `client`. The copy
    is "" for the model itself, else the name of what an algorithm adds to it.
    """

    name: Block
    scope: Scope
    key: str = ""
    copy: str = ""

    @classmethod
    def of_column(cls, label: str, scope: str, key: str) -> BlockInstance:
        """The instance that a table has under `label`, its scope and its key."""
        copy, _, name = label.rpartition(":")
        return cls(Block.named(name), Scope(scope), key, copy)

    @property
    def is_private(self) -> bool:
        """Whether one client alone holds it: it is never sent and never averaged."""
        return self.scope is Scope.PRIVATE

    @property
    def is_trained(self) -> bool:
        """Whether clients train it."""
        return self.scope is not Scope.FROZEN

    @property
    def together(self) -> BlockInstance:
        """What stands for all clients' own instances in plans and tables; otherwise the instance itself."""
        return self._replace(key="") if self.scope in (Scope.PRIVATE, Scope.CLIENT) else self

    @property
    def label(self) -> str:
        """Its name in tables: that of the block, with the copy before it where it is not the model's."""
        return f"{self.copy}:{self.name}" if self.copy else self.name

    def statistics(self, client: ClientProfile) -> BlockInstance:
        """The running statistics of this copy that `client` shares with those of its own modality set."""
        statistics = Block("statistics", self.name)
        if self.scope is Scope.GROUP:
            return BlockInstance(statistics, Scope.GROUP, f"{self.key}/{client.modality_set}")
        is_of_task = self.scope in (Scope.SAME_TASK, Scope.SAME_MODALITIES_AND_TASK)
        scope = Scope.SAME_MODALITIES_AND_TASK if is_of_task else Scope.SAME_MODALITIES
        return BlockInstance(statistics, scope, scope_key(scope, client))

    def average(self, client: ClientProfile) -> BlockInstance:
        """The mean of this private block over the clients that train and are of the kind of `client`."""
        average = Block("average", self.name)
        of_task = Scope.SAME_MODALITIES_AND_TASK if client.task_set else Scope.SAME_MODALITIES
        key = "/".join(filter(None, (client.group, client.modality_set, client.task_set)))
        return BlockInstance(average, Scope.GROUP if client.group else of_task, key)

    def __str__(self) -> str:
        name = self.label.removesuffix(":")
        if not self.key:
            return name
        is_one_clients = self.scope in (Scope.PRIVATE, Scope.CLIENT)
        return f"{name}[client {self.key}]" if is_one_clients else f"{name}[{self.key}]"


_NAMED: dict[str, dict[str, Scope]] = {
    "full-model": {ANY_ENCODER: Scope.SHARED, FUSION: Scope.SHARED, HEAD: Scope.SHARED},
    "private-head": {ANY_ENCODER: Scope.SHARED, FUSION: Scope.SHARED, HEAD: Scope.PRIVATE},
    "private-head-fusion": {ANY_ENCODER: Scope.SHARED, FUSION: Scope.PRIVATE, HEAD: Scope.PRIVATE},
    "local": {ANY_ENCODER: Scope.PRIVATE, FUSION: Scope.PRIVATE, HEAD: Scope.PRIVATE},
    CENTRAL: {ANY_ENCODER: Scope.SHARED, FUSION: Scope.SHARED, HEAD: Scope.SHARED},
    CENTRAL_PER_TASK: {ANY_ENCODER: Scope.SAME_TASK, FUSION: Scope.SAME_TASK, HEAD: Scope.SHARED},
}


@dataclass(frozen=True)
class SharingScheme:
    """The scope of every block.

    Attributes:
        scopes: Scope by block name. `encoder/*` stands for every encoder that has no entry of its own, `fusion/*` for
            the fusion of every task.
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

    def with_frozen(self, blocks: Iterable[Block]) -> SharingScheme:
        """The scheme in which nobody trains these blocks."""
        frozen: dict[str, Scope] = dict.fromkeys(blocks, Scope.FROZEN)
        kept = {name: scope for name, scope in self.scopes.items() if Block.named(name).kind not in frozen}
        return SharingScheme({**kept, **frozen}) if frozen else self

    def scope(self, block: str) -> Scope:
        """The scope of a block. A prototype is shared under every scheme: it is there for those who lack the modality.

        The head and the fusion of a task have the scope of `head` and `fusion`, less that their clients have the same
        task.

        Raises:
            KeyError: The scheme says nothing about this block.
        """
        named = Block.named(block)
        if named.kind in ("head", "fusion") and named.of not in ("", "*"):
            scope = self.scopes[
                next(name for name in (block, Block(named.kind, "*"), named.kind) if name in self.scopes)
            ]
            return _WITHIN_TASK.get(scope, scope)
        if block in self.scopes:
            return self.scopes[block]
        if (kind := named.kind) == "encoder":
            return self.scopes[ANY_ENCODER]
        if kind == "prototype":
            return Scope.SHARED
        if kind == "fusion" and ANY_FUSION in self.scopes:
            return self.scopes[ANY_FUSION]
        raise KeyError(block)

    def fusions(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """The tasks of a client that have a fusion of their own; "" alone where there is one for all."""
        return tuple(tasks) if self._has_fusions_by_task else ("",)

    @cached_property
    def _has_fusions_by_task(self) -> bool:
        entries = ((Block.named(name), scope) for name, scope in self.scopes.items())
        return any(block.kind == "fusion" and bool(block.of or scope in _WITHIN_TASK) for block, scope in entries)

    def instance(self, block: str, client: ClientProfile) -> BlockInstance:
        """The copy of `block` that `client` holds."""
        scope = self.scope(block)
        return BlockInstance(Block.named(block), scope, scope_key(scope, client))


def scope_key(scope: Scope, client: ClientProfile) -> str:
    """The key of the instances that a client holds in a scope."""
    match scope:
        case Scope.SAME_MODALITIES:
            return client.modality_set
        case Scope.SAME_TASK:
            return client.task_set
        case Scope.SAME_MODALITIES_AND_TASK:
            return f"{client.modality_set}/{client.task_set}"
        case Scope.GROUP:
            return client.group
        case Scope.PRIVATE | Scope.CLIENT | Scope.DRAWN:
            return str(client.index)
        case _:
            return ""


_WITHIN_TASK = {Scope.SAME_TASK: Scope.SHARED, Scope.SAME_MODALITIES_AND_TASK: Scope.SAME_MODALITIES}


def _scheme_from_items(items: tuple[tuple[str, str], ...]) -> SharingScheme:
    return SharingScheme.of(dict(items))
