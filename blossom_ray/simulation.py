"""The algorithm: rounds of local training, block-wise averaging and evaluation.

The loop yields records; printing, saving and stopping early are what its caller does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

from blossom_ray.checkpoint import STOP, TABLES, CheckpointStore, Session, check_compatible
from blossom_ray.clients.options import learning_rate
from blossom_ray.core.blocks import CENTRAL, BlockInstance
from blossom_ray.core.records import RoundRecord, Scoring, Stopped
from blossom_ray.reading.scenario import Scenario
from blossom_ray.rounds import (
    RoundTraining,
    evaluate,
    evaluate_round,
    round_record,
    scorings_at_end,
    train_round,
    trainer,
    undefined_note,
    untrained_note,
)
from blossom_ray.runs.table_files import record_rows
from blossom_ray.runs.table_sums import NO_ROWS, TableSums, extended
from blossom_ray.runtime.base import Pending, Runtime
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.scenario.early_stopping import EarlyStopping
from blossom_ray.server import Server, initial_server, mixed_statistics, server_step


@dataclass(frozen=True)
class RunInfo:
    """Facts for the run's manifest: once before the first round, once after the last."""

    entries: dict[str, object]


@dataclass(frozen=True)
class CheckpointKept:
    """A checkpoint with the state after this round is whole: a run that ends from here on can go on from it."""

    round_index: int


@dataclass(frozen=True)
class LateScores:
    """At the end of a run with `stop`: scores of its best round's blocks, which belong into the rows of that round.

    Attributes:
        record: The round, with these scores and nothing else.
    """

    record: RoundRecord


Event = RunInfo | RoundRecord | CheckpointKept | LateScores


def run(
    scenario: Scenario,
    session: Session,
    start: Callable[[Preparation], Runtime],
    stopping: Callable[[], bool] = lambda: False,
    num_workers: int = 1,
) -> Iterator[Event]:
    """Prepare a scenario, run its rounds with checkpoints, and report facts before and after.

    Args:
        scenario: The scenario.
        session: Folders, and where to go on from.
        start: Makes the runtime from the prepared federation.
        stopping: Asked after each round; True ends the run there, with a checkpoint.
        num_workers: Actors that compute at once.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the scenario asks.
        RunFolderError: The checkpoint to go on from belongs to another scenario or other data.
        RunError: A client or an actor failed.
    """
    # torch comes with these; a process that just watches a run imports this module without.
    from blossom_ray.runtime.kernels import gathered, kernels
    from blossom_ray.runtime.measurement import measured

    preparation = measured(prepare(scenario, session.folder), num_workers)
    store = CheckpointStore(session.checkpoints, scenario.checkpoint.keep) if session.checkpoints else None
    runtime = start(preparation)
    try:
        profiles = preparation.population.representatives()
        server = initial_server(preparation.plan, profiles, scenario.server.optimizer)
        mixed = () if scenario.sharing == CENTRAL else mixed_statistics(server, preparation.plan, profiles)
        advice = [*map(str, preparation.left_out), *preparation.notes]
        advice += [_statistics_note(instance) for instance in mixed]
        parameters = {str(instance): block.num_parameters for instance, block in server.blocks.items()}
        first_round, notes, sums = 0, tuple[str, ...](), NO_ROWS
        watched = EarlyStopping.of(scenario)
        if store is not None and session.resume is not None:
            checkpoint, notes = store.newest(session.resume)
            if checkpoint is not None:
                check_compatible(checkpoint, preparation.facts())
                server = checkpoint.restore(server)
                runtime.restore(checkpoint)
                first_round, sums = checkpoint.round_index + 1, session.resume[checkpoint.round_index]
                if watched is not None:
                    watched = watched.resumed(checkpoint.stop)
        described = runtime.describe()
        used = gathered([kernels(), *described.kernels])
        facts = {**preparation.describe(), **described.entries, "kernels": used, "parameters": parameters}
        yield RunInfo({**facts, "first_round": first_round, "notes": [*notes, *advice]})
        writer, unscored, untrained = _CheckpointWriter(store, preparation, runtime, sums), "", ""
        stopped = watched.end(first_round - 1) if watched is not None else None
        rounds: Iterable[tuple[RoundRecord, Server]] = ()
        if stopped is None:
            rounds = run_rounds(preparation, runtime, server, first_round)
        for record, new_server in rounds:
            server = new_server
            writer.commit()
            yield from writer.take_kept()
            if watched is not None:
                watched = watched.after(record)
                stopped = watched.end(record.round_index)
            yield replace(record, stopped=stopped)
            unscored = unscored or undefined_note(record, scenario.task)
            untrained = untrained_note(preparation, record) if record.num_evaluated else untrained
            is_last = record.round_index == scenario.rounds or stopped is not None or stopping()
            writer.after_round(record, server, watched, is_last=is_last)
            if is_last:
                break
        yield from writer.take_kept()
        # One digest over those of all clients: a manifest stays small with ten thousand of them.
        described = runtime.describe()
        private = sha256("".join(described.private_digests.values()).encode()).hexdigest()
        digest = {"shared": server.digest(), "private": private}
        if stopped is not None and (late := _late_scores(preparation, runtime, server, store, stopped)) is not None:
            yield LateScores(late)
            unscored = unscored or undefined_note(late, scenario.task)
            described = runtime.describe()
        # An actor may have been replaced by one on another node.
        used = gathered(used, [kernels(), *described.kernels])
        entries = {"digest": digest, **described.entries, "kernels": used}
        if stopped is not None:
            entries["stopped"] = asdict(stopped)
        # No round's record has room for what goes wrong after the last one.
        failures = runtime.take_round().failures
        lost = [f"after the last round: actor {f.actor} {f.cause}; {f.action}" for f in failures]
        found = filter(None, (unscored, untrained))
        yield RunInfo({**entries, "notes": [*notes, *advice, *found, *lost]})
    finally:
        runtime.close()
        if store is not None:
            store.abandon()


def _late_scores(
    preparation: Preparation, runtime: Runtime, server: Server, store: CheckpointStore | None, stopped: Stopped
) -> RoundRecord | None:
    """Score what is scored once with the blocks of the best round, private ones and local state as of then."""
    # Without any score, no round is better than the last.
    number = stopped.best_round or stopped.round
    due, adding = scorings_at_end(
        preparation.scenario,
        number,
        has_held_out=preparation.has_held_out,
        has_validation=preparation.has_validation,
    )
    if not due:
        return None
    if number != stopped.round:
        assert store is not None, "a run with `stop` has checkpoints"
        checkpoint = store.read(number)
        runtime.restore(checkpoint)
        server = checkpoint.restore(server)
    found = evaluate(preparation, runtime, server, number, due, is_end=True)
    evaluation = replace(
        found,
        scored={scoring: records for scoring, records in found.scored.items() if scoring in adding},
        metrics={name: value for name, value in found.metrics.items() if Scoring.of_column(name) in adding},
    )
    record = round_record(preparation, server, number, evaluation=evaluation)
    return replace(record, blocks=(), seconds={})


def _statistics_note(instance: BlockInstance) -> str:
    return (
        f"{instance}: running statistics of normalisation are averaged over clients of different modality sets, which "
        "can spoil their scores; model.norm_statistics: same-modalities averages them within each modality set, local "
        "not at all"
    )


def run_rounds(
    preparation: Preparation, runtime: Runtime, server: Server, first_round: int = 0
) -> Iterator[tuple[RoundRecord, Server]]:
    """Federated averaging, block by block.

    Per round t and block instance b with contributors S_b: A_b = sum n_k x_k / sum n_k over k in S_b, n_k the
    training samples seen; then the server optimizer steps from the old value to the new one. A block without
    contributors keeps its value.

    Args:
        preparation: The prepared federation.
        runtime: Executes the clients.
        server: The server before `first_round`.
        first_round: The first round to run; 0 scores the untrained model.

    Yields:
        Each round's record with the server after it.

    Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1, per block as in BLOSSOM (arXiv:2603.27552).
    """
    scenario = preparation.scenario
    base_rate, schedule = scenario.training.optimizer.lr, scenario.training.schedule
    train = trainer(preparation, runtime)
    for round_index in range(first_round, scenario.rounds + 1):
        training, norms = RoundTraining(), dict[BlockInstance, float]()
        if round_index > 0:
            rate = learning_rate(schedule, base_rate, round_index, scenario.rounds)
            training = train_round(preparation, train, server, round_index, rate)
            server, norms = server_step(server, training.averages, scenario.server.optimizer)
        evaluation = evaluate_round(preparation, runtime, server, round_index)
        record = round_record(
            preparation,
            server,
            round_index,
            evaluation=evaluation,
            training=training,
            update_norms=norms,
            happened=runtime.take_round(),
        )
        yield record, server


class _CheckpointWriter:
    """Writes checkpoints while the next round runs: begun after one round, committed after the next.

    That of a best round is committed at once: what a lost host held of it could not be had any more.
    """

    def __init__(
        self, store: CheckpointStore | None, preparation: Preparation, runtime: Runtime, sums: TableSums
    ) -> None:
        self._every = preparation.scenario.checkpoint.every
        self._store = store if self._every or preparation.scenario.stop else None
        self._profiles = preparation.population.profiles
        self._sums = sums
        self._facts = preparation.facts()
        self._runtime = runtime
        self._begun: tuple[Pending, int, Server, dict[str, object]] | None = None
        self._kept: list[CheckpointKept] = []

    def after_round(self, record: RoundRecord, server: Server, watched: EarlyStopping | None, *, is_last: bool) -> None:
        """Begin a checkpoint where one is due; after the last round and the best one so far, commit it too."""
        if self._store is None:
            return
        round_index = record.round_index
        self._sums = extended(self._sums, record_rows(record, self._profiles))
        is_best = watched is not None and watched.best_round == round_index
        is_due = self._every > 0 and (is_last or (round_index > 0 and round_index % self._every == 0))
        if not is_best and not is_due:
            return
        self._begin(round_index, server, watched)
        while (is_last or is_best) and not self.commit():
            self._begin(round_index, server, watched)

    def commit(self) -> bool:
        """Commit what was begun; False if a host was lost over it, which leaves the checkpoints as they were."""
        if self._store is None or self._begun is None:
            return True
        (pending, round_index, server, entries), self._begun = self._begun, None
        if not pending.wait():
            return False
        pending.commit(self._store.commit(round_index, server, {**self._facts, **entries}))
        self._kept.append(CheckpointKept(round_index))
        return True

    def take_kept(self) -> list[CheckpointKept]:
        """The checkpoints that were committed since the last call."""
        kept, self._kept = self._kept, []
        return kept

    def _begin(self, round_index: int, server: Server, watched: EarlyStopping | None) -> None:
        assert self._store is not None, "asked for only where checkpoints are kept"
        pending = self._runtime.save(self._store.begin(round_index), round_index)
        stop = {} if watched is None else {STOP: watched.state}
        self._begun = (pending, round_index, server, {TABLES: self._sums, **stop})
