"""What an algorithm adds to the model, for one kind of client: which arrays there are, whose they are, first values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from blossom_ray.algorithms.seam import MODEL, Extra, Layout, has
from blossom_ray.core.blocks import NO_BLOCK, BlockInstance, ClientProfile, Scope, SharingScheme, scope_key
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, shown_error

_SCOPES = ("private", "shared", "same-modalities", "same-task", "group", "server", "client", "drawn")
_INITIAL, _DRAWN = ("initial", "received", "seeded"), ("uniform", "normal")
_TAKEN = (MODEL, "received")


@dataclass(frozen=True)
class ExtraPart:
    """One array of an algorithm's extra: of one block, or the only one.

    Attributes:
        instance: Which one it is; its copy is the extra's name.
        shape: Its shape.
        initial: Its first values, as `Extra.initial` has them.
        is_copy: Whether it is shaped as the block's parameters are, and so is part of a copy of the model.
        has_statistics: Whether running statistics of its own stand behind these.
    """

    instance: BlockInstance
    shape: tuple[int, ...]
    initial: float | str
    is_copy: bool
    has_statistics: bool = False

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def is_sent(self) -> bool:
        """Whether the server sends it to clients."""
        return self.instance.scope not in (Scope.PRIVATE, Scope.SERVER, Scope.DRAWN)

    @property
    def is_returned(self) -> bool:
        """Whether clients may send something for it."""
        return self.instance.scope not in (Scope.PRIVATE, Scope.DRAWN)

    @property
    def is_on_server(self) -> bool:
        """Whether the server has a value of it."""
        return self.is_returned

    def of(self, client: ClientProfile) -> ExtraPart:
        """The same part of another client of its kind.

        What the server has for each client, it has not for one that never trains: that one holds the first value.
        """
        if client.is_unseen and self.instance.scope is Scope.CLIENT:
            return replace(self, instance=self.instance._replace(scope=Scope.PRIVATE, key=str(client.index)))
        if self.instance.scope not in (Scope.PRIVATE, Scope.CLIENT, Scope.DRAWN):
            return self
        return replace(self, instance=self.instance._replace(key=str(client.index)))


def declared_parts(
    algorithm: Any, layout: Layout, client: ClientProfile, scheme: SharingScheme
) -> tuple[ExtraPart, ...]:
    """All parts of the extras that an algorithm declares for clients of one kind; a copy of no blocks has none.

    Args:
        algorithm: An `Algorithm`.
        layout: What clients of this kind have.
        client: One of them.
        scheme: The sharing scheme.

    Raises:
        InputError: It declares what cannot be; one line says what.
    """
    try:
        declared = algorithm.extras(layout) if has(algorithm, "extras") else {}
    except BlossomError:
        raise
    except OWN_CODE_RAISES as error:
        raise InputError(f"algorithm: extras raised {shown_error(error)}") from error
    if not isinstance(declared, Mapping):
        raise InputError(f"algorithm: extras gave {type(declared).__name__}; expected a dict of Extra by name")
    return tuple(part for name, extra in declared.items() for part in _parts(name, extra, layout, client, scheme))


def declared_copies(algorithm: Any, layout: Layout) -> tuple[str, ...]:
    """The names of the extras that follow blocks, be there blocks of theirs or none."""
    declared = algorithm.extras(layout) if has(algorithm, "extras") else {}
    return tuple(name for name, extra in declared.items() if extra.blocks is not None)


def _parts(name: str, extra: Extra, layout: Layout, client: ClientProfile, scheme: SharingScheme) -> list[ExtraPart]:
    where = f"algorithm: extra {name!r}"
    if not isinstance(name, str) or not re.fullmatch(r"[\w./ -]+", name) or name in _TAKEN:
        raise InputError(f"{where}: expected a name of letters and digits that is none of {', '.join(_TAKEN)}")
    if not isinstance(extra, Extra):
        raise InputError(f"{where} is {type(extra).__name__}; expected an Extra")
    if isinstance(extra.blocks, str):
        raise InputError(f"{where} has the text {extra.blocks!r} for blocks; expected a tuple of names")
    if unknown := sorted(set(extra.blocks or ()) - layout.sizes.keys()):
        known = ", ".join(layout.sizes)
        raise InputError(f"{where} names {', '.join(unknown)}; expected blocks of the model: {known}")
    if extra.scope not in ("", *_SCOPES):
        raise InputError(f"{where} has scope {extra.scope!r}; expected one of {', '.join(_SCOPES)}, or none")
    is_drawn = extra.scope == "drawn"
    has_shape = extra.shape is not None
    if isinstance(extra.initial, str) and extra.initial not in (_DRAWN if is_drawn else _INITIAL + _DRAWN * has_shape):
        expected = ", ".join(_DRAWN if is_drawn else ("a number", *(_DRAWN if has_shape else _INITIAL)))
        raise InputError(f"{where} has initial {extra.initial!r}; expected {expected}")
    if not isinstance(extra.initial, str) and (is_drawn or not math.isfinite(extra.initial)):
        raise InputError(f"{where} has initial {extra.initial!r}; expected {', '.join(_DRAWN)} of what is drawn")
    if extra.initial in _INITIAL and has_shape:
        expected = ", ".join(("a number", *_DRAWN))
        raise InputError(f"{where} has initial {extra.initial!r} and a shape of its own; expected {expected}")
    if extra.blocks is None and extra.shape is None:
        raise InputError(f"{where} has neither blocks nor shape; expected one of them")
    if extra.with_statistics and (extra.blocks is None or has_shape):
        raise InputError(f"{where} has statistics and a shape of its own; expected blocks alone")
    own: Any = extra.shape if has_shape else ()
    if not isinstance(own, tuple | list) or not all(isinstance(size, Integral) and int(size) >= 0 for size in own):
        raise InputError(f"{where} has shape {own!r}; expected a tuple of whole numbers from 0")
    blocks = [NO_BLOCK] if extra.blocks is None else [block for block in layout.sizes if block in extra.blocks]
    parts = []
    for block in blocks:
        shape = tuple(map(int, own)) if has_shape else (layout.sizes[block],)
        instance = _instance(name, block, extra.scope, client, scheme)
        if instance.scope is Scope.FROZEN:
            raise InputError(f"{where} follows {block}, which is frozen; expected another scope, or none of it")
        is_copy = extra.shape is None
        parts.append(ExtraPart(instance, shape, extra.initial, is_copy, has_statistics=extra.with_statistics))
    return parts


def _instance(name: str, block: Any, scope: str, client: ClientProfile, scheme: SharingScheme) -> BlockInstance:
    of_block = scheme.instance(block, client) if block else BlockInstance(block, Scope.SHARED)
    if not scope:
        return of_block._replace(copy=name)
    if scope == "server":  # beside its block, and nobody's own
        return BlockInstance(block, Scope.SERVER, "" if of_block.is_private else of_block.key, name)
    # Without `tasks`, all clients have the same.
    own = Scope.SHARED if scope == Scope.SAME_TASK and not client.task_set else Scope(scope)
    return BlockInstance(block, own, scope_key(own, client), name)
