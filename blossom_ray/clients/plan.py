"""A client as values: what it goes by, what it is sent, what it keeps and what it sends back.

`clients/host.py` has the code that trains and scores clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from blossom_ray.algorithms.extras import ExtraPart, declared_parts
from blossom_ray.algorithms.options import AlgorithmOption, Weighting, algorithm_of
from blossom_ray.algorithms.seam import MODEL, Layout, has
from blossom_ray.clients.options import EngineName, FineTune, Training, UnseenStart
from blossom_ray.core.blocks import (
    Block,
    BlockInstance,
    ClientProfile,
    Scope,
    SharingScheme,
    Signature,
    held_blocks,
    model_blocks,
)
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import ClientTraining
from blossom_ray.core.scores import Task
from blossom_ray.core.sums import Contributions, PartialSum, Vector
from blossom_ray.models.options import Model
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.base import Metric, Tally

if TYPE_CHECKING:  # which comes with PyTorch
    from blossom_ray.tasks.learned import Learned

# Buffers by block and name, as NumPy arrays: normalisation statistics that stay with a client, counters.
LocalState = dict[str, dict[str, np.ndarray]]
# State of a client's optimizer by block and name, as NumPy arrays.
OptimizerState = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class TaskPlan:
    """What the clients of one task learn.

    Attributes:
        kind: Which kind of task it is.
        num_outputs: Number of classes, or of targets.
        lr: The learning rate of clients with this task alone; None: that of `training.optimizer`.
        has_held_out: Whether the held-out global test set has labels for it.
        loss_weight: What its loss counts in the sum over a client's tasks.
        is_partial: Whether some sample lacks some label of it.
        data: The name of its clients' data set, "" in a scenario without `datasets`.
    """

    kind: Task
    num_outputs: int
    lr: float | None = None
    has_held_out: bool = True
    loss_weight: float = 1.0
    is_partial: bool = False
    data: str = ""


@dataclass(frozen=True)
class ModelSizes:
    """What the author of an algorithm is told of the models of one data set's clients.

    Attributes:
        blocks: Number of values of each block that an algorithm sees: parameters, and running statistics where an extra
            has them.
        width: Width of the fused representation.
        embedding_dims: Width of the embeddings by modality.
    """

    blocks: Mapping[Block, int]
    width: int
    embedding_dims: Mapping[str, int]


def has_label_rows(tasks: Iterable[TaskPlan]) -> bool:
    """Whether the labels of clients with these tasks are rows as `core/label_rows.py` has them."""
    tasks = tuple(tasks)
    return len(tasks) > 1 or any(task.is_partial for task in tasks)


@dataclass(frozen=True)
class ClientPlan:
    """What every client of a run goes by; small, and the same in every process.

    Attributes:
        model: The scenario's `model` section.
        training: Its `training` section.
        scheme: The sharing scheme.
        seed: Its seed.
        input_shapes: By the name of a data set the shape of one sample by modality, of those that the models of its
            clients know: its own, and where a fusion is of several data sets those of the others.
        tasks: By the name of a task what its clients learn; "" is that of a scenario without `tasks`.
        evaluation_batch_size: Samples per forward pass in evaluation.
        num_rounds: The scenario's `rounds`; needed where a task has a learning rate of its own.
        fine_tune: The scenario's `evaluation.fine_tune` section.
        unseen_start: Its `evaluation.unseen.start`.
        metrics: Its `evaluation.metrics` section.
        weighting: Its `server.weighting`.
        engines: The engine of each modality set; empty until they are chosen where `training.engine` is `auto`.
        prototypes: With `model.missing: prototype` the modalities that some client, or some sample, lacks, sorted.
        split_blocks: The blocks whose running statistics are block instances of their own: with
            `model.norm_statistics: same-modalities` those that several modality sets hold in common, one per modality
            set; and those whose statistics may have other weights than their parameters: the encoders of
            `sparse_in_training`, and all that are averaged where an algorithm says what leaves a client.
        algorithm: The scenario's `algorithm` section; None: federated averaging, with what `training` says.
        sizes: By the name of a data set; needed with an algorithm alone, as what follows.
        num_clients: Registered clients.
        scored_copies: Of an algorithm with `scored` the copies that it reads.
        sparse: The modalities that some sample of an owner lacks, sorted.
        sparse_in_training: Those of them that some training sample of an owner lacks.
    """

    model: Model
    training: Training
    scheme: SharingScheme
    seed: int
    input_shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    tasks: Mapping[str, TaskPlan]
    evaluation_batch_size: int
    num_rounds: int = 0
    fine_tune: FineTune | None = None
    unseen_start: UnseenStart = "initial"
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    weighting: Weighting = "samples"
    engines: Mapping[str, EngineName] = field(default_factory=dict)
    prototypes: tuple[str, ...] = ()
    split_blocks: frozenset[str] = frozenset()
    algorithm: AlgorithmOption | None = None
    sizes: Mapping[str, ModelSizes] = field(default_factory=dict)
    num_clients: int = 0
    scored_copies: frozenset[str] = frozenset()
    sparse: tuple[str, ...] = ()
    sparse_in_training: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached: own code is found again where it is needed."""
        return {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}

    @cached_property
    def author(self) -> Any:
        """The algorithm as an object, an `algorithms.seam.Algorithm`; None: federated averaging.

        Raises:
            InputError: Own code cannot be found, or raised.
        """
        return None if self.algorithm is None else algorithm_of(self.algorithm)

    def data_set(self, client: ClientProfile) -> str:
        """The name of a client's data set, which is that of all of its tasks."""
        return self.tasks[client.tasks[0]].data

    def shapes(self, client: ClientProfile) -> Mapping[str, tuple[int, ...]]:
        """Shape of one sample by modality, of all modalities that a client's model knows."""
        return self.input_shapes[self.data_set(client)]

    def layout(self, client: ClientProfile) -> Layout:
        """What clients of this one's kind have, as an algorithm sees it."""
        blocks, sizes = self._model_blocks(client), self.sizes[self.data_set(client)]
        return Layout(
            modalities=client.modalities,
            sizes={block: sizes.blocks[block] for block in blocks},
            scopes={block: self.scheme.scope(block) for block in blocks},
            outputs={name: self.tasks[name].num_outputs for name in client.tasks},
            width=sizes.width,
            embedding_dims=sizes.embedding_dims,
            num_clients=self.num_clients,
        )

    def learned(self, client: ClientProfile) -> Learned:
        """What a client's model learns; imports PyTorch.

        Raises:
            InputError: A metric's function cannot be found.
        """
        from blossom_ray.tasks.learned import Learned

        own = {name: self.tasks[name] for name in client.tasks}
        parts = {
            name: (task.kind, task_rules(task.kind, self.metrics), task.num_outputs, task.loss_weight)
            for name, task in own.items()
        }
        return Learned(parts, has_rows=has_label_rows(own.values()))

    def _model_blocks(self, client: ClientProfile) -> tuple[Block, ...]:
        return model_blocks(client.modalities, client.tasks, self.scheme.fusions(client.tasks))

    def extra_parts(self, client: ClientProfile) -> tuple[ExtraPart, ...]:
        """What a client, and the server for it, hold beside the model.

        Raises:
            InputError: The algorithm declares what cannot be.
        """
        if self.author is None:
            return ()
        kind = client.signature
        if kind not in self._parts:
            self._parts[kind] = declared_parts(self.author, self.layout(client), client, self.scheme)
        return tuple(part.of(client) for part in self._parts[kind])

    @cached_property
    def _parts(self) -> dict[Signature, tuple[ExtraPart, ...]]:
        return {}

    def learning_rate(self, client: ClientProfile, learning_rate: float, round_index: int) -> float:
        """A client's learning rate in a round: that of all, unless its only task has one, with the same schedule."""
        own = self.task_lr(client)
        if own is None:
            return learning_rate
        return self.training.schedule.learning_rate(own, round_index, self.num_rounds)

    def task_lr(self, client: ClientProfile) -> float | None:
        """The learning rate that a client's only task has; None where that has none, or the client several."""
        return self.tasks[client.tasks[0]].lr if len(client.tasks) == 1 else None

    def keeps_rows(self, instance: BlockInstance) -> bool:
        """Whether the server needs each client's own contribution to an instance, and not their sum alone."""
        if self.author is None:
            return False
        is_own = instance.scope is Scope.CLIENT
        return is_own or has(self.author, "admit") or (instance.copy or MODEL) in getattr(self.author, "rows", ())

    def client_weight(self, num_samples: int) -> float | None:
        """A client's weight in averages, from the samples of its training split; None: it is known after training."""
        if self.weighting == "entropy":
            return None
        return 1.0 if self.weighting == "uniform" else float(self.training.num_examples(num_samples))

    def block_weight(self, instance: BlockInstance, weight: float, num_observed: Mapping[str, int]) -> float:
        """A client's weight in the average of one block instance.

        Means over samples that have a modality, statistics and prototypes, weigh by how many these are; so do encoders
        with `server.weighting: observed`.

        Args:
            instance: The instance.
            weight: The client's weight in averages.
            num_observed: Of the modalities of `sparse_in_training` that it owns, the training samples that have it.
        """
        name = instance.name
        encoder = Block.named(name.of) if name.kind == "statistics" else name
        is_weighed = name.kind in ("statistics", "prototype") or self.weighting == "observed"
        if is_weighed and encoder.kind in ("encoder", "prototype") and encoder.of in num_observed:
            return float(num_observed[encoder.of])
        return weight

    def held_blocks(self, client: ClientProfile) -> dict[Block, BlockInstance]:
        """The block instances that a client holds, by block name."""
        fusions, shapes = self.scheme.fusions(client.tasks), self.shapes(client)
        names = held_blocks(client.modalities, shapes, self.model.missing, self.sparse, client.tasks, fusions)
        return {name: self.scheme.instance(name, client) for name in names}

    def trained_blocks(self, client: ClientProfile) -> dict[Block, BlockInstance]:
        """The block instances that a client trains or measures: of its own modalities, and not frozen."""
        names = (
            *self._model_blocks(client),
            *(Block("prototype", modality) for modality in self.measured_prototypes(client)),
        )
        instances = {name: self.scheme.instance(name, client) for name in names}
        return {name: instance for name, instance in instances.items() if instance.is_trained}

    def private_averages(self, client: ClientProfile) -> dict[Block, BlockInstance]:
        """By name of a private block what a client that never trains is sent for it; nothing where it begins anew."""
        if not client.is_unseen or self.unseen_start == "initial":
            return {}
        trained = self.trained_blocks(client).items()
        return {name: instance.average(client) for name, instance in trained if instance.is_private}

    def own_parts(self, client: ClientProfile) -> tuple[str, ...]:
        """What of a client's model its own training alone changes, in words: private blocks and copies, statistics."""
        trained = self.trained_blocks(client).items()
        private: tuple[str, ...] = tuple(sorted(name for name, instance in trained if instance.is_private))
        kept = {part.instance.copy for part in self.extra_parts(client) if part.instance.is_private}
        private += tuple(sorted(kept & self.scored_copies))
        return (*private, "normalisation statistics") if self.model.norm_statistics == "local" else private

    def measured_prototypes(self, client: ClientProfile) -> tuple[str, ...]:
        """The modalities of a client whose prototypes it contributes to."""
        return tuple(modality for modality in self.prototypes if modality in client.modalities)

    def sent_blocks(self, client: ClientProfile, *, scored: bool = False) -> tuple[BlockInstance, ...]:
        """The block instances that a client receives, in a fixed order: all that it holds but the private ones.

        Args:
            client: The client.
            scored: To be scored; of what an algorithm adds only what its `scored` reads is sent for that.
        """
        extras = (
            part.instance
            for part in self.extra_parts(client)
            if part.is_sent and (not scored or part.instance.copy in self.scored_copies)
        )
        averages = self.private_averages(client).values()
        return (*self._exchanged(client, self.held_blocks(client)), *averages, *extras)

    def sent_together(self, clients: Sequence[ClientProfile], *, scored: bool = False) -> tuple[BlockInstance, ...]:
        """The block instances that clients of one kind receive, each once."""
        first = self.sent_blocks(clients[0], scored=scored)
        if not any(instance.scope is Scope.CLIENT for instance in first):
            return first
        return tuple(dict.fromkeys(i for client in clients for i in self.sent_blocks(client, scored=scored)))

    def returned_blocks(self, client: ClientProfile) -> tuple[BlockInstance, ...]:
        """The block instances that a client may send back, in a fixed order: all that it trains but the private ones.

        Of what there is one of for each client on the server, the instance without a key.
        """
        extras = (part.instance for part in self.extra_parts(client) if part.is_returned)
        keyless = (i._replace(key="") if i.scope is Scope.CLIENT else i for i in extras)
        return (*self._exchanged(client, self.trained_blocks(client)), *keyless)

    def cut(
        self, instances: Iterable[BlockInstance], blocks: Mapping[str, Vector], num_parameters: Mapping[str, int]
    ) -> dict[BlockInstance, Vector]:
        """The values of block instances that a client is sent or sends back, out of its whole blocks.

        Args:
            instances: Some of `sent_blocks` or `returned_blocks`, in whose order the values are given.
            blocks: Each block's vector by name, its parameters before its running statistics.
            num_parameters: By block name, how many values of the vector are parameters.

        Returns:
            Views.
        """
        values: dict[BlockInstance, Vector] = {}
        split = {Block("statistics", name): name for name in self.split_blocks}
        for instance in instances:
            if instance.name.kind == "average":
                values[instance] = blocks[instance.name.of]
            elif instance.name in split:
                name = split[instance.name]
                values[instance] = blocks[name][num_parameters[name] :]
            elif instance.name in self.split_blocks:
                values[instance] = blocks[instance.name][: num_parameters[instance.name]]
            else:
                values[instance] = blocks[instance.name]
        return values

    def joined(self, client: ClientProfile, sent: SentBlocks) -> dict[str, Vector]:
        """The whole blocks of a client by name, but for its own private ones, out of what it is sent: undoes `cut`.

        Args:
            client: The client; the result is the same for all of its kind.
            sent: Every block instance that it is sent.
        """
        averages = self.private_averages(client)
        whole: dict[str, Vector] = {name: sent[instance].values for name, instance in averages.items()}
        for name, instance in self.held_blocks(client).items():
            if instance.is_private:
                continue
            whole[name] = sent[instance].values
            if name in self.split_blocks:
                whole[name] = np.concatenate([whole[name], sent[self._statistics(instance, client)].values])
        return whole

    def _exchanged(self, client: ClientProfile, held: Mapping[Block, BlockInstance]) -> tuple[BlockInstance, ...]:
        shared = [instance for instance in held.values() if not instance.is_private]
        split = [instance for instance in shared if instance.name in self.split_blocks]
        return (*shared, *(self._statistics(instance, client) for instance in split))

    def _statistics(self, instance: BlockInstance, client: ClientProfile) -> BlockInstance:
        if self.model.norm_statistics == "same-modalities":
            return instance.statistics(client)
        return instance._replace(name=Block("statistics", instance.name))


@dataclass(frozen=True)
class SentBlock:
    """The current value of a block instance, as sent to clients.

    Attributes:
        version: Counts the values that the instance has had; a client that holds this version is not sent it again.
        values: (size,) float32. May be read-only memory that processes share.
    """

    version: int
    values: Vector


SentBlocks = Mapping[BlockInstance, SentBlock]
"""The current value of every block instance that is not private."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """What a client keeps between rounds; never changed in place, so that clients can share what is equal.

    Attributes:
        private: Values of its private blocks by name; a block that it never trained has its initial value.
        local_state: Its normalisation state.
        optimizer_state: State of its optimizer, with `training.keep_optimizer_state`.
        versions: Version of each block instance that it was sent last.
        rounds_trained: Rounds in which it has trained; None where a checkpoint of an earlier version does not say.
        extras: What its algorithm keeps with it, by copy and block.
    """

    private: Mapping[str, Vector] = field(default_factory=dict)
    local_state: LocalState = field(default_factory=dict)
    optimizer_state: OptimizerState = field(default_factory=dict)
    versions: Mapping[BlockInstance, int] = field(default_factory=dict)
    rounds_trained: int | None = 0
    extras: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class ChunkTraining:
    """What training a chunk, or the part of a chunk that one host holds, sends back.

    Attributes:
        records: One per client, in client order.
        sent: Per block instance that is not private, in a fixed order, what these clients send back: the chunk's
            partial sum, where all of its clients are here and there are several; else each client's own values.
        bytes_down: Bytes sent to these clients by block instance.
        bytes_up: Bytes that they sent back by block instance.
    """

    records: tuple[ClientTraining, ...]
    sent: Mapping[BlockInstance, PartialSum | Contributions]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]


@dataclass(frozen=True)
class ChunkUpdate:
    """A trained chunk as the loop sees it.

    Attributes:
        records: One per client, in client order.
        sent: What its clients sent back of each block instance, fetched as it is iterated; iterate it once.
        bytes_down: Bytes sent to these clients by block instance.
        bytes_up: Bytes that they sent back by block instance.
    """

    records: tuple[ClientTraining, ...]
    sent: Iterator[tuple[BlockInstance, PartialSum | Contributions]]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]


@dataclass(frozen=True)
class ChunkEvaluation:
    """Scores of a chunk's clients.

    Attributes:
        records: One per client and task of which it has labels, in client order; columns where there can be.
        tallies: By task, of these clients together.
        bytes_down: Bytes sent to these clients by block instance.
        by_set: By task, of their samples that have the same modalities, by these; empty where no sample lacks one.
    """

    records: Sequence[ClientEvaluation]
    tallies: Mapping[str, Tally]
    bytes_down: Mapping[BlockInstance, int]
    by_set: Mapping[str, Mapping[str, Tally]] = field(default_factory=dict)
