"""Follows one run with its trackers, and keeps their troubles away from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from blossom_ray.core.locations import local_path
from blossom_ray.core.records import Progress, RoundRecord
from blossom_ray.errors import BlossomError, InputError, first_line
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import Run
from blossom_ray.runs.tracking.trackers import Tracker
from blossom_ray.storage import own_folder, writing
from blossom_ray.text import quoted


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
        self._has_stop = scenario.stop is not None
        self._targets = [*targets]
        self._trackers: dict[Target, Tracker] = {}
        self._last_round: int | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.close("failed")
        else:
            self.close("finished" if self._is_over else "interrupted")

    def write(self, progress: Progress | RoundRecord) -> None:
        """Hand on one round. Trackers begin with the first one: a run that fails before leaves nothing."""
        told = Progress.of(progress) if isinstance(progress, RoundRecord) else progress
        self._last_round = told.round_index
        self._is_over = told.stopped is not None or told.round_index == self._scenario.rounds

        def write(target: Target) -> None:
            if target not in self._trackers:
                self._trackers[target] = open_tracker(target, self._scenario, self._folder)
            self._trackers[target].write(told)

        self._each(write)

    def close(self, status: str) -> None:
        """End all trackers. Of a run with `stop` they get what was scored at its end, as a part of its best round.

        Args:
            status: The run's: `finished`, `failed` or `interrupted`.
        """
        if self._has_stop and status == "finished":
            with suppress(BlossomError):  # whoever tracks a run may keep no folder of it
                if (late := Run.open(self._folder).late_scores) is not None:
                    self.write(late)

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
                cause = first_line(error)
                where = "before its end" if self._last_round is None else f"at round {self._last_round}"
                self._warn(f"--track {target} was given up {where}, the run goes on: {cause}")


_ACCEPTED = "tensorboard, tensorboard:FOLDER, mlflow or mlflow:URI"


@dataclass(frozen=True)
class Target:
    """A tracker and where it writes.

    Attributes:
        kind: Which tracker.
        place: A folder for TensorBoard, a tracking URI for MLflow; None for the tracker's own default.
    """

    kind: Literal["tensorboard", "mlflow"]
    place: str | None = None

    def __str__(self) -> str:
        return self.kind if self.place is None else f"{self.kind}:{self.place}"


def parse_target(text: str) -> Target:
    """Read a target.

    Raises:
        InputError: It is none.
    """
    kind, colon, place = text.partition(":")
    match kind:
        case "tensorboard" | "mlflow" if bool(colon) == bool(place):
            if (kind == "tensorboard" and place) or place.startswith("~"):
                place = str(local_path(place, f"--track {kind}:"))
            return Target(kind, place or None)
        case _:
            raise InputError(f"--track is {quoted(text)}; expected {_ACCEPTED}")


def check_target(target: Target) -> None:
    """Find out before a run whether a target can be written to.

    Raises:
        InputError: Its package is not installed, or no MLflow answers there.
    """
    if find_spec(target.kind) is None:
        package = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}[target.kind]
        raise InputError(
            f"--track {target}: needs {package}, which is not installed; pip install 'blossom-ray[tracking]'"
        )
    if target.kind == "mlflow":
        from blossom_ray.runs.tracking.mlflow import check_server

        check_server(target.place)


def open_tracker(target: Target, scenario: Scenario, folder: Path) -> Tracker:
    """The tracker of one run.

    Args:
        target: Where it writes.
        scenario: What is run.
        folder: The run's folder, whose name is the run id. TensorBoard writes into `tensorboard/` below it, unless the
            target names another folder.
    """
    match target.kind:
        case "tensorboard":
            from blossom_ray.runs.tracking.trackers import TensorBoardTracker

            with writing(folder):
                own_folder(folder / "tensorboard")
            place = folder / "tensorboard" if target.place is None else Path(target.place, scenario.name, folder.name)
            return TensorBoardTracker(place, scenario)
        case "mlflow":
            from blossom_ray.runs.tracking.mlflow import MlflowTracker

            return MlflowTracker(target.place, scenario, folder.name)
