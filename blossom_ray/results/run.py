"""The run folder: written round by round while a run goes on, read by `Run` at any time.

scenario.yaml     the resolved scenario
manifest.json     status, times, and whatever describes the run
rounds, clients, blocks    tables; their columns stand in `tables.py`
log.jsonl         what happened, written by `run_log.py`
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from blossom_ray.blocks import ClientProfile
from blossom_ray.errors import BlossomError, RunFolderError
from blossom_ray.locations import local_path
from blossom_ray.records import RoundRecord
from blossom_ray.results.table_files import TableStream, in_memory_tables, read_table
from blossom_ray.results.tables import ROUND_COLUMNS, TABLES, table_rows
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.reader import recorded_scenario
from blossom_ray.storage import replacing, writing

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

SCENARIO_FILE = "scenario.yaml"
MANIFEST_FILE = "manifest.json"
EndStatus = Literal["finished", "failed", "interrupted"]


def new_run_folder(out: Path | None, name: str) -> Path:
    """Create the folder of a new run: `<out>/<name>/<run id>/`, which no other run has.

    Args:
        out: Folder of all runs, `runs` in the working directory when None.
        name: The scenario's name.

    Returns:
        The folder. The run id is the time in UTC and four hexadecimal digits: `20261123T120000Z-4f1c`.

    Raises:
        RunFolderError: The folder cannot be created.
    """
    parent = (Path("runs") if out is None else out) / name
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    while True:
        # Drawn from the system: the id keeps runs apart that start in the same second, with the same seed.
        folder = parent / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        with writing(folder):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return folder


def unfinished_run(out: Path, scenario: Scenario) -> Path | None:
    """The newest run of a scenario that has not finished and whose process is gone; None if there is none.

    Args:
        out: Folder of all runs.
        scenario: What the run must have been given; where it runs, checkpoints and failures may differ. With
            `training.engine: auto`, a run that has chosen its engines is taken.
    """
    for folder in sorted((out / scenario.name).glob("*/"), reverse=True):
        with suppress(BlossomError):
            run = Run.open(folder)
            if run.status != "finished" and _may_go_on(run.scenario, scenario):
                os.close(locked(folder))
                return folder
    return None


def _may_go_on(recorded: Scenario, given: Scenario) -> bool:
    if given.training.engine == "auto" and not isinstance(recorded.training.engine, str):
        given = given.with_engines(recorded.training.engine)
    free = {"execution", "checkpoint", "failures"}
    return recorded.model_dump(exclude=free) == given.model_dump(exclude=free)


class RunWriter:
    """Writes a run folder; what a round brought is on disk when `write` returns.

    It holds a lock on the folder while it lives, which goes with its process however that ends.

    Args:
        folder: The run's folder, created when missing. It must not hold a run yet.
        scenario_yaml: The resolved scenario as YAML.
        manifest: Entries of `manifest.json` beside `status`, `started_at` and `ended_at` (UTC, ISO 8601).

    Attributes:
        last_round: The last round that is complete, None before the first.

    Raises:
        RunFolderError: The folder holds a run already or cannot be written; every method raises it so.
        StorageError: The disk is full; the same.
    """

    def __init__(self, folder: Path, scenario_yaml: str, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(folder)
            with _unlocked_on_error(self._lock):
                if (folder / MANIFEST_FILE).exists():
                    raise RunFolderError(f"{folder}: holds a run already; expected a new folder")
                _write_text(folder / SCENARIO_FILE, scenario_yaml)
                self._tables = {name: TableStream(folder, name) for name in TABLES}
        self._manifest: dict[str, Any] = {"status": "running", "started_at": _now(), "ended_at": None}
        self.last_round: int | None = None
        # Last of all: a folder with a manifest is a whole run folder.
        self.update(**manifest)

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Go on writing the folder of a run that was interrupted, failed or was killed.

        Raises:
            RunFolderError: There is no such run, it is damaged, or its process is still alive.
        """
        writer = cls.__new__(cls)
        writer.folder = folder
        writer._manifest = _read_manifest(folder)
        with writing(folder):
            writer._lock = locked(folder)
            with _unlocked_on_error(writer._lock):
                tables = {name: read_table(folder, name) for name in TABLES}
                # A round counts once its row is in `rounds`, which is written last.
                rounds = tables["rounds"]["round"].to_pylist()
                if rounds != list(range(len(rounds))):
                    raise RunFolderError(f"{folder}: its table 'rounds' has the rounds {rounds}; expected 0, 1, 2, ...")
                writer._tables = {
                    name: TableStream(folder, name, _rounds_up_to(table, rounds[-1] if rounds else -1))
                    for name, table in tables.items()
                }
        writer.last_round = rounds[-1] if rounds else None
        writer.update(status="running", ended_at=None)
        return writer

    def settle(self, scenario_yaml: str) -> None:
        """Replace the scenario by one that says what the run has chosen, so that it gives the same bits again."""
        with writing(self.folder):
            _write_text(self.folder / SCENARIO_FILE, scenario_yaml)

    def forget_after(self, round_index: int) -> None:
        """Take rows of later rounds out again: a run goes on from this one."""
        with writing(self.folder):
            for name, table in [*self._tables.items()]:
                table.close()
                kept = _rounds_up_to(read_table(self.folder, name), round_index)
                self._tables[name] = TableStream(self.folder, name, kept)
        self.last_round = round_index if round_index >= 0 else None

    def write(self, record: RoundRecord, profiles: Sequence[ClientProfile]) -> None:
        """Append one round to the tables.

        Args:
            record: The round; rounds come in order.
            profiles: All clients in the order of their ids.
        """
        rows = table_rows(record, profiles)
        with writing(self.folder):
            # `rounds` last: readers take its row as the sign that the round is complete.
            for name in ("clients", "blocks", "failures", "rounds"):
                self._tables[name].append(rows[name])
        self.last_round = record.round_index

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest, which must be JSON values, and write it."""
        self._manifest |= entries
        with writing(self.folder):
            _write_text(self.folder / MANIFEST_FILE, json.dumps(self._manifest, indent=2) + "\n")

    def close(self, status: EndStatus) -> None:
        """End the run: each table becomes one Parquet file, the manifest gets status and time.

        Raises:
            StorageError: The disk is full. Tables that are no Parquet files yet can be read and gone on with.
        """
        try:
            with writing(self.folder):
                for table in self._tables.values():
                    table.close()
            self.update(status=status, ended_at=_now())
        finally:
            os.close(self._lock)


class Run:
    """A run's results, from its folder (at any time) or from memory. Made by `open` or `from_records`.

    The frames of a run that has not ended are read anew each time, and hold its complete rounds.

    Attributes:
        path: The run's folder, or None for a run in memory.
    """

    path: Path | None

    def __init__(
        self,
        path: Path | None,
        manifest: dict[str, Any],
        read_table: Callable[[str], pa.Table],
        scenario: Scenario | None = None,
    ) -> None:
        self.path = path
        self._manifest = manifest
        self._read_table = read_table
        self._scenario = scenario
        self._frames: dict[str, pl.DataFrame] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run folder.

        Raises:
            RunFolderError: No such folder, no run folder, or a damaged manifest. A table that is missing or
                damaged raises the same when it is first read.
        """
        folder = local_path(path, "the run")
        return cls(folder, _read_manifest(folder), partial(read_table, folder))

    @classmethod
    def from_records(
        cls,
        records: Iterable[RoundRecord],
        scenario: Scenario,
        profiles: Sequence[ClientProfile],
        manifest: Mapping[str, Any],
    ) -> Self:
        """A run in memory, with the same frames as a folder would give.

        Args:
            records: The rounds in order.
            scenario: What was simulated.
            profiles: All clients in the order of their ids.
            manifest: What a folder's manifest would hold; `status` is `finished` unless given.
        """
        tables = in_memory_tables(records, profiles)
        return cls(None, {"status": "finished", **manifest}, tables.__getitem__, scenario)

    @property
    def scenario(self) -> Scenario:
        """The resolved scenario. Its data need not lie where they lay during the run.

        Raises:
            ScenarioError: `scenario.yaml` is missing or was changed into something that cannot be run.
        """
        if self._scenario is None:
            assert self.path is not None, "a run in memory has its scenario"
            self._scenario = recorded_scenario(self.path / SCENARIO_FILE)
        return self._scenario

    @property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says: status, times, versions and so on."""
        if self.path is not None and self._manifest["status"] == "running":
            self._manifest = _read_manifest(self.path)
        return self._manifest

    @property
    def status(self) -> str:
        """`running` (also of a run that was killed), `finished`, `failed` or `interrupted`."""
        return str(self.manifest["status"])

    @property
    def rounds(self) -> pl.DataFrame:
        """One row per round, with every summary metric as a column."""
        return self._frame("rounds")

    @property
    def clients(self) -> pl.DataFrame:
        """One row per round and client that trained or was scored."""
        return self._frame("clients")

    @property
    def blocks(self) -> pl.DataFrame:
        """One row per round and block instance."""
        return self._frame("blocks")

    @property
    def failures(self) -> pl.DataFrame:
        """One row per failure and client concerned: what happened, and what was done about it."""
        return self._frame("failures")

    @property
    def final(self) -> dict[str, float]:
        """The summary metrics of the last evaluated round; empty when there is none."""
        for row in reversed(self.rounds.to_dicts()):
            if row["num_evaluated"]:
                return {name: value for name, value in row.items() if name not in ROUND_COLUMNS and value is not None}
        return {}

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else repr(str(self.path))
        return f"Run({place}, {self.status}, {self.rounds.height} rows in rounds)"

    def _frame(self, name: str) -> pl.DataFrame:
        import polars as pl

        if name in self._frames:
            return self._frames[name]
        # Asked before the table is read: a run that ends in between is read once more, not kept half.
        has_ended = self.status != "running"
        frame = pl.DataFrame(self._read_table(name))
        if name != "rounds":
            last = self.rounds["round"].to_list()[-1:] or [-1]
            frame = frame.filter(pl.col("round") <= last[0])
        if has_ended:
            self._frames[name] = frame
        return frame


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(f"{folder}: {found}; expected a run folder")
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder}: has no {MANIFEST_FILE}; expected a run folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    if not isinstance(manifest, dict) or "status" not in manifest:
        raise RunFolderError(f"{path}: has no status; expected the manifest of a run")
    return manifest


def locked(folder: Path, holder: str = "run") -> int:
    """A lock on a folder, as an open descriptor of it. It goes with the last process that has the descriptor.

    Raises:
        RunFolderError: Another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RunFolderError(
            f"{folder}: its {holder} is going on in another process; expected one that has ended"
        ) from error
    return descriptor


@contextmanager
def _unlocked_on_error(lock: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(lock)
        raise


def _rounds_up_to(table: pa.Table, round_index: int) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.field("round") <= round_index)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
