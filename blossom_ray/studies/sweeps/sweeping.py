"""Runs the cells of a sweep, several at a time, and says what becomes of each. `sweep` is the scripting interface."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from blossom_ray.core.locations import local_path
from blossom_ray.core.records import Progress
from blossom_ray.errors import BlossomError, RunFolderError
from blossom_ray.reading.own_code import changed_own_code, own_code_checksums
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.folder import MANIFEST_FILE, Run
from blossom_ray.runs.session import check_address, continue_run, describe_host
from blossom_ray.runs.writer import RunWriter
from blossom_ray.runtime.choice import has_cluster
from blossom_ray.runtime.placement import this_machine
from blossom_ray.studies.sweeps.cell_placement import choose_jobs, choose_runtimes, place_clients
from blossom_ray.studies.sweeps.cell_process import CellProcess
from blossom_ray.studies.sweeps.folder import Sweep, sweep_lock
from blossom_ray.studies.sweeps.grid import Axis, Cell, expand


@dataclass(frozen=True)
class CellEvent:
    """Something that happened to a cell, whose run folder it names.

    Attributes:
        kind: `skipped`: it had finished before. `started`, `round`: it goes on. `finished`, `failed`, `interrupted`:
            its end.
        progress: The round, for `round`.
        error: What went wrong, for `failed`.
    """

    kind: Literal["skipped", "started", "round", "finished", "failed", "interrupted"]
    cell: Cell
    folder: Path
    progress: Progress | None = None
    error: str | None = None


@dataclass(frozen=True)
class CellResult:
    """What became of a cell.

    Attributes:
        run: Its run; None where it failed and not even that could be written.
        error: What went wrong, or None where the run has finished.
    """

    cell: Cell
    run: Run | None
    error: str | None


def sweep(
    scenarios: str | Path | Scenario | Sequence[str | Path | Scenario],
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    address: str | None = None,
) -> Iterator[CellResult]:
    """Run a grid: every scenario with every combination of values, under every seed.

    Cells that have finished in an earlier call into the same folder are not run again, others go on from their
    checkpoints. All cells are checked before the first one runs.

    Args:
        scenarios: Files or scenarios.
        vary: Values by dotted path, such as `{"sharing": ["full-model", "private-head"]}`.
        seeds: The seeds, or how many from 0 on; None: the one of each scenario.
        overrides: Value by dotted path, for every cell.
        out: The sweep's folder; None: `sweeps/<name>` in the working directory.
        jobs: Cells at a time; None: as many as fit, see `fitting_jobs`.
        address: The Ray cluster that the cells share, as in `simulate`.

    Returns:
        An iterator over the cells as they end, those that had finished before first. Closing it interrupts cells in
        progress; their complete rounds are kept.

    Raises:
        ScenarioError: With every problem of every cell.
        InputError: `address` is no address, or a cell runs without Ray.
        RunFolderError: The folder cannot be written, or another sweep works in it.

    Examples:
        >>> from blossom_ray import sweep
        >>> for result in sweep("scenarios/quickstart.yaml", vary={"sharing": ["full-model", "local"]}, seeds=3):
        ...     print(result.cell.name, result.error or result.run.final["accuracy"])
    """
    given = [scenarios] if isinstance(scenarios, str | Path | Scenario) else scenarios
    folder = None if out is None else local_path(out, "out")
    bases = [base if isinstance(base, Scenario) else Path(base) for base in given]
    axes = [Axis(path, tuple(values)) for path, values in (vary or {}).items()]
    cells = expand(bases, axes, range(seeds) if isinstance(seeds, int) else seeds, overrides)
    return _results(run_cells(folder or default_folder(cells), cells, jobs=jobs, address=address))


def default_folder(cells: Iterable[Cell]) -> Path:
    """Where a sweep lies unless told otherwise: `sweeps/<name of the scenario>`, of the first of several with `+2`."""
    first, *others = dict.fromkeys(cell.scenario.name for cell in cells)
    return Path("sweeps") / (f"{first}+{len(others)}" if others else first)


def run_cells(
    folder: Path,
    cells: Sequence[Cell],
    *,
    jobs: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    address: str | None = None,
) -> Generator[CellEvent, None, None]:
    """Run what has not finished yet of some cells into a sweep's folder, in their order.

    Args:
        folder: The sweep's folder, made where it is missing.
        cells: From `expand`.
        jobs: Cells at a time; None: `fitting_jobs`.
        stopping: Asked again and again; True ends the cells in progress after their rounds, and begins no other.
        address: The Ray cluster that the cells share, as in `simulate`.

    Raises:
        RunFolderError: The folder cannot be written, or another sweep works in it.
        InputError: So many cells at a time do not fit; `address` is no address, or a cell runs without Ray.
        RunError: Ray did not start.
    """
    for cell in cells:
        check_address(cell.scenario, address)
        scenario_yaml(cell.scenario)  # what no file can hold is refused before there is a folder
    with sweep_lock(folder) as lock:
        plan = Sweep.create(folder, cells)
        folders = {cell.identity: plan.folder(cell.identity) for cell in cells}
        finished = [cell for cell in cells if plan.status(cell.identity) == "finished"]
        _check_own_code(folder, [(cell, folders[cell.identity]) for cell in finished])
        yield from (CellEvent("skipped", cell, folders[cell.identity]) for cell in finished)
        waiting = [cell for cell in cells if cell not in finished]
        if waiting:
            yield from _run_side_by_side(waiting, folders, jobs, stopping, lock, address)


def _check_own_code(folder: Path, finished: Sequence[tuple[Cell, Path]]) -> None:
    """Refuse to take cells as done that were run with other own code, or other files that it names."""
    changed = []
    for cell, path in finished:
        before = Run.open(path).manifest.get("own_code")
        if names := changed_own_code(before, own_code_checksums(cell.scenario)):
            changed.append((cell.name, names))
    if changed:
        name, names = changed[0]
        others = f" (and {len(changed) - 1} others)" if len(changed) > 1 else ""
        raise RunFolderError(
            f"{folder}: the cell {name}{others} has finished with other own code: {', '.join(names)} changed since; "
            "expected what it was run with, another folder (--out), or such cells' folders removed, to run them anew"
        )


class _Abandoned(BaseException):
    """Thrown into the cells in progress when whoever watches the sweep has gone. Not an error of a run."""


def _run_side_by_side(
    cells: Sequence[Cell],
    folders: Mapping[str, Path],
    jobs: int | None,
    stopping: Callable[[], bool],
    lock: int,
    address: str | None,
) -> Generator[CellEvent, None, None]:
    with ExitStack() as stack:
        room = this_machine()
        scenarios = choose_runtimes([cell.scenario for cell in cells], jobs, room, has_cluster=has_cluster(address))
        cells = [replace(cell, scenario=scenario) for cell, scenario in zip(cells, scenarios, strict=True)]
        if any(cell.scenario.execution.runtime == "ray" for cell in cells):
            from blossom_ray.runtime import cluster

            stack.enter_context(cluster.session(address))
            room = cluster.offered_room()
        num_lanes = min(choose_jobs(jobs, scenarios, room), len(cells))
        is_abandoned = threading.Event()

        def stop() -> bool:
            if is_abandoned.is_set():
                raise _Abandoned
            return stopping()

        events: queue.SimpleQueue[CellEvent | None] = queue.SimpleQueue()
        waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        for cell in cells:
            waiting.put(cell)

        def run() -> None:
            """A lane: one cell after another, until none is waiting."""
            try:
                with closing(CellProcess([lock])) as process, suppress(queue.Empty, _Abandoned):
                    while not stop():
                        cell = waiting.get_nowait()
                        share = room.num_cpus / num_lanes
                        for event in _run_cell(cell, folders[cell.identity], process, stop, share):
                            events.put(event)
            finally:
                events.put(None)

        threads = [threading.Thread(target=run, name=f"cells-{number}") for number in range(num_lanes)]
        try:
            for thread in threads:
                thread.start()
            num_open = num_lanes
            while num_open:
                event = events.get()
                if event is None:
                    num_open -= 1
                else:
                    yield event
        finally:
            is_abandoned.set()
            for thread in threads:
                thread.join()


def _run_cell(
    cell: Cell, folder: Path, process: CellProcess, stop: Callable[[], bool], share: float
) -> Iterator[CellEvent]:
    """Run a cell in a process of its own, or on Ray in its share of cores; `stop` raises `_Abandoned`."""
    yield CellEvent("started", cell, folder)
    try:
        if cell.scenario.execution.runtime == "local":
            for progress in process.run(cell.scenario, folder, stop):
                yield CellEvent("round", cell, folder, progress)
        else:
            with closing(continue_run(place_clients(cell.scenario, share), folder, stop)) as records:
                for record in records:
                    yield CellEvent("round", cell, folder, Progress.of(record))
    except Exception as error:
        text = str(error) if isinstance(error, BlossomError) else f"{type(error).__name__}: {error}"
        _close(cell, folder, text)
        yield CellEvent("failed", cell, folder, error=text)
    else:
        yield CellEvent("finished" if Run.open(folder).status == "finished" else "interrupted", cell, folder)


def _close(cell: Cell, folder: Path, error: str) -> None:
    """Mark a run as failed that could not do it itself: it never began, or its process died."""
    with suppress(BlossomError):
        if not (folder / MANIFEST_FILE).exists():
            writer = RunWriter(folder, scenario_yaml(cell.scenario), describe_host())
        elif Run.open(folder).status == "running":
            writer = RunWriter.reopen(folder)
        else:
            return
        writer.update(error={"type": "RunError", "message": error, "details": ""})
        writer.close("failed")


def _results(events: Generator[CellEvent, None, None]) -> Iterator[CellResult]:
    with closing(events):
        for event in events:
            if event.kind not in ("started", "round"):
                error = "interrupted" if event.kind == "interrupted" else event.error
                is_there = (event.folder / MANIFEST_FILE).exists()
                yield CellResult(event.cell, Run.open(event.folder) if is_there else None, error)
