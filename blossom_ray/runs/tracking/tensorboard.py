"""Rounds as event files that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from blossom_ray.core.records import Progress
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.tracking.base import tracked_values


class TensorBoardTracker:
    """A `Tracker` that writes scalars, and the resolved scenario as a text.

    Tags are `accuracy`, `accuracy/acc+gyro`, `bytes_up/encoder/acc` and so on; a step is a round.

    Args:
        folder: Where the event file goes; a resumed run adds another one.
        scenario: What is run.
    """

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self._writer = SummaryWriter(str(folder))
        # Four spaces make Markdown show it as it is.
        lines = scenario_yaml(scenario).splitlines()
        self._writer.add_text("scenario", "\n".join(f"    {line}" for line in lines))

    def write(self, progress: Progress) -> None:
        """Write one round, on disk when this returns."""
        for group, name, number in tracked_values(progress):
            self._writer.add_scalar(f"{group}/{name}" if group else name, number, progress.round_index)
        self._writer.flush()

    def close(self, status: str) -> None:
        """End the file, with the status as a text."""
        self._writer.add_text("status", status)
        self._writer.close()
