"""The `clients` section, and what `data` says of division: who takes part, and how samples are divided over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from blossom_ray.core.section import Finding, Fraction, ModalityName, Positive, Rate, Section


class IidPartition(Section):
    """Samples are dealt at random; client sizes differ by at most one."""

    kind: Literal["iid"]


class DirichletPartition(Section):
    """Label skew: class proportions over clients are drawn from a symmetric Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: Rate = 0.5
    """Concentration. Small values give each client few classes; large values approach `iid`."""
    min_samples: Annotated[int, Field(ge=2, le=1_000_000_000)] = 10
    """Fewest samples a client may end with; the draw is repeated until every client has them."""
    labels: str | None = None
    """The labels whose classes are skewed, by name, with `tasks`; null: those of the first task."""
    equal_sizes: bool = False
    """False: proportions per class over clients, so sizes differ (Yurochkin et al. 2019, the paper's choice).
    True: a class mix per client and equal sizes (Hsu et al. 2019)."""


class SubjectPartition(Section):
    """Each client gets the whole recordings of one or more subjects."""

    kind: Literal["subject"]


class QuantityPartition(Section):
    """Quantity skew: client sizes are drawn from a symmetric Dirichlet distribution, labels are dealt at random."""

    kind: Literal["quantity"]
    alpha: Rate = 1.0
    """Concentration. Small values give a few large clients; large values approach equal sizes."""
    min_samples: Annotated[int, Field(ge=2, le=1_000_000_000)] = 10
    """Fewest samples a client may end with; the draw is repeated until every client has them."""


class GivenPartition(Section):
    """Each client has the samples that are its own, as own data say (the column `client` of a table)."""

    kind: Literal["given"]
    unseen: Annotated[tuple[str, ...], Field(strict=False)] | Fraction = ()
    """Clients of the data that never train: their names, or a fraction of all clients, drawn from the seed; a larger
    fraction only adds clients. Where `clients` are groups, those with `role: unseen` are these."""
    shots: Positive | None = None
    """With `clients: from-data` the samples that each of them fine-tunes on, as in a group of clients; null: all."""

    def conflicts(self) -> Iterator[Finding]:
        """Shots of nobody."""
        if self.shots is not None and self.unseen == ():
            yield Finding("shots", f"is {self.shots}, while unseen is empty", "null, or clients in unseen")


Partition = Annotated[
    IidPartition | DirichletPartition | SubjectPartition | QuantityPartition | GivenPartition,
    Field(discriminator="kind"),
]


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ObservedShares(Section):
    """The part of rows in which a modality is observed, by what the rows are for."""

    train: Share = 1.0
    """Of training rows; above 0."""
    validation: Share | None = None
    """Of validation rows. null: as `train`, since nobody knows which sensor will fail later."""
    test: Share = 1.0
    """Of test rows."""
    held_out: Share = 1.0
    """Of the rows of the held-out set. It is one for all clients, so this is for `data.observed` alone."""


Observed = dict[ModalityName, Share | ObservedShares]


def by_split(observed: float | ObservedShares) -> tuple[float, float, float]:
    """The shares of training, validation and test rows; a number is for all three of them."""
    if not isinstance(observed, ObservedShares):
        return observed, observed, observed
    return observed.train, observed.train if observed.validation is None else observed.validation, observed.test


def of_held_out(observed: float | ObservedShares) -> float:
    """The share of rows of the held-out set; a number does not speak of it."""
    return observed.held_out if isinstance(observed, ObservedShares) else 1.0


class ClientGroup(Section):
    """Clients that own the same modalities. Ids are given in the order of the groups."""

    count: Positive
    """Number of clients."""
    modalities: Annotated[tuple[ModalityName, ...], Field(strict=False, min_length=1)]
    """Modalities that each of them owns."""
    group: str = ""
    """Label for blocks of scope `group`: a cluster, a site."""
    observed: Observed = Field(default_factory=dict)
    """By modality the part of rows in which it is observed, in the place of that in `data.observed`: one number for all
    splits of the clients, or one for each. Which rows is drawn once for the whole run, and a larger part only adds
    rows. A modality that neither names is observed in all rows."""
    observed_draw: Literal["independent", "together"] = "independent"
    """`independent`: each modality has a draw of its own. `together`: they fail in the same rows, the rows of the rarer
    one lying within those of the other."""
    role: Literal["train", "unseen"] = "train"
    """`unseen`: clients that never train: they are scored with the current shared blocks, before and after fine-tuning
    on samples of their own, in columns that begin with `unseen/`. Their groups stand behind all others."""
    rows: Literal["shared", "held-out"] = "shared"
    """Whose samples unseen clients have. `shared`: they take part in the partition. `held-out`: whole people of the
    data set's held-out part; such groups stand last."""
    shots: Positive | None = None
    """Samples that an unseen client fine-tunes on, the first of a drawn order of its training split: more shots only
    add samples. null: all of them."""
    task: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Which of the scenario's `tasks` they learn, one name or a list: each has a head, and their losses are added up,
    each with its `loss_weight`. null: the only one."""

    @field_validator("modalities")
    @classmethod
    def _once(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modalities)) != len(modalities):
            raise ValueError("each modality once")
        return modalities

    @field_validator("task")
    @classmethod
    def _each_task_once(cls, task: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(task, tuple) and len(set(task)) != len(task):
            raise ValueError("each task once")
        return tuple(sorted(task)) if isinstance(task, tuple) and len(task) > 1 else task and "".join(task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that they learn, sorted; none where that is the only one."""
        return (self.task,) if isinstance(self.task, str) else self.task or ()

    @property
    def modality_set(self) -> str:
        """The modality set as one word, sorted, such as `acc+gyro`."""
        return "+".join(sorted(self.modalities))

    def shares(self, default: Mapping[str, float | ObservedShares]) -> dict[str, tuple[float, float, float]]:
        """Own modalities, sorted, to the part of training, validation and test rows in which each is observed.

        Args:
            default: `data.observed`.
        """
        return {name: by_split(self.observed.get(name, default.get(name, 1.0))) for name in sorted(self.modalities)}

    def conflicts(self) -> Iterator[Finding]:
        """What only clients that never train have."""
        if self.role == "train":
            if self.rows != "shared":
                yield Finding("rows", f"is {self.rows!r}, while role is 'train'", "'shared', or role: unseen")
            if self.shots is not None:
                yield Finding("shots", f"is {self.shots}, while role is 'train'", "null, or role: unseen")


Clients = Annotated[tuple[ClientGroup, ...], Field(strict=False, min_length=1)] | Literal["from-data"]


class Division(Section):
    """How samples are divided over clients, and into training, validation and test."""

    partition: Partition = IidPartition(kind="iid")
    """How samples are divided over clients."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Part of each client's samples kept for its own test split."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of each client's samples kept for its own validation split, on which one chooses. They are taken from what
    was for training: the test split is the same with and without. 0: no validation split."""
    split: Literal["sample", "recording", "subject", "common-subject"] = "sample"
    """`sample`: rows are drawn at random, so overlapping windows of one recording may fall on both sides and test
    scores are optimistic. `recording`: whole recordings (of UCI-HAR, of KU-HAR's `windows: recordings`, of a table's
    column `recording`) or dialogues, with one draw common to all clients: what one of them tests with, none trains on.
    Samples that share one recording (AV-MNIST, a table's column `recording`) are divided so by `sample`, too.
    `subject`: a client's test split holds whole subjects that its own training split has not; others may train on
    them. `common-subject`: whole subjects, with one draw common to all clients; what `subject` does where the
    partition is by subject."""
    draws: Literal["seed", "reference"] = "seed"
    """Where partition and split come from. `seed`: the scenario's seed. `reference`: drawn as the paper's code does,
    the same for every seed, which then only matches parts to clients; for `iid` and `dirichlet`, split by sample."""
    observed: Observed = Field(default_factory=dict)
    """By modality the part of rows in which it is observed, for all groups of clients that do not say otherwise."""
    without_modality: Literal["refuse", "leave-out", "keep-one"] = "refuse"
    """A row in which none of its client's modalities is observed. `refuse`: there may be none. `leave-out`: it is in no
    split, and counted. `keep-one`: of the modalities whose gaps are drawn, that of the smallest draw is observed."""
