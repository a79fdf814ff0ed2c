"""What `manifest.json` says of a run, as far as anything relies on it. Older versions say less, others more."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.reading.read_back import ReadBack

Status = Literal["running", "finished", "failed", "interrupted"]


class ManifestData(ReadBack):
    """Which federation it was."""

    fingerprint: str = ""
    """Of the data set."""
    partition: str = ""
    """Of its rows over clients."""
    num_classes: int | None = None
    """Classes, labels or targets."""
    num_train: int | None = None
    """Training samples of all clients; the same for the other splits below."""
    num_validation: int | None = None
    num_test: int | None = None
    num_held_out: int | None = None
    """Samples of the held-out set that is scored."""
    clients: dict[str, int] = Field(default_factory=dict)
    """Number of clients by modality set."""
    client_names: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What the user's data call each client, or its subjects; empty where samples were dealt."""


class ManifestKernels(ReadBack):
    """What chose the CPU kernels of some of the processes that computed a run."""

    processes: int
    """How many of them."""
    processor: str
    """Its model."""
    cpu_capability: str
    """The vector instructions that PyTorch's own kernels use."""
    libraries: dict[str, str]
    """Version by name of those that PyTorch was built with."""
    variables: dict[str, str]
    """Value by name of the environment variables that choose kernels."""


class ManifestError(ReadBack):
    """Why a run failed."""

    type: str = ""
    """The error's class."""
    message: str = ""
    """One cause and one hint."""
    details: str = ""
    """The traceback of own code."""


class ManifestStopped(ReadBack):
    """Where a run with `stop` ended; fields as in `records.Stopped`."""

    round: Annotated[int, Field(ge=0)]
    """The last round."""
    best_round: Annotated[int, Field(ge=0)] | None
    """The round with the best validation score; null where no round had one."""
    metric: str
    """The score by which it is the best."""
    value: float | None
    """Its score."""
    reason: Literal["patience", "rounds"]
    """Whether scores had not got better for so long, or there are no more rounds."""


class ManifestLateScores(ReadBack):
    """Scores that were made at the end of a run with `stop`."""

    round: Annotated[int, Field(ge=0)]
    """The round in whose rows they stand."""
    prefixes: Annotated[tuple[str, ...], Field(strict=False)]
    """What the names of their columns begin with; "" for those on test splits."""
    classes: Annotated[tuple[str, ...], Field(strict=False)]
    """The scorings of their rows in the tables `classes` and `confusion`."""


class Manifest(ReadBack):
    """A run's manifest."""

    status: Status
    """How far the run is; `running` also where its process was killed."""
    started_at: str | None = None
    """UTC, ISO 8601."""
    ended_at: str | None = None
    """UTC, ISO 8601."""
    data: ManifestData | None = None
    """Which federation it was; null before the data are prepared."""
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What a reader of the numbers should know."""
    kernels: Annotated[tuple[ManifestKernels, ...], Field(strict=False)] = ()
    """By which CPU kernels it was computed; empty in older runs."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Version by package."""
    error: ManifestError | None = None
    """Why the run failed."""
    stopped: ManifestStopped | None = None
    """Where a run with `stop` ended."""
    late_scores: ManifestLateScores | None = None
    """Scores that were made at its end."""
