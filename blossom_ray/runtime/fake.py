"""A runtime without models, data or processes: what the loop makes of its clients can be computed by hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.checkpoint import Checkpoint
from blossom_ray.clients.plan import ChunkEvaluation, ChunkUpdate, ClientPlan, SentBlocks
from blossom_ray.core.blocks import Block, BlockInstance, ClientProfile
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import ClientTraining, Failure, Scoring, TaskTraining
from blossom_ray.core.sums import Contributions, PartialSum, Vector, weighted_sum
from blossom_ray.runtime.base import Description, Pending, RuntimeRound
from blossom_ray.tasks import task_rules


@dataclass(frozen=True)
class FakeClient:
    """What a client answers whenever it is asked.

    Attributes:
        step: What it adds to each value of the blocks that it trains, times the learning rate.
        num_examples: Training samples, which are its weight, and samples scored, all of class 0.
        num_correct: How many of these it takes for class 0; the others for class 1.
        loss: Its loss in training and scoring.
        fails_in: Rounds in which it fails in training, and is dropped.
        num_labelled: Of several tasks, its training samples with a label of each.
    """

    step: float = 1.0
    num_examples: int = 1
    num_correct: int = 0
    loss: float = 0.0
    fails_in: Collection[int] = ()
    num_labelled: Mapping[str, int] = field(default_factory=dict)


class FakeRuntime:
    """A `Runtime` of fake clients in a classification, without memory: they are sent every block anew.

    Args:
        plan: What every client goes by.
        profiles: All clients in the order of their ids.
        clients: What each of them answers.
    """

    def __init__(self, plan: ClientPlan, profiles: Sequence[ClientProfile], clients: Sequence[FakeClient]) -> None:
        self._plan, self._profiles, self._clients = plan, profiles, clients
        self._failures: list[Failure] = []

    def train(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, learning_rate: float
    ) -> Iterator[ChunkUpdate]:
        """Each client adds its step to what it was sent."""
        for chunk in chunks:
            records: list[ClientTraining] = []
            updates: defaultdict[BlockInstance, list[tuple[float, Vector]]] = defaultdict(list)
            down, up = Counter[BlockInstance](), Counter[BlockInstance]()
            for number in chunk.clients:
                client, profile = self._clients[number], self._profiles[number]
                if round_index in client.fails_in:
                    self._failures.append(Failure("training", (number,), None, "fails", "dropped"))
                    continue
                step, drift = np.float32(learning_rate * client.step), dict[str, float]()
                received, returned = Counter[BlockInstance](), Counter[BlockInstance]()
                for instance in self._plan.sent_blocks(profile):
                    received[instance] = blocks[instance].values.nbytes
                for instance in self._plan.returned_blocks(profile):
                    updates[instance].append((client.num_examples, blocks[instance].values + step))
                    drift[instance.name] = abs(float(step)) * math.sqrt(blocks[instance].values.size)
                    returned[instance] = blocks[instance].values.nbytes
                traffic = received.total(), returned.total()
                weight, seconds = client.num_examples, 0.0
                by_task = {task: TaskTraining(count, client.loss) for task, count in client.num_labelled.items()}
                record = ClientTraining(number, weight, weight, 1, client.loss, drift, *traffic, seconds)
                records.append(replace(record, by_task=by_task))
                down.update(received)
                up.update(returned)
            if records:
                sums = ((instance, _sent(records, own)) for instance, own in updates.items())
                yield ChunkUpdate(tuple(records), sums, down, up)

    def evaluate(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, scoring: Scoring
    ) -> Iterator[ChunkEvaluation]:
        """Each client takes some samples of class 0 for class 0 and the others for class 1, whatever the blocks are."""
        del blocks, round_index, scoring
        for number in (number for chunk in chunks for number in chunk.clients):
            client, name = self._clients[number], self._profiles[number].tasks[0]
            task = self._plan.tasks[name]
            rules = task_rules(task.kind)
            predictions = (np.arange(client.num_examples) >= client.num_correct).astype(np.int64)
            tally = rules.tally(np.zeros_like(predictions), predictions, task.num_outputs)
            scores = rules.scores(tally)
            record = ClientEvaluation(number, client.num_examples, client.loss, scores, 0, seconds=0.0, task=name)
            yield ChunkEvaluation((record,), {name: tally}, {})

    def private_sums(self, chunks: Sequence[Chunk], *, round_index: int) -> Iterator[Mapping[Block, PartialSum]]:
        """They keep nothing."""
        del round_index
        for _ in chunks:
            yield {}

    def take_round(self) -> RuntimeRound:
        """Who was dropped since the last call."""
        failures, self._failures = tuple(self._failures), []
        return RuntimeRound(failures)

    def save(self, folder: Path, round_index: int) -> Pending:
        """There is nothing to write."""
        del folder, round_index
        return Pending(lambda: True)

    def restore(self, checkpoint: Checkpoint) -> None:
        """There is nothing to restore."""

    def describe(self) -> Description:
        """There is nothing to say."""
        return Description({"runtime": "fake"}, {})

    def close(self) -> None:
        """There is nothing to free."""


def _sent(records: Sequence[ClientTraining], own: Sequence[tuple[float, Vector]]) -> PartialSum | Contributions:
    if not any(record.by_task for record in records):
        return weighted_sum(own)
    weights, values = zip(*own, strict=True)
    return Contributions(tuple(record.client for record in records), weights, np.stack(values))
