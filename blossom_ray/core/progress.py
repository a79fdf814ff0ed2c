"""How far something is that takes a while: `tracked` and `tell` say it, `listening` hears it, to show a bar or a line.

Who says it does not know whether anybody hears it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]
"""Called with what is being done, the number of items done and that of all items, 0 where they are not counted."""

_listener: ContextVar[Listener | None] = ContextVar("blossom_ray_progress", default=None)


def tracked(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one by one, while a listener is told how many are done.

    Args:
        items: What a loop works through.
        what: What is being done, such as `decoding records`.
    """
    for done, item in enumerate(items):
        tell(what, done, len(items))
        yield item
    tell(what, len(items), len(items))


def tell(what: str, done: int = 0, total: int = 0) -> None:
    """Tell a listener, if there is one, what is being done and how many of all items are."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear of the progress of what is done inside, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
