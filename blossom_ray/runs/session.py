"""The scripting interface: `simulate` a scenario, get a `Run` or a stream of round records."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Literal, overload

from blossom_ray.checkpoint import IN_MEMORY, Session
from blossom_ray.core.locations import local_path
from blossom_ray.core.records import RoundRecord
from blossom_ray.data.dataset import Dataset
from blossom_ray.errors import DriverLostError, InputError, StorageError
from blossom_ray.reading.inspection import Inspector
from blossom_ray.reading.own_code import changed_own_code, own_code_checksums
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.folder import CHECKPOINTS, MANIFEST_FILE, EndStatus, Run, RunWriter, kept_if_begun, new_run_folder
from blossom_ray.runs.given import with_dataset, with_table
from blossom_ray.runs.log import RunLog
from blossom_ray.runs.resuming import check_rounds, check_same
from blossom_ray.runs.table_sums import TableSums
from blossom_ray.runtime.address import check_sent_token, check_service, parse_address
from blossom_ray.runtime.kernels import gathered
from blossom_ray.simulation import CheckpointKept, Event, LateScores, RunInfo, run
from blossom_ray.storage import temporary_folder


@overload
def simulate(
    scenario: Scenario,
    *,
    data: Dataset | None = None,
    out: str | Path | None = None,
    stream: Literal[False] = False,
    address: str | None = None,
) -> Run: ...
@overload
def simulate(
    scenario: Scenario,
    *,
    data: Dataset | None = None,
    out: str | Path | None = None,
    stream: Literal[True],
    address: str | None = None,
) -> Iterator[RoundRecord]: ...
def simulate(
    scenario: Scenario,
    *,
    data: Dataset | None = None,
    out: str | Path | None = None,
    stream: bool = False,
    address: str | None = None,
) -> Run | Iterator[RoundRecord]:
    """Run a scenario.

    Args:
        scenario: What to run, and where (`execution.runtime`).
        data: The data set of a scenario with `data: {dataset: custom}` and no factory; with `out` it is kept there as
            a file, from which the run can be resumed.
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
    if isinstance(scenario.clients, str):
        scenario = scenario.with_clients(checked.groups)
    check_address(scenario, address)
    if out is not None:
        out = local_path(out, "out")
        if data is not None:
            scenario = with_table(scenario, data, out)
        scenario_yaml(scenario)  # what no file can hold is refused before there is a folder
        folder = new_run_folder(out, scenario.name)
        records = recorded(scenario, folder, address=address)
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
            case RunInfo():
                manifest |= event.entries
                scenario = _settled(scenario, event)
            case RoundRecord():
                kept.append(event)
            case LateScores():
                late = event.record
            case CheckpointKept():
                pass
    return Run.from_records(kept, scenario, tuple(scenario.profiles()), manifest, late)


def check_runnable(scenario: Scenario) -> Scenario:
    """Find out before anything starts whether the data can be read and divided, and own code be imported.

    Returns:
        The scenario, in the place of `clients: from-data` with the groups that the data give.

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
    if scenario.execution.runtime == "ray":
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
) -> Iterator[Event]:
    """What a run reports as it goes: facts, round records, facts.

    Args:
        scenario: What to run.
        checkpoints: The folder of the run's checkpoints; None: a temporary one, for replacing lost actors only.
        resume: The rounds whose checkpoints may be gone on from, as in `Session`; None to begin anew.
        stopping: Asked again and again; True ends the run after the round in progress.
        address: The Ray cluster, as in `simulate`.
        run_id: What those who watch know the run by.
    """
    with temporary_folder() as folder:
        shards = folder / "shards"
        shards.mkdir()
        # Whole paths: actors on a cluster have other working directories.
        session = Session(shards, (checkpoints or folder / "checkpoints").absolute(), resume, run_id)
        if scenario.execution.runtime == "local":
            from blossom_ray.runtime.local import LocalRuntime, shielded

            yield from shielded(run(scenario, session, LocalRuntime, stopping))
        else:
            from blossom_ray.runtime.driver import stream

            yield from stream(scenario, session, run, stopping, address)


def _events_with(scenario: Scenario, data: Dataset | None, address: str | None) -> Iterator[Event]:
    """The events of a run without a folder; a data set that is given reaches other processes as a file."""
    if data is None:
        yield from events(scenario, address=address)
    elif scenario.execution.runtime == "local":
        yield from events(with_dataset(scenario, data))
    else:
        with temporary_folder("data") as folder:
            yield from events(with_table(scenario, data, folder), address=address)


def recorded(
    scenario: Scenario, folder: Path, stopping: Callable[[], bool] = lambda: False, address: str | None = None
) -> Generator[RoundRecord, None, None]:
    """Run a scenario into a run folder; yields each round's record once it is on disk.

    Args:
        scenario: What to run.
        folder: The run's folder, from `new_run_folder`.
        stopping: Asked again and again; True ends the run after the round in progress, with a checkpoint.
        address: The Ray cluster, as in `simulate`.
    """
    with kept_if_begun(folder):
        writer = RunWriter(folder, scenario_yaml(scenario), _circumstances(scenario))
    yield from _written(scenario, writer, stopping, address)


def resumed(
    scenario: Scenario, folder: Path, stopping: Callable[[], bool] = lambda: False, address: str | None = None
) -> Generator[RoundRecord, None, None]:
    """Go on with a run that was interrupted, failed or was killed, from its newest checkpoint; yields as `recorded`.

    With more rounds, a run that has finished goes on, too.

    Args:
        scenario: The run's scenario; only its `execution` (but for `chunk_size`), `checkpoint`, `failures` and
            `rounds` may differ from what the run began with.
        folder: The run's folder.
        stopping: As in `recorded`.
        address: As in `recorded`.

    Raises:
        RunFolderError: The folder holds no run, the run is going on, or it belongs to another scenario; or its rounds
            are not those of a run that had the new number of rounds from the start.
    """
    run = Run.open(folder)
    before, manifest = run.scenario, run.manifest
    scenario, same_up_to = checked_resumption(scenario, folder)
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
    yield from _written(scenario, writer, stopping, address)


def checked_resumption(scenario: Scenario, folder: Path) -> tuple[Scenario, int | None]:
    """Find out before anything starts whether a run may go on as a scenario.

    Returns:
        The scenario with the engines that the run has chosen, and the last of its rounds that stays as it is; None
        where all do.

    Raises:
        RunFolderError: As `resumed`.
    """
    run = Run.open(folder)
    recorded_one = run.scenario
    chosen = recorded_one.training.engine
    if scenario.training.engine == "auto" and not isinstance(chosen, str):
        scenario = scenario.with_engines(chosen)
    check_same(run, scenario)
    if scenario.rounds == recorded_one.rounds:
        return scenario, None
    return scenario, check_rounds(run, scenario, folder / "checkpoints")


def continued(
    scenario: Scenario, folder: Path, stopping: Callable[[], bool] = lambda: False, address: str | None = None
) -> Generator[RoundRecord, None, None]:
    """Run a scenario into a folder, from the start where there is no run yet: `recorded` or `resumed`."""
    if (folder / MANIFEST_FILE).exists():
        return resumed(scenario, folder, stopping, address)
    return recorded(scenario, folder, stopping, address)


def _written(
    scenario: Scenario, writer: RunWriter, stopping: Callable[[], bool], address: str | None
) -> Generator[RoundRecord, None, None]:
    profiles = tuple(scenario.profiles())
    status: EndStatus = "interrupted"
    failure: Exception | None = None
    last: RoundRecord | None = None
    is_over = False
    log = RunLog(writer.folder, scenario.name, scenario.task)
    try:
        log.started(writer.last_round)
        for event in _restarted(scenario, writer, log, stopping, address):
            match event:
                case RunInfo():
                    settled = _settled(scenario, event)
                    if settled is not scenario:
                        writer.settle(scenario_yaml(settled))
                    notes, changes = event.entries["notes"], writer.recorded.get("own_code_changes", [])
                    assert isinstance(notes, list), "the loop notes what it finds"
                    used = event.entries["kernels"]
                    assert isinstance(used, list), "the loop says what computes"
                    if event.entries.get("first_round") != 0:
                        # A run that goes on elsewhere has been computed by the kernels of both places.
                        used = gathered(writer.recorded.get("kernels", ()), used)
                    writer.update(**{**event.entries, "notes": [*notes, *changes], "kernels": used})
                    if "first_round" in event.entries:
                        log.prepared(event.entries)
                    is_over = is_over or "stopped" in event.entries
                case LateScores():
                    writer.write_late(event.record, profiles)
                case CheckpointKept():
                    writer.sync()
                    log.checkpoint(event.round_index)
                case RoundRecord():
                    # The log first: a round that is in the tables has been yielded, even if the disk is full now.
                    log.round(event)
                    writer.write(event, profiles)
                    if event.round_index == scenario.rounds or event.stopped is not None:
                        # Whoever has the last record may go away: the run has ended then.
                        last = event
                    else:
                        yield event
        if is_over or (scenario.stop is None and writer.last_round == scenario.rounds):
            status = "finished"
    except Exception as error:
        status, failure = "failed", error
        details = getattr(error, "details", "")
        with suppress(StorageError):
            writer.update(error={"type": type(error).__name__, "message": str(error), "details": details})
        raise
    finally:
        # A disk that has no room for the last words must not hide why the run failed.
        with _undisturbed(), suppress(StorageError) if status == "failed" else nullcontext():
            try:
                log.ended(status, writer.last_round, failure)
            finally:
                log.close()
                writer.close(status)
    if last is not None:
        yield last


def _settled(scenario: Scenario, info: RunInfo) -> Scenario:
    """The scenario with the engines that the run has chosen, where it was left to choose."""
    engines = info.entries.get("engines")
    if scenario.training.engine != "auto" or not isinstance(engines, dict):
        return scenario
    return scenario.with_engines(engines)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals wait, so that no Ctrl-C leaves a run folder half closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restarted(
    scenario: Scenario, writer: RunWriter, log: RunLog, stopping: Callable[[], bool], address: str | None
) -> Iterator[Event]:
    """A run's events; if its driver actor is lost, those of another one that goes on from the last checkpoint.

    Each loss is an entry of `driver_losses` in the manifest: the last round before it, and the cause.
    """
    losses: list[dict[str, object]] = []
    for attempt in range(scenario.failures.max_retries + 1):
        try:
            folder = writer.folder
            writer.drop_late()
            resume = None if writer.last_round is None else writer.checkpoints()
            for event in events(scenario, folder / CHECKPOINTS, resume, stopping, address, run_id=folder.name):
                if isinstance(event, RunInfo) and "first_round" in event.entries:
                    scenario = _settled(scenario, event)
                    first_round = event.entries["first_round"]
                    assert isinstance(first_round, int), "the loop says where it begins"
                    if writer.last_round is not None:
                        writer.forget_after(first_round - 1)
                yield event
            return
        except DriverLostError as error:
            log.driver_lost(writer.last_round, error.cause)
            losses.append({"after_round": writer.last_round, "cause": error.cause})
            writer.update(driver_losses=losses)
            if attempt == scenario.failures.max_retries:
                raise


def _circumstances(scenario: Scenario) -> dict[str, object]:
    """What a manifest says before a run begins: on what it runs, and with whose code."""
    return {**describe_host(), "own_code": own_code_checksums(scenario)}


def describe_host() -> dict[str, object]:
    """What a manifest says about versions and machine."""
    packages = ("blossom-ray", "ray", "torch", "numpy", "pyarrow", "polars")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "host": {"platform": platform.platform(), "cpus": os.cpu_count()},
    }
