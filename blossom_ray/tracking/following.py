"""Follows one run with its trackers, and keeps their troubles away from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from blossom_ray.records import Progress, RoundRecord
from blossom_ray.scenario import Scenario
from blossom_ray.tracking.base import Tracker
from blossom_ray.tracking.targets import Target, open_tracker


class Tracking:
    """Hands each round of a run to its trackers: a context manager around the run.

    A tracker that fails is given up and said so, once: the run and its folder do not depend on it.

    Args:
        targets: Where to track. `check_target` says beforehand whether they can be written to.
        scenario: What is run.
        folder: The run's folder, whose name is the run id.
        warn: Gets a line about a tracker that failed.
    """

    def __init__(
        self, targets: Sequence[Target], scenario: Scenario, folder: Path, warn: Callable[[str], None]
    ) -> None:
        self._scenario, self._folder, self._warn = scenario, folder, warn
        self._targets = [*targets]
        self._trackers: dict[Target, Tracker] = {}
        self._last_round: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.close("failed")
        else:
            self.close("finished" if self._last_round == self._scenario.rounds else "interrupted")

    def write(self, progress: Progress | RoundRecord) -> None:
        """Hand on one round. Trackers begin with the first one: a run that fails before leaves nothing."""
        told = Progress.of(progress) if isinstance(progress, RoundRecord) else progress
        self._last_round = told.round_index

        def write(target: Target) -> None:
            if target not in self._trackers:
                self._trackers[target] = open_tracker(target, self._scenario, self._folder)
            self._trackers[target].write(told)

        self._each(write)

    def close(self, status: str) -> None:
        """End all trackers.

        Args:
            status: The run's: `finished`, `failed` or `interrupted`.
        """

        def close(target: Target) -> None:
            if target in self._trackers:
                self._trackers.pop(target).close(status)

        self._each(close)

    def _each(self, act: Callable[[Target], None]) -> None:
        for target in [*self._targets]:
            try:
                act(target)
            except Exception as error:  # of a foreign package, a server, a disk
                self._targets.remove(target)
                cause = str(error).partition("\n")[0] or type(error).__name__
                where = "before its end" if self._last_round is None else f"at round {self._last_round}"
                self._warn(f"--track {target} was given up {where}, the run goes on: {cause}")
