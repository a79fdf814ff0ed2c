"""Client actors by the hundred on a few cores: they sleep between two calls, and few of them work at a time.

The main thread of a Ray worker looks for signals every 10 ms, which no setting changes: 0.3 to 0.5 % of a core for
each worker that waits. It does not while a method runs. So an actor that has nothing to do is given a method that
waits for a byte, which the driver sends ahead of the next call. The byte takes a socket that only processes of one node
share; on other nodes actors wait as Ray has them wait.

Hundreds that work at the same time would leave Ray's own processes too little: it gives a session up whose control
store does not answer for a minute. So a call waits for its turn.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from blossom_ray.runtime.launcher import is_own

_PATIENCE_S = 1.0
"""How long a call waits for room among the bytes that an actor has not read, some hundreds."""


def new_name() -> str:
    """A name for an actor's bell, of the kind that goes with its process; "" where there is no such kind."""
    return f"\0blossom-ray {os.getuid()} {uuid4().hex}" if sys.platform == "linux" else ""


class Bell:
    """What wakes an actor, on the actor's side.

    Args:
        name: By which the driver finds it.
    """

    def __init__(self, name: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(name)
        self._listener.listen()
        self._driver: socket.socket | None = None

    def wait(self) -> None:
        """Wait until the driver, which has connected, sends its next byte, or is gone."""
        while self._driver is None:
            connection, _ = self._listener.accept()
            if is_own(connection):
                self._driver = connection
            else:
                connection.close()
        self._driver.recv(1)


class Turns:
    """Lets so many actors work at a time.

    Args:
        most: How many.
        some_done: Waits for one of these calls at least; those that are done. None are if they seem to hang: these
            actors no longer count.
    """

    def __init__(self, most: int, some_done: Callable[[list[Any]], Sequence[Any]]) -> None:
        self._most, self._some_done = most, some_done
        self._last: dict[Caller, Any] = {}

    def wait(self, actor: Caller) -> None:
        """Wait until it is an actor's turn, as it is if it works already."""
        if actor in self._last or len(self._last) < self._most:
            return
        done = self._some_done([*self._last.values()])
        self._last = {other: ref for other, ref in self._last.items() if done and ref not in done}

    def begin(self, actor: Caller, ref: Any) -> None:
        """Count an actor until it has done a call."""
        self._last[actor] = ref


class Caller:
    """Calls an actor, and has it sleep in between.

    Args:
        handle: Ray's.
        name: That of its bell; "" for an actor that has none.

    Attributes:
        turns: What calls wait for; None where all actors may work at the same time.
    """

    def __init__(self, handle: Any, name: str = "") -> None:
        self.handle, self._name = handle, name
        self.turns: Turns | None = None
        self._bell: socket.socket | None = None
        self._rests = False

    def call(self, method: str, *arguments: Any, num_returns: int = 1) -> Any:
        """Call a method when it is the actor's turn; what Ray returns: a reference, or a list of several."""
        if self.turns is not None:
            self.turns.wait(self)
        if self._bell is not None and self._rests:
            try:
                self._bell.send(b"1")
            except OSError:  # it has died, as Ray will say, or is slow, with hundreds of calls to come
                self.close()
            self._rests = False
        refs = getattr(self.handle, method).options(num_returns=num_returns).remote(*arguments)
        self.rest()
        if self.turns is not None:
            self.turns.begin(self, refs[0] if isinstance(refs, list) else refs)
        return refs

    def rest(self) -> None:
        """Have the actor sleep after what it has to do; nothing where it is not up yet, or on another node."""
        if self._rests or not (self._name and self._is_connected()):
            return
        self.handle.rest.remote()
        self._rests = True

    def close(self) -> None:
        """Let go of the actor, which wakes if it rests, and does not rest again."""
        self._name = ""
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def _is_connected(self) -> bool:
        if self._bell is None:
            bell = socket.socket(socket.AF_UNIX)
            bell.settimeout(_PATIENCE_S)
            try:
                bell.connect(self._name)
            except OSError:
                bell.close()
                return False
            self._bell = bell
        return True
