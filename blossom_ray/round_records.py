"""What a round leaves behind: its record, with rates, losses, scores and an entry for each block."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import chain

from blossom_ray.core.blocks import Block, BlockInstance, Scope, Signature
from blossom_ray.core.records import BlockRound, RoundRecord, Scoring
from blossom_ray.core.scores import task_prefix
from blossom_ray.rounds import RoundEvaluation, RoundTraining
from blossom_ray.runtime.base import RuntimeRound
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server, weight_shares


def round_record(
    preparation: Preparation,
    server: Server,
    round_index: int,
    *,
    evaluation: RoundEvaluation,
    training: RoundTraining | None = None,
    update_norms: Mapping[BlockInstance, float] | None = None,
    task_cosines: Mapping[BlockInstance, float] | None = None,
    happened: RuntimeRound | None = None,
) -> RoundRecord:
    """What a round reports: of its two halves, of the server's step (norms and cosines by instance), of the runtime."""
    training, happened = training or RoundTraining(), happened or RuntimeRound()
    seconds = {"train": training.seconds, "evaluate": evaluation.seconds}
    return RoundRecord(
        round_index=round_index,
        learning_rate=training.learning_rate,
        cohort=tuple(record.client for record in training.records),
        training=training.records,
        evaluation=evaluation.scored.get(Scoring.OWN_TEST, ()),
        metrics=training.metrics(preparation.population.profiles)
        | (_rates(preparation, round_index) if training.records else {})
        | dict(evaluation.metrics),
        blocks=_block_rounds(preparation, server, training, evaluation, update_norms or {}, task_cosines or {}),
        seconds=seconds | {"total": sum(seconds.values())},
        failures=happened.failures,
        fine_tuned=evaluation.scored.get(Scoring.FINE_TUNED, ()),
        actors=happened.actors,
        classes=evaluation.classes,
        validation=evaluation.scored.get(Scoring.VALIDATION, ()),
        fine_tuned_validation=evaluation.scored.get(Scoring.FINE_TUNED_VALIDATION, ()),
        plain=evaluation.scored.get(Scoring.PLAIN, ()),
        unseen=evaluation.scored.get(Scoring.UNSEEN, ()),
        fine_tuned_unseen=evaluation.scored.get(Scoring.UNSEEN_FINE_TUNED, ()),
    )


def _rates(preparation: Preparation, round_index: int) -> dict[str, float]:
    """The learning rates of the tasks that have their own."""
    plan = preparation.plan
    return {
        f"{task_prefix(name)}learning_rate": plan.training.schedule.learning_rate(
            task.lr, round_index, preparation.scenario.rounds
        )
        for name, task in plan.tasks.items()
        if task.lr is not None
    }


def _block_rounds(
    preparation: Preparation,
    server: Server,
    training: RoundTraining,
    evaluation: RoundEvaluation,
    update_norms: Mapping[BlockInstance, float],
    task_cosines: Mapping[BlockInstance, float],
) -> tuple[BlockRound, ...]:
    """One entry per instance on the server, and one for all clients' own ones together: private, or on the server."""
    plan, population = preparation.plan, preparation.population
    drift_sums: defaultdict[BlockInstance, float] = defaultdict(float)
    num_examples: Counter[BlockInstance] = Counter()
    weights: defaultdict[BlockInstance, float] = defaultdict(float)
    contributors: Counter[BlockInstance] = Counter()
    reported: dict[Signature, dict[Block, BlockInstance]] = {}
    for record in training.records:
        profile = population.profiles[record.client]
        signature = profile.signature
        if signature not in reported:
            returned = {instance.name: instance for instance in plan.returned_blocks(profile) if not instance.copy}
            reported[signature] = {**_private(plan.trained_blocks(profile)), **returned}
        for name, together in reported[signature].items():
            # A prototype is measured anew, so it drifts from nothing; statistics are no parameters.
            if name in record.drift:
                drift_sums[together] += record.num_examples * record.drift[name]
                num_examples[together] += record.num_examples
            weights[together] += plan.block_weight(together, record.weight, record.num_observed)
            contributors[together] += 1
    if plan.author is not None:  # which weighs its contributions, and may leave some out
        for instance in server.blocks:
            weights[instance.together], contributors[instance.together] = 0.0, 0
        for instance, part in training.sums.items():
            weights[instance.together] += part.weight
            contributors[instance.together] += part.contributors
    bytes_down, bytes_up = Counter[BlockInstance](), Counter[BlockInstance]()
    sent_down = chain(training.bytes_down.items(), evaluation.bytes_down.items())
    sent_up = chain(training.bytes_up.items(), evaluation.bytes_up.items())
    for counted, sent in ((bytes_down, sent_down), (bytes_up, sent_up)):
        for instance, size in sent:
            counted[instance.together] += size
    norms: dict[BlockInstance, float] = {}
    for instance, norm in update_norms.items():
        is_one_of_many = instance.together in norms
        norms[instance.together] = math.hypot(norms[instance.together], norm) if is_one_of_many else norm
    private = (_private(plan.held_blocks(profile)).values() for profile in population.representatives())
    instances = sorted({*(instance.together for instance in server.blocks), *chain.from_iterable(private)})
    return tuple(
        BlockRound(
            instance=instance,
            contributors=contributors[instance],
            weight=weights[instance],
            bytes_down=bytes_down[instance],
            bytes_up=bytes_up[instance],
            update_norm=norms.get(instance, 0.0),
            client_drift=drift_sums[instance] / num_examples[instance] if num_examples[instance] else None,
            task_cosine=task_cosines.get(instance),
            weight_shares=weight_shares(training.by_task.get(instance, {}), preparation.scenario.server.task_weights),
        )
        for instance in instances
    )


def _private(blocks: Mapping[Block, BlockInstance]) -> dict[Block, BlockInstance]:
    """By name the private ones of a client's blocks, each as the instance that stands for all clients' copies of it."""
    return {name: BlockInstance(name, Scope.PRIVATE) for name, instance in blocks.items() if instance.is_private}
