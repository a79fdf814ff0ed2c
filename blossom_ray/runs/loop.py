"""What a run computes, in whichever process: its rounds with checkpoints between them, and facts before and after.

It yields events. `runs/session.py` records them, and has another process go on where this one is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from blossom_ray.checkpoint import STOP, TABLES, CheckpointStore, check_compatible
from blossom_ray.clients.options import EngineName
from blossom_ray.core.records import RoundRecord, Scoring, Stopped
from blossom_ray.reading.scenario import Scenario
from blossom_ray.round_records import round_record
from blossom_ray.rounds import evaluate, scorings_at_end
from blossom_ray.runs.manifest import statistics_notes, undefined_note, untrained_note
from blossom_ray.runs.table_files import record_rows
from blossom_ray.runs.table_sums import NO_ROWS, TableSums, add_rows
from blossom_ray.runtime.base import Pending, Runtime
from blossom_ray.runtime.description import describe
from blossom_ray.runtime.kernels import Kernels, kernels, merge_kernels
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.scenario.early_stopping import EarlyStopping
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds


@dataclass(frozen=True)
class Begun:
    """A part of the start begins.

    Attributes:
        what: In words.
    """

    what: str


@dataclass(frozen=True)
class Setup:
    """Facts before the first round.

    Attributes:
        engines: The engine of each modality set, also where the scenario left it to the run.
        data: What the manifest says of the data, and of what was timed.
        runtime: What it says of execution.
        kernels: What computes, as `kernels.merge_kernels` has it.
        parameters: Number of parameters by block instance.
        first_round: The first round that is run: 0, or the one after a checkpoint.
        notes: What a reader of the numbers should know, in a line each.
    """

    engines: Mapping[str, EngineName]
    data: Mapping[str, object]
    runtime: Mapping[str, object]
    kernels: Sequence[Kernels]
    parameters: Mapping[str, int]
    first_round: int
    notes: tuple[str, ...]

    @property
    def entries(self) -> dict[str, Any]:
        """What the manifest gets, as JSON values."""
        return {
            "engines": dict(self.engines),
            **self.data,
            **self.runtime,
            "kernels": [*self.kernels],
            "parameters": dict(self.parameters),
            "first_round": self.first_round,
            "notes": [*self.notes],
        }


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


@dataclass(frozen=True)
class Outcome:
    """Facts after the last round.

    Attributes:
        digest: SHA-256 (hex) of the shared blocks, and of all clients' private states.
        runtime: As in `Setup`; an actor may have been replaced by one on another node.
        kernels: As in `Setup`, those before the first round included.
        stopped: Where a run with `stop` ended; None for others, and for one that was told to end.
        notes: Those of `Setup`, and what came up since.
    """

    digest: Mapping[str, str]
    runtime: Mapping[str, object]
    kernels: Sequence[Kernels]
    stopped: Stopped | None
    notes: tuple[str, ...]

    @property
    def entries(self) -> dict[str, Any]:
        """What the manifest gets, as JSON values."""
        stopped = {} if self.stopped is None else {"stopped": asdict(self.stopped)}
        found = {"digest": dict(self.digest), **self.runtime, "kernels": [*self.kernels], **stopped}
        return {**found, "notes": [*self.notes]}


Event = Begun | Setup | RoundRecord | CheckpointKept | LateScores | Outcome


def run(
    scenario: Scenario,
    start: Callable[[Preparation], Runtime],
    stopping: Callable[[], bool] = lambda: False,
    num_workers: int = 1,
    *,
    shards: Path,
    checkpoints: Path | None = None,
    resume: Mapping[int, TableSums] | None = None,
    engines: Mapping[str, EngineName] | None = None,
) -> Iterator[Event]:
    """Prepare a scenario, run its rounds with checkpoints, and report facts before and after.

    Args:
        scenario: The scenario.
        start: Makes the runtime from the prepared federation.
        stopping: Asked after each round; True ends the run there, with a checkpoint.
        num_workers: Actors that compute at once.
        shards: An empty folder for the clients' shards; it must outlive the run.
        checkpoints: The folder of the run's checkpoints, None to keep none.
        resume: The rounds whose checkpoints may be gone on from, each with what the tables hold up to it; None to
            begin anew.
        engines: Those that this run has chosen before; None: it is still to choose, or the scenario names them.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the scenario asks.
        RunFolderError: The checkpoint to go on from belongs to another scenario or other data.
        RunError: A client or an actor failed.
    """
    # torch comes with it; a process that just watches a run imports this module without.
    from blossom_ray.runtime.measurement import choose_engines

    yield Begun("preparing data")
    preparation = choose_engines(prepare(scenario, shards), num_workers, engines)
    store = CheckpointStore(checkpoints, scenario.checkpoint.keep) if checkpoints else None
    yield Begun("starting clients")
    runtime = start(preparation)
    try:
        server = initial_server(preparation.plan, preparation.profiles_on_server(), scenario.server.optimizer)
        parameters = {str(instance): block.num_parameters for instance, block in server.blocks.items()}
        advice = (*map(str, preparation.left_out), *preparation.notes, *statistics_notes(preparation, server))
        first_round, notes, sums, watched = 0, tuple[str, ...](), NO_ROWS, EarlyStopping.of(scenario)
        if store is not None and resume is not None:
            checkpoint, notes = store.newest(resume)
            if checkpoint is not None:
                check_compatible(checkpoint, preparation.facts())
                server = checkpoint.restore(server)
                runtime.restore(checkpoint)
                first_round, sums = checkpoint.round_index + 1, resume[checkpoint.round_index]
                if watched is not None:
                    watched = watched.with_state(checkpoint.stop)
        described, notes = runtime.describe(), (*notes, *advice)
        used = merge_kernels([kernels(preparation.plan.engines.values()), *described.kernels])
        data = describe(preparation)
        yield Setup(preparation.plan.engines, data, described.entries, used, parameters, first_round, notes)

        writer, undefined, untrained = _CheckpointWriter(store, preparation, runtime, sums), "", ""
        stopped = watched.end(first_round - 1) if watched is not None else None
        for record, after in () if stopped else run_rounds(preparation, runtime, server, first_round):
            server = after
            yield from writer.commit()
            if watched is not None:
                watched = watched.after(record)
                stopped = watched.end(record.round_index)
            yield replace(record, stopped=stopped)
            undefined = undefined or undefined_note(record, scenario.learned)
            untrained = untrained_note(preparation, record) if record.num_evaluated else untrained
            is_last = record.round_index == scenario.rounds or stopped is not None or stopping()
            yield from writer.after_round(record, server, watched, is_last=is_last)
            if is_last:
                break

        described = runtime.describe()
        # One digest over those of all clients: a manifest stays small with ten thousand of them.
        private = sha256("".join(described.private_digests.values()).encode()).hexdigest()
        digest = {"shared": server.digest(), "private": private}
        if stopped is not None and (late := _late_scores(preparation, runtime, server, store, stopped)) is not None:
            yield LateScores(late)
            undefined = undefined or undefined_note(late, scenario.learned)
            described = runtime.describe()
        # No round's record has room for what goes wrong after the last one.
        failures = runtime.take_round().failures
        lost = [f"after the last round: actor {f.actor} {f.cause}; {f.action}" for f in failures]
        notes = (*notes, *described.obstacles, *filter(None, (undefined, untrained)), *lost)
        used = merge_kernels(used, [kernels(preparation.plan.engines.values()), *described.kernels])
        yield Outcome(digest, described.entries, used, stopped, notes)
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
    due, adding = scorings_at_end(preparation, number)
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

    def after_round(
        self, record: RoundRecord, server: Server, watched: EarlyStopping | None, *, is_last: bool
    ) -> tuple[CheckpointKept, ...]:
        """Begin a checkpoint where one is due; after the last round and the best one so far, commit it too."""
        if self._store is None:
            return ()
        round_index = record.round_index
        self._sums = add_rows(self._sums, record_rows(record, self._profiles))
        is_best = watched is not None and watched.best_round == round_index
        is_due = self._every > 0 and (is_last or (round_index > 0 and round_index % self._every == 0))
        if not is_best and not is_due:
            return ()
        self._begin(round_index, server, watched)
        if not is_last and not is_best:
            return ()
        while not (kept := self.commit()):
            self._begin(round_index, server, watched)
        return kept

    def commit(self) -> tuple[CheckpointKept, ...]:
        """Commit what was begun; nothing if a host was lost over it, which leaves the checkpoints as they were."""
        if self._store is None or self._begun is None:
            return ()
        (pending, round_index, server, entries), self._begun = self._begun, None
        if not pending.wait():
            return ()
        pending.commit(self._store.commit(round_index, server, {**self._facts, **entries}))
        return (CheckpointKept(round_index),)

    def _begin(self, round_index: int, server: Server, watched: EarlyStopping | None) -> None:
        assert self._store is not None, "asked for only where checkpoints are kept"
        pending = self._runtime.save(self._store.begin(round_index), round_index)
        stop = {} if watched is None else {STOP: watched.state}
        self._begun = (pending, round_index, server, {TABLES: self._sums, **stop})
