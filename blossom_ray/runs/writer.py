"""Writes a run folder round by round, and takes up again what an earlier attempt left."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from blossom_ray.checkpoint import CheckpointStore
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.records import RoundRecord
from blossom_ray.errors import RunFolderError
from blossom_ray.runs.folder import (
    CHECKPOINTS,
    LATE_SCORES,
    MANIFEST_FILE,
    SCENARIO_FILE,
    SCENARIO_SUM,
    STOPPED,
    TABLE_SUMS,
    check_scenario_sum,
    lock_folder,
    read_manifest,
    whole_tables,
)
from blossom_ray.runs.late_scores import describe_late_scores, with_late_scores, without_late_scores
from blossom_ray.runs.table_files import TableStream, read_table
from blossom_ray.runs.table_sums import NO_ROWS, TableSums, add_rows, describe_loss, lost_rows, sums_by_round
from blossom_ray.runs.tables import TABLES, table_rows
from blossom_ray.storage import replacing, writing

if TYPE_CHECKING:
    import pyarrow as pa

EndStatus = Literal["finished", "failed", "interrupted"]
# Rounds that a loop on Ray, and so its checkpoints, may be ahead of the tables.
_MOST_AHEAD = 2


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
    lock = lock_folder(folder)
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
            self._lock = lock_folder(folder)
            with _unlocked_on_error(self._lock):
                if (folder / MANIFEST_FILE).exists():
                    raise RunFolderError(f"{folder}: holds a run already; expected a new folder")
                _write_text(folder / SCENARIO_FILE, scenario_yaml)
                self._tables = {name: TableStream(folder, name) for name in TABLES}
        self._manifest: dict[str, Any] = {"status": "running", "started_at": _now(), "ended_at": None}
        self._manifest[SCENARIO_SUM] = hashlib.sha256(scenario_yaml.encode()).hexdigest()
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
        writer._manifest = read_manifest(folder)
        with writing(folder):
            writer._lock = lock_folder(folder)
            with _unlocked_on_error(writer._lock):
                check_scenario_sum(folder, writer._manifest)
                tables = whole_tables(folder)
                if late := writer._manifest.get(LATE_SCORES):
                    tables = without_late_scores(tables, late)
                lost = lost_rows(tables)
                writer.sums = sums_by_round(tables)[: None if lost is None else lost[0]]
                writer.checkpoints(lost and lost[1])  # nothing is written before it is known that the run can go on
                writer._tables = {
                    name: TableStream(folder, name, _rounds_up_to(table, len(writer.sums) - 1))
                    for name, table in tables.items()
                }
                for ended in (TABLE_SUMS, STOPPED, LATE_SCORES):
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
            told.append(describe_loss(self.sums, sums, number))
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
        self.update(**{SCENARIO_SUM: hashlib.sha256(scenario_yaml.encode()).hexdigest()})

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
        self.sums.append(add_rows(self.sums[-1] if self.sums else NO_ROWS, written))

    def write_late(self, late: RoundRecord, profiles: Sequence[ClientProfile]) -> None:
        """Put scores into the rows of an earlier round; the run ends with this.

        Args:
            late: The round, with these scores and nothing else.
            profiles: All clients in the order of their ids.
        """
        # Said before it is done, so that whoever goes on from a half of it can take it out again.
        self.update(**{LATE_SCORES: describe_late_scores(late)})
        self._rewrite(lambda tables: with_late_scores(tables, late, profiles))

    def drop_late(self) -> None:
        """Take what `write_late` wrote out again: the run goes on."""
        late = self._manifest.pop(LATE_SCORES, None)
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
            self.update(status=status, ended_at=_now(), **{TABLE_SUMS: sums})
        finally:
            os.close(self._lock)


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
