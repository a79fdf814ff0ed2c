"""The sections of the whole run: `evaluation`, `stop`, `checkpoint`, `failures` and `execution`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.clients.options import FineTune, UnseenStart
from blossom_ray.core.phrases import listed
from blossom_ray.core.scores import OTHER_COLUMNS, SCORES, SUFFIXES
from blossom_ray.core.section import Finding, Fraction, Positive, Section
from blossom_ray.tasks.base import Metric, MetricName

_LEAST_SHARE = 0.0001


class Unseen(Section):
    """How clients that never train (`clients[].role`) are scored."""

    start: UnseenStart = "initial"
    """What their private blocks begin with. `initial`: the blocks' initial values. `group-average`: in each scored
    round the mean over the clients of the same modality set and group that have trained; private blocks leave their
    clients in sum then, which is counted as traffic."""


class Evaluation(Section):
    """When and on what the new blocks are scored."""

    every: Positive = 1
    """Rounds between two evaluations; the last round and the untrained model (round 0) are always scored."""
    clients: Fraction = 1.0
    """Fraction of all clients that score the new blocks on their own test split, drawn anew each time."""
    split: Literal["test", "validation"] = "test"
    """What scored rounds read. `test`: the clients' test splits, and their validation splits where there are any.
    `validation`: these alone; the test splits and the held-out set are scored once, in the last round or, with `stop`,
    with the blocks of the best round. What is chosen by scores is then not chosen by those that are reported."""
    held_out: Literal["never", "final", "every"] = "final"
    """When the held-out global test set, if the data set has one, is scored besides."""
    per_class: Literal["never", "final", "every"] = "final"
    """When scores and confusion of single classes are kept, in the tables `classes` and `confusion`: never, in the last
    round, or in every round that is scored."""
    fine_tune: FineTune | None = None
    """Score the clients after local fine-tuning as well; null: never."""
    unseen: Unseen = Unseen()
    """Clients that never train."""
    metrics: dict[MetricName, Metric] = Field(default_factory=dict)
    """Metrics of your own by name, besides the scores of the task; each is a column of the tables."""
    batch_size: Positive = 256
    """Samples per forward pass."""

    def conflicts(self) -> Iterator[Finding]:
        """Fine-tuning between two evaluations, the held-out set scored too often, names of metrics that are taken."""
        tuned = self.fine_tune
        if tuned is not None and tuned.every is not None and tuned.every % self.every:
            expected = f"a multiple of {self.every}, since evaluation.every is {self.every}"
            yield Finding("fine_tune.every", f"is {tuned.every}", expected)
        if self.split == "validation" and self.held_out == "every":
            found = "is 'every', while evaluation.split is 'validation', which scores the held-out set once"
            yield Finding("held_out", found, "'final' or 'never'")
        taken = OTHER_COLUMNS | {score.name for scores in SCORES.values() for score in scores}
        for name in self.metrics:
            path = f"metrics.{name}"
            if name in taken:
                yield Finding(path, "is the name of a column that runs have already", "another name")
            if name.endswith(SUFFIXES):
                found = f"ends with one of {listed(SUFFIXES)}, as summaries over clients do"
                yield Finding(path, found, "another name")


class Stop(Section):
    """Early stopping: the run ends once its scores on the clients' validation splits have not got better for a while.

    The test splits are then reported for the best round, whose blocks are kept as a checkpoint.
    """

    metric: str | None = None
    """The score on the validation splits that is watched: a column of the table `rounds` such as `macro_f1_all`,
    `loss` or `accuracy/acc+gyro`, read with `validation/` before it; null: the first score of the task."""
    patience: Positive
    """Scored rounds without a better value after which the run ends. An equal value is not better, nor is one that is
    null or not finite."""
    min_rounds: Positive = 1
    """The first round that may be the last one."""


class Checkpoint(Section):
    """What a run keeps so that it can be resumed. Only runs with a run folder have checkpoints."""

    every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 5
    """Rounds between two checkpoints; 0: none, but that of the best round with `stop`."""
    keep: Positive = 2
    """Checkpoints that are kept, the newest ones; with `stop` those of best rounds besides."""


class Failures(Section):
    """What happens when a client or its actor fails in training."""

    max_retries: Annotated[int, Field(ge=0, le=1_000_000_000)] = 3
    """How often the same work is tried again in a new actor after one was lost. Its clients are restored and its work
    is repeated, with the same results. An error that a client's own code raises is not tried again."""
    on_failure: Literal["stop", "drop"] = "stop"
    """What follows. `stop`: the run ends. `drop`: the round goes on without these clients, and says so."""
    min_clients: Positive = 1
    """Fewest clients that a round may be left with; with fewer the run ends."""


class ClientResources(Section):
    """What Ray reserves for one client that has an actor of its own."""

    num_cpus: Annotated[float, Field(ge=0.0001, le=1_000_000_000, allow_inf_nan=False)] = 0.2
    """Fraction of a CPU core."""
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of a GPU; also the cap on its memory. 0: the CPU is used."""

    def conflicts(self) -> Iterator[Finding]:
        """A smaller part of a GPU than there is."""
        if 0 < self.num_gpus < _LEAST_SHARE:
            expected = f"0, or at least {_LEAST_SHARE}, the smallest part of a GPU that Ray gives"
            yield Finding("num_gpus", f"is {self.num_gpus:g}", expected)


class Execution(Section):
    """Where and how the clients run. Nothing here but `chunk_size` touches the numbers."""

    runtime: Literal["ray", "local", "auto"] = "ray"
    """`ray`: actors. `local`: a loop in this process, for breakpoints and tests. `auto`: that loop where a run is so
    small that Ray's start would take longer, as a note then says, else actors."""
    clients_per_actor: Literal["auto"] | Positive = "auto"
    """Clients that share an actor process. `auto`: one while the cluster has room, packed beyond that."""
    client_resources: ClientResources = ClientResources()
    """What Ray reserves per client that has an actor of its own."""
    chunk_size: Positive = 32
    """Clients whose updates are summed together before the sums are added up. It fixes the order of the sums, and
    so the last bits of the results."""
    shards: Literal["auto", "memory-map", "object-store"] = "auto"
    """How clients' data reach the actors. `auto`: memory-mapped files on one machine, the object store on several."""
    timeout_s: Annotated[float, Field(gt=0, le=1_000_000_000, allow_inf_nan=False)] = 1800.0
    """Seconds that one chunk of clients may take before the run is stopped."""
