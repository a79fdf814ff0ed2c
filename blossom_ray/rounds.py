"""The two halves of a round, training and evaluation."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from blossom_ray.algorithms.seam import has
from blossom_ray.algorithms.selection import Chunk, draw_clients, fraction_of
from blossom_ray.authoring import Reports, by_instance
from blossom_ray.clients.plan import ChunkUpdate, SentBlock, SentBlocks
from blossom_ray.core.blocks import CENTRAL, CENTRAL_SCHEMES, Block, BlockInstance, ClientProfile, Scope
from blossom_ray.core.evaluations import ClientEvaluation, EvaluationColumns, clients_of, joined_evaluations
from blossom_ray.core.records import ClassScores, ClientTraining, Scoring, TaskTraining
from blossom_ray.core.scores import task_prefix
from blossom_ray.core.seeding import Purpose
from blossom_ray.core.sums import Accumulator, Contributions, PartialSum, Total
from blossom_ray.errors import RunError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.base import Runtime
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server, mean_of_tasks, shared_by_tasks, sums_by_task
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.base import Tally
from blossom_ray.tasks.summary import class_scores, observed_summary, summarize, total, trained_summary


@dataclass(frozen=True)
class RoundTraining:
    """What the cohort of one round did; nothing in round 0.

    Attributes:
        learning_rate: The clients' learning rate, None in round 0.
        records: One per client, in client order.
        sums: What contributors sent, added up, by block instance; instances without contributors are absent.
        rows: The same one by one, of what an algorithm wants so.
        by_task: The same sums by task, of instances that clients of several tasks hold; empty with an algorithm.
        bytes_down: Bytes sent to clients by block instance.
        bytes_up: Bytes sent back by block instance.
        seconds: Wall time.
    """

    learning_rate: float | None = None
    records: tuple[ClientTraining, ...] = ()
    sums: Mapping[BlockInstance, PartialSum] = field(default_factory=dict)
    rows: Mapping[BlockInstance, Contributions] = field(default_factory=dict)
    by_task: Mapping[BlockInstance, Mapping[str, PartialSum]] = field(default_factory=dict)
    bytes_down: Mapping[BlockInstance, int] = field(default_factory=dict)
    bytes_up: Mapping[BlockInstance, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def reports(self) -> Reports:
        """What the cohort reported, as an algorithm on the server sees it."""
        return Reports(tuple(record.client for record in self.records), self.sums, self.rows)

    def metrics(self, profiles: Sequence[ClientProfile]) -> dict[str, float]:
        """The mean training loss over all samples of a task seen, as in `RoundRecord.metrics`."""
        found = {}
        by_task: dict[str, list[TaskTraining]] = {}
        for record in self.records:
            for task, own in record.of_tasks(profiles[record.client].tasks).items():
                by_task.setdefault(task, []).append(own)
        for task, parts in sorted(by_task.items()):
            weight = sum(part.num_examples for part in parts)
            loss_sum = sum(part.num_examples * part.loss for part in parts)
            found[f"{task_prefix(task)}train_loss"] = loss_sum / weight
        return found


@dataclass(frozen=True)
class RoundEvaluation:
    """Scores of the new blocks.

    Attributes:
        scored: By what was scored, one entry per client, in client order.
        metrics: Summary by name, as in `RoundRecord.metrics`.
        bytes_down: Bytes sent to clients by block instance.
        seconds: Wall time.
        classes: As in `RoundRecord`.
        bytes_up: Bytes sent back by block instance: means of private blocks for clients that never train.
    """

    scored: Mapping[Scoring, Sequence[ClientEvaluation]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes_down: Mapping[BlockInstance, int] = field(default_factory=dict)
    seconds: float = 0.0
    classes: tuple[ClassScores, ...] = ()
    bytes_up: Mapping[BlockInstance, int] = field(default_factory=dict)


Train = Callable[..., Iterator[ChunkUpdate]]
"""`Runtime.train`, or what is called like it in its place."""


def trainer(preparation: Preparation, runtime: Runtime) -> Train:
    """What trains the clients of a run: its runtime, or in their place one model, or one for each task."""
    if preparation.scenario.sharing not in CENTRAL_SCHEMES:
        return runtime.train
    # torch comes with it; a process that just watches a run imports this module without.
    from blossom_ray.clients.central import CentralModel

    plan, profiles, shards = preparation.plan, preparation.population.trained, preparation.shards
    tasks = (tuple(plan.tasks),) if preparation.scenario.sharing == CENTRAL else ((name,) for name in plan.tasks)
    models = [CentralModel(plan, profiles, own, shards) for own in tasks]

    def train(
        chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, learning_rate: float
    ) -> Iterator[ChunkUpdate]:
        for model in models:
            yield from model.train(chunks, blocks, round_index=round_index, learning_rate=learning_rate)

    return train


def train_round(
    preparation: Preparation, train: Train, server: Server, round_index: int, learning_rate: float
) -> RoundTraining:
    """Draw the cohort, train it, and average its updates block by block as they come in."""
    started = time.perf_counter()
    population, algorithm = preparation.population, preparation.algorithm
    records: list[ClientTraining] = []
    sums: defaultdict[BlockInstance, Accumulator] = defaultdict(Accumulator)
    rows: defaultdict[BlockInstance, list[Contributions]] = defaultdict(list)
    by_task: defaultdict[BlockInstance, defaultdict[str, Accumulator]] = defaultdict(lambda: defaultdict(Accumulator))
    # What an algorithm is sent need not be values that can be averaged, and a central model is no average.
    is_averaged = preparation.algorithm is None and preparation.scenario.sharing not in CENTRAL_SCHEMES
    shared = shared_by_tasks(preparation.plan, population.representatives()) if is_averaged else frozenset()
    bytes_down: Counter[BlockInstance] = Counter()
    bytes_up: Counter[BlockInstance] = Counter()
    chunks = population.cut(cohort(preparation, server, round_index))
    for update in train(chunks, server.sent, round_index=round_index, learning_rate=learning_rate):
        records.extend(update.records)
        tasks = population.profiles[update.records[0].client].tasks
        for instance, sent in by_instance(update.sent):
            part = sent if isinstance(sent, PartialSum) else sent.summed()
            if part is not None:
                sums[instance].add(part)
                if instance in shared:
                    for task, own in sums_by_task(sent, update.records, tasks, preparation.plan.weighting).items():
                        by_task[instance][task].add(own)
            if isinstance(sent, Contributions) and sent.clients and preparation.plan.keeps_rows(instance):
                rows[instance].append(sent)
        bytes_down.update(update.bytes_down)
        bytes_up.update(update.bytes_up)
    fewest = preparation.scenario.failures.min_clients
    if len(records) < fewest:
        raise RunError(
            f"round {round_index}: {len(records)} clients are left after failures; "
            f"expected at least {fewest} (failures.min_clients)"
        )
    training = RoundTraining(
        learning_rate=learning_rate,
        records=tuple(sorted(records, key=lambda record: record.client)),
        sums={instance: total.result() for instance, total in sums.items()},
        rows={instance: Contributions.joined(parts) for instance, parts in rows.items()},
        by_task={instance: {task: own[task].result() for task in sorted(own)} for instance, own in by_task.items()},
        bytes_down=bytes_down,
        bytes_up=bytes_up,
    )
    if algorithm is not None and algorithm.has_admit:
        training = _admitted(training, rows, algorithm.admitted(server, round_index, training.reports))
    return replace(training, seconds=time.perf_counter() - started)


def cohort(preparation: Preparation, server: Server, round_index: int) -> tuple[int, ...]:
    """The clients of a round, ascending: as the algorithm selects them, or else drawn."""
    population, seed = preparation.population, preparation.scenario.seeds.training
    selected = None
    if preparation.algorithm is not None:
        selected = preparation.algorithm.select(server, population, seed, round_index)
    return population.cohort(seed, round_index) if selected is None else selected


def _admitted(
    training: RoundTraining,
    parts: Mapping[BlockInstance, Sequence[Contributions]],
    admits: Callable[[BlockInstance], Collection[int] | None],
) -> RoundTraining:
    """A round of which only the admitted contributions count; those of the others were never sent.

    Args:
        training: All that the cohort reported.
        parts: Its contributions by chunk, in whose order they are added up again.
        admits: The clients whose contributions to an instance count; None: all.
    """
    sums, rows = dict(training.sums), dict(training.rows)
    bytes_up, saved = Counter(training.bytes_up), Counter[int]()
    for instance, own in parts.items():
        admitted = admits(instance)
        if admitted is None:
            continue
        kept, total = [part.only(admitted) for part in own], Accumulator()
        for part in kept:
            if (chunk_sum := part.summed()) is not None:
                total.add(chunk_sum)
        size = rows[instance].values[0].nbytes
        for client in set(rows[instance].clients) - set(admitted):
            saved[client] += size
            bytes_up[instance] -= size
        sums.pop(instance), rows.pop(instance)
        if any(part.clients for part in kept):
            sums[instance], rows[instance] = total.result(), Contributions.joined(kept)
    records = tuple(
        replace(record, bytes_up=record.bytes_up - saved[record.client]) if saved[record.client] else record
        for record in training.records
    )
    return replace(training, sums=sums, rows=rows, bytes_up=bytes_up, records=records)


def targets(
    preparation: Preparation, server: Server, round_index: int, training: RoundTraining
) -> Mapping[BlockInstance, Total]:
    """What each block instance is stepped towards: the average, or what an algorithm puts in its place."""
    if preparation.algorithm is None:
        averages = {instance: part.average for instance, part in training.sums.items()}
        if preparation.scenario.server.task_weights == "equal":
            averages |= {instance: mean_of_tasks(own) for instance, own in training.by_task.items()}
        return averages
    return preparation.algorithm.next_values(server, round_index, training.reports)


def scorings_due(
    scenario: Scenario,
    round_index: int,
    *,
    has_held_out: bool,
    has_validation: bool,
    is_end: bool | None = None,
    has_own_model: bool = False,
) -> frozenset[Scoring]:
    """What the blocks are scored on after a round; nothing in a round that is left out.

    Args:
        scenario: The scenario.
        round_index: The round.
        has_held_out: Whether there is a held-out global test set.
        has_validation: Whether some client has a validation split.
        is_end: Whether these are the scores that the run ends with; None: those of the last round are. With `stop` that
            is like any other, and those of the best round are.
        has_own_model: Whether an algorithm has clients scored with something else than the averaged model, which is
            scored on the test split beside it.
    """
    section, is_last = scenario.evaluation, round_index == scenario.rounds
    if is_end is None:
        is_end = is_last and scenario.stop is None
    if round_index % section.every != 0 and not is_last and not is_end:
        return frozenset()
    tuned_of = {
        Scoring.OWN_TEST: Scoring.FINE_TUNED,
        Scoring.VALIDATION: Scoring.FINE_TUNED_VALIDATION,
        Scoring.UNSEEN: Scoring.UNSEEN_FINE_TUNED,
    }
    due = {Scoring.VALIDATION} if has_validation else set()
    if section.split == "test" or is_end:
        due |= {Scoring.OWN_TEST, Scoring.PLAIN} if has_own_model else {Scoring.OWN_TEST}
        due |= {Scoring.UNSEEN} if scenario.num_unseen else set()
    tuning = section.fine_tune
    if tuning is not None and round_index > 0:
        is_among_last = scenario.stop is None and round_index > scenario.rounds - tuning.last
        if is_end or is_among_last or (tuning.every and round_index % tuning.every == 0):
            due |= {tuned_of[scoring] for scoring in due & tuned_of.keys()}
    if scenario.model.norm_statistics == "local":  # theirs are initial before fine-tuning
        due.discard(Scoring.UNSEEN)
    if has_held_out and (section.held_out == "every" or (section.held_out == "final" and is_end)):
        due.add(Scoring.HELD_OUT)
    return frozenset(due)


def scorings_at_end(preparation: Preparation, round_index: int) -> tuple[frozenset[Scoring], frozenset[Scoring]]:
    """What the blocks of the best round are scored on at the end of a run with `stop`.

    Returns:
        All that is scored then, and what of it adds scores: the rest was scored after that round, and is done again
        where scores of single classes are kept at a run's end alone.
    """
    scenario = preparation.scenario
    before, at_end = (_due(preparation, round_index, is_end=is_end) for is_end in (False, True))
    has_classes = any(task.kind != "regression" for task in scenario.learned.values())
    adds_classes = scenario.evaluation.per_class == "final" and has_classes
    return at_end if adds_classes else at_end - before, at_end - before


def _due(preparation: Preparation, round_index: int, *, is_end: bool) -> frozenset[Scoring]:
    return scorings_due(
        preparation.scenario,
        round_index,
        has_held_out=preparation.has_held_out,
        has_validation=preparation.has_validation,
        is_end=is_end,
        has_own_model=has(preparation.plan.author, "scored"),
    )


_MOST_SCORED = 1024
"""The most clients that are scored in one piece; whole stacks fit into it. Chunks are wide where few of many clients
train in a round: this bounds what is in memory at once, and what is done again where an actor is lost."""


def evaluate_round(preparation: Preparation, runtime: Runtime, server: Server, round_index: int) -> RoundEvaluation:
    """Score the new blocks on the clients' own test and validation splits, as far as the scenario asks for it now.

    Where it asks for it, score them after local fine-tuning as well, and on the held-out set.
    """
    is_end = round_index == preparation.scenario.rounds and preparation.scenario.stop is None
    due = _due(preparation, round_index, is_end=is_end)
    return evaluate(preparation, runtime, server, round_index, due, is_end=is_end)


def evaluate(
    preparation: Preparation,
    runtime: Runtime,
    server: Server,
    round_index: int,
    due: Collection[Scoring],
    *,
    is_end: bool,
) -> RoundEvaluation:
    """Score the blocks of a round.

    Args:
        preparation: The prepared federation.
        runtime: Executes the clients.
        server: The server after the round.
        round_index: The round.
        due: On what, and whether after local fine-tuning.
        is_end: Whether these are the scores that a run ends with: those of single classes are kept then.
    """
    started = time.perf_counter()
    if not due:
        return RoundEvaluation()
    scenario, population = preparation.scenario, preparation.population
    num_clients = len(population.trained)
    num_scored = fraction_of(scenario.evaluation.clients, num_clients)
    drawn = draw_clients(num_clients, num_scored, scenario.seeds.training, Purpose.EVALUATION_COHORT, round_index)
    keeps_classes = scenario.evaluation.per_class == "every" or (scenario.evaluation.per_class == "final" and is_end)
    scored: dict[Scoring, Sequence[ClientEvaluation]] = {}
    metrics: dict[str, float] = {}
    bytes_down: Counter[BlockInstance] = Counter()
    classes: list[ClassScores] = []
    averages, bytes_up = dict[BlockInstance, SentBlock](), dict[BlockInstance, int]()
    if any(scoring.is_unseen for scoring in due):
        averages, bytes_up = _private_averages(preparation, runtime, round_index)
    for scoring in (each for each in Scoring if each in due):
        is_held_out = scoring is Scoring.HELD_OUT
        if is_held_out:
            clients = held_out_clients(preparation)
        elif scoring.is_unseen:
            clients = tuple(profile.index for profile in population.unseen)
        else:
            num_rows = preparation.shards.num_validation if scoring.is_validation else preparation.shards.num_test
            clients = tuple(client for client in drawn if num_rows[client])
        records: list[Sequence[ClientEvaluation]] = []
        by_task: dict[str, dict[str, Tally]] = {}
        observed: dict[tuple[str, str], dict[str, Tally]] = {}
        chunks = [piece for chunk in population.cut(clients) for piece in chunk.pieces(_MOST_SCORED)]
        blocks = {**server.sent, **averages} if scoring.is_unseen else server.sent
        for part in runtime.evaluate(chunks, blocks, round_index=round_index, scoring=scoring):
            records.append(part.records)
            # Blocks are sent with the first scoring that needs them: the others cost no traffic.
            bytes_down.update(part.bytes_down)
            profile = population.profiles[part.records[0].client]
            owned = profile.modality_set
            for task, whole in part.tallies.items():
                tallies = by_task.setdefault(task, {})
                tallies[owned] = tallies[owned] + whole if owned in tallies else whole
                # On the held-out set each modality set's models are scored on the same samples: all together are none.
                by_set = observed.setdefault((task, owned if is_held_out else ""), {})
                for name, tally in part.by_set.get(task, {owned: whole}).items():
                    by_set[name] = by_set[name] + tally if name in by_set else tally
        joined = joined_evaluations(records)
        # The scores of the held-out set are those of modality sets alone.
        scored[scoring] = () if is_held_out else joined
        for task, tallies in sorted(by_task.items()):
            prefix = f"{scoring.prefix}{task_prefix(task)}"
            own = joined
            if not isinstance(joined, EvaluationColumns):
                own = [record for record in joined if record.task == task]
            for name, value in _summary(preparation, scoring, task, own, tallies, observed).items():
                if "/" in name or not is_held_out:
                    metrics[f"{prefix}{name}"] = value
            if keeps_classes:
                rules = task_rules(preparation.plan.tasks[task].kind)
                names, label = preparation.task_facts[task].class_names, "/".join(filter(None, (scoring.label, task)))
                classes += class_scores(label, tallies, rules, names, with_total=not is_held_out)
    return RoundEvaluation(scored, metrics, bytes_down, time.perf_counter() - started, tuple(classes), bytes_up)


def _private_averages(
    preparation: Preparation, runtime: Runtime, round_index: int
) -> tuple[dict[BlockInstance, SentBlock], dict[BlockInstance, int]]:
    """What private blocks of clients that never train begin with, and the bytes that were sent for it.

    Where no client of their kind has trained yet there is nothing: the server has the blocks' initial values.
    """
    plan, population = preparation.plan, preparation.population
    sent, bytes_up = dict[BlockInstance, SentBlock](), dict[BlockInstance, int]()
    for profile in population.unseen_representatives():
        if not (averages := plan.private_averages(profile)):
            continue
        sums: defaultdict[Block, Accumulator] = defaultdict(Accumulator)
        chunks = population.cut(population.signatures[profile.signature])
        for part in runtime.private_sums(chunks, round_index=round_index):
            for name, chunk_sum in part.items():
                sums[name].add(chunk_sum)
        for name, accumulated in sums.items():
            found, instance = accumulated.result(), averages[name]
            sent[instance] = SentBlock(round_index, found.average.astype(np.float32))
            bytes_up[instance] = found.contributors * sent[instance].values.nbytes
    return sent, bytes_up


def held_out_clients(preparation: Preparation) -> tuple[int, ...]:
    """Whose models are scored on the held-out set: where all of a kind have the same model and scales, one of them."""
    plan, population, clients = preparation.plan, preparation.population, list[int]()
    for members in population.signatures.values():
        profile = population.profiles[members[0]]
        if not any(plan.tasks[task].has_held_out for task in profile.tasks):
            continue
        held, extras = plan.held_blocks(profile).values(), plan.extra_parts(profile)
        read = [part.instance.scope for part in extras if part.instance.copy in plan.scored_copies]
        personal = any(instance.is_private for instance in held) or plan.model.norm_statistics == "local"
        personal = personal or any(numbers[members[0]] >= 0 for numbers in preparation.shards.scales.values())
        personal = personal or not {Scope.PRIVATE, Scope.CLIENT, Scope.DRAWN}.isdisjoint(read)
        clients.extend(members if personal else members[:1])
    return tuple(sorted(clients))


def may_leave_untrained(preparation: Preparation) -> bool:
    """Whether clients may be scored with parts of their own that were never trained."""
    scenario, population = preparation.scenario, preparation.population
    num_clients = len(population.trained)
    trains_all = population.cohort_size == num_clients
    if trains_all and scenario.failures.on_failure != "drop":
        return False
    return any(preparation.plan.own_parts(profile) for profile in population.representatives())


def _summary(
    preparation: Preparation,
    scoring: Scoring,
    task: str,
    records: Sequence[ClientEvaluation],
    tallies: Mapping[str, Tally],
    observed: Mapping[tuple[str, str], Mapping[str, Tally]],
) -> dict[str, float]:
    """The metrics of a task in one scoring.

    Args:
        preparation: The prepared federation.
        scoring: On what clients were scored.
        task: The task.
        records: Its clients' scores.
        tallies: Their sums by modality set.
        observed: By task and modality set, "" for all clients, the sums over samples that have the same modalities.
    """
    profiles, plan = preparation.population.profiles, preparation.plan
    rules = task_rules(plan.tasks[task].kind, plan.metrics)
    pooled = rules.scores(total(tallies.values()))
    sets = [profiles[client].modality_set for client in clients_of(records)]
    summary = summarize(records, sets, pooled)
    if may_leave_untrained(preparation) and not scoring.is_unseen:
        summary |= trained_summary(records, sets, [*pooled])
    if isinstance(records, EvaluationColumns):  # no sample lacks a modality
        return summary
    for owned in ("", *tallies):
        members = [record for record, own in zip(records, sets, strict=True) if not owned or own == owned]
        own_sets = [own for own in sets if not owned or own == owned]
        found = observed_summary(members, own_sets, observed.get((task, owned), {}), rules)
        summary |= {f"{name}/{owned}" if owned else name: value for name, value in found.items()}
    return summary
