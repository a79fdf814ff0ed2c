"""The two halves of a round, training and evaluation, and the record that they leave."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blossom_ray.aggregation import Accumulator, Total
from blossom_ray.blocks import BlockInstance, Scope
from blossom_ray.client import ClientPlan
from blossom_ray.errors import RunError
from blossom_ray.metrics import class_scores, summarize, total, trained_summary
from blossom_ray.preparation import Preparation
from blossom_ray.records import (
    ActorRound,
    BlockRound,
    ClassScores,
    ClientEvaluation,
    ClientTraining,
    Failure,
    RoundRecord,
    Scoring,
)
from blossom_ray.runtime.base import Runtime
from blossom_ray.sampling import Population, Signature, cohort_size, draw_clients
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.phrases import listed
from blossom_ray.scenario.sections import FineTune
from blossom_ray.scores import Task, default_score
from blossom_ray.seeding import Purpose
from blossom_ray.server import Server
from blossom_ray.tasks import Tally, task_rules


@dataclass(frozen=True)
class RoundTraining:
    """What the cohort of one round did.

    Attributes:
        learning_rate: The clients' learning rate.
        records: One per client, in client order.
        averages: A_b by block instance, float64; instances without contributors are absent.
        contributors: Number of clients that trained each instance.
        weights: Sum of their weights.
        bytes_down: Bytes sent to clients by block instance.
        bytes_up: Bytes sent back by block instance.
        seconds: Wall time.
    """

    learning_rate: float
    records: tuple[ClientTraining, ...]
    averages: Mapping[BlockInstance, Total]
    contributors: Mapping[BlockInstance, int]
    weights: Mapping[BlockInstance, float]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]
    seconds: float

    @property
    def loss(self) -> float:
        """Mean training loss over all samples seen."""
        weight = sum(record.num_examples for record in self.records)
        return sum(record.num_examples * record.loss for record in self.records) / weight


@dataclass(frozen=True)
class RoundEvaluation:
    """Scores of the new blocks.

    Attributes:
        records: One per client scored on its own test split, in client order.
        fine_tuned: The same clients after local fine-tuning; empty where the scenario does not ask for it now.
        metrics: Summary by name, as in `RoundRecord.metrics`.
        bytes_down: Bytes sent to clients by block instance.
        seconds: Wall time.
        classes: As in `RoundRecord`.
    """

    records: tuple[ClientEvaluation, ...] = ()
    fine_tuned: tuple[ClientEvaluation, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes_down: Mapping[BlockInstance, int] = field(default_factory=dict)
    seconds: float = 0.0
    classes: tuple[ClassScores, ...] = ()


@dataclass(frozen=True)
class _Scored:
    """What scoring some clients gives.

    Attributes:
        records: One per client, in client order.
        tallies: Sums over the clients of each modality set.
        bytes_down: Bytes sent to clients by block instance.
    """

    records: tuple[ClientEvaluation, ...]
    tallies: Mapping[str, Tally]
    bytes_down: Counter[BlockInstance]


def train_round(
    preparation: Preparation, runtime: Runtime, server: Server, round_index: int, learning_rate: float
) -> RoundTraining:
    """Draw the cohort, train it, and average its updates block by block as they come in."""
    started = time.perf_counter()
    population = preparation.population
    records: list[ClientTraining] = []
    sums: defaultdict[BlockInstance, Accumulator] = defaultdict(Accumulator)
    bytes_down: Counter[BlockInstance] = Counter()
    bytes_up: Counter[BlockInstance] = Counter()
    chunks = population.cut(population.cohort(preparation.scenario.seed, round_index))
    for update in runtime.train(chunks, server.sent, round_index=round_index, learning_rate=learning_rate):
        records.extend(update.records)
        for instance, part in update.sums:
            sums[instance].add(part)
        bytes_down.update(update.bytes_down)
        bytes_up.update(update.bytes_up)
    fewest = preparation.scenario.failures.min_clients
    if len(records) < fewest:
        raise RunError(
            f"round {round_index}: {len(records)} clients are left after failures; "
            f"expected at least {fewest} (failures.min_clients)"
        )
    return RoundTraining(
        learning_rate=learning_rate,
        records=tuple(sorted(records, key=lambda record: record.client)),
        averages={instance: total.average() for instance, total in sums.items()},
        contributors={instance: total.contributors for instance, total in sums.items()},
        weights={instance: total.weight for instance, total in sums.items()},
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        seconds=time.perf_counter() - started,
    )


def scorings_due(scenario: Scenario, round_index: int, *, has_held_out: bool) -> frozenset[Scoring]:
    """What the blocks are scored on after a round; nothing in a round that is left out."""
    section, is_last = scenario.evaluation, round_index == scenario.rounds
    if round_index % section.every != 0 and not is_last:
        return frozenset()
    due = {Scoring.OWN_TEST}
    if _is_fine_tuning_due(section.fine_tune, round_index, is_last=is_last):
        due.add(Scoring.FINE_TUNED)
    if has_held_out and (section.held_out == "every" or (section.held_out == "final" and is_last)):
        due.add(Scoring.HELD_OUT)
    return frozenset(due)


def evaluate_round(preparation: Preparation, runtime: Runtime, server: Server, round_index: int) -> RoundEvaluation:
    """Score the new blocks on the clients' own test splits.

    Where the scenario asks for it, score them after local fine-tuning as well, and on the held-out set.
    """
    started = time.perf_counter()
    scenario, population = preparation.scenario, preparation.population
    due = scorings_due(scenario, round_index, has_held_out=preparation.has_held_out)
    if Scoring.OWN_TEST not in due:
        return RoundEvaluation()
    num_scored = max(1, math.floor(scenario.evaluation.clients * len(population.profiles) + 1e-9))
    clients = draw_clients(len(population.profiles), num_scored, scenario.seed, Purpose.EVALUATION_COHORT, round_index)
    own = _score(preparation, runtime, server, round_index, clients, Scoring.OWN_TEST)
    metrics, bytes_down = _summary(preparation, own), own.bytes_down
    scored = {"test": own}
    tuned: tuple[ClientEvaluation, ...] = ()
    if Scoring.FINE_TUNED in due:
        # The blocks have just been sent: this costs no traffic.
        scored["fine_tuned"] = _score(preparation, runtime, server, round_index, clients, Scoring.FINE_TUNED)
        tuned = scored["fine_tuned"].records
        summary = _summary(preparation, scored["fine_tuned"])
        metrics |= {f"fine_tuned/{name}": value for name, value in summary.items()}
    if Scoring.HELD_OUT in due:
        models = held_out_clients(preparation.plan, population)
        scored["held_out"] = _score(preparation, runtime, server, round_index, models, Scoring.HELD_OUT)
        summary = _summary(preparation, scored["held_out"])
        metrics |= {f"held_out/{name}": value for name, value in summary.items() if "/" in name}
        bytes_down.update(scored["held_out"].bytes_down)
    classes: tuple[ClassScores, ...] = ()
    per_class = scenario.evaluation.per_class
    if per_class == "every" or (per_class == "final" and round_index == scenario.rounds):
        rules, names = task_rules(preparation.plan.task), preparation.class_names
        classes = tuple(
            entry
            for scoring, each in scored.items()
            # Each modality set's models are scored on the same held-out samples: all together are none.
            for entry in class_scores(scoring, each.tallies, rules, names, with_total=scoring != "held_out")
        )
    return RoundEvaluation(own.records, tuned, metrics, bytes_down, time.perf_counter() - started, classes)


def held_out_clients(plan: ClientPlan, population: Population) -> tuple[int, ...]:
    """Whose models are scored on the held-out set: where all clients of a kind have the same model, one of them."""
    clients: list[int] = []
    for members in population.signatures.values():
        held = plan.held_blocks(population.profiles[members[0]]).values()
        personal = any(instance.is_private for instance in held) or plan.model.norm_statistics == "local"
        clients.extend(members if personal else members[:1])
    return tuple(sorted(clients))


def round_record(
    preparation: Preparation,
    server: Server,
    round_index: int,
    *,
    training: RoundTraining | None,
    evaluation: RoundEvaluation,
    update_norms: Mapping[BlockInstance, float],
    failures: tuple[Failure, ...] = (),
    actors: tuple[ActorRound, ...] = (),
) -> RoundRecord:
    """What the round reports, from its two halves; `training` is None for round 0."""
    seconds = {"train": training.seconds if training else 0.0, "evaluate": evaluation.seconds}
    return RoundRecord(
        round_index=round_index,
        learning_rate=training.learning_rate if training else None,
        cohort=tuple(record.client for record in training.records) if training else (),
        training=training.records if training else (),
        evaluation=evaluation.records,
        metrics=({"train_loss": training.loss} if training else {}) | dict(evaluation.metrics),
        blocks=_block_rounds(preparation, server, training, evaluation, update_norms),
        seconds=seconds | {"total": sum(seconds.values())},
        failures=failures,
        fine_tuned=evaluation.fine_tuned,
        actors=actors,
        classes=evaluation.classes,
    )


def undefined_note(record: RoundRecord, task: Task) -> str:
    """What to say of a round in which models gave outputs that are not finite; "" where all are."""
    score = default_score(task).name
    kinds = {"": "their own test samples", "fine_tuned/": "them after fine-tuning", "held_out/": "the held-out set"}
    found = [
        where
        for prefix, where in kinds.items()
        if any(math.isnan(value) for name, value in record.metrics.items() if name.startswith(prefix + score))
    ]
    if not found:
        return ""
    scored = (*record.evaluation, *record.fine_tuned)
    clients = sorted({each.client for each in scored if math.isnan(each.scores[score] or 0)})
    whose = f" of client {clients[0]}" + (f" and {len(clients) - 1} others" if clients[1:] else "") if clients else ""
    return (
        f"round {record.round_index}: outputs{whose} on {' and '.join(found)} are not finite, so these scores are "
        "undefined (NaN); a smaller training.optimizer.lr, or inputs of smaller scale"
    )


def untrained_note(preparation: Preparation, record: RoundRecord) -> str:
    """What to say of clients that were scored with parts of their own that were never trained; "" where there are none.

    Args:
        preparation: The prepared federation.
        record: A round that was scored.
    """
    if not _may_leave_untrained(preparation):
        return ""
    profiles, plan = preparation.population.profiles, preparation.plan
    untrained = [profiles[entry.client] for entry in record.evaluation if entry.rounds_trained == 0]
    parts = sorted({part for profile in untrained for part in plan.own_parts(profile)})
    if not parts:
        return ""
    metric = f"{default_score(plan.task).name}_trained"
    without = f"; {metric} is the score without them" if metric in record.metrics else ""
    return (
        f"{len(untrained)} of {len(record.evaluation)} scored clients never trained: their own {listed(parts)} have "
        f"initial values{without}"
    )


def _is_fine_tuning_due(section: FineTune | None, round_index: int, *, is_last: bool) -> bool:
    if section is None or round_index == 0:
        return False
    return is_last or (section.every is not None and round_index % section.every == 0)


def _score(
    preparation: Preparation,
    runtime: Runtime,
    server: Server,
    round_index: int,
    clients: Sequence[int],
    scoring: Scoring,
) -> _Scored:
    records: list[ClientEvaluation] = []
    bytes_down: Counter[BlockInstance] = Counter()
    tallies: dict[str, Tally] = {}
    profiles = preparation.population.profiles
    chunks = preparation.population.cut(clients)
    for part in runtime.evaluate(chunks, server.sent, round_index=round_index, scoring=scoring):
        records.extend(part.records)
        modality_set = profiles[part.records[0].client].modality_set
        tallies[modality_set] = tallies[modality_set] + part.tally if modality_set in tallies else part.tally
        bytes_down.update(part.bytes_down)
    return _Scored(tuple(sorted(records, key=lambda record: record.client)), tallies, bytes_down)


def _summary(preparation: Preparation, scored: _Scored) -> dict[str, float]:
    if not scored.records:
        return {}
    profiles, plan = preparation.population.profiles, preparation.plan
    pooled = task_rules(plan.task, plan.metrics).scores(total(scored.tallies.values()))
    sets = [profiles[record.client].modality_set for record in scored.records]
    summary = summarize(scored.records, sets, pooled)
    if _may_leave_untrained(preparation):
        summary |= trained_summary(scored.records, sets, [*pooled])
    return summary


def _may_leave_untrained(preparation: Preparation) -> bool:
    """Whether clients may be scored with parts of their own that were never trained."""
    scenario, population = preparation.scenario, preparation.population
    num_clients = len(population.profiles)
    trains_all = cohort_size(scenario.server.clients_per_round, num_clients) == num_clients
    if trains_all and scenario.failures.on_failure != "drop":
        return False
    return any(preparation.plan.own_parts(profile) for profile in population.representatives())


def _block_rounds(
    preparation: Preparation,
    server: Server,
    training: RoundTraining | None,
    evaluation: RoundEvaluation,
    update_norms: Mapping[BlockInstance, float],
) -> tuple[BlockRound, ...]:
    """One entry per instance on the server, and one per block name for all private copies of it together."""
    drift_sums: defaultdict[BlockInstance, float] = defaultdict(float)
    num_examples: Counter[BlockInstance] = Counter()
    weights: defaultdict[BlockInstance, float] = defaultdict(float)
    contributors: Counter[BlockInstance] = Counter()
    reported: dict[Signature, dict[str, BlockInstance]] = {}
    for record in training.records if training else ():
        profile = preparation.population.profiles[record.client]
        signature = (profile.modalities, profile.group)
        if signature not in reported:
            trained = preparation.plan.trained_blocks(profile)
            reported[signature] = {
                **{
                    name: BlockInstance(name, Scope.PRIVATE)
                    for name, instance in trained.items()
                    if instance.is_private
                },
                **{instance.name: instance for instance in preparation.plan.returned_blocks(profile)},
            }
        for name, together in reported[signature].items():
            # A prototype is measured anew, so it drifts from nothing; statistics are no parameters.
            if name in record.drift:
                drift_sums[together] += record.num_examples * record.drift[name]
                num_examples[together] += record.num_examples
            weights[together] += record.weight
            contributors[together] += 1
    bytes_down = Counter(training.bytes_down if training else {})
    bytes_down.update(evaluation.bytes_down)
    bytes_up = training.bytes_up if training else {}
    instances = sorted({*server.blocks, *_private_blocks(preparation)})
    return tuple(
        BlockRound(
            instance=instance,
            contributors=contributors[instance],
            weight=weights[instance],
            bytes_down=bytes_down[instance],
            bytes_up=bytes_up.get(instance, 0),
            update_norm=update_norms.get(instance, 0.0),
            client_drift=drift_sums[instance] / num_examples[instance] if num_examples[instance] else None,
        )
        for instance in instances
    )


def _private_blocks(preparation: Preparation) -> set[BlockInstance]:
    held = (preparation.plan.held_blocks(profile) for profile in preparation.population.representatives())
    return {
        BlockInstance(name, Scope.PRIVATE)
        for blocks in held
        for name, instance in blocks.items()
        if instance.is_private
    }
