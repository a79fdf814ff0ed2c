"""The run folder: written round by round while a run goes on, read by `Run` at any time.

scenario.yaml     the resolved scenario
manifest.json     status, times, and whatever describes the run
rounds, clients, ...       tables; their names and columns stand in `tables.py`
log.jsonl         what happened, written by `log.py`
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from blossom_ray.checkpoint import CheckpointStore
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.locations import local_path
from blossom_ray.core.records import Progress, RoundRecord, Scoring, Stopped
from blossom_ray.errors import RunFolderError
from blossom_ray.reading.read_back import read_back
from blossom_ray.reading.scenario import Scenario, recorded_scenario
from blossom_ray.runs.late_scores import late_entry, with_late_scores, without_late_scores
from blossom_ray.runs.manifest import Manifest, Status
from blossom_ray.runs.table_files import TableStream, in_memory_tables, read_table
from blossom_ray.runs.table_sums import NO_ROWS, TableSums, check_sums, extended, lost_rows, sums_by_round, told_loss
from blossom_ray.runs.tables import ROUND_COLUMNS, TABLES, table_rows
from blossom_ray.storage import read_file, replacing, writing

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

SCENARIO_FILE = "scenario.yaml"
MANIFEST_FILE = "manifest.json"
CHECKPOINTS = "checkpoints"
# Entries of the manifest: what the tables of a run that has ended hold, and a checksum of its scenario.
_TABLE_SUMS = "tables"
_SCENARIO_SUM = "scenario_sha256"
_STOPPED = "stopped"
_LATE_SCORES = "late_scores"
# Rounds that a loop on Ray, and so its checkpoints, may be ahead of the tables.
_MOST_AHEAD = 2
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


@contextmanager
def remove_if_unbegun(folder: Path) -> Iterator[None]:
    """Take a new run's folder away again where what is done with it fails before there is a run in it."""
    try:
        yield
    except BaseException:
        with suppress(OSError, RunFolderError):
            _remove_unbegun(folder)
        raise


def _remove_unbegun(folder: Path) -> None:
    lock = locked(folder)
    try:
        # A folder with a manifest is a whole run folder, be it of a run that failed at once.
        if not (folder / MANIFEST_FILE).exists():
            shutil.rmtree(folder)
            folder.parent.rmdir()  # unless there are other runs
    finally:
        os.close(lock)


class RunWriter:
    """Writes a run folder; what a round brought is on disk when `write` returns.

    It holds a lock on the folder while it lives, which goes with its process however that ends.

    Args:
        folder: The run's folder, created when missing. It must not hold a run yet.
        scenario_yaml: The resolved scenario as YAML.
        manifest: Entries of `manifest.json` beside `status`, `started_at` and `ended_at` (UTC, ISO 8601).

    Attributes:
        sums: What the tables hold up to each round from 0 on.

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
        self._manifest[_SCENARIO_SUM] = _text_sum(scenario_yaml)
        self.sums: list[TableSums] = []
        # Last of all: a folder with a manifest is a whole run folder.
        self.update(**manifest)

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Go on writing the folder of a run that was interrupted, failed or was killed.

        Raises:
            RunFolderError: There is no such run, its process is still alive, or it is damaged in such a way that no
                checkpoint leads on from what is left. It is as it was then.
        """
        writer = cls.__new__(cls)
        writer.folder = folder
        writer._manifest = _read_manifest(folder)
        with writing(folder):
            writer._lock = locked(folder)
            with _unlocked_on_error(writer._lock):
                check_scenario_sum(folder, writer._manifest)
                tables = whole_tables(folder)
                if late := writer._manifest.get(_LATE_SCORES):
                    tables = without_late_scores(tables, late)
                lost = lost_rows(tables)
                writer.sums = sums_by_round(tables)[: None if lost is None else lost[0]]
                writer.checkpoints(lost and lost[1])  # nothing is written before it is known that the run can go on
                writer._tables = {
                    name: TableStream(folder, name, _rounds_up_to(table, len(writer.sums) - 1))
                    for name, table in tables.items()
                }
                for ended in (_TABLE_SUMS, _STOPPED, _LATE_SCORES):
                    writer._manifest.pop(ended, None)
        writer.update(status="running", ended_at=None)
        return writer

    @property
    def last_round(self) -> int | None:
        """The last round that is complete, None before the first."""
        return len(self.sums) - 1 if self.sums else None

    def checkpoints(self, lost: str | None = None) -> dict[int, TableSums]:
        """The rounds whose checkpoints go on from what the tables hold, with that; empty where there are none.

        Args:
            lost: What is known to be wrong with the rows behind those that `sums` is about.

        Raises:
            RunFolderError: There are checkpoints, and rows that they build on are lost.
        """
        folder = self.folder / CHECKPOINTS
        recorded = CheckpointStore(folder, keep=1).recorded_tables()
        # An earlier version has no rows in tables that it does not know.
        recorded = {number: sums and {**NO_ROWS, **sums} for number, sums in recorded.items()}
        there = {number: sums for number, sums in recorded.items() if number < len(self.sums)}
        usable = [number for number, sums in there.items() if sums is None or sums == self.sums[number]]
        differing = [(number, sums) for number, sums in there.items() if sums is not None and number not in usable]
        if not recorded or usable:
            return {number: self.sums[number] for number in usable}
        told = [lost] if lost else []
        if differing:
            number, sums = differing[0]
            told.append(told_loss(self.sums, sums, number))
        elif not lost and min(recorded) >= len(self.sums) + _MOST_AHEAD:
            told.append(f"rounds ends with round {self.last_round}" if self.sums else "rounds has no rows")
        if not told:
            return {}
        numbers = ", ".join(str(number) for number in sorted(recorded))
        raise RunFolderError(
            f"{self.folder}: rows of its tables are lost, and its checkpoints (after round {numbers}) go on from them: "
            f"{'; '.join(told)}; expected the tables as they were written, or a new run"
        )

    def settle(self, scenario_yaml: str) -> None:
        """Replace the scenario by one that says what the run has chosen, so that it gives the same bits again."""
        with writing(self.folder):
            _write_text(self.folder / SCENARIO_FILE, scenario_yaml)
        self.update(**{_SCENARIO_SUM: _text_sum(scenario_yaml)})

    def forget_after(self, round_index: int) -> None:
        """Take rows of later rounds out again: a run goes on from this one."""
        with writing(self.folder):
            for name, table in [*self._tables.items()]:
                table.close()
                kept = _rounds_up_to(read_table(self.folder, name), round_index)
                self._tables[name] = TableStream(self.folder, name, kept)
        del self.sums[round_index + 1 :]

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        with writing(self.folder):
            for table in self._tables.values():
                table.sync()

    def write(self, record: RoundRecord, profiles: Sequence[ClientProfile]) -> None:
        """Append one round to the tables.

        Args:
            record: The round; rounds come in order.
            profiles: All clients in the order of their ids.
        """
        rows = table_rows(record, profiles)
        with writing(self.folder):
            # `rounds` last: readers take its row as the sign that the round is complete.
            written = {name: self._tables[name].append(rows[name]) for name in (*[*TABLES][1:], "rounds")}
        self.sums.append(extended(self.sums[-1] if self.sums else NO_ROWS, written))

    def write_late(self, late: RoundRecord, profiles: Sequence[ClientProfile]) -> None:
        """Put scores into the rows of an earlier round; the run ends with this.

        Args:
            late: The round, with these scores and nothing else.
            profiles: All clients in the order of their ids.
        """
        # Said before it is done, so that whoever goes on from a half of it can take it out again.
        self.update(**{_LATE_SCORES: late_entry(late)})
        self._rewrite(lambda tables: with_late_scores(tables, late, profiles))

    def drop_late(self) -> None:
        """Take what `write_late` wrote out again: the run goes on."""
        late = self._manifest.pop(_LATE_SCORES, None)
        if late is not None:
            self._rewrite(lambda tables: without_late_scores(tables, late))

    def _rewrite(self, change: Callable[[dict[str, pa.Table]], dict[str, pa.Table]]) -> None:
        with writing(self.folder):
            for table in self._tables.values():
                table.close()
            tables = change({name: read_table(self.folder, name) for name in TABLES})
            self._tables = {name: TableStream(self.folder, name, table) for name, table in tables.items()}
        self.sums = sums_by_round(tables)

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest, which must be JSON values, and write it."""
        self._manifest |= entries
        with writing(self.folder):
            _write_text(self.folder / MANIFEST_FILE, json.dumps(self._manifest, indent=2) + "\n")

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The manifest's entries."""
        return self._manifest

    def close(self, status: EndStatus) -> None:
        """End the run: each table becomes one Parquet file, the manifest gets status, time and what the tables hold.

        Raises:
            StorageError: The disk is full. Tables that are no Parquet files yet can be read and gone on with.
        """
        try:
            with writing(self.folder):
                for table in self._tables.values():
                    table.close()
            sums = self.sums[-1] if self.sums else NO_ROWS
            self.update(status=status, ended_at=_now(), **{_TABLE_SUMS: sums})
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

    def check(self) -> None:
        """Find out whether the run is whole: its scenario and the rows of its tables are those that were written.

        Raises:
            RunFolderError: They are not, or contradict each other; with what is lost. A run that has not ended is
                looked at up to its last complete round.
            ScenarioError: As `scenario`.
        """
        if self.path is None:
            return
        manifest = self.manifest
        check_scenario_sum(self.path, manifest)
        # `rounds` first: what another process writes in the meantime is not missed in the others then.
        tables = whole_tables(self.path)
        num_rounds = tables["rounds"].num_rows
        last = self.scenario.rounds if self.stopped is None else self.stopped.round
        if manifest["status"] == "finished" and num_rounds != last + 1:
            raise RunFolderError(
                f"{self.path}: its manifest says that it has finished, and its table 'rounds' ends with round "
                f"{num_rounds - 1}; expected {last}"
            )
        if manifest["status"] != "running":
            for name, table in tables.items():
                check_sums(table, name, manifest.get(_TABLE_SUMS), self.path)
        lost = lost_rows(tables)
        if lost is not None:
            raise RunFolderError(f"{self.path}: rows of its tables are lost or were changed: {lost[1]}")

    @classmethod
    def from_records(
        cls,
        records: Iterable[RoundRecord],
        scenario: Scenario,
        profiles: Sequence[ClientProfile],
        manifest: Mapping[str, Any],
        late: RoundRecord | None = None,
    ) -> Self:
        """A run in memory, with the same frames as a folder would give.

        Args:
            records: The rounds in order.
            scenario: What was simulated.
            profiles: All clients in the order of their ids.
            manifest: What a folder's manifest would hold; `status` is `finished` unless given.
            late: As in `RunWriter.write_late`.
        """
        tables = in_memory_tables(records, profiles)
        if late is not None:
            tables = with_late_scores(tables, late, profiles)
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
    def status(self) -> Status:
        """`running` (also of a run that was killed), `finished`, `failed` or `interrupted`."""
        status: Status = self.manifest["status"]
        return status

    @property
    def stopped(self) -> Stopped | None:
        """Where a run with `stop` ended, and its best round; None for others, and until then."""
        found = self.manifest.get(_STOPPED)
        names = (field.name for field in fields(Stopped))
        return None if found is None else Stopped(**{name: found[name] for name in names})

    @property
    def rounds(self) -> pl.DataFrame:
        """One row per round, with every summary metric as a column."""
        return self._frame("rounds")

    @property
    def clients(self) -> pl.DataFrame:
        """One row per round and client that trained or was scored.

        The column `name` says what the user's data call the client, or its subjects, where they do.
        """
        import polars as pl

        frame, data = self._frame("clients"), self.manifest.get("data") or {}
        names = data.get("client_names") or []
        if not names:
            return frame
        name = pl.col("client").replace_strict(range(len(names)), names, default=None, return_dtype=pl.String)
        return frame.select("round", "client", name.alias("name"), pl.all().exclude("round", "client"))

    @property
    def blocks(self) -> pl.DataFrame:
        """One row per round and block instance."""
        return self._frame("blocks")

    @property
    def failures(self) -> pl.DataFrame:
        """One row per failure and client concerned: what happened, and what was done about it."""
        return self._frame("failures")

    @property
    def classes(self) -> pl.DataFrame:
        """One row per class, in the rounds that `evaluation.per_class` names, by scoring and modality set."""
        return self._frame("classes")

    @property
    def confusion(self) -> pl.DataFrame:
        """One row per true and predicted class with samples, in the rounds of `classes`, by scoring and modality set.

        Examples:
            >>> own = run.confusion.filter(pl.col("scoring") == "test")
            >>> own.pivot("predicted", index="label", values="count", aggregate_function="sum").fill_null(0)
        """
        return self._frame("confusion")

    @property
    def final(self) -> dict[str, float]:
        """The summary metrics of the last evaluated round, with `stop` of the best one; empty when there is none."""
        best = None if self.stopped is None else self.stopped.best_round
        for row in reversed(self.rounds.to_dicts()):
            if row["num_evaluated"] and best in (None, row["round"]):
                return {name: value for name, value in row.items() if name not in ROUND_COLUMNS and value is not None}
        return {}

    @property
    def late_scores(self) -> Progress | None:
        """What a run with `stop` scored at its end, as a part of the round to which it belongs; None without any."""
        import polars as pl

        entry = self.manifest.get(_LATE_SCORES)
        if entry is None:
            return None
        is_there = pl.col("round") == entry["round"]
        metrics = {
            name: value
            for row in self.rounds.filter(is_there).to_dicts()
            for name, value in row.items()
            if value is not None and name not in {*ROUND_COLUMNS, "train_loss"}
            if Scoring.of_column(name).prefix in entry["prefixes"]
        }
        return Progress(entry["round"], metrics, 0.0, num_failures=self.failures.filter(is_there)["event"].n_unique())

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else repr(str(self.path))
        return f"Run({place}, {self.status}, {self.rounds.height} rows in rounds)"

    def _frame(self, name: str) -> pl.DataFrame:
        import polars as pl

        if name in self._frames:
            return self._frames[name]
        # Asked before the table is read: a run that ends in between is read once more, not kept half.
        has_ended = self.status != "running"
        table = self._read_table(name)
        if has_ended:
            check_sums(table, name, self.manifest.get(_TABLE_SUMS), self.path)
        frame = pl.DataFrame(table)
        if name != "rounds":
            last = self.rounds["round"].to_list()[-1:] or [-1]
            frame = frame.filter(pl.col("round") <= last[0])
        if has_ended:
            self._frames[name] = frame
        return frame


def whole_tables(folder: Path) -> dict[str, pa.Table]:
    """The tables of a run, `rounds` with the rounds 0, 1, 2 and so on.

    Raises:
        RunFolderError: A table is missing or damaged.
    """
    tables = {name: read_table(folder, name) for name in TABLES}
    # A round counts once its row is in `rounds`, which is written last.
    rounds = tables["rounds"]["round"].to_pylist()
    for number, found in enumerate(rounds):
        if found != number:
            raise RunFolderError(
                f"{folder}: its table 'rounds' has round {found} in row {number}; expected 0, 1, 2, ..."
            )
    return tables


def check_scenario_sum(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a run whose scenario is not the one that it was written with.

    Raises:
        RunFolderError: It is another one, or cannot be read.
    """
    path = folder / SCENARIO_FILE
    if _SCENARIO_SUM not in manifest:
        return
    try:
        content = read_file(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != manifest[_SCENARIO_SUM]:
        raise RunFolderError(f"{path}: is not the scenario that the run was written with; expected that one, unchanged")


def _text_sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(f"{folder}: {found}; expected a run folder")
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(read_file(path))
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder}: has no {MANIFEST_FILE}; expected a run folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    read_back(Manifest, manifest, path)
    return dict(manifest)


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
