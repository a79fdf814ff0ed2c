"""The scripting interface: `simulate` a scenario, get a `Run` or a stream of round records."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, overload

from blossom_ray.clients.options import EngineName
from blossom_ray.core.locations import local_path
from blossom_ray.core.progress import tell
from blossom_ray.core.records import RoundRecord
from blossom_ray.data.modalities.features import features_key
from blossom_ray.errors import ClientError, DriverLostError, InputError, RunError, StorageError
from blossom_ray.reading.inspection import Inspector
from blossom_ray.reading.own_code import changed_own_code, own_code_checksums
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.folder import CHECKPOINTS, MANIFEST_FILE, Run
from blossom_ray.runs.given import Given, with_dataset, with_table
from blossom_ray.runs.log import RunLog
from blossom_ray.runs.loop import Begun, CheckpointKept, Event, LateScores, Outcome, Setup, run
from blossom_ray.runs.resuming import check_resumption
from blossom_ray.runs.table_sums import TableSums
from blossom_ray.runs.writer import EndStatus, RunWriter, new_run_folder, remove_if_unbegun
from blossom_ray.runtime import forks
from blossom_ray.runtime.address import check_sent_token, check_service, parse_address
from blossom_ray.runtime.choice import has_cluster, settle_runtime
from blossom_ray.runtime.kernels import merge_kernels
from blossom_ray.storage import temporary_folder

IN_MEMORY = "in-memory"
"""Stands for the id of a run without a folder."""


@overload
def simulate(
    scenario: Scenario,
    *,
    data: Given | None = None,
    out: str | Path | None = None,
    stream: Literal[False] = False,
    address: str | None = None,
) -> Run: ...
@overload
def simulate(
    scenario: Scenario,
    *,
    data: Given | None = None,
    out: str | Path | None = None,
    stream: Literal[True],
    address: str | None = None,
) -> Iterator[RoundRecord]: ...
def simulate(
    scenario: Scenario,
    *,
    data: Given | None = None,
    out: str | Path | None = None,
    stream: bool = False,
    address: str | None = None,
) -> Run | Iterator[RoundRecord]:
    """Run a scenario.

    Args:
        scenario: What to run, and where (`execution.runtime`).
        data: The data set of a scenario with `data: {dataset: custom}` and no factory, or a mapping of such by their
            names in `datasets`; with `out` they are kept there as files, from which the run can be resumed.
        out: Folder under which the run folder is made, such as "runs"; None: nothing is written.
        stream: Whether to get each round's record as it comes, instead of the run at the end. Closing the iterator
            ends the run: before the last record as interrupted, with complete rounds kept; from it on, it has finished.
        address: The Ray cluster to run on: `auto`, or `HOST:PORT` of a cluster that this machine is a node of; `local`
            for a session of this run's own. None: the session of this process, the cluster that RAY_ADDRESS names, or
            a session of its own.

    Returns:
        The finished run, or an iterator over its round records, beginning with round 0, the untrained model.

    Raises:
        ScenarioError: The data cannot be read, or cannot be divided as the scenario asks; `data` is given to a scenario
            that names its own.
        InputError: `address` is no address, or the scenario says that it runs without Ray.
        RunFolderError: The run folder cannot be written.
        StorageError: The disk is full.
        RunError: A client or an actor failed, or the cluster could not be joined.

    Examples:
        >>> from blossom_ray import Scenario, simulate
        >>> scenario = Scenario.load("scenarios/quickstart.yaml").override({"sharing": "full-model"})
        >>> run = simulate(scenario)
        >>> run.rounds["accuracy"][-1]
    """
    checked = check_runnable(scenario if data is None else with_dataset(scenario, data))
    scenario = scenario.model_copy(update={"clients": checked.clients, "model": checked.model})
    check_address(scenario, address)
    if out is not None:
        out = local_path(out, "out")
        if data is not None:
            scenario = with_table(scenario, data, out)
        scenario_yaml(scenario)  # what no file can hold is refused before there is a folder
        folder = new_run_folder(out, scenario.name)
        records = record_run(scenario, folder, address=address)
        if stream:
            return records
        for _ in records:
            pass
        return Run.open(folder)
    if stream:
        return (event for event in _events_with(scenario, data, address) if isinstance(event, RoundRecord))
    manifest, kept, late = _circumstances(scenario), [], None
    for event in _events_with(scenario, data, address):
        match event:
            case Setup():
                manifest |= event.entries
                scenario = _resolved(scenario, event)
            case RoundRecord():
                kept.append(event)
            case LateScores():
                late = event.record
            case Begun() | CheckpointKept():
                pass
            case Outcome():
                manifest |= event.entries
    return Run.from_records(kept, scenario, tuple(scenario.profiles()), manifest, late)


def check_runnable(scenario: Scenario) -> Scenario:
    """Find out before anything starts whether the data can be read and divided, and own code be imported.

    Returns:
        As `Inspector.check`.

    Raises:
        ScenarioError: They cannot.
    """
    return Inspector().check(scenario)


def check_address(scenario: Scenario, address: str | None) -> None:
    """Find out before anything starts whether a scenario can run at an address.

    Raises:
        InputError: It is no address of a cluster, or the scenario says that it runs without Ray; or the token that
            Ray would send cannot be sent.
        RunError: Nothing answers there.
    """
    if scenario.execution.runtime != "local":
        check_sent_token()
    if address is None:
        return
    place = parse_address(address)
    if scenario.execution.runtime == "local":
        raise InputError(f"--address is {address!r}, and execution.runtime is local; expected one of the two")
    if place is not None:
        check_service(place)


def events(
    scenario: Scenario,
    checkpoints: Path | None = None,
    resume: Mapping[int, TableSums] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    address: str | None = None,
    run_id: str = IN_MEMORY,
    engines: Mapping[str, EngineName] | None = None,
) -> Generator[Event, None, None]:
    """What a run reports as it goes, from this process or from a driver actor. Closing it ends what computes.

    Args:
        scenario: What to run.
        checkpoints: The folder of the run's checkpoints; None: a temporary one, for replacing lost actors only.
        resume: The rounds whose checkpoints may be gone on from, each with what the tables hold up to it; None to
            begin anew.
        stopping: Asked again and again; True ends the run after the round in progress.
        address: The Ray cluster, as in `simulate`.
        run_id: What those who watch know the run by.
        engines: Those that this run has chosen before.
    """
    scenario, note = settle_runtime(scenario, has_cluster=address is not None or has_cluster())
    with temporary_folder() as folder:
        shards = folder / "shards"
        shards.mkdir()
        # Whole paths: actors on a cluster have other working directories.
        kept = (checkpoints or folder / "checkpoints").absolute()
        loop = partial(run, shards=shards, checkpoints=kept, resume=resume, engines=engines)
        if scenario.execution.runtime == "local":
            from blossom_ray.runtime.local import LocalRuntime, shield

            with closing(shield(loop(scenario, LocalRuntime, stopping))) as found:
                for event in found:
                    if note and isinstance(event, Setup | Outcome):
                        yield replace(event, notes=(note, *event.notes))
                    else:
                        yield event
        else:
            tell("joining Ray" if has_cluster(address) else "starting Ray")
            _stand_by(scenario, address)
            from blossom_ray.runtime.driver import stream

            shared = kept.parent if scenario.checkpoint.every or scenario.stop else None
            yield from stream(scenario, loop, run_id, stopping, shared=shared, address=address)


def _events_with(scenario: Scenario, data: Given | None, address: str | None) -> Iterator[Event]:
    """The events of a run without a folder; a data set that is given reaches other processes as a file."""
    if data is None:
        yield from events(scenario, address=address)
    elif scenario.execution.runtime == "local":
        yield from events(with_dataset(scenario, data))
    else:
        with temporary_folder("data") as folder:
            yield from events(with_table(scenario, data, folder), address=address)


def record_run(
    scenario: Scenario, folder: Path, stopping: Callable[[], bool] = lambda: False, address: str | None = None
) -> Generator[RoundRecord, None, None]:
    """Run a scenario into a run folder; yields each round's record once it is on disk.

    Args:
        scenario: What to run.
        folder: The run's folder, from `new_run_folder`.
        stopping: Asked again and again; True ends the run after the round in progress, with a checkpoint.
        address: The Ray cluster, as in `simulate`.
    """
    _stand_by(scenario, address)
    with remove_if_unbegun(folder):
        writer = RunWriter(folder, scenario_yaml(scenario), _circumstances(scenario))
    yield from Session(scenario, writer, stopping, address).rounds()


def resume_run(
    scenario: Scenario, folder: Path, stopping: Callable[[], bool] = lambda: False, address: str | None = None
) -> Generator[RoundRecord, None, None]:
    """Go on with a run that was interrupted, failed or was killed, from its newest checkpoint; yields as `record_run`.

    With more rounds, a run that has finished goes on, too.

    Args:
        scenario: The run's scenario; only its `execution` (but for `chunk_size`), `checkpoint`, `failures` and
            `rounds` may differ from what the run began with.
        folder: The run's folder.
        stopping: As in `record_run`.
        address: As in `record_run`.

    Raises:
        RunFolderError: The folder holds no run, the run is going on, or it belongs to another scenario; or its rounds
            are not those of a run that had the new number of rounds from the start.
    """
    opened = Run.open(folder)
    before, manifest = opened.scenario, opened.manifest
    scenario, same_up_to = check_resumption(scenario, folder)
    present = own_code_checksums(scenario)
    changed = changed_own_code(manifest.get("own_code"), present)
    writer = RunWriter.reopen(folder)
    if same_up_to is not None:
        writer.forget_after(same_up_to)
    if scenario.rounds != before.rounds:
        # After the rows, so that a run that is killed in between goes on from the right ones.
        writer.settle(scenario_yaml(before.model_copy(update={"rounds": scenario.rounds})))
    if changed:
        told = f"own code has changed since round {writer.last_round}: {', '.join(changed)}"
        earlier = manifest.get("own_code_changes")
        writer.update(own_code=present, own_code_changes=[*(earlier if isinstance(earlier, list) else ()), told])
    yield from Session(scenario, writer, stopping, address).rounds()


def continue_run(
    scenario: Scenario, folder: Path, stopping: Callable[[], bool] = lambda: False, address: str | None = None
) -> Generator[RoundRecord, None, None]:
    """Run a scenario into a folder, from the start where there is no run yet: `record_run` or `resume_run`."""
    begin = resume_run if (folder / MANIFEST_FILE).exists() else record_run
    return begin(scenario, folder, stopping, address)


class Session:
    """A run on its way into its folder: where events come from, who records them, and what follows a lost driver.

    Args:
        scenario: What is run.
        writer: The run's folder; closed when the rounds end, however they do.
        stopping: Asked again and again; True ends the run after the round in progress.
        address: The Ray cluster, as in `simulate`.
    """

    def __init__(
        self, scenario: Scenario, writer: RunWriter, stopping: Callable[[], bool], address: str | None
    ) -> None:
        self._scenario, self._writer, self._stopping, self._address = scenario, writer, stopping, address
        self._profiles = tuple(scenario.profiles())
        self._log = RunLog(writer.folder, scenario.name, scenario.learned)
        self._engines: Mapping[str, EngineName] | None = None
        self._losses: list[dict[str, object]] = []
        self._is_over = False

    def rounds(self) -> Generator[RoundRecord, None, None]:
        """Yields each round's record once it is on disk, the last one when the folder has been closed.

        Closing the iterator first ends what computes (see `events`), then the folder: the run is interrupted. Whoever
        has the last record may go away: the run has finished then.
        """
        status: EndStatus = "interrupted"
        failure: Exception | None = None
        last: RoundRecord | None = None
        try:
            self._log.started(self._writer.last_round)
            while True:
                try:
                    with closing(self._source()) as source:
                        for event in source:
                            self._record(event)
                            if isinstance(event, RoundRecord):
                                if event.round_index == self._scenario.rounds or event.stopped is not None:
                                    last = event
                                else:
                                    yield event
                    break
                except RunError as error:
                    # Who asks a run to end may end Ray as well: a signal to a process group, a machine that goes down.
                    if self._stopping() and not isinstance(error, ClientError | StorageError):
                        self._log.driver_lost(self._writer.last_round, error.cause)
                        break
                    if not isinstance(error, DriverLostError):
                        raise
                    self._note_loss(error)
                    if len(self._losses) > self._scenario.failures.max_retries:
                        raise
            if self._is_over or (self._scenario.stop is None and self._writer.last_round == self._scenario.rounds):
                status = "finished"
        except Exception as error:
            status, failure = "failed", error
            details = getattr(error, "details", "")
            with suppress(StorageError):
                self._writer.update(error={"type": type(error).__name__, "message": str(error), "details": details})
            raise
        finally:
            # A disk that has no room for the last words must not hide why the run failed.
            with _no_signals(), suppress(StorageError) if status == "failed" else nullcontext():
                try:
                    self._log.ended(status, self._writer.last_round, failure)
                finally:
                    self._log.close()
                    self._writer.close(status)
        if last is not None:
            yield last

    def _source(self) -> Generator[Event, None, None]:
        """The events of one attempt, from what the tables hold on."""
        writer = self._writer
        writer.drop_late()
        resume = None if writer.last_round is None else writer.checkpoints()
        folder = writer.folder
        return events(
            self._scenario, folder / CHECKPOINTS, resume, self._stopping, self._address, folder.name, self._engines
        )

    def _record(self, event: Event) -> None:
        writer = self._writer
        match event:
            case Begun():
                tell(event.what)
            case Setup():
                tell(f"round {event.first_round}")
                if writer.last_round is not None:
                    writer.forget_after(event.first_round - 1)
                if self._scenario.training.engine == "auto" and self._engines is None:
                    # The file says what was chosen, so that running it gives the same bits again.
                    writer.settle(scenario_yaml(_resolved(self._scenario, event)))
                self._engines = event.engines
                # A run that goes on elsewhere has been computed by the kernels of both places.
                self._update(event, add_kernels=event.first_round != 0)
                self._log.prepared(event.entries)
            case RoundRecord():
                # The log first: a round that is in the tables has been yielded, even if the disk is full now.
                self._log.round(event)
                writer.write(event, self._profiles)
            case CheckpointKept():
                writer.sync()
                self._log.checkpoint(event.round_index)
            case LateScores():
                writer.write_late(event.record, self._profiles)
            case Outcome():
                self._update(event, add_kernels=True)
                self._is_over = self._is_over or event.stopped is not None

    def _update(self, facts: Setup | Outcome, *, add_kernels: bool) -> None:
        recorded = self._writer.recorded
        notes = [*facts.notes, *recorded.get("own_code_changes", ())]
        used = merge_kernels(recorded.get("kernels", ()) if add_kernels else (), facts.kernels)
        self._writer.update(**{**facts.entries, "notes": notes, "kernels": used})

    def _note_loss(self, error: DriverLostError) -> None:
        """`driver_losses` in the manifest has each with the last round before it, and the cause."""
        self._log.driver_lost(self._writer.last_round, error.cause)
        self._losses.append({"after_round": self._writer.last_round, "cause": error.cause})
        self._writer.update(driver_losses=self._losses)


def _resolved(scenario: Scenario, setup: Setup) -> Scenario:
    """The scenario as it is kept: where it left the engines to the run, it says which ones were chosen."""
    return scenario.with_engines(setup.engines) if scenario.training.engine == "auto" else scenario


def _stand_by(scenario: Scenario, address: str | None) -> None:
    """Where Ray will be started, have workers' warm process import PyTorch while this process gets there."""
    if not has_cluster(address) and settle_runtime(scenario, has_cluster=False)[0].execution.runtime == "ray":
        forks.stand_by()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Let signals wait, so that no Ctrl-C leaves a run folder half closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _circumstances(scenario: Scenario) -> dict[str, object]:
    """What a manifest says before a run begins: on what it runs, and with whose code."""
    sums = {block: weights.sha256 for block, weights in scenario.model.pretrained.items()}
    features = {
        f"{name}/{modality}".lstrip("/"): features_key(section.features, f"data.modalities.{modality}.features")
        for name, data in scenario.data_sets.items()
        for modality, section in (getattr(data, "modalities", None) or {}).items()
        if modality in scenario.modalities and getattr(section, "features", None) is not None
    }
    known = {key: found for key, found in (("weights", sums), ("features", features)) if found}
    return {**describe_host(), "own_code": own_code_checksums(scenario), **known}


def describe_host() -> dict[str, object]:
    """What a manifest says about versions and machine."""
    packages = ("blossom-ray", "ray", "torch", "numpy", "pyarrow", "polars")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "host": {"platform": platform.platform(), "cpus": os.cpu_count()},
    }
