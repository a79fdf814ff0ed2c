"""The run folder, read by `Run` at any time; `runs/writer.py` writes it round by round.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.locations import local_path
from blossom_ray.core.records import Progress, RoundRecord, Scoring, Stopped
from blossom_ray.core.scores import is_of_training
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.reading.read_back import read_back
from blossom_ray.reading.scenario import Scenario, recorded_scenario
from blossom_ray.runs.late_scores import with_late_scores
from blossom_ray.runs.manifest import Manifest, Status
from blossom_ray.runs.table_files import in_memory_tables, read_table
from blossom_ray.runs.table_sums import check_sums, lost_rows
from blossom_ray.runs.tables import ROUND_COLUMNS, TABLES
from blossom_ray.storage import read_file

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from blossom_ray.checkpoint import Checkpoint
    from blossom_ray.models.standalone import StandaloneModel

SCENARIO_FILE = "scenario.yaml"
MANIFEST_FILE = "manifest.json"
CHECKPOINTS = "checkpoints"
TABLE_SUMS = "tables"
"""Entry of the manifest: what the tables of a run that has ended hold, as `table_sums.py` has it."""
SCENARIO_SUM = "scenario_sha256"
"""Entry of the manifest: a checksum of its scenario."""
STOPPED, LATE_SCORES = "stopped", "late_scores"
"""Entries of the manifest of a run with `stop`, as `manifest.py` has them."""


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
        return cls(folder, read_manifest(folder), partial(read_table, folder))

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
                check_sums(table, name, manifest.get(TABLE_SUMS), self.path)
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
            self._manifest = read_manifest(self.path)
        return self._manifest

    @property
    def status(self) -> Status:
        """`running` (also of a run that was killed), `finished`, `failed` or `interrupted`."""
        status: Status = self.manifest["status"]
        return status

    @property
    def stopped(self) -> Stopped | None:
        """Where a run with `stop` ended, and its best round; None for others, and until then."""
        found = self.manifest.get(STOPPED)
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

        entry = self.manifest.get(LATE_SCORES)
        if entry is None:
            return None
        is_there = pl.col("round") == entry["round"]
        metrics = {
            name: value
            for row in self.rounds.filter(is_there).to_dicts()
            for name, value in row.items()
            if value is not None and name not in ROUND_COLUMNS and not is_of_training(name)
            if Scoring.of_column(name).prefix in entry["prefixes"]
        }
        return Progress(entry["round"], metrics, 0.0, num_failures=self.failures.filter(is_there)["event"].n_unique())

    def model(
        self, client: int | None = None, *, round_index: int | Literal["best", "last"] | None = None
    ) -> StandaloneModel:
        """A model to take away: that with which a client was scored, or the one that all clients share.

        It is a plain `torch.nn.Module` in evaluation mode that maps a dict of modality to (B, *shape) to the outputs
        (B, O); `weights()` and `description` say what it consists of.

        Args:
            client: The client's id; None: the model of all clients, where they share every block of it.
            round_index: A round whose checkpoint the run has kept, the best one of a run with `stop`, or the last one.
                None: that of `final`.

        Raises:
            RunFolderError: The run has kept no checkpoint of the round.
            InputError: There is no such client, or the clients share no whole model.

        Examples:
            >>> model = run.model(client=3)
            >>> model({"acc": torch.zeros(1, 128, 3)})
        """
        from blossom_ray.runs.exporting import taken_model

        return taken_model(self._checkpoint(round_index), self.scenario, self.manifest, client)

    def extras(
        self, client: int, *, round_index: int | Literal["best", "last"] | None = None
    ) -> Mapping[str, Mapping[str, np.ndarray]]:
        """What the algorithm keeps for a client, its extras of scope `private`, by name and then by block.

        Args:
            client: The client's id.
            round_index: As in `model`.

        Returns:
            Arrays of the extras' dtypes and shapes, vectors of blocks flat. Empty where nothing was kept.

        Raises:
            RunFolderError: The run has kept no checkpoint of the round.
            InputError: There is no such client.

        Examples:
            >>> run.extras(client=3)["lean"]["head"]    # of `algorithm: {kind: mixed}`
        """
        from blossom_ray.runs.exporting import kept_extras

        return kept_extras(self._checkpoint(round_index), self.scenario, client)

    def _checkpoint(self, round_index: int | Literal["best", "last"] | None) -> Checkpoint:
        from blossom_ray.runs.exporting import kept_checkpoint

        if self.path is None:
            raise InputError("the run has no folder, and so no checkpoints; expected simulate(scenario, out=...)")
        best = None if self.stopped is None else self.stopped.best_round
        if round_index == "best" and best is None:
            raise InputError(f"{self.path}: has no best round, which stop would have found; expected the last one")
        last = self.rounds.height - 1
        if last < 0:
            raise RunFolderError(f"{self.path}: has no complete round yet; expected one, with a checkpoint")
        match round_index:
            case None | "best":
                number = last if best is None else best
            case "last":
                number = last
            case _:
                number = round_index
        return kept_checkpoint(self.path / CHECKPOINTS, self.scenario, number)

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
            check_sums(table, name, self.manifest.get(TABLE_SUMS), self.path)
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
    if SCENARIO_SUM not in manifest:
        return
    try:
        content = read_file(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != manifest[SCENARIO_SUM]:
        raise RunFolderError(f"{path}: is not the scenario that the run was written with; expected that one, unchanged")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a run's manifest says.

    Raises:
        RunFolderError: No such folder, no run folder, or a damaged manifest.
    """
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


def lock_folder(folder: Path, holder: str = "run") -> int:
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
