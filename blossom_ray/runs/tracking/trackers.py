"""What a tracker is, the values that it gets of a round, and the one that writes event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from blossom_ray.core.records import Progress
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml


class Tracker(Protocol):
    """Writes the rounds of one run somewhere else."""

    def write(self, progress: Progress) -> None:
        """Write one round. Rounds come in order; after a resumption some may come once more, with the same scores."""

    def close(self, status: str) -> None:
        """End it, with the run's status: `finished`, `failed` or `interrupted`."""


class Value(NamedTuple):
    """One number of a round.

    Attributes:
        group: What it is about: `seconds`, `bytes_down` and so on; "" for summary metrics.
        name: Its name in the group: a phase, a block instance, a column of the table `rounds`.
        number: The value.
    """

    group: str
    name: str
    number: float


def tracked_values(progress: Progress) -> Iterator[Value]:
    """All numbers of a round but those of single clients."""
    for name, number in progress.metrics.items():
        yield Value("", name, number)
    if progress.learning_rate is not None:
        yield Value("", "learning_rate", progress.learning_rate)
    yield Value("", "failures", progress.num_failures)
    for phase, seconds in progress.phases.items():
        yield Value("seconds", phase, seconds)
    for block in progress.blocks:
        name = str(block.instance)
        yield Value("bytes_down", name, block.bytes_down)
        yield Value("bytes_up", name, block.bytes_up)
        yield Value("update_norm", name, block.update_norm)
        if block.client_drift is not None:
            yield Value("client_drift", name, block.client_drift)
        if block.task_cosine is not None:
            yield Value("task_cosine", name, block.task_cosine)
        for task, share in block.weight_shares.items():
            yield Value(f"{task}/weight_share", name, share)


class TensorBoardTracker:
    """A `Tracker` that writes scalars, and the resolved scenario as a text.

    Tags are `accuracy`, `accuracy/acc+gyro`, `bytes_up/encoder/acc` and so on; a step is a round.

    Args:
        folder: Where the event file goes; a resumed run adds another one.
        scenario: What is run.
    """

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        from torch.utils.tensorboard import SummaryWriter

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
