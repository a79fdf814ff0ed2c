"""What a round leaves behind: small frozen values that cross processes and become rows of the run's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.evaluations import ClientEvaluation, clients_of


class Scoring(StrEnum):
    """What a client's model is scored on, and in which state; in the order in which a round does it."""

    OWN_TEST = "own test split"
    VALIDATION = "own validation split"
    FINE_TUNED = "own test split, after local fine-tuning"
    FINE_TUNED_VALIDATION = "own validation split, after local fine-tuning"
    HELD_OUT = "held-out set"
    PLAIN = "own test split, the averaged model in place of the client's own one"
    UNSEEN = "test split of a client that never trains"
    UNSEEN_FINE_TUNED = "test split of a client that never trains, after local fine-tuning"

    @property
    def is_validation(self) -> bool:
        """Whether validation rows are scored, and no test rows."""
        return self in (Scoring.VALIDATION, Scoring.FINE_TUNED_VALIDATION)

    @property
    def is_fine_tuned(self) -> bool:
        """Whether a copy is scored that was trained further."""
        return self in (Scoring.FINE_TUNED, Scoring.FINE_TUNED_VALIDATION, Scoring.UNSEEN_FINE_TUNED)

    @property
    def is_unseen(self) -> bool:
        """Whether clients are scored that never train."""
        return self in (Scoring.UNSEEN, Scoring.UNSEEN_FINE_TUNED)

    @property
    def prefix(self) -> str:
        """What the names of its scores begin with in summaries and tables."""
        return _PREFIXES[self]

    @property
    def label(self) -> str:
        """What it is called in the tables of classes."""
        return self.prefix.rstrip("/") or "test"

    @classmethod
    def of_column(cls, name: str) -> Scoring:
        """What a score in this column is about."""
        return next(
            scoring for scoring in sorted(cls, key=lambda each: -len(each.prefix)) if name.startswith(scoring.prefix)
        )


_PREFIXES = {
    Scoring.OWN_TEST: "",
    Scoring.VALIDATION: "validation/",
    Scoring.FINE_TUNED: "fine_tuned/",
    Scoring.FINE_TUNED_VALIDATION: "validation/fine_tuned/",
    Scoring.HELD_OUT: "held_out/",
    Scoring.PLAIN: "plain/",
    Scoring.UNSEEN: "unseen/",
    Scoring.UNSEEN_FINE_TUNED: "unseen/fine_tuned/",
}


@dataclass(frozen=True)
class TaskTraining:
    """What training one of its tasks came to on a client in one round.

    Attributes:
        num_examples: Training samples with a label of it seen, over all local epochs.
        loss: Its mean training loss over them, without the task's weight.
    """

    num_examples: int
    loss: float


@dataclass(frozen=True)
class ClientTraining:
    """One client's local training in one round.

    Attributes:
        client: The client's id.
        num_examples: Training samples seen, over all local epochs.
        weight: The client's weight in averages: the same number, unless `server.weighting` says otherwise.
        num_steps: Optimizer steps of the model that the client then has: its own ones, or those of a central model.
        loss: Mean training loss over the samples seen, before each step.
        drift: L2 norm of local minus received parameters after local training, by block name.
        bytes_down: Bytes of blocks sent to the client for training.
        bytes_up: Bytes of blocks that the client sent back.
        seconds: Time spent on this client.
        rounds_trained: Rounds in which the client has trained so far, this one included; None where that is not known.
        num_observed: Of its modalities that training samples of some client lack, its training samples that have it.
        by_task: Of a client with several tasks, or a weighted one, what is of each of them in `loss`.
    """

    client: int
    num_examples: int
    weight: float
    num_steps: int
    loss: float
    drift: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    seconds: float
    rounds_trained: int | None = None
    num_observed: Mapping[str, int] = field(default_factory=dict)
    by_task: Mapping[str, TaskTraining] = field(default_factory=dict)

    def of_tasks(self, tasks: tuple[str, ...]) -> Mapping[str, TaskTraining]:
        """What training each of the client's tasks came to."""
        return self.by_task or {tasks[0]: TaskTraining(self.num_examples, self.loss)}

    def part_of(self, task: str) -> float:
        """The part of the samples seen that had a label of one of the client's tasks, 0 to 1."""
        if not self.by_task:
            return 1.0
        return self.by_task[task].num_examples / self.num_examples if task in self.by_task else 0.0


@dataclass(frozen=True)
class ClassScores:
    """How one class fared in one round, over the samples of all scored clients of one modality set.

    Attributes:
        scoring: On which samples, and in which state, as the columns of the scores have it: `test`, `validation`,
            `fine_tuned`, `validation/fine_tuned`, `held_out`, `plain`, `unseen` or `unseen/fine_tuned`.
        modalities: The modality set; "" for the clients of all sets together.
        index: Number of the class.
        name: Its name.
        num_true: Samples of the class.
        num_predicted: Samples that it was predicted for.
        num_correct: Those of them that are of the class.
        recall: `num_correct / num_true`, None without samples of the class.
        precision: `num_correct / num_predicted`, None where it is never predicted.
        f1: `2 num_correct / (num_true + num_predicted)`, None where it is neither there nor predicted.
        auroc: Area under the ROC curve in a multilabel task, None where the samples do not define it.
        predicted_as: Samples of the class by the class that was predicted for them, those with any; empty in a
            multilabel task, and for the clients of all sets together.
    """

    scoring: str
    modalities: str
    index: int
    name: str
    num_true: int
    num_predicted: int
    num_correct: int
    recall: float | None
    precision: float | None
    f1: float | None
    auroc: float | None = None
    predicted_as: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockRound:
    """One block instance in one round. Private copies of a block are reported together, with key "".

    Attributes:
        instance: The block instance.
        contributors: Clients that trained it in this round.
        weight: Sum of their weights.
        bytes_down: Bytes of it sent to clients in this round (training and evaluation).
        bytes_up: Bytes of it that clients sent back.
        update_norm: L2 norm of the server's step, new minus old parameters (0 where nobody contributed).
        client_drift: Mean over contributors of the L2 norm of local minus received parameters, weighted by
            `num_examples`; None where nobody contributed.
        task_cosine: Cosine between the steps that the averages of two tasks would be, mean over pairs of tasks; None
            where clients of one task alone contributed.
        weight_shares: By task its part of the weight in the average, of a block that clients of several tasks share.
    """

    instance: BlockInstance
    contributors: int
    weight: float
    bytes_down: int
    bytes_up: int
    update_norm: float
    client_drift: float | None
    task_cosine: float | None = None
    weight_shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Something that went wrong in a round, and what was done about it.

    Attributes:
        phase: `set-up`, `training`, `evaluation`, `checkpoint` or `end` (digests and memory after the last round).
        clients: Ids of the clients concerned.
        actor: Number of the actor concerned, None in the local runtime.
        cause: One line.
        action: `repeated`: the work was done again, with the same results. `dropped`: the round went on without
            these clients.
    """

    phase: str
    clients: tuple[int, ...]
    actor: int | None
    cause: str
    action: str


@dataclass(frozen=True)
class ActorRound:
    """One client actor in one round, as the round ended.

    Attributes:
        actor: Its number.
        num_clients: Clients that live in it.
        seconds: Time spent on its clients in the round, training and evaluation.
        memory_bytes: Resident set of its process after its last training, pages shared with others included; None
            before it trains.
        times_replaced: How often it was lost in the round, and another took its place.
    """

    actor: int
    num_clients: int
    seconds: float
    memory_bytes: int | None
    times_replaced: int


@dataclass(frozen=True)
class Stopped:
    """Where a run with `stop` ended, and its best round.

    Attributes:
        round: The last round.
        best_round: The round with the best validation score; None where no round had a finite one.
        metric: The score by which it is the best: a column of the table `rounds`, such as `validation/accuracy`.
        value: Its score.
        reason: `patience`: the score had not got better for so long. `rounds`: it was the scenario's last round.
    """

    round: int
    best_round: int | None
    metric: str
    value: float | None
    reason: Literal["patience", "rounds"]


@dataclass(frozen=True)
class RoundRecord:
    """Everything that one round reports. Round 0 is the untrained model.

    Attributes:
        round_index: The round.
        learning_rate: The clients' learning rate, None in round 0.
        cohort: Ids of the clients that trained, in order.
        training: One entry per client of the cohort, in order of id.
        evaluation: One entry per client scored on its test split, in order of id; empty in rounds without that.
        validation: One entry per client scored on its validation split, in order of id; empty in rounds without that.
        fine_tuned: As `evaluation`, after local fine-tuning; empty in rounds without it.
        fine_tuned_validation: As `validation`, after local fine-tuning.
        plain: As `evaluation`, with the averaged model in place of what the algorithm has clients scored with; empty
            where it has them scored with that.
        unseen: As `evaluation`, of the clients that never train, which no other entry has.
        fine_tuned_unseen: As `unseen`, after local fine-tuning.
        metrics: Summary of the round by name, as in `docs/semantics.md`: `train_loss`; per metric `accuracy`
            (mean over clients weighted by test samples), `accuracy_pooled`, `accuracy_p10`, `accuracy_p50`,
            `accuracy_p90` (spread over clients), `accuracy/<modality set>`; `fine_tuned/` before any of these;
            `validation/` before any of all these; `plain/` before those of the test split; `unseen/` before those
            of the test split and of it after fine-tuning;
            `held_out/accuracy/<modality set>`.
        blocks: One entry per block instance.
        seconds: Wall time by phase: `train` (with aggregation), `evaluate`, `total`.
        failures: What went wrong, in the order in which it was noticed.
        actors: One entry per client actor; none in the local runtime.
        classes: One entry per scoring, modality set and class, where `evaluation.per_class` asks for it; none in a
            regression.
        stopped: Why the run ends with this round, where the scenario has `stop`; None while it goes on.
    """

    round_index: int
    learning_rate: float | None
    cohort: tuple[int, ...]
    training: tuple[ClientTraining, ...]
    evaluation: Sequence[ClientEvaluation]
    metrics: Mapping[str, float]
    blocks: tuple[BlockRound, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    fine_tuned: Sequence[ClientEvaluation] = ()
    actors: tuple[ActorRound, ...] = ()
    classes: tuple[ClassScores, ...] = ()
    validation: Sequence[ClientEvaluation] = ()
    fine_tuned_validation: Sequence[ClientEvaluation] = ()
    stopped: Stopped | None = None
    plain: Sequence[ClientEvaluation] = ()
    unseen: Sequence[ClientEvaluation] = ()
    fine_tuned_unseen: Sequence[ClientEvaluation] = ()

    @property
    def num_evaluated(self) -> int:
        """Clients that were scored on their test or validation split, without those that never train."""
        return len({*clients_of(self.evaluation), *clients_of(self.validation)})


@dataclass(frozen=True)
class Progress:
    """What somebody who watches needs of a round.

    Attributes:
        round_index: The round.
        metrics: Summary of the round, as in `RoundRecord`.
        seconds: Wall time of the round.
        phases: Wall time by phase, as in `RoundRecord.seconds`.
        learning_rate: The clients' learning rate, None in round 0.
        blocks: One entry per block instance.
        num_failures: What went wrong.
        stopped: As in `RoundRecord`.
    """

    round_index: int
    metrics: Mapping[str, float]
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    blocks: tuple[BlockRound, ...] = ()
    num_failures: int = 0
    stopped: Stopped | None = None

    @classmethod
    def of(cls, record: RoundRecord) -> Progress:
        """The progress that a record stands for."""
        return cls(
            record.round_index,
            dict(record.metrics),
            record.seconds.get("total", 0.0),
            dict(record.seconds),
            record.learning_rate,
            record.blocks,
            len(record.failures),
            record.stopped,
        )


class Traffic:
    """Bytes that one chunk's clients were sent, or sent back.

    Attributes:
        by_client: Bytes by client.
        by_instance: Bytes by block instance.
    """

    def __init__(self) -> None:
        self.by_client: Counter[int] = Counter()
        self.by_instance: Counter[BlockInstance] = Counter()

    def count(self, client: int, instance: BlockInstance, num_bytes: int) -> None:
        """Note that a block instance went to a client, or came from it."""
        self.by_client[client] += num_bytes
        self.by_instance[instance] += num_bytes
