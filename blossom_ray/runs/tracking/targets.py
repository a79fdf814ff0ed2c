"""Where to track, as the command line says it: `tensorboard`, `tensorboard:FOLDER`, `mlflow`, `mlflow:URI`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from blossom_ray.errors import InputError
from blossom_ray.core.locations import (local_path)
from blossom_ray.reading.scenario import Scenario
from blossom_ray.storage import own_folder, writing
from blossom_ray.text import quoted
from blossom_ray.runs.tracking.base import (Tracker)

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
        from blossom_ray.runs.tracking.mlflow import (check_server)

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
            from blossom_ray.runs.tracking.tensorboard import (TensorBoardTracker)

            with writing(folder):
                own_folder(folder / "tensorboard")
            place = folder / "tensorboard" if target.place is None else Path(target.place, scenario.name, folder.name)
            return TensorBoardTracker(place, scenario)
        case "mlflow":
            from blossom_ray.runs.tracking.mlflow import (MlflowTracker)

            return MlflowTracker(target.place, scenario, folder.name)
