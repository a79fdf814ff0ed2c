"""The scenario: one immutable tree that, with nothing else, fixes a run's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from blossom_ray.algorithms.options import AlgorithmOption, FederatedAveraging, Server, given_section
from blossom_ray.clients.options import EngineName, Training
from blossom_ray.core.blocks import ClientProfile, SchemeName, ScopeName, SharingScheme, sorted_scope
from blossom_ray.core.scores import DatasetName, LearnedTask, Score, Task, TaskName, default_score, task_prefix
from blossom_ray.core.section import Section
from blossom_ray.data.division.options import ClientGroup, Clients
from blossom_ray.data.federated import FederatedDataset, federated_datasets
from blossom_ray.data.options import AnyData, Data
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.models.options import Model
from blossom_ray.scenario.sections import Checkpoint, Evaluation, Execution, Failures, Stop

REFERENCE: dict[str, Any] = {
    "data.draws": "reference",
    "model.missing": "zero-input",
    "training.schedule": {"kind": "constant"},
    "training.min_batch_size": 2,
}
"""What `compat: blossom-reference` asks for, by dotted path."""
_OPTIONAL_SECTIONS = ("training",)


def apply_compat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's tree with what its `compat` asks for in the places that say nothing.

    Args:
        tree: A scenario as plain values. Not modified. Sections that are not mappings are left as they are.
    """
    tree = dict(tree)
    if tree.get("compat") != "blossom-reference":
        return tree
    for path, value in REFERENCE.items():
        name, key = path.split(".")
        section = tree.get(name, {} if name in _OPTIONAL_SECTIONS else None)
        if isinstance(section, Mapping):
            tree[name] = {key: value, **section}
    return tree


class Seeds(NamedTuple):
    """The two seeds of a run, the same number unless a scenario gives two.

    Attributes:
        federation: Of generated data, partition, matching, splits and the held-out set.
        training: Of initial values, cohorts, batches and dropout.
    """

    federation: int
    training: int

    def __str__(self) -> str:
        same = self.federation == self.training
        return str(self.federation) if same else f"{self.federation} (training {self.training})"


class ScenarioTree(Section):
    """The sections of a scenario. `reading/scenario.py` adds the ways in and out of files: `Scenario`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "scenario"
    """Name of the scenario; the run folder is named after it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The seed. Same seed: same federation (data, partition, splits, initial blocks) for every sharing scheme."""
    training_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The seed of initial blocks, cohorts, batches and dropout alone; `seed` is that of generated data, partition and
    splits then. So either can be varied while the other stays. null: `seed` is both."""
    rounds: Annotated[int, Field(ge=1, le=1_000_000_000)]
    """Number of rounds. Rounds count from 1; round 0 is the untrained model."""
    task: Task = "classification"
    """What is learned: one class per sample, any number of classes (`multilabel`), or numbers (`regression`)."""
    tasks: Annotated[dict[TaskName, LearnedTask], Field(min_length=1)] | None = None
    """Several tasks in one federation, by name, in the place of `task`: each group of clients has one or a list of
    them, each task a head and scores of its own. null: all clients learn `task`."""
    compat: Literal["blossom-reference"] | None = None
    """Repeat the mathematics of the paper's published code: sets `data.draws`, `model.missing`, `training.schedule` and
    `training.min_batch_size` where they are left out, and refuses other values. Its faulty state is not repeated."""
    data: Annotated[AnyData | None, Field(discriminator="dataset")] = None
    """The data set, its partition over clients and the clients' test splits."""
    datasets: Annotated[dict[DatasetName, Data], Field(min_length=1)] | None = None
    """Several data sets in one federation, by name, in the place of `data`, each with all keys of `data`: a partition,
    splits and held-out set of its own. Clients have that of their task; modalities of one name are the same."""
    clients: Clients
    """Groups of clients by the modalities that they own, or `from-data`: those that the data give. The latter goes with
    `data.partition: {kind: given}`, and the scenario of a run has the groups that were found."""
    model: Model
    """The late-fusion model."""
    sharing: SchemeName | dict[str, Annotated[ScopeName, BeforeValidator(sorted_scope)]] = "private-head-fusion"
    """A named scheme, or a map from block name (`encoder/<modality>`, `encoder/*`, `fusion`, `head`) to scope.
    `central` is no federation but the pooled reference: one model, trained on all clients' training splits in one
    place; `central-per-task` is one for each task. It bounds no personalised model, whose clients keep blocks of their
    own."""
    algorithm: AlgorithmOption = FederatedAveraging(kind="fedavg")
    """The federated algorithm: what is added to block-wise averaging. From Python also an object of your own."""
    training: Training = Training()
    """Local training."""
    server: Server = Server()
    """Cohort and server optimizer."""
    evaluation: Evaluation = Evaluation()
    """Scoring."""
    stop: Stop | None = None
    """When the run ends before its last round; null: never."""
    checkpoint: Checkpoint = Checkpoint()
    """What is kept for resuming."""
    failures: Failures = Failures()
    """Lost actors and failing clients."""
    execution: Execution = Execution()
    """Where and how the clients run."""

    @model_validator(mode="before")
    @classmethod
    def _with_compat(cls, tree: Any) -> Any:
        return apply_compat(tree) if isinstance(tree, Mapping) else tree

    @field_validator("algorithm", mode="before")
    @classmethod
    def _algorithm_itself(cls, given: Any) -> Any:
        return given_section(given)

    @property
    def seeds(self) -> Seeds:
        """The seed of the federation and the seed of training."""
        return Seeds(self.seed, self.seed if self.training_seed is None else self.training_seed)

    @property
    def groups(self) -> tuple[ClientGroup, ...]:
        """The groups of clients.

        Raises:
            ScenarioError: They are `from-data`, and nobody has looked at the data yet.
        """
        if isinstance(self.clients, str):
            found, expected = "is 'from-data', and the data have not been read", "the scenario of a run, or groups"
            raise ScenarioError((Problem("clients", found, expected),))
        return self.clients

    @property
    def num_clients(self) -> int:
        """Number of registered clients, those that never train included."""
        return sum(group.count for group in self.groups)

    @property
    def unseen_groups(self) -> tuple[ClientGroup, ...]:
        """The groups of clients that never train."""
        return tuple(group for group in self.groups if group.role == "unseen")

    @property
    def num_unseen(self) -> int:
        """Number of clients that never train."""
        return sum(group.count for group in self.unseen_groups)

    @property
    def learned(self) -> Mapping[str, LearnedTask]:
        """What clients learn, by the name of the task; "" is the only one of a scenario without `tasks`."""
        return self.tasks or {"": LearnedTask(kind=self.task)}

    @property
    def judge(self) -> tuple[str, Score]:
        """What a run is judged by where nobody says otherwise: the first score of its first task, and its column."""
        name, task = next(iter(self.learned.items()))
        score = default_score(task.kind)
        return f"{task_prefix(name)}{score.name}", score

    @property
    def data_sets(self) -> Mapping[str, Data]:
        """The data sets by name; "" is `data`.

        Raises:
            ScenarioError: There is none.
        """
        if self.datasets is None and self.data is None:
            raise ScenarioError((Problem("data", "is missing", "a data set, or several in datasets"),))
        return self.datasets or ({} if self.data is None else {"": self.data})

    @property
    def federated(self) -> tuple[FederatedDataset, ...]:
        """The data sets, each with its clients; errors as `groups` and `data_sets`."""
        return federated_datasets(self.data_sets, self.modalities, self.groups, self.seed, self.learned)

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities of the federation, sorted."""
        return tuple(sorted(self.model.encoders))

    @property
    def modality_sets(self) -> tuple[str, ...]:
        """The modality sets of the clients, sorted, such as `acc` and `acc+gyro`."""
        return tuple(sorted({group.modality_set for group in self.groups}))

    def with_clients(self, groups: tuple[ClientGroup, ...]) -> Self:
        """The scenario with these groups of clients, instead of `clients: from-data`."""
        return self.model_copy(update={"clients": groups})

    def with_engines(self, engines: Mapping[str, EngineName]) -> Self:
        """The scenario with an engine for each of its modality sets, instead of `training.engine: auto`."""
        return self.model_copy(update={"training": self.training.model_copy(update={"engine": dict(engines)})})

    @property
    def own_scores(self) -> tuple[Score, ...]:
        """The user's own metrics, in the order of `evaluation.metrics`."""
        return tuple(
            Score(name, name, metric.lower_is_better, metric.is_share)
            for name, metric in self.evaluation.metrics.items()
        )

    @property
    def scheme(self) -> SharingScheme:
        """The sharing scheme; blocks whose pretrained values stay as they are have the scope `frozen`."""
        return SharingScheme.of(self.sharing).with_frozen(self.model.frozen_blocks)

    def profiles(self) -> Iterator[ClientProfile]:
        """The clients in the order of their ids."""
        index, only = 0, next(iter(self.learned))
        for group in self.groups:
            # One value for all clients of the group, of which there may be a million.
            modalities, tasks = tuple(sorted(group.modalities)), group.tasks or (only,)
            for _ in range(group.count):
                yield ClientProfile(index, modalities, group.group, group.role == "unseen", tasks)
                index += 1
