"""Client actors by the hundred on a few cores: few of them are awake at a time, and the others are stopped.

A Ray worker that waits wakes up 145 times a second: its main thread looks for signals every 10 ms, and a dozen others
of Ray's and gRPC's poll, which no setting changes. Hundreds take more than two cores for that, and Ray gives a session
up whose control store does not answer for a minute. A process that is stopped (SIGSTOP) takes nothing, and what is sent
to it waits. So a call waits for its actor's turn, and continues it.

Stopped are only processes forked from the one that the driver was forked from. If that one ends, as it does with its
node, Linux continues and hangs up on them (SIGCONT, SIGHUP), so that none is left over.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil


class Turns:
    """Lets so many actors be awake at a time.

    Args:
        most: How many.
        some_done: Waits for one of these calls at least; those that are done. None are if they seem to hang: these
            actors no longer count.
    """

    def __init__(self, most: int, some_done: Callable[[list[Any]], Sequence[Any]]) -> None:
        self._most, self._some_done = most, some_done
        self._last: dict[Caller, Any] = {}

    def wait(self, actor: Caller) -> None:
        """Wait until it is an actor's turn, as it is if it is awake already."""
        if actor in self._last or len(self._last) < self._most:
            return
        done = self._some_done([*self._last.values()])
        if not done:
            self._last.clear()
        for other in [each for each, ref in self._last.items() if ref in done]:
            del self._last[other]
            other.rest()

    def begin(self, actor: Caller, ref: Any) -> None:
        """Count an actor until it has done a call."""
        self._last[actor] = ref


class Caller:
    """Calls an actor, and continues it for that where it is stopped.

    Args:
        handle: Ray's.

    Attributes:
        turns: What calls wait for; None where all actors may be awake at the same time.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.turns: Turns | None = None
        self._process: int | None = None
        self._parent = os.getppid()

    def call(self, method: str, *arguments: Any, num_returns: int = 1) -> Any:
        """Call a method when it is the actor's turn; what Ray returns: a reference, or a list of several."""
        if self.turns is not None:
            self.turns.wait(self)
        self.wake()
        refs = getattr(self.handle, method).options(num_returns=num_returns).remote(*arguments)
        if self.turns is not None:
            self.turns.begin(self, refs[0] if isinstance(refs, list) else refs)
        return refs

    def runs_in(self, process: int) -> None:
        """Take note of the actor's process, unless it is another one's child than this process."""
        with suppress(OSError, psutil.Error):  # it has died, as Ray will say
            if self._process is None and psutil.Process(process).ppid() == self._parent:
                self._process = os.pidfd_open(process)

    def rest(self) -> None:
        """Stop the actor until the next call, if its process is known and has its parent yet."""
        self._send(signal.SIGSTOP)
        if os.getppid() != self._parent:
            self.wake()

    def wake(self) -> None:
        """Continue the actor, if it is stopped."""
        self._send(signal.SIGCONT)

    def close(self, patience_s: float = 0.0) -> bool:
        """Let go of the actor, which is not stopped any more.

        Args:
            patience_s: How long its end is waited for, if it is to end.

        Returns:
            Whether it has ended, as far as its process is known.
        """
        self.wake()
        if self._process is None:
            return True
        end = select.poll()
        end.register(self._process, select.POLLIN)
        has_ended = bool(end.poll(1000 * patience_s))
        os.close(self._process)
        self._process = None
        return has_ended

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)
