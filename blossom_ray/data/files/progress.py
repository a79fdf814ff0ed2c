"""How far a loader is: it says so while it decodes, and whoever started it may listen.

Loaders wrap their loops in `tracked`; `listening` is for the command that shows a bar. Nobody needs to listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]
"""Called with what is being done, the number of items done and the number of all items."""

_listener: ContextVar[Listener | None] = ContextVar("blossom_ray_progress", default=None)


def tracked(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one by one, while a listener is told how many are done.

    Args:
        items: What a loader works through.
        what: What is being done, such as `decoding records`.
    """
    listener = _listener.get()
    for done, item in enumerate(items):
        if listener is not None:
            listener(what, done, len(items))
        yield item
    if listener is not None:
        listener(what, len(items), len(items))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear of the progress of what is loaded inside, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
